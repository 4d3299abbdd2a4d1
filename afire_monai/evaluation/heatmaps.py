"""What one heatmap says about where the lesions are: the figures of a single image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from afire_monai.core.errors import AfireError

TOLERANCE = 15.0
"""Pixels by which the pointing game may miss (Zhang et al., "Top-down neural attention by excitation backprop")."""
CUTS = (180, 60)
"""Levels of 255 at which a heatmap is cut into regions (Wang et al. 2017, ChestX-ray8)."""
T_IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
T_IOBB = (0.1, 0.25, 0.5, 0.75, 0.9)
LEVELS = 2048

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageFigures:
    """Figures of one heatmap.

    Attributes:
        pointing: 1 if the maximum lies on a lesion; where several pixels are the maximum, the share of them that does.
        pointing_tolerant: the same within 15 pixels of a lesion.
        inside: (LEVELS,) lesion pixels at each level of the heatmap, from faint to bright.
        outside: (LEVELS,) other pixels.
        overlaps: for each of `CUTS` the best ratios of boxes.
    """

    pointing: float
    pointing_tolerant: float
    inside: Floats
    outside: Floats
    overlaps: dict[int, BoxOverlaps]


@dataclass(frozen=True)
class BoxOverlaps:
    """Ratios of areas between the boxes found in a heatmap and those drawn.

    Attributes:
        iou_drawn: (m,) for each drawn box the largest intersection over union with a found one; 0 if none was found.
        iobb_drawn: (m,) likewise intersection over the area of the found box.
        iou_found: (d,) for each found box the largest intersection over union with a drawn one.
        iobb_found: (d,) likewise intersection over the area of the found box.
    """

    iou_drawn: Floats
    iobb_drawn: Floats
    iou_found: Floats
    iobb_found: Floats


def image_figures(heatmap: NDArray, lesion: NDArray[np.bool_], boxes: Floats) -> ImageFigures:
    """Compute all figures of one image.

    Args:
        heatmap: (h, w) in 0…1; resized to the picture, bilinear.
        lesion: (H, W), True on lesions; neither empty nor everywhere.
        boxes: (m, 4) left, top, width, height in pixels of the picture.

    Raises:
        AfireError: if the heatmap is not (h, w) of finite numbers, or there is no lesion pixel.
    """
    if not lesion.any():
        raise AfireError("no pixel of the picture is lesion; boxes must lie within it")
    resized = resize_heatmap(heatmap, lesion.shape)
    peaks = resized == resized.max()
    inside, outside = level_counts(resized, lesion)
    overlaps = {cut: box_overlaps(found_boxes(resized, cut), boxes) for cut in CUTS}
    near = _near_lesion(peaks, lesion)
    return ImageFigures(float(lesion[peaks].mean()), float(near[peaks].mean()), inside, outside, overlaps)


def _near_lesion(peaks: NDArray[np.bool_], lesion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark pixels (H, W) within the tolerance of a lesion, right wherever ``peaks`` is True."""
    margin = int(TOLERANCE) + 1
    rows, columns = (np.flatnonzero(peaks.any(axis)) for axis in (1, 0))
    # a lesion further from all peaks than the margin is too far, so there is no need to look at the whole picture
    window = tuple(slice(max(0, int(at[0]) - margin), int(at[-1]) + margin + 1) for at in (rows, columns))
    near = np.zeros(lesion.shape, dtype=bool)
    if lesion[window].any():
        near[window] = ndimage.distance_transform_edt(~lesion[window]) <= TOLERANCE
    return near


def resize_heatmap(heatmap: NDArray, shape: Sequence[int]) -> NDArray[np.float32]:
    """Bring a heatmap to the size (H, W) of its picture, bilinear, averaging where it gets smaller.

    Raises:
        AfireError: if it is not (h, w) of finite numbers.
    """
    heatmap = np.asarray(heatmap, dtype=np.float32)
    if heatmap.ndim != 2 or not heatmap.size or not np.isfinite(heatmap).all():
        raise AfireError(f"a heatmap is (H, W) of finite numbers, got shape {heatmap.shape}")
    if heatmap.shape == tuple(shape):
        return heatmap
    return np.asarray(Image.fromarray(heatmap).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def lesion_pixels(boxes: Floats, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Mark the pixels (H, W) whose centre lies in one of the boxes (m, 4)."""
    lesion = np.zeros(tuple(shape), dtype=bool)
    for left, top, width, height in boxes:
        edges = np.array([top, top + height, left, left + width])
        first_row, last_row, first, last = np.ceil(edges - 0.5).astype(int).clip(0)
        lesion[first_row:last_row, first:last] = True
    return lesion


def level_counts(heatmap: NDArray, lesion: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Count lesion pixels and others at each of `LEVELS` levels of a heatmap in 0…1.

    Levels are evenly spaced in the cube root, so that faint heatmaps keep the order of their pixels.
    """
    level = np.minimum(np.cbrt(heatmap.clip(0, 1)) * LEVELS, LEVELS - 1).astype(np.int64)
    inside, outside = (np.bincount(level[part], minlength=LEVELS) for part in (lesion, ~lesion))
    return inside.astype(np.float64), outside.astype(np.float64)


def found_boxes(heatmap: NDArray, cut: int) -> Floats:
    """Turn a heatmap into boxes: stretched to 0…255, cut, a box around each connected region (8 neighbours).

    Wang et al. 2017 say that intensities are normalised to 0…255, cut at 60 and at 180, and isolated regions are boxed;
    that it is done for each picture by itself, and that diagonal neighbours are connected, is this project's reading.

    Args:
        heatmap: (H, W).
        cut: level of 255 from which a pixel belongs to a region.

    Returns:
        (d, 4) left, top, width, height; none for a constant heatmap.
    """
    low, high = float(heatmap.min()), float(heatmap.max())
    if high <= low:
        return np.zeros((0, 4))
    regions, _ = ndimage.label((heatmap - low) / (high - low) * 255 >= cut, structure=np.ones((3, 3)))
    boxes = [(c.start, r.start, c.stop - c.start, r.stop - r.start) for r, c in ndimage.find_objects(regions)]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def box_overlaps(found: Floats, drawn: Floats) -> BoxOverlaps:
    """Give the best ratios between boxes found (d, 4) and drawn (m, 4), all left, top, width, height."""
    low = np.maximum(found[:, None, :2], drawn[None, :, :2])
    high = np.minimum((found[:, :2] + found[:, 2:])[:, None], (drawn[:, :2] + drawn[:, 2:])[None])
    shared = (high - low).clip(0).prod(-1)
    area, other = found[:, 2:].prod(-1)[:, None], drawn[:, 2:].prod(-1)[None]
    iou, iobb = shared / (area + other - shared), shared / area
    return BoxOverlaps(
        iou.max(0, initial=0.0), iobb.max(0, initial=0.0), iou.max(1, initial=0.0), iobb.max(1, initial=0.0)
    )
