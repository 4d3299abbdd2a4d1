"""Data lists: which images, of which patient, in which section, with which labels."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["datalist_from_folder"],
        "check": ["CheckReport", "check_path"],
        "file": ["datalist_hash", "is_normal", "load_datalist", "save_datalist", "training_items"],
        "from_csv": ["datalist_from_csv"],
        "merge": ["merge_datalists"],
        "splits": ["split_by_group"],
        "validate": ["DataListReport", "validate_datalist"],
    },
)
