"""What a trained model says of radiographs: restoration, anomaly maps, where it looked, predictions of folders."""

from __future__ import annotations

from afire_monai.inference.attribution import attention_rollout, grad_cam
from afire_monai.inference.bundle_writer import ResultWriter
from afire_monai.inference.restoration import AnomalyInferer, AnomalyNetwork, AnomalyOutput, load_restorer

__all__ = [
    "AnomalyInferer",
    "AnomalyNetwork",
    "AnomalyOutput",
    "ResultWriter",
    "attention_rollout",
    "grad_cam",
    "load_restorer",
]
