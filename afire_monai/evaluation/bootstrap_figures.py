"""Figures of scores against targets, for the sample and for all bootstrap draws at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.evaluation import ranking
from afire_monai.evaluation.bootstrap import patient_weights

Floats = NDArray[np.float64]

RANKING = ("auroc", "average_precision", "sensitivity_at_95_specificity")
CALIBRATION = ("brier", "ece")
RATES = ("sensitivity", "specificity", "ppv", "npv")
FIGURES = (*RANKING, *CALIBRATION)
ECE_BINS = 15


def figure_draws(
    targets: Floats,
    scores: Floats,
    groups: NDArray,
    thresholds: Floats,
    figures: Sequence[str],
    repeats: int,
    seed: int,
) -> dict[str, Floats]:
    """Compute figures of the sample and of each bootstrap draw, the same draws for all labels.

    Args:
        targets: (n, C), 1, 0 or NaN.
        scores: (n, C), NaN where unknown.
        groups: (n,) patient of each case.
        thresholds: (C,).
        figures: of `FIGURES` and `RATES`.
        repeats: bootstrap draws.
        seed: of the draws.

    Returns:
        For each figure (C, 1 + repeats), the sample's own first; NaN where it is not defined.
    """
    if unknown := [f for f in figures if f not in (*FIGURES, *RATES)]:
        raise AfireError(f"figure {unknown[0]!r} is not known; known are {', '.join((*FIGURES, *RATES))}")
    known = ~np.isnan(targets) & ~np.isnan(scores)
    draws = {f: np.full((targets.shape[1], 1 + repeats), np.nan) for f in figures}
    at = 0
    for weights in patient_weights(groups, repeats, seed) if len(targets) else ():
        for c in np.flatnonzero(known.any(0)):
            rows = known[:, c]
            truth, column = targets[rows, c] == 1, scores[rows, c]
            counts = weights if rows.all() else weights[:, rows]
            for f, values in _figures(truth, column, counts, thresholds[c], figures).items():
                draws[f][c, at : at + len(weights)] = values
        at += len(weights)
    return draws


def macro_mean(draws: Floats, labels: Sequence[int]) -> Floats:
    """Mean (R,) over labels of draws (C, R), without those that are not defined in a draw; NaN if none is."""
    chosen = draws[list(labels)]
    count = (~np.isnan(chosen)).sum(0)
    return np.where(count > 0, np.nansum(chosen, axis=0) / np.maximum(count, 1), np.nan)


def calibration_bins(truth: NDArray[np.bool_], scores: Floats, bins: int = ECE_BINS) -> tuple[Floats, Floats, NDArray]:
    """Give what a reliability curve shows: mean score and share of positives in each bin (NaN if empty), and counts.

    Bins have equal width, [k / bins, (k + 1) / bins), the last with 1.

    Args:
        truth: (n,).
        scores: (n,) in 0…1.
        bins: how many.
    """
    place = _bin(scores, bins)
    count = np.bincount(place, minlength=bins)
    below = np.where(count > 0, count, np.nan)
    return (
        np.bincount(place, scores, minlength=bins) / below,
        np.bincount(place, truth, minlength=bins) / below,
        count,
    )


def check_arrays(
    targets: Floats, scores: Floats, groups: NDArray, names: Sequence[str], probabilities: bool = True
) -> None:
    """Refuse arrays that do not fit together or hold values out of range.

    Raises:
        AfireError: with what was seen.
    """
    expected = (len(groups), len(names))
    if targets.shape != expected or scores.shape != expected:
        raise AfireError(f"targets {targets.shape} and scores {scores.shape} must both be (cases, labels) = {expected}")
    strange = targets[~np.isnan(targets) & (targets != 0) & (targets != 1)]
    if len(strange):
        raise AfireError(f"targets must be 1, 0 or NaN, got {strange[0]:g}; apply a label policy first")
    given = scores[~np.isnan(scores)]
    if np.isinf(given).any():
        raise AfireError("scores must be finite, or NaN where unknown; got an infinite one")
    if probabilities and len(given) and not (given.min() >= 0 and given.max() <= 1):
        raise AfireError(f"scores must be probabilities in 0…1, got {given.min():g} to {given.max():g}")


def confusion_cells(truth: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
    """Mark true positives, false positives, false negatives and true negatives, each (n,) 0 or 1."""
    cells = (truth & flagged, ~truth & flagged, truth & ~flagged, ~truth & ~flagged)
    tp, fp, fn, tn = (cell.astype(np.float64) for cell in cells)
    return tp, fp, fn, tn


def _figures(
    truth: NDArray[np.bool_], scores: Floats, weights: Floats, threshold: float, wanted: Sequence[str]
) -> dict[str, Floats]:
    made: dict[str, Floats] = {}
    if any(f in RANKING for f in wanted):
        curve = ranking.weighted_curve(scores, truth, weights)
        functions = (ranking.auroc, ranking.average_precision, ranking.sensitivity_at_specificity)
        made.update({f: function(curve) for f, function in zip(RANKING, functions, strict=True) if f in wanted})
    if any(f in CALIBRATION for f in wanted):
        total = weights.sum(1)
        made["brier"] = _share(weights @ (scores - truth) ** 2, total)
        place = np.eye(ECE_BINS)[_bin(scores, ECE_BINS)]
        made["ece"] = _share(np.abs(weights @ (place * (scores - truth)[:, None])).sum(1), total)
    if any(f in RATES for f in wanted):
        flagged = scores >= threshold
        tp, fp, fn, tn = (weights @ cell for cell in confusion_cells(truth, flagged))
        pairs = ((tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn))
        made.update({f: _share(above, below) for f, (above, below) in zip(RATES, pairs, strict=True)})
    return {f: made[f] for f in wanted}


def _bin(scores: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _share(above: Floats, below: Floats) -> Floats:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
