"""What a trained model says of radiographs: restoration, anomaly maps, where it looked, predictions of folders."""

from __future__ import annotations

from afire_monai.inference.anomaly import AnomalyDetector, AnomalyFeatures
from afire_monai.inference.attribution import attention_rollout, grad_cam
from afire_monai.inference.build_reference import build_reference
from afire_monai.inference.bundle_writer import ResultWriter
from afire_monai.inference.load_detector import load_detector
from afire_monai.inference.make_reference import make_reference
from afire_monai.inference.predict import predict
from afire_monai.inference.reference import NormalReference
from afire_monai.inference.restoration import AnomalyInferer, AnomalyNetwork, AnomalyOutput, load_restorer

__all__ = [
    "AnomalyDetector",
    "AnomalyFeatures",
    "AnomalyInferer",
    "AnomalyNetwork",
    "AnomalyOutput",
    "NormalReference",
    "ResultWriter",
    "attention_rollout",
    "build_reference",
    "grad_cam",
    "load_detector",
    "load_restorer",
    "make_reference",
    "predict",
]
