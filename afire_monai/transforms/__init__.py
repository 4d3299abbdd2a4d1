"""Transforms: the abnormal twin of a normal radiograph, random views, and augmentation for fine-tuning."""

from __future__ import annotations

from afire_monai.transforms.anatomy import Anatomy
from afire_monai.transforms.augment import ExposureChange, RadiographAugment
from afire_monai.transforms.lesion import LesionRecord, SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.lesion_settings import LesionSettings
from afire_monai.transforms.views import RandomViews, ViewAugment

__all__ = [
    "Anatomy",
    "ExposureChange",
    "LesionRecord",
    "LesionSettings",
    "RadiographAugment",
    "RandomViews",
    "SyntheticLesionMask",
    "SyntheticLesionMaskd",
    "ViewAugment",
]
