"""Write mask pictures that a data set does not have as one file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import DataListError
from afire_monai.core.files import whole_file
from afire_monai.datalists.file import StrPath


def mask_folder(masks: StrPath | None, out: StrPath | None) -> Path | None:
    """Folder for mask pictures: the one given, else ``<list>_masks`` beside the list, else None (none are written)."""
    if masks is not None:
        return Path(masks).absolute()
    return None if out is None else Path(out).absolute().with_name(f"{Path(out).stem}_masks")


def write_mask(mask: NDArray[np.bool_], path: Path) -> str:
    """Write a mask (H, W) as an 8-bit PNG of 255 and 0, in one piece, and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        Image.fromarray(mask.astype(np.uint8) * 255).save(part, format="PNG")
    return str(path)


def union_of_pictures(paths: Sequence[Path], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Union (H, W) of mask pictures that are not black, brought to a size (width, height) by nearest neighbours.

    Raises:
        DataListError: a file is no picture.
    """
    mask = np.zeros((size[1], size[0]), dtype=bool)
    for path in paths:
        try:
            with Image.open(path) as picture:
                mask |= np.asarray(picture.convert("L").resize(size, Image.Resampling.NEAREST)) > 0
        except OSError as error:
            raise DataListError(f"{path}: not a readable mask picture ({error}). Fetch it again") from error
    return mask


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture.

    Raises:
        DataListError: it is none.
    """
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError as error:
        raise DataListError(f"{path}: not a readable picture ({error}). Fetch it again") from error
