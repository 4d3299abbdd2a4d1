"""Where the Synthetic Lesion Mask takes its texture from: Otsu, largest region, smallest enclosing circle."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from afire_monai.transforms.lesion_settings import LesionSettings

Point = tuple[float, float]

_DIAGONAL = np.ones((3, 3), dtype=bool)
_LEVELS = np.arange(256)


def texture_circle(image: np.ndarray, settings: LesionSettings) -> tuple[Point, float]:
    """Smallest circle around the largest bright region of an image (Liu et al., Synthetic Lesion Mask, step 1).

    Args:
        image: (H, W) float32 in 0…1.
        settings: for `search_side`.

    Returns:
        Centre (row, column) and radius in pixels; the image centre and 0 for a constant image.
    """
    height, width = image.shape
    rows, columns = settings.search_grid(height, width)
    small = _area_mean(np.ascontiguousarray(_area_mean(image, rows).T), columns).T
    levels = np.rint(small * np.float32(255)).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256)
    if counts.max() == levels.size:
        return ((height - 1) / 2, (width - 1) / 2), 0.0
    bright = levels > threshold_otsu(hist=(counts, _LEVELS))
    (row, column), radius = enclosing_circle(_outline_points(_largest_region(bright)))
    down, across = height / rows, width / columns
    return ((row + 0.5) * down - 0.5, (column + 0.5) * across - 0.5), radius * max(down, across)


def _area_mean(image: np.ndarray, rows: int) -> np.ndarray:
    """Reduce the rows of an image (H, W) to (rows, W) by means over windows; they overlap where H is no multiple.

    The windows are those of PyTorch's adaptive pooling. PyTorch is not called here because its threads, started for so
    little work, make a busy machine wait many times longer than the work takes.
    """
    height = image.shape[0]
    if height % rows == 0:
        # the bare sum, as numpy's mean takes as long to be called as to compute
        sums = np.add.reduce(image.reshape(rows, height // rows, -1), axis=1)
        return sums * np.float32(rows / height)
    start = np.arange(rows) * height // rows
    stop = -(-np.arange(1, rows + 1) * height // rows)
    sums = np.add.reduceat(image, np.stack([start, stop], axis=1).ravel()[:-1], axis=0)[::2]
    mean: np.ndarray = sums / (stop - start)[:, None].astype(np.float32)
    return mean


def _largest_region(bright: np.ndarray) -> np.ndarray:
    """Cells (h, w) bool of the region with the largest outline: 8-connected, its holes counted as its own."""
    dark = np.ones((bright.shape[0] + 2, bright.shape[1] + 2), dtype=bool)  # the rim joins all that reaches the border
    np.logical_not(bright, out=dark[1:-1, 1:-1])
    background, _ = ndimage.label(dark)
    labels, _ = ndimage.label((background != background[0, 0])[1:-1, 1:-1], _DIAGONAL)
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    region: np.ndarray = labels == counts.argmax()
    return region


def _outline_points(region: np.ndarray) -> np.ndarray:
    """First and last cell of each row (M, 2): they hold every corner of the region's convex hull."""
    rows = np.flatnonzero(region.any(1))
    first = region[rows].argmax(1)
    last = region.shape[1] - 1 - region[rows, ::-1].argmax(1)
    return np.stack([np.concatenate([rows, rows]), np.concatenate([first, last])], axis=1).astype(np.float64)


def enclosing_circle(points: np.ndarray) -> tuple[Point, float]:
    """Smallest circle that holds all points, exact up to rounding.

    The circle of at most three points is replaced by that of the same points and the one farthest outside, until
    none is outside. The radius grows at each step, so no set of points comes twice.

    Args:
        points: (M, 2), M at least 1.

    Returns:
        Centre and radius.
    """
    support: list[Point] = [_pair(points[0])]
    center, squared = support[0], 0.0
    while True:
        gaps = (points[:, 0] - center[0]) ** 2 + (points[:, 1] - center[1]) ** 2
        farthest = int(gaps.argmax())
        if gaps[farthest] <= squared * (1 + 1e-9):
            return center, math.sqrt(squared)
        center, larger, support = _circle_of_few([*support, _pair(points[farthest])])
        if larger <= squared:  # rounding: no progress is possible any more
            return center, math.sqrt(larger)
        squared = larger


def _pair(point: np.ndarray) -> Point:
    return float(point[0]), float(point[1])


def _circle_of_few(points: list[Point]) -> tuple[Point, float, list[Point]]:
    """Centre, squared radius and support of the smallest circle around two to four points, by trying all."""
    best: tuple[Point, float, list[Point]] = (points[0], math.inf, points)
    for support in itertools.chain(itertools.combinations(points, 2), itertools.combinations(points, 3)):
        center = _middle(support[0], support[1]) if len(support) == 2 else _circumcenter(*support)
        if center is not None:
            squared = max((y - center[0]) ** 2 + (x - center[1]) ** 2 for y, x in points)
            if squared < best[1]:
                best = (center, squared, list(support))
    return best


def _middle(a: Point, b: Point) -> Point:
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def _circumcenter(a: Point, b: Point, c: Point) -> Point | None:
    """Circumcentre of a triangle, None where the corners lie on one line."""
    by, bx, cy, cx = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
    cross = 2 * (by * cx - bx * cy)
    if cross == 0:
        return None
    square_b, square_c = by * by + bx * bx, cy * cy + cx * cx
    return a[0] + (cx * square_b - bx * square_c) / cross, a[1] + (by * square_c - cy * square_b) / cross
