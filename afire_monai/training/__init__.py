"""Training: plan, trainer, checkpoints, health checks and logs."""

from afire_monai.training import budget, finetuning, finish, startup, task_data, tasks
from afire_monai.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.handlers import CsvLogger, HealthMonitor, PanelWriter, ProgressBar
from afire_monai.training.plan import LARS, TrainingPlan, parameter_groups
from afire_monai.training.tracking import RunTracker, mlflow_handler
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.training.validation import ValidationMonitor, predict_dataset

__all__ = [
    "LARS",
    "CheckpointKeeper",
    "CsvLogger",
    "HealthMonitor",
    "PanelWriter",
    "PretrainTrainer",
    "ProgressBar",
    "RunTracker",
    "TrainingPlan",
    "ValidationMonitor",
    "budget",
    "find_checkpoint",
    "finetuning",
    "finish",
    "load_checkpoint",
    "mlflow_handler",
    "parameter_groups",
    "predict_dataset",
    "save_checkpoint",
    "startup",
    "task_data",
    "tasks",
]
