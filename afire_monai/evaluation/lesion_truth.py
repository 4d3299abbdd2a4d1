"""Where lesions are, as the data list says: boxes and masks of its items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from afire_monai.core.errors import DataListError
from afire_monai.evaluation.heatmaps import lesion_pixels
from afire_monai.evaluation.localisation import LesionCase
from afire_monai.evaluation.overlap import IGNORE
from afire_monai.radiographs.decode import read_picture


def picture_shape(path: str) -> tuple[int, int]:
    """Give height and width of a stored radiograph, from its header where that is enough.

    Raises:
        RadiographError: if it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.format in ("PNG", "JPEG"):
                return picture.height, picture.width
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # the decoder says what is wrong
    height, width = read_picture(path, modalities=None).pixels.shape
    return int(height), int(width)


def read_mask(path: str) -> NDArray[np.uint8]:
    """Read a drawn mask (H, W) of label values 0…255.

    Raises:
        DataListError: if it is not an 8-bit picture of one channel.
    """
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            pixels = np.array(picture.convert("L") if mode == "1" else picture)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DataListError(
            f"{path}: not a mask ({type(error).__name__}); a PNG of label values is expected"
        ) from error
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise DataListError(f"{path}: a mask has one channel of 8 bits, this is {mode}; save it as grey PNG")
    return pixels


def lesion_case(
    item: dict[str, Any], where: str, group: str, box_name: str = "", masks: bool = False
) -> LesionCase | None:
    """Give the lesions of an item, or None if it has none of that kind.

    Args:
        item: of a data list.
        where: section and place, for messages.
        group: patient.
        box_name: take the boxes of this name only; "" for all.
        masks: the item's mask, if it has one, shows lesions, which then count instead of the boxes' pixels.

    Raises:
        DataListError: for a box that is malformed or outside the picture, or a mask of another size.
        RadiographError: if the picture cannot be read.
    """
    boxes = np.array([_box(box, where) for box in item.get("boxes") or [] if not box_name or box[4:] == [box_name]])
    mask = read_mask(item["mask"]) if masks and item.get("mask") and not box_name else None
    drawn = None if mask is None else (mask != 0) & (mask != IGNORE)
    drawn = drawn if drawn is not None and drawn.any() else None
    if not len(boxes) and drawn is None:
        return None
    shape = picture_shape(item["image"])
    if drawn is not None and drawn.shape != shape:
        raise DataListError(f"{where}: its mask is {drawn.shape}, its picture {shape}; both must be of one size")
    boxes = boxes.reshape(-1, 4)
    if drawn is None and not lesion_pixels(boxes, shape).any():
        raise DataListError(
            f"{where}: no box lies within the picture of {shape[0]} rows and {shape[1]} columns; boxes are [x, y, "
            "width, height, name] in pixels of the stored picture"
        )
    return LesionCase(shape, boxes, group, drawn)


def box_names(items: list[dict[str, Any]]) -> list[str]:
    """Names of the boxes of items, sorted."""
    return sorted({str(box[4]) for item in items for box in _boxes_of(item) if isinstance(box, list) and len(box) == 5})


def _box(box: Any, where: str) -> list[float]:
    numbers = box[:4] if isinstance(box, list) and len(box) == 5 else []
    sound = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers)
    if not numbers or not sound or min(numbers[2:]) <= 0:
        raise DataListError(f"{where}: box {box!r}; [x, y, width, height, name] in pixels is expected")
    return [float(v) for v in numbers]


def _boxes_of(item: dict[str, Any]) -> list[Any]:
    boxes = item.get("boxes") or []
    if not isinstance(boxes, list):
        raise DataListError(
            f"'boxes' of an item is {str(boxes)[:60]}; a list of [x, y, width, height, name] is expected"
        )
    return boxes
