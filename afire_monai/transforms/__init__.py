"""Transforms: the abnormal twin of a normal radiograph, random views, and augmentation for fine-tuning."""

from __future__ import annotations

from afire_monai.transforms.augment import RadiographAugment
from afire_monai.transforms.lesion import SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.lesion_batch import SyntheticLesionMaskBatch
from afire_monai.transforms.lesion_settings import LesionRecord, LesionSettings
from afire_monai.transforms.views import RandomViews, ViewAugment

__all__ = [
    "LesionRecord",
    "LesionSettings",
    "RadiographAugment",
    "RandomViews",
    "SyntheticLesionMask",
    "SyntheticLesionMaskBatch",
    "SyntheticLesionMaskd",
    "ViewAugment",
]
