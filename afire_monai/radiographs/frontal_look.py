"""Judge by coarse grey levels alone whether a picture looks like an upright frontal chest radiograph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEAST_LUNG_FIELDS = 0.05
LEAST_LIKENESS = -4.0
_SIDE, _CELLS = 64, 8
# from `benchmarks/look.py --fit`: weights of the left four columns of 8 × 8 grey levels, and of their mirror images
WEIGHTS = np.array([
    [-0.45, -0.92, 1.01, -0.13],
    [0.22, -0.07, 0.03, -0.89],
    [0.32, 0.73, -0.31, 0.09],
    [-0.17, 0.06, -1.03, 0.58],
    [-0.49, 0.01, -0.45, 0.56],
    [0.38, -0.42, -0.11, 0.82],
    [-0.23, -0.60, 0.94, 0.34],
    [-0.23, 0.36, 1.24, -1.18],
])  # fmt: skip
BIAS = -5.42


def frontal_look(picture: NDArray[np.float32]) -> float:
    """By how much a picture passes for an upright frontal chest radiograph; below 0 it does not.

    It passes if `lung_fields` is `LEAST_LUNG_FIELDS` or more, and a logistic regression on `chest_grid`
    `LEAST_LIKENESS` or more (log odds; this project's own, fitted to real radiographs against the same ones turned,
    inverted and cut). docs/hospital.md tells its error rates, `benchmarks/look.py` measures them. It is for files
    whose tags are silent, where the alternative is no look at all.

    Args:
        picture: (H, W) in 0…1, bright = dense.

    Returns:
        The smaller margin of the two, that of the lung fields times ten.
    """
    reduced = spread(picture)
    likeness = float((chest_grid(reduced) * WEIGHTS).sum()) + BIAS
    return min(likeness - LEAST_LIKENESS, 10 * (lung_fields(reduced) - LEAST_LUNG_FIELDS))


def looks_frontal(picture: NDArray[np.float32]) -> bool:
    """Whether a picture (H, W) in 0…1 passes `frontal_look`."""
    return frontal_look(picture) >= 0


def spread(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Reduce to (64, 64), from 0 to 1 between the second and the last but one percentile."""
    small = np.asarray(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    low, high = np.percentile(small, (2, 98))
    return np.clip((small - low) / max(high - low, 1e-6), 0, 1)


def lung_fields(reduced: NDArray[np.float64]) -> float:
    """How clearly two dark fields lie on both sides of something bright, in -1…1, in a picture that `spread` reduced.

    Columns of the middle part of the picture are averaged; the score is how much brighter a middle is than the darkest
    column on its left and on its right, whichever differs less, for the best middle (this project's reading).
    """
    columns = np.pad(reduced[10:46].mean(axis=0), 2, mode="edge")
    profile = np.convolve(columns, np.full(5, 0.2), "valid")
    best = -1.0
    for middle in range(22, 43):
        bright = profile[middle - 2 : middle + 3].mean()
        left, right = profile[max(0, middle - 24) : middle - 5].min(), profile[middle + 6 : middle + 25].min()
        best = max(best, float(bright - max(left, right)))
    return best


def chest_grid(reduced: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 8 × 8 grey levels of mean 0 and deviation 1, the right half mirrored and added to the left: (8, 4)."""
    cell = _SIDE // _CELLS
    levels = reduced.reshape(_CELLS, cell, _CELLS, cell).mean(axis=(1, 3))
    levels = (levels - levels.mean()) / max(levels.std(), 1e-6)
    half = _CELLS // 2
    return levels[:, :half] + levels[:, : half - 1 : -1]
