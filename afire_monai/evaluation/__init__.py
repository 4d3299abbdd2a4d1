"""Evaluation of encoders: probes on frozen features, with intervals."""

from afire_monai.evaluation.bootstrap import AurocInterval, bootstrap_auroc, bootstrap_auroc_difference
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe, raw_pixels

__all__ = [
    "AurocInterval",
    "bootstrap_auroc",
    "bootstrap_auroc_difference",
    "extract_features",
    "knn_probe",
    "linear_probe",
    "raw_pixels",
]
