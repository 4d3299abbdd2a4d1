"""Run-length masks of the SIIM-ACR pneumothorax challenge."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import DataListError

EMPTY = "-1"


def decode_relative_rle(text: str, height: int, width: int, where: str = "run lengths") -> NDArray[np.bool_]:
    """Decode pairs "gap length gap length …", where a gap counts pixels since the end of the run before.

    Pixels are counted from 0, down the first column, then down the second. (Other challenges give starts from the
    beginning of the picture, counted from 1.)

    Args:
        text: the pairs; "-1" for an empty mask.
        height: rows.
        width: columns.
        where: for messages.

    Returns:
        (H, W) bool.

    Raises:
        DataListError: not pairs of whole numbers, or they reach beyond the picture.
    """
    mask = np.zeros(height * width, dtype=bool)
    if text.strip() == EMPTY:
        return mask.reshape(height, width)
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(0, dtype=np.int64)
    if len(numbers) == 0 or len(numbers) % 2 or (numbers < 0).any():
        raise DataListError(f"{where}: {text[:40]!r}; pairs of gap and length, or -1, are expected")
    gaps, lengths = numbers[0::2], numbers[1::2]
    ends = np.cumsum(gaps + lengths)
    if ends[-1] > mask.size:
        raise DataListError(
            f"{where}: the runs end at pixel {ends[-1]} of {mask.size}; gaps counted from the run before are expected"
        )
    steps = np.zeros(mask.size + 1, dtype=np.int64)
    np.add.at(steps, ends - lengths, 1)
    np.add.at(steps, ends, -1)
    return (np.cumsum(steps[:-1]) > 0).reshape(width, height).T


def union_of_runs(texts: Iterable[str], height: int, width: int, where: str = "run lengths") -> NDArray[np.bool_]:
    """Union of several run-length masks of one picture; see `decode_relative_rle`."""
    mask = np.zeros((height, width), dtype=bool)
    for text in texts:
        mask |= decode_relative_rle(text, height, width, where)
    return mask
