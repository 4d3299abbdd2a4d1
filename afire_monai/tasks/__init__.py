"""Supervised tasks on a pre-trained encoder: multi-label classification and segmentation."""

from afire_monai.tasks.base import Task, task_parameter_groups
from afire_monai.tasks.calibration import calibrate, choose_thresholds, fit_calibration
from afire_monai.tasks.classification import Classification
from afire_monai.tasks.data import TaskData, classification_data, segmentation_data
from afire_monai.tasks.files import export_task, initial_encoder, load_classifier, load_segmenter
from afire_monai.tasks.masks import MaskReading
from afire_monai.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "MaskReading",
    "Segmentation",
    "Task",
    "TaskData",
    "calibrate",
    "choose_thresholds",
    "classification_data",
    "export_task",
    "fit_calibration",
    "initial_encoder",
    "load_classifier",
    "load_segmenter",
    "segmentation_data",
    "task_parameter_groups",
]
