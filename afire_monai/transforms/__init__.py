"""Transforms that make the abnormal twin of a normal radiograph."""

from __future__ import annotations

from afire_monai.transforms.lesion import SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.lesion_batch import SyntheticLesionMaskBatch
from afire_monai.transforms.lesion_settings import LesionRecord, LesionSettings

__all__ = [
    "LesionRecord",
    "LesionSettings",
    "SyntheticLesionMask",
    "SyntheticLesionMaskBatch",
    "SyntheticLesionMaskd",
]
