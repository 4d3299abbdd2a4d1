"""Agreement of predicted masks with drawn ones: Dice and Hausdorff distance, with intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import Interval, mean_interval

IGNORE = 127
"""Value in drawn masks that marks pixels to leave out."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class OverlapResult:
    """Agreement over a set of images, for one class of the masks."""

    cases: int  #: images
    positives: int  #: images whose drawn mask is not empty
    dice: Interval  #: mean over all images; an image counts 1 if both masks are empty, 0 if only one is
    dice_positives: Interval  #: mean over images whose drawn mask is not empty
    hd95: Interval  #: mean over images where neither mask is empty, in pixels
    both_empty: int  #: images without the class in either mask
    missed: int  #: images with the class drawn and none predicted
    invented: int  #: images with the class predicted and none drawn
    values: NDArray[np.float64]  #: Dice of each image (n,)


def evaluate_overlap(
    pairs: Iterable[tuple[NDArray, NDArray]],
    groups: NDArray,
    classes: Mapping[str, int] | None = None,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, OverlapResult]:
    """Judge predicted masks against drawn ones, pixels of `IGNORE` in these left out unless it is a class.

    Args:
        pairs: predicted mask and drawn mask of each image, (H, W) label values; a predicted mask of another size is
            brought to that of the drawn one by nearest neighbour.
        groups: (n,) patient of each image.
        classes: label value of each class in both masks; None for one class "foreground", all that is neither 0 nor
            `IGNORE`.
        repeats: number of bootstrap draws.
        seed: seed of the draws.

    Raises:
        AfireError: if a mask is not (H, W), or there are not as many pairs as patients.
    """
    names = list(classes or {"foreground": -1})
    rows: list[list[tuple[float, float, bool, bool]]] = []
    for predicted, drawn in pairs:
        predicted, drawn = _same_size(np.asarray(predicted), np.asarray(drawn))
        counted = (drawn != IGNORE) | (IGNORE in (classes or {}).values())
        row = []
        for name in names:
            a, b = (_of_class(mask, (classes or {}).get(name)) & counted for mask in (predicted, drawn))
            row.append((float(dice(a, b)), hausdorff95(a, b), bool(a.any()), bool(b.any())))
        rows.append(row)
    if len(rows) != len(groups):
        raise AfireError(f"{len(rows)} pairs of masks for {len(groups)} patients; one each is expected")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names), 4)
    return {name: _summary(table[:, c], np.asarray(groups), repeats, seed) for c, name in enumerate(names)}


def dice(predicted: ArrayLike | Tensor, drawn: ArrayLike | Tensor) -> Tensor:
    """Return 2 |A ∩ B| / (|A| + |B|) of masks; 1 where both are empty.

    Args:
        predicted: (..., H, W) 1 or 0; or (H, W) for all of them.
        drawn: (..., H, W) 1, 0, or NaN for pixels to leave out.

    Returns:
        (...,) float64.
    """
    found, truth = torch.as_tensor(predicted) > 0, torch.as_tensor(drawn)
    found, truth = found & ~truth.isnan(), truth > 0
    total = found.sum((-2, -1)) + truth.sum((-2, -1))
    return torch.where(total > 0, 2 * (found & truth).sum((-2, -1)).double() / total.clamp(min=1), 1.0)


def hausdorff95(predicted: Mask, drawn: Mask) -> float:
    """95th percentile of the distances between two outlines in pixels, the larger of both directions, by MONAI.

    Args:
        predicted: (H, W).
        drawn: (H, W).

    Returns:
        The distance; NaN if a mask is empty.
    """
    if not predicted.any() or not drawn.any():
        return float("nan")
    with warnings.catch_warnings():  # MONAI itself passes an argument that it has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        distance = compute_hausdorff_distance(_batch(predicted), _batch(drawn), include_background=True, percentile=95)
    return float(distance)


def _summary(table: NDArray[np.float64], groups: NDArray, repeats: int, seed: int) -> OverlapResult:
    values, distances = table[:, 0], table[:, 1]
    predicted, drawn = table[:, 2] > 0, table[:, 3] > 0
    return OverlapResult(
        cases=len(table),
        positives=int(drawn.sum()),
        dice=mean_interval(values, groups, repeats, seed),
        dice_positives=mean_interval(np.where(drawn, values, np.nan), groups, repeats, seed),
        hd95=mean_interval(distances, groups, repeats, seed),
        both_empty=int((~predicted & ~drawn).sum()),
        missed=int((~predicted & drawn).sum()),
        invented=int((predicted & ~drawn).sum()),
        values=values,
    )


def _same_size(predicted: NDArray, drawn: NDArray) -> tuple[NDArray, NDArray]:
    if predicted.ndim != 2 or drawn.ndim != 2 or not drawn.size or not predicted.size:
        raise AfireError(f"masks are (H, W), got {predicted.shape} and {drawn.shape}")
    if predicted.shape != drawn.shape:
        picture = Image.fromarray(predicted.astype(np.uint8))
        predicted = np.asarray(picture.resize(drawn.shape[::-1], Image.Resampling.NEAREST))
    return predicted, drawn


def _of_class(mask: NDArray, value: int | None) -> Mask:
    return (mask != 0) & (mask != IGNORE) if value is None else mask == value


def _batch(mask: Mask) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
