"""Reading radiographs, data lists, splits and checks; heavy parts (MONAI) are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afire_monai.data.check import CheckReport, check_path
    from afire_monai.data.datalist import (
        DataListReport,
        datalist_from_csv,
        datalist_from_folder,
        load_datalist,
        save_datalist,
        training_items,
        validate_datalist,
    )
    from afire_monai.data.decode import list_images, read_picture
    from afire_monai.data.reader import RadiographReader
    from afire_monai.data.splits import split_by_group
    from afire_monai.data.subsets import label_fraction, patient_folds
    from afire_monai.data.targets import positive_weights, target_matrix

_HOME = {
    "CheckReport": "check",
    "DataListReport": "datalist",
    "RadiographReader": "reader",
    "check_path": "check",
    "datalist_from_csv": "datalist",
    "datalist_from_folder": "datalist",
    "label_fraction": "subsets",
    "list_images": "decode",
    "load_datalist": "datalist",
    "patient_folds": "subsets",
    "positive_weights": "targets",
    "read_picture": "decode",
    "save_datalist": "datalist",
    "split_by_group": "splits",
    "target_matrix": "targets",
    "training_items": "datalist",
    "validate_datalist": "datalist",
}
__all__ = [
    "CheckReport",
    "DataListReport",
    "RadiographReader",
    "check_path",
    "datalist_from_csv",
    "datalist_from_folder",
    "label_fraction",
    "list_images",
    "load_datalist",
    "patient_folds",
    "positive_weights",
    "read_picture",
    "save_datalist",
    "split_by_group",
    "target_matrix",
    "training_items",
    "validate_datalist",
]


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, when the name is first used."""
    if name in _HOME:
        return getattr(import_module(f"afire_monai.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'afire_monai.data' has no attribute {name!r}")
