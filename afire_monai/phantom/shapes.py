"""Chords and tables that the chest phantom is put together from.

Patient frame: u to the right of the picture (the patient's left), v down, both about -1…1; lengths along the beam are
in units of one torso depth.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

Array: TypeAlias = NDArray[np.floating[Any]]
Rng: TypeAlias = np.random.Generator

_TABLE = 4096
_SPAN = 1.6  # half range of the tables below, wider than any pixel of a rotated picture
TABLE_AXIS: Array = np.linspace(-_SPAN, _SPAN, _TABLE, dtype=np.float32)


def look_up(table: Array, coordinate: Array) -> Array:
    """Evaluate a function of one coordinate on the picture from its table over `TABLE_AXIS`.

    A gather is some ten times faster than powers and exponentials per pixel; a step is a tenth of a pixel at 256.

    Args:
        table: (4096,) values over `TABLE_AXIS`.
        coordinate: any shape, values outside the axis take its end values.

    Returns:
        The function's values, shape of `coordinate`.
    """
    index = ((coordinate + _SPAN) * ((_TABLE - 1) / (2 * _SPAN)) + 0.5).astype(np.int32)
    return table[np.clip(index, 0, _TABLE - 1)]


def dome(x: Array) -> Array:
    """Half chord of a unit sphere, √(1 − x²) inside and 0 outside; same shape as `x`."""
    return _root(1 - x * x)


def ball(x: Array, y: Array) -> Array:
    """Half chord of a unit sphere, √(1 − x² − y²) inside and 0 outside; same shape as `x` and `y`."""
    squared = x * x
    squared += y * y
    return _root(1 - squared)


def ramp(x: Array) -> Array:
    """Smooth step from 0 at x ≤ 0 to 1 at x ≥ 1; same shape as `x`."""
    t = np.clip(x, 0, 1)
    result = -2 * t
    result += 3
    result *= t
    result *= t
    return result


def _root(x: Array) -> Array:
    """√x, 0 where x is negative, in place."""
    np.maximum(x, 0, out=x)
    return np.sqrt(x, out=x)


def window(u: Array, v: Array, side: float, lowest: float) -> tuple[slice, slice]:
    """Rows and columns that hold all pixels with |u| ≤ `side` and v ≤ `lowest`, for a turn of a few degrees."""
    columns = np.nonzero((np.abs(u[0]) <= side) | (np.abs(u[-1]) <= side))[0]
    rows = np.nonzero((v[:, 0] <= lowest) | (v[:, -1] <= lowest))[0]
    return slice(0, rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def blur(image: Array, width: float) -> Array:
    """Gaussian blur of a picture (H, W) by `width` pixels; wide ones as three running means, which is nearly the same.

    No matrix product: a threaded one is many times slower than this where every core already has a process.
    """
    if width < 3:
        smooth: Array = gaussian_filter(image, width, truncate=2.5, mode="nearest")
        return smooth
    box = round((4 * width**2 + 1) ** 0.5)
    for _ in range(3):
        image = uniform_filter(image, box, mode="nearest")
    return image
