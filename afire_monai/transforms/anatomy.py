"""The anatomy that synthetic lesions need to know of a radiograph, found once when it is read."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch import Tensor

LUNG_SIDE = 32  # rows and columns of the lung map
_SEARCH_SIDE = 56  # pixels of the longer side of the picture in which the texture's place is searched
_DARKNESS = 6.0  # slope of the lung map: how sure a pixel one standard deviation below the threshold is
ANATOMY_VALUES = 2 + LUNG_SIDE**2

Point = tuple[float, float]


class Anatomy:
    """Find the place of the lesions' texture and a map of the lungs.

    Both depend on the picture alone, so they are found once, when it is read, and kept beside it.
    """

    kind = "anatomy"
    #: name of the file beside a cache on disk; its number changes with the kind of values
    name = "anatomy1"
    values = ANATOMY_VALUES

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Look at one radiograph.

        Returns:
            (1026,) float32: row and column of the texture's centre as fractions of the picture's height and width,
            then the lung map (32, 32) in 0…1, row by row.
        """
        height, width = picture.shape
        row, column = texture_center(picture)
        place = [(row + 0.5) / height, (column + 0.5) / width]
        return np.concatenate([np.asarray(place, dtype=np.float32), lung_map(picture).ravel()])


def anatomy_of(images: Tensor) -> Tensor:
    """Find the anatomy of a batch of images, one by one on the CPU; not for the training loop.

    Args:
        images: (B, C, H, W) in 0…1; the first channel is used.

    Returns:
        (B, 1026) float32 on the images' device.
    """
    finder = Anatomy()
    found = [finder(picture) for picture in images[:, 0].float().cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(images.device, non_blocking=True)


def texture_center(picture: np.ndarray) -> Point:
    """Return the centre of the smallest circle around the largest bright region (Synthetic Lesion Mask, step 1).

    Bright is what lies above Otsu's threshold; the region with the largest outline counts, holes included. This
    project's reading: it is searched in the picture reduced by area averages to 56 pixels on the longer side, since
    the place of a patch of a quarter of the image does not need single pixels.

    Returns:
        Row and column in pixels; the picture's centre if it is constant.
    """
    height, width = picture.shape
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    levels = np.rint(area_mean(picture, rows, columns) * 255).clip(0, 255).astype(np.uint8)
    if levels.max() == levels.min():
        return (height - 1) / 2, (width - 1) / 2
    filled = ndimage.binary_fill_holes(levels > threshold_otsu(levels))
    regions, _ = ndimage.label(filled, np.ones((3, 3)))
    counts = np.bincount(regions.ravel())
    counts[0] = 0
    row, column = enclosing_circle(np.argwhere(regions == counts.argmax()).astype(np.float64))[0]
    return (row + 0.5) * height / rows - 0.5, (column + 0.5) * width / columns - 0.5


def lung_map(picture: np.ndarray) -> np.ndarray:
    """Estimate where the lungs are, from darkness and their usual place; no label is used.

    This project's own: the picture's dark part (Otsu's threshold within the middle of the picture, softened) times two
    soft ellipses. Against drawn lungs of adults (JSRT, 200) the map above 0.5 has a Dice of 0.83.

    Args:
        picture: (H, W) float32 in 0…1.

    Returns:
        (32, 32) float32 in 0…1, over the whole picture.
    """
    small = ndimage.gaussian_filter(area_mean(picture, LUNG_SIDE, LUNG_SIDE), 0.5)
    inner = small[LUNG_SIDE // 8 : -LUNG_SIDE // 8, LUNG_SIDE // 10 : -LUNG_SIDE // 10]
    spread = float(small.std())
    if spread < 1e-4:
        return _lung_prior().copy()
    darkness = (threshold_otsu(inner) - small) / spread
    found: np.ndarray = _lung_prior() / (1 + np.exp(-_DARKNESS * darkness))
    return found.astype(np.float32)


@functools.cache
def _lung_prior() -> np.ndarray:
    """Two soft ellipses where lungs usually are in a frontal picture."""
    rows, columns = np.mgrid[0:LUNG_SIDE, 0:LUNG_SIDE] / (LUNG_SIDE - 1.0)
    sides = []
    for column in (0.28, 0.73):
        radius = np.hypot((rows - 0.47) / 0.40, (columns - column) / 0.21)
        sides.append(1 / (1 + np.exp((radius - 1) * 6)))
    return np.maximum(*sides).astype(np.float32)


def area_mean(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Reduce a picture (H, W) to (rows, columns) by means over areas; a smaller picture is enlarged by repetition."""
    tensor = torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(tensor, (rows, columns))[0, 0].numpy()


def enclosing_circle(points: np.ndarray) -> tuple[Point, float]:
    """Return centre and radius of the smallest circle that holds all points, exact up to rounding.

    The circle of at most three points is replaced by that of the same points and the one farthest outside, until
    none is outside. The radius grows at each step, so no set of points comes twice.

    Args:
        points: (M, 2), M at least 1.
    """
    support = points[:1]
    center, squared = points[0], 0.0
    while True:
        gaps = ((points - center) ** 2).sum(1)
        farthest = int(gaps.argmax())
        if gaps[farthest] <= squared * (1 + 1e-9):
            break
        grown_center, grown, grown_support = _circle_of_few(np.concatenate([support, points[farthest : farthest + 1]]))
        if grown <= squared:  # rounding: no progress is possible any more
            break
        center, squared, support = grown_center, grown, grown_support
    return (float(center[0]), float(center[1])), math.sqrt(squared)


@functools.cache
def _subsets(count: int) -> list[list[int]]:
    """Return all pairs and triples of up to four points."""
    pairs = [[i, j] for i in range(count) for j in range(i)]
    return pairs + [[i, j, k] for i in range(count) for j in range(i) for k in range(j)]


def _circle_of_few(points: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Return centre, squared radius and support of the smallest circle around two to four points, by trying all."""
    best = (points[0], math.inf, points)
    for subset in _subsets(len(points)):
        a, *others = points[subset]
        if len(others) == 1:
            center = (a + others[0]) / 2
        else:
            (by, bx), (cy, cx) = others[0] - a, others[1] - a
            cross = 2 * (by * cx - bx * cy)
            if cross == 0:
                continue
            b, c = by * by + bx * bx, cy * cy + cx * cx
            center = a + np.array([cx * b - bx * c, by * c - cy * b]) / cross
        squared = float(((points - center) ** 2).sum(1).max())
        if squared < best[1]:
            best = (center, squared, points[subset])
    return best
