"""Transforms: the abnormal twin of a normal radiograph, and augmentation for fine-tuning."""

from __future__ import annotations

from afire_monai.transforms.augment import RadiographAugment
from afire_monai.transforms.lesion import SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.lesion_batch import SyntheticLesionMaskBatch
from afire_monai.transforms.lesion_settings import LesionRecord, LesionSettings

__all__ = [
    "LesionRecord",
    "LesionSettings",
    "RadiographAugment",
    "SyntheticLesionMask",
    "SyntheticLesionMaskBatch",
    "SyntheticLesionMaskd",
]
