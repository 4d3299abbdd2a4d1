"""A procedural chest-radiograph phantom: data for trials and tests that need no patient and no download."""

from __future__ import annotations

from afire_monai.phantom.archive import write_phantom_archive
from afire_monai.phantom.chest import PHANTOM_LABELS, ChestPhantom, PhantomSample, write_phantom_dataset

__all__ = ["PHANTOM_LABELS", "ChestPhantom", "PhantomSample", "write_phantom_archive", "write_phantom_dataset"]
