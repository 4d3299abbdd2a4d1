"""Masks in a folder beside that of the images."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.radiographs.masks import MASK_SUFFIXES, read_mask


def refuse_pictures_of_masks(paths: Sequence[Path], root: Path) -> None:
    """Refuse a folder whose pictures have two values each: they are masks, and would be taken for radiographs.

    Raises:
        DataListError: the folder is named.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and len(folders[path.parent]) < 4:
            folders[path.parent].append(path)
    for folder, some in folders.items():
        values = []
        for path in some:
            with contextlib.suppress(RadiographError):
                values.append(len(np.unique(read_mask(path))))
        if len(values) > 1 and len(values) == len(some) and max(values) <= 2:
            raise DataListError(
                f"{folder}: its pictures have two values each, as masks have. If they are masks, give "
                f"--masks {folder}; if not, move them out of {root}"
            )


def add_masks(items: Sequence[dict[str, Any]], root: Path, masks: Path) -> int:
    """Return items the masks of their names, and return how many masks have no image.

    Raises:
        DataListError: no folder, two masks or two images of one name, or no mask of any image.
    """
    if not masks.is_dir():
        raise DataListError(f"{masks}: no such folder. Give the folder of the masks")
    images: dict[str, dict[str, Any]] = {}
    for item in items:
        if (other := images.setdefault(Path(item["image"]).stem, item)) is not item:
            raise DataListError(f"{item['image']} and {other['image']}: which of them is the mask of that name for?")
    unused = 0
    for path in sorted(p for p in masks.rglob("*") if p.suffix.lower() in MASK_SUFFIXES and p.name[0] != "."):
        stem = path.stem if path.stem in images else re.sub("(?i)[_-](mask|seg|label)s?$", "", path.stem)
        if stem not in images:
            unused += 1
        elif "mask" in images[stem]:
            raise DataListError(f"{path} and {images[stem]['mask']} could both be the mask of {images[stem]['image']}")
        else:
            images[stem]["mask"] = str(path)
    if not any("mask" in item for item in items):
        raise DataListError(
            f"{masks}: none of its {unused} pictures is named as an image below {root} is (1.png or 1_mask.png)"
        )
    return unused
