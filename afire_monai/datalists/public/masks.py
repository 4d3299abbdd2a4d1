"""Write pictures and masks that a data set does not store as one file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.datalists.file import StrPath
from afire_monai.radiographs.masks import read_mask
from afire_monai.radiographs.raster import write_png


def output_folder(given: StrPath | None, out: StrPath | None, kind: str = "masks") -> Path | None:
    """Return the folder for pictures: the one given, else ``<list>_<kind>`` beside the list, else None."""
    if given is not None:
        return Path(given).absolute()
    return None if out is None else Path(out).absolute().with_name(f"{Path(out).stem}_{kind}")


def write_mask(mask: NDArray[np.bool_], path: Path) -> str:
    """Write a mask (H, W) as an 8-bit PNG of 255 and 0, in one piece, and return its path."""
    return write_picture(mask.astype(np.uint8) * 255, path)


def write_picture(pixels: NDArray[np.uint8], path: Path) -> str:
    """Write a picture (H, W) as an 8-bit PNG, in one piece, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels)
    return str(path)


def union_of_pictures(paths: Sequence[Path], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Union (H, W) of mask pictures that are not black, brought to a shape by nearest neighbours.

    Raises RadiographError if a file is not a mask.
    """
    masks = (Image.fromarray(read_mask(path) > 0).resize(shape[::-1], Image.Resampling.NEAREST) for path in paths)
    return np.logical_or.reduce([np.asarray(mask) for mask in masks])
