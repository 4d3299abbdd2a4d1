"""Figures of a multi-label classifier, each with a 95 % interval over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from afire_monai.errors import AfireError
from afire_monai.evaluation import ranking
from afire_monai.evaluation.bootstrap import Interval, patient_weights, percentile_interval

Floats = NDArray[np.float64]

RANKING = ("auroc", "average_precision", "sensitivity_at_95_specificity")
CALIBRATION = ("brier", "ece")
RATES = ("sensitivity", "specificity", "ppv", "npv")
FIGURES = (*RANKING, *CALIBRATION)
ECE_BINS = 15


@dataclass(frozen=True)
class LabelResult:
    """Figures of one label.

    Attributes:
        name: of the label.
        positives: cases with the finding.
        negatives: cases without.
        unknown: cases left out because target or score is not known.
        status: "" if the label can be judged, else why not.
        figures: by name; empty if ``status`` is not "".
        threshold: probability from which a case counts as positive.
        confusion: ``tp``, ``fp``, ``tn``, ``fn`` at the threshold.
    """

    name: str
    positives: int
    negatives: int
    unknown: int
    status: str
    figures: dict[str, Interval]
    threshold: float
    confusion: dict[str, int]


@dataclass(frozen=True)
class Metrics:
    """Figures of all labels.

    Attributes:
        labels: one result each.
        macro: mean over ``macro_over`` of each figure that is not a rate at a threshold.
        macro_over: labels that count in the mean: those with both classes.
        patients: different groups among the cases.
        cases: number of images.
    """

    labels: list[LabelResult]
    macro: dict[str, Interval] = field(default_factory=dict)
    macro_over: tuple[str, ...] = ()
    patients: int = 0
    cases: int = 0


def evaluate_labels(
    targets: Floats,
    scores: Floats,
    groups: NDArray,
    names: Sequence[str],
    thresholds: Mapping[str, float] | None = None,
    macro_over: Sequence[str] | None = None,
    figures: Sequence[str] = (*FIGURES, *RATES),
    repeats: int = 2000,
    seed: int = 0,
) -> Metrics:
    """Judge scores against targets.

    A macro figure of a bootstrap draw is the mean over the labels that have both classes in that draw.

    Args:
        targets: (n, C), 1 present, 0 absent, NaN unknown.
        scores: (n, C), higher means present, NaN unknown; in 0…1 if Brier score or calibration error are asked for.
        groups: (n,) patient of each case.
        names: of the C labels.
        thresholds: for each label the score from which it counts as present; 0.5 where not given.
        macro_over: labels that may count in the macro mean; None for all.
        figures: of `FIGURES` and `RATES`, those to compute.
        repeats: bootstrap draws.
        seed: of the draws.

    Raises:
        AfireError: if shapes do not fit, or targets or scores are out of range.
    """
    groups = np.asarray(groups)
    check_arrays(targets, scores, groups, names, probabilities=any(f in CALIBRATION for f in figures))
    levels = np.array([(thresholds or {}).get(name, 0.5) for name in names])
    draws = figure_draws(targets, scores, groups, levels, figures, repeats, seed)
    several = len(np.unique(groups)) > 1
    labels = [_label_result(targets[:, c], scores[:, c], name, levels[c]) for c, name in enumerate(names)]
    for c, label in enumerate(labels):
        if not label.status:
            label.figures.update({f: percentile_interval(draws[f][c], several) for f in figures})
    counted = [
        c for c, label in enumerate(labels) if not label.status and (macro_over is None or label.name in macro_over)
    ]
    macro = {f: percentile_interval(macro_mean(draws[f], counted), several) for f in figures if f in FIGURES}
    return Metrics(
        labels, macro if counted else {}, tuple(names[c] for c in counted), len(np.unique(groups)), len(targets)
    )


@dataclass(frozen=True)
class Comparison:
    """Differences of figures between two models on the cases that both judged.

    Attributes:
        labels: for each label the differences (first minus second) by figure; labels that cannot be judged are not
            in it.
        macro: differences of the macro means.
        macro_over: labels that count in it.
        cases: images with at least one label that both judged.
    """

    labels: dict[str, dict[str, Interval]]
    macro: dict[str, Interval]
    macro_over: tuple[str, ...]
    cases: int


def compare_labels(
    targets: Floats,
    scores: Floats,
    baseline: Floats,
    groups: NDArray,
    names: Sequence[str],
    macro_over: Sequence[str] | None = None,
    figures: Sequence[str] = FIGURES,
    repeats: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Give the differences of two models' figures with paired bootstrap 95 % intervals over patients.

    Args:
        targets: (n, C), 1 present, 0 absent, NaN unknown.
        scores: (n, C) of the one model.
        baseline: (n, C) of the other.
        groups: (n,) patient of each case.
        names: of the C labels.
        macro_over: labels that may count in the macro mean; None for all.
        figures: of `FIGURES`, those to compute.
        repeats: bootstrap draws.
        seed: of the draws.

    Raises:
        AfireError: if shapes do not fit, or targets or scores are out of range.
    """
    groups = np.asarray(groups)
    probabilities = any(f in CALIBRATION for f in figures)
    for column in (scores, baseline):
        check_arrays(targets, column, groups, names, probabilities)
    both = np.where(np.isnan(scores) | np.isnan(baseline), np.nan, targets)
    levels = np.full(len(names), 0.5)
    first, second = (figure_draws(both, s, groups, levels, figures, repeats, seed) for s in (scores, baseline))
    several = len(np.unique(groups)) > 1
    judged = [c for c in range(len(names)) if {0.0, 1.0} <= set(both[:, c])]
    counted = [c for c in judged if macro_over is None or names[c] in macro_over]
    labels = {names[c]: {f: percentile_interval(first[f][c] - second[f][c], several) for f in figures} for c in judged}
    macro = {
        f: percentile_interval(macro_mean(first[f], counted) - macro_mean(second[f], counted), several) for f in figures
    }
    cases = int((~np.isnan(both)).any(1).sum())
    return Comparison(labels, macro if counted else {}, tuple(names[c] for c in counted), cases)


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
        tp, fp, fn, tn = (weights @ cell for cell in _cells(truth, flagged))
        pairs = ((tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn))
        made.update({f: _share(above, below) for f, (above, below) in zip(RATES, pairs, strict=True)})
    return {f: made[f] for f in wanted}


def _label_result(targets: Floats, scores: Floats, name: str, threshold: float) -> LabelResult:
    known = ~np.isnan(targets) & ~np.isnan(scores)
    truth, flagged = targets[known] == 1, scores[known] >= threshold
    positives, negatives = int(truth.sum()), int((~truth).sum())
    status = ""
    if not known.any():
        status = "no case with a known target and a score"
    elif not positives or not negatives:
        status = f"no {'negatives' if positives else 'positives'} among {len(truth)} cases"
    counts = dict(zip(("tp", "fp", "fn", "tn"), (int(cell.sum()) for cell in _cells(truth, flagged)), strict=True))
    return LabelResult(name, positives, negatives, int((~known).sum()), status, {}, float(threshold), counts)


def _cells(truth: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
    """Mark true positives, false positives, false negatives and true negatives, each (n,) 0 or 1."""
    cells = (truth & flagged, ~truth & flagged, truth & ~flagged, ~truth & ~flagged)
    tp, fp, fn, tn = (cell.astype(np.float64) for cell in cells)
    return tp, fp, fn, tn


def _bin(scores: Floats, bins: int) -> NDArray[np.int64]:
    return np.minimum((scores * bins).astype(np.int64), bins - 1)


def _share(above: Floats, below: Floats) -> Floats:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
