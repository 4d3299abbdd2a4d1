"""Whether heatmaps point at lesions, beside what a map that never saw the picture achieves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import (
    Curve,
    Interval,
    auroc,
    average_precision,
    mean_interval,
    patient_weights,
    percentile_interval,
    ratio_interval,
)
from afire_monai.evaluation.heatmaps import (
    CUTS,
    T_IOBB,
    T_IOU,
    ImageFigures,
    image_figures,
    lesion_pixels,
    resize_heatmap,
)

PRIOR_SIDE = 64
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LesionCase:
    """One picture with lesions whose place is known.

    Attributes:
        shape: height and width of the picture.
        boxes: (m, 4) left, top, width, height in pixels of the picture.
        group: patient.
        mask: (H, W), True on lesions, if they are drawn as a mask; else the boxes are the lesions.
    """

    shape: tuple[int, int]
    boxes: Floats
    group: str
    mask: NDArray[np.bool_] | None = None

    def lesion(self) -> NDArray[np.bool_]:
        """Mark the lesions (H, W); made when asked for, as thousands of large pictures would not fit into memory."""
        return lesion_pixels(self.boxes, self.shape) if self.mask is None else self.mask


@dataclass(frozen=True)
class BoxRow:
    """Localisation by boxes at one threshold.

    Attributes:
        cut: level of 255 at which the heatmap was cut.
        ratio: "IoU" or "IoBB".
        threshold: ratio above which a drawn box counts as found.
        accuracy: share of drawn boxes that were found.
        false_positives: found boxes that lie on no drawn one by this ratio, for each image.
    """

    cut: int
    ratio: str
    threshold: float
    accuracy: Interval
    false_positives: Interval


@dataclass(frozen=True)
class Localisation:
    """Figures of the heatmaps of a set of pictures with lesions.

    Attributes:
        cases: pictures.
        boxes: drawn boxes.
        pointing: share of pictures whose maximum lies on a lesion.
        pointing_tolerant: the same within 15 pixels.
        pixel_auroc: mean over pictures of the area under the ROC curve of their pixels.
        pixel_average_precision: mean over pictures.
        pooled_auroc: of all pixels of all pictures together.
        pooled_average_precision: likewise.
        lesion_share: mean share of a picture that is lesion: the average precision that chance gives.
        rows: localisation by boxes.
        per_case: ``pointing``, ``pointing_tolerant``, ``pixel_auroc`` and ``pixel_average_precision`` of each picture.
    """

    cases: int
    boxes: int
    pointing: Interval
    pointing_tolerant: Interval
    pixel_auroc: Interval
    pixel_average_precision: Interval
    pooled_auroc: Interval
    pooled_average_precision: Interval
    lesion_share: float
    rows: list[BoxRow]
    per_case: dict[str, Floats]


def summarise(
    figures: Sequence[ImageFigures], cases: Sequence[LesionCase], repeats: int = 2000, seed: int = 0
) -> Localisation:
    """Turn the figures of pictures into means with 95 % intervals over patients.

    Args:
        figures: of each picture.
        cases: the pictures.
        repeats: bootstrap draws.
        seed: of the draws.

    Raises:
        AfireError: if there is no picture.
    """
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

    Raises:
        AfireError: if there is only one patient.
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
    # each draw holds a whole curve, so blocks follow the levels where these outnumber the cases
    most = 4_000_000 * len(groups) // max(len(groups), inside.shape[1])
    for weights in patient_weights(groups, repeats, seed, max(most, len(groups))):
        curve = _curve(weights @ inside, weights @ outside)
        area.append(auroc(curve))
        precision.append(average_precision(curve))
    several = len(np.unique(groups)) > 1
    return percentile_interval(np.concatenate(area), several), percentile_interval(np.concatenate(precision), several)
