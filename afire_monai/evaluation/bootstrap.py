"""Figures of scores with bootstrap intervals; patients are resampled, not images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError

Floats = NDArray[np.float64]

# number of weights held at a time: 32 MB
MOST_WEIGHTS = 4_000_000


class Interval(NamedTuple):
    """A figure, or a difference of two, with the bounds of its 95 % interval; NaN if a value cannot be computed."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def patient_weights(groups: NDArray, repeats: int, seed: int, most: int = MOST_WEIGHTS) -> Iterator[NDArray]:
    """Draw whole patients with replacement, as many as there are.

    Args:
        groups: (n,) patient of each case.
        repeats: number of draws.
        seed: seed of the draws.
        most: largest number of weights in one block; the draws do not depend on it.

    Yields:
        Blocks (r, n) of how often each case counts, (1 + repeats) rows in all. The first row counts each case once.
    """
    names, index = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    yield np.ones((1, len(index)))
    step = max(1, most // max(1, len(index)))
    for start in range(0, repeats, step):
        rows = min(step, repeats - start)
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=rows)
        yield counts[:, index].astype(np.float64)


def percentile_interval(values: NDArray[np.float64], several: bool = True) -> Interval:
    """Turn the figure of the sample and of each draw into a 95 % percentile interval.

    Args:
        values: (1 + R,), the sample's own first; draws in which the figure is not defined (NaN) are left out.
        several: whether there was more than one patient; with one, no interval can be given.
    """
    draws = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(draws) or not several:
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def ratio_interval(above: NDArray, below: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Return Σ above / Σ below over cases with a percentile bootstrap 95 % interval over patients.

    With ``below`` 1 for each case that counts and 0 for the others, this is a mean.

    Args:
        above: (n,) finite.
        below: (n,) not negative; the figure is NaN if its sum is 0.
        groups: (n,) patient of each case.
        repeats: number of bootstrap draws.
        seed: seed of the draws.
    """
    above, below, groups = (np.asarray(a) for a in (above, below, groups))
    if not len(groups):
        return Interval(float("nan"), float("nan"), float("nan"))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [(w @ above) / (w @ below) for w in patient_weights(groups, repeats, seed)]
    return percentile_interval(np.concatenate(draws), several=len(np.unique(groups[below > 0])) > 1)


def mean_interval(values: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Return the mean over cases, those with NaN left out, with a percentile bootstrap 95 % interval over patients."""
    known = ~np.isnan(np.asarray(values, dtype=np.float64))
    return ratio_interval(np.where(known, values, 0.0), known.astype(np.float64), groups, repeats, seed)


def bootstrap_auroc(labels: NDArray, scores: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Return the AUROC with a percentile bootstrap 95 % interval over patients.

    Labels (n,) are 0 or 1, and higher scores (n,) mean positive; draws that miss a class are left out. Raises
    AfireError if a class is missing or lengths differ.

    Example:
        >>> import numpy as np
        >>> labels, scores = np.array([0, 0, 1, 1] * 10), np.array([0.1, 0.4, 0.3, 0.8] * 10)
        >>> bootstrap_auroc(labels, scores, groups=np.arange(40)).value
        0.75
    """
    return _interval(labels, [np.asarray(scores, dtype=np.float64)], groups, repeats, seed)


def bootstrap_auroc_difference(labels: NDArray, scores: NDArray, baseline: NDArray, groups: NDArray) -> Interval:
    """Return AUROC(scores) − AUROC(baseline) on the same cases, with a paired bootstrap 95 % interval over patients.

    Arguments are as for `bootstrap_auroc`. Raises AfireError if a class is missing or lengths differ.
    """
    both = [np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)]
    return _interval(labels, both, groups, repeats=2000, seed=0)


def _interval(labels: NDArray, scores: list[NDArray], groups: NDArray, repeats: int, seed: int) -> Interval:
    truth, groups = np.asarray(labels).astype(bool), np.asarray(groups)
    if any(len(other) != len(truth) for other in (*scores, groups)):
        given = [len(other) for other in (*scores, groups)]
        raise AfireError(f"{len(truth)} labels need as many scores and groups, got {given}")
    if truth.all() or not truth.any():
        raise AfireError(f"an AUROC needs both classes, got {truth.sum()} positives among {len(truth)}")
    columns = np.stack(scores, axis=1)
    targets, levels = np.repeat(truth[:, None], columns.shape[1], axis=1), np.zeros(columns.shape[1])
    draws = figure_draws(targets, columns, groups, levels, ("auroc",), repeats, seed)["auroc"]
    return percentile_interval(draws[0] - draws[1:].sum(0), several=len(np.unique(groups)) > 1)


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

    Targets (n, C) are 1, 0 or NaN, scores (n, C) NaN where unknown, groups (n,), thresholds (C,).

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
    """Return a reliability curve: each bin's mean score and share of positives (NaN if empty), and its count.

    Bins have equal width, [k / bins, (k + 1) / bins), the last with 1.

    Truth is (n,), scores (n,) in 0…1.
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
    """Refuse arrays that do not fit together or hold values out of range."""
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
    found: dict[str, Floats] = {}
    if any(f in RANKING for f in wanted):
        curve = weighted_curve(scores, truth, weights)
        functions = (auroc, average_precision, sensitivity_at_specificity)
        found.update({f: function(curve) for f, function in zip(RANKING, functions, strict=True) if f in wanted})
    if any(f in CALIBRATION for f in wanted):
        total = weights.sum(1)
        found["brier"] = _ratio(weights @ (scores - truth) ** 2, total)
        place = np.eye(ECE_BINS)[_bin(scores, ECE_BINS)]
        found["ece"] = _ratio(np.abs(weights @ (place * (scores - truth)[:, None])).sum(1), total)
    if any(f in RATES for f in wanted):
        flagged = scores >= threshold
        tp, fp, fn, tn = (weights @ cell for cell in confusion_cells(truth, flagged))
        pairs = ((tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn))
        found.update({f: _ratio(above, below) for f, (above, below) in zip(RATES, pairs, strict=True)})
    return {f: found[f] for f in wanted}


def _bin(scores: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


class Curve(NamedTuple):
    """Cases at or above each distinct score, scores falling."""

    true: Floats  #: (R, G) weight of positives
    false: Floats  #: (R, G) weight of negatives
    scores: Floats  #: (G,) the distinct scores


def weighted_curve(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Curve:
    """Count positives and negatives from the highest score down.

    Scores (n,) hold no NaN, n is at least 1; truth is (n,), weights (R, n) are not negative.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    sorted_weights = weights[:, order]
    all_cases = np.cumsum(sorted_weights, axis=1)[:, ends]
    true = np.cumsum(sorted_weights * positive, axis=1)[:, ends]
    return Curve(true, all_cases - true, ranked[ends])


def auroc(curve: Curve) -> Floats:
    """Area under the ROC curve (R,), a tied pair counting half; NaN where a class is missing."""
    before = np.diff(curve.false, axis=1, prepend=0.0)
    middle = curve.true - np.diff(curve.true, axis=1, prepend=0.0) / 2
    return _ratio((before * middle).sum(1), curve.true[:, -1] * curve.false[:, -1])


def average_precision(curve: Curve) -> Floats:
    """Sum over steps of precision times the gain in sensitivity (R,), not interpolated; NaN where a class is missing.

    As scikit-learn's ``average_precision_score``, except that it is not defined here without negatives.
    """
    gain = np.diff(curve.true, axis=1, prepend=0.0)
    found = curve.true + curve.false
    value = (gain * curve.true / np.where(found > 0, found, 1.0)).sum(1)
    return np.where(curve.false[:, -1] > 0, _ratio(value, curve.true[:, -1]), np.nan)


def sensitivity_at_specificity(curve: Curve) -> Floats:
    """Highest sensitivity (R,) of a threshold with specificity of at least 0.95; NaN where a class is missing.

    No interpolation between thresholds: the operating point can be chosen on these cases.
    """
    allowed = (1 - 0.95) * curve.false[:, -1:] + 1e-9
    best = np.where(curve.false <= allowed, curve.true, 0.0).max(1)
    return np.where(curve.false[:, -1] > 0, _ratio(best, curve.true[:, -1]), np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)
