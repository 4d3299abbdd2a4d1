"""Training: plan, trainer, checkpoints, health checks and logs."""

from afire_monai.engines import budget, finetuning, startup
from afire_monai.engines.checkpoint import CheckpointKeeper, find_checkpoint, load_checkpoint, save_checkpoint
from afire_monai.engines.handlers import CsvLogger, HealthMonitor, PanelWriter, ProgressBar, mlflow_handler
from afire_monai.engines.lars import LARS
from afire_monai.engines.plan import TrainingPlan, parameter_groups
from afire_monai.engines.trainer import PretrainTrainer
from afire_monai.engines.validation import ValidationMonitor, predict_dataset

__all__ = [
    "LARS",
    "CheckpointKeeper",
    "CsvLogger",
    "HealthMonitor",
    "PanelWriter",
    "PretrainTrainer",
    "ProgressBar",
    "TrainingPlan",
    "ValidationMonitor",
    "budget",
    "find_checkpoint",
    "finetuning",
    "load_checkpoint",
    "mlflow_handler",
    "parameter_groups",
    "predict_dataset",
    "save_checkpoint",
    "startup",
]
