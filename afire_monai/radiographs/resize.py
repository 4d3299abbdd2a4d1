"""Reducing a picture by averaging areas, without a deep-learning library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def area_average(pixels: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Average over areas, as PyTorch's adaptive average pooling and MONAI's ``Resized(mode="area")`` do.

    Output row i averages the rows from ⌊i·H/h⌋ up to ⌈(i+1)·H/h⌉; columns alike.

    Args:
        pixels: (H, W).
        size: height and width of the result, h and w.
    """
    rows = _average_rows(pixels, size[0])
    return np.ascontiguousarray(_average_rows(np.ascontiguousarray(rows.T), size[1]).T)


def _average_rows(pixels: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    length = len(pixels)
    if count == length:
        return pixels
    starts = np.arange(count) * length // count
    ends = -(-np.arange(1, count + 1) * length // count)
    if count > length:
        pixels = np.concatenate([pixels, pixels[-1:]])  # several areas end with the last row
    # sums between neighbours of start, end, start, end …; every other one lies between two areas and is dropped
    edges = np.stack([starts, ends], 1).reshape(-1)
    sums = np.add.reduceat(pixels, edges if count > length else edges[:-1], axis=0)[::2]
    return np.asarray(sums / (ends - starts)[:, None].astype(np.float32), dtype=np.float32)
