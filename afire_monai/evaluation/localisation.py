"""Measure whether heatmaps point at lesions, per image and overall, compared with a map that never saw the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import (
    MOST_WEIGHTS,
    Curve,
    Interval,
    auroc,
    average_precision,
    mean_interval,
    patient_weights,
    percentile_interval,
    ratio_interval,
)

PRIOR_SIDE = 64
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LesionCase:
    """One picture with lesions whose place is known."""

    shape: tuple[int, int]  #: height and width of the picture
    boxes: Floats  #: (m, 4) left, top, width, height in pixels of the picture
    group: str  #: patient
    #: (H, W), True on lesions, if they are drawn as a mask; else the boxes are the lesions
    mask: NDArray[np.bool_] | None = None

    def lesion(self) -> NDArray[np.bool_]:
        """Mark the lesions (H, W); made when asked for, as thousands of large pictures would not fit into memory."""
        return lesion_pixels(self.boxes, self.shape) if self.mask is None else self.mask


@dataclass(frozen=True)
class BoxRow:
    """Localisation by boxes at one threshold."""

    cut: int  #: level of 255 at which the heatmap was cut
    ratio: str  #: "IoU" or "IoBB"
    threshold: float  #: ratio above which a drawn box counts as found
    accuracy: Interval  #: share of drawn boxes that were found
    false_positives: Interval  #: found boxes that lie on no drawn one by this ratio, for each image


@dataclass(frozen=True)
class Localisation:
    """Figures of the heatmaps of a set of pictures with lesions."""

    cases: int  #: pictures
    boxes: int  #: drawn boxes
    pointing: Interval  #: share of pictures whose maximum lies on a lesion
    pointing_tolerant: Interval  #: the same within 15 pixels
    pixel_auroc: Interval  #: mean over pictures of the area under the ROC curve of their pixels
    pixel_average_precision: Interval  #: mean over pictures
    pooled_auroc: Interval  #: of all pixels of all pictures together
    pooled_average_precision: Interval  #: likewise
    lesion_share: float  #: mean share of a picture that is lesion: the average precision that chance gives
    rows: list[BoxRow]  #: localisation by boxes
    #: ``pointing``, ``pointing_tolerant``, ``pixel_auroc`` and ``pixel_average_precision`` of each picture
    per_case: dict[str, Floats]


def summarise(
    figures: Sequence[ImageFigures], cases: Sequence[LesionCase], repeats: int = 2000, seed: int = 0
) -> Localisation:
    """Turn the figures of pictures into means with 95 % intervals over patients; AfireError if there is no picture."""
    if not cases or len(figures) != len(cases):
        raise AfireError(f"{len(figures)} heatmaps for {len(cases)} pictures with lesions; at least one each is needed")
    groups = np.array([case.group for case in cases])
    inside, outside = (np.stack([getattr(f, name) for f in figures]) for name in ("inside", "outside"))
    curve = _curve(inside, outside)
    per_case = {
        "pointing": np.array([f.pointing for f in figures]),
        "pointing_tolerant": np.array([f.pointing_tolerant for f in figures]),
        "pixel_auroc": auroc(curve),
        "pixel_average_precision": average_precision(curve),
    }
    pooled_auroc, pooled_precision = _pooled(inside, outside, groups, repeats, seed)
    means = {name: mean_interval(values, groups, repeats, seed) for name, values in per_case.items()}
    return Localisation(
        cases=len(cases),
        boxes=sum(len(case.boxes) for case in cases),
        **means,
        pooled_auroc=pooled_auroc,
        pooled_average_precision=pooled_precision,
        lesion_share=float((inside.sum(1) / (inside + outside).sum(1)).mean()),
        rows=list(_box_rows(figures, groups, repeats, seed)),
        per_case=per_case,
    )


def centre_figures(cases: Sequence[LesionCase]) -> list[ImageFigures]:
    """Figures of a map that is brightest in the centre of the picture and falls off evenly: chance, first form."""
    return [image_figures(centre_map(case.shape), case.lesion(), case.boxes) for case in cases]


def prior_figures(cases: Sequence[LesionCase]) -> list[ImageFigures]:
    """Figures of the mean lesion of all other patients, as heatmap of each picture: chance, second form.

    Raises AfireError if there is only one patient.
    """
    groups = np.array([case.group for case in cases])
    names, which = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise AfireError("the mean lesion of the other patients needs a second patient")
    side = (PRIOR_SIDE, PRIOR_SIDE)
    small = np.stack([resize_heatmap(case.lesion().astype(np.float32), side) for case in cases]).astype(np.float64)
    own = np.stack([small[which == k].sum(0) for k in range(len(names))])
    others = (small.sum(0) - own) / (len(cases) - np.bincount(which))[:, None, None]
    return [
        image_figures(others[k].clip(0, 1), case.lesion(), case.boxes) for k, case in zip(which, cases, strict=True)
    ]


def centre_map(shape: Sequence[int]) -> NDArray[np.float32]:
    """Map (H, W) of 1 in the centre, falling with the distance to 0 in the corners."""
    rows, columns = (np.abs(np.arange(n) - (n - 1) / 2) for n in shape)
    distance = np.hypot(rows[:, None], columns[None, :])
    return (1 - distance / max(float(distance.max()), 1.0)).astype(np.float32)


def _box_rows(figures: Sequence[ImageFigures], groups: NDArray, repeats: int, seed: int) -> Iterator[BoxRow]:
    ones = np.ones(len(figures))
    for cut in CUTS:
        overlaps = [f.overlaps[cut] for f in figures]
        count = np.array([len(o.iou_drawn) for o in overlaps], dtype=np.float64)
        if not count.sum():
            return
        for ratio, thresholds in (("IoU", T_IOU), ("IoBB", T_IOBB)):
            drawn = [getattr(o, f"{ratio.lower()}_drawn") for o in overlaps]
            found = [getattr(o, f"{ratio.lower()}_found") for o in overlaps]
            for threshold in thresholds:
                hits = np.array([(values > threshold).sum() for values in drawn])
                false = np.array([(values <= threshold).sum() for values in found])
                yield BoxRow(
                    cut,
                    ratio,
                    threshold,
                    ratio_interval(hits, count, groups, repeats, seed),
                    ratio_interval(false, ones, groups, repeats, seed),
                )


def _curve(inside: Floats, outside: Floats) -> Curve:
    """Curve of counts (R, LEVELS), from the brightest level down."""
    true, false = (np.cumsum(counts[:, ::-1], axis=1) for counts in (inside, outside))
    return Curve(true, false, np.arange(inside.shape[1])[::-1].astype(np.float64))


def _pooled(inside: Floats, outside: Floats, groups: NDArray, repeats: int, seed: int) -> tuple[Interval, Interval]:
    area, precision = [], []
    # each draw holds a whole curve, so blocks follow the levels if these outnumber the cases
    most = MOST_WEIGHTS * len(groups) // max(len(groups), inside.shape[1])
    for weights in patient_weights(groups, repeats, seed, max(most, len(groups))):
        curve = _curve(weights @ inside, weights @ outside)
        area.append(auroc(curve))
        precision.append(average_precision(curve))
    several = len(np.unique(groups)) > 1
    return percentile_interval(np.concatenate(area), several), percentile_interval(np.concatenate(precision), several)


TOLERANCE = 15.0
"""Pixels by which the pointing game may miss (Zhang et al., "Top-down neural attention by excitation backprop")."""
CUTS = (180, 60)
"""Levels of 255 at which a heatmap is cut into regions (Wang et al. 2017, ChestX-ray8)."""
T_IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
T_IOBB = (0.1, 0.25, 0.5, 0.75, 0.9)
LEVELS = 2048


@dataclass(frozen=True)
class ImageFigures:
    """Figures of one heatmap."""

    #: 1 if the maximum lies on a lesion; if several pixels are the maximum, the share of them that do
    pointing: float
    pointing_tolerant: float  #: the same within 15 pixels of a lesion
    inside: Floats  #: (LEVELS,) lesion pixels at each level of the heatmap, from faint to bright
    outside: Floats  #: (LEVELS,) other pixels
    overlaps: dict[int, BoxOverlaps]  #: for each of `CUTS` the best ratios of boxes


@dataclass(frozen=True)
class BoxOverlaps:
    """Ratios of areas between the boxes found in a heatmap and those drawn."""

    #: (m,) for each drawn box the largest intersection over union with a found one; 0 if none was found
    iou_drawn: Floats
    iobb_drawn: Floats  #: (m,) likewise intersection over the area of the found box
    iou_found: Floats  #: (d,) for each found box the largest intersection over union with a drawn one
    iobb_found: Floats  #: (d,) likewise intersection over the area of the found box


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

    Raises AfireError if it is not (h, w) of finite numbers.
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

    Wang et al. 2017 say that intensities are normalised to 0…255, cut at 60 and at 180, and isolated regions are boxed.
    Doing this for each picture separately, and connecting diagonal neighbours, is this project's reading.

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
    """Return the best ratios between boxes found (d, 4) and drawn (m, 4), all left, top, width, height."""
    low = np.maximum(found[:, None, :2], drawn[None, :, :2])
    high = np.minimum((found[:, :2] + found[:, 2:])[:, None], (drawn[:, :2] + drawn[:, 2:])[None])
    shared = (high - low).clip(0).prod(-1)
    area, other = found[:, 2:].prod(-1)[:, None], drawn[:, 2:].prod(-1)[None]
    iou, iobb = shared / (area + other - shared), shared / area
    return BoxOverlaps(
        iou.max(0, initial=0.0), iobb.max(0, initial=0.0), iou.max(1, initial=0.0), iobb.max(1, initial=0.0)
    )
