"""Evaluation of encoders: probes on frozen features, with intervals."""

from afire_monai.evaluation.bootstrap import AurocInterval, bootstrap_auroc, bootstrap_auroc_difference
from afire_monai.evaluation.predictions import Predictions, PredictionsWriter, load_predictions, save_predictions
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe, raw_pixels

__all__ = [
    "AurocInterval",
    "Predictions",
    "PredictionsWriter",
    "bootstrap_auroc",
    "bootstrap_auroc_difference",
    "extract_features",
    "knn_probe",
    "linear_probe",
    "load_predictions",
    "raw_pixels",
    "save_predictions",
]
