"""Data lists: the public functions, from the modules that hold them."""

from __future__ import annotations

from afire_monai.data.datalist_build import datalist_from_folder
from afire_monai.data.datalist_csv import datalist_from_csv
from afire_monai.data.datalist_file import (
    SECTIONS,
    datalist_hash,
    is_normal,
    load_datalist,
    save_datalist,
    training_items,
)
from afire_monai.data.datalist_validate import DataListReport, Problem, validate_datalist

__all__ = [
    "SECTIONS",
    "DataListReport",
    "Problem",
    "datalist_from_csv",
    "datalist_from_folder",
    "datalist_hash",
    "is_normal",
    "load_datalist",
    "save_datalist",
    "training_items",
    "validate_datalist",
]
