"""Figures of a multi-label classifier, of all images and of groups of patients, with 95 % intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.age_sex import AGE_BANDS
from afire_monai.datalists.populations import KINDS
from afire_monai.evaluation.bootstrap import (
    CALIBRATION,
    FIGURES,
    RATES,
    Interval,
    check_arrays,
    confusion_cells,
    figure_draws,
    macro_mean,
    percentile_interval,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelResult:
    """Figures of one label.

    ``status`` says why the label cannot be judged, and there are then no figures; else it is "".
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

    ``macro`` is over ``macro_over``, the labels with both classes, without rates at a threshold.
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
        names: names of the C labels.
        thresholds: for each label the score from which it counts as present; 0.5 if not given.
        macro_over: labels that may count in the macro mean; None for all.
        figures: figures to compute, out of `FIGURES` and `RATES`.
        repeats: number of bootstrap draws.
        seed: seed of the draws.

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
            label.figures.update(_intervals(draws, c, groups, targets + scores))
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

    Differences are the first minus the second; labels that cannot be judged are not in it.
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
    """Return the differences of two models' figures with paired bootstrap 95 % intervals over patients.

    Arguments are as for `evaluate_labels`; ``baseline`` are the other model's scores. Raises AfireError if shapes do
    not fit, or targets or scores are out of range.
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
    differences = {f: first[f] - second[f] for f in figures}
    labels = {names[c]: _intervals(differences, c, groups, both) for c in judged}
    macro = {
        f: percentile_interval(macro_mean(first[f], counted) - macro_mean(second[f], counted), several) for f in figures
    }
    cases = int((~np.isnan(both)).any(1).sum())
    return Comparison(labels, macro if counted else {}, tuple(names[c] for c in counted), cases)


def _intervals(draws: Mapping[str, Floats], label: int, groups: NDArray, known: Floats) -> dict[str, Interval]:
    """Return the intervals of a label's figures; cases that are NaN in ``known`` (n, C) do not count."""
    several = len(np.unique(groups[~np.isnan(known[:, label])])) > 1
    return {figure: percentile_interval(values[label], several) for figure, values in draws.items()}


def _label_result(targets: Floats, scores: Floats, name: str, threshold: float) -> LabelResult:
    known = ~np.isnan(targets) & ~np.isnan(scores)
    truth, flagged = targets[known] == 1, scores[known] >= threshold
    positives, negatives = int(truth.sum()), int((~truth).sum())
    status = ""
    if not known.any():
        status = "no case with a known target and a score"
    elif not positives or not negatives:
        status = f"no {'negatives' if positives else 'positives'} among {len(truth)} cases"
    counts = dict(
        zip(("tp", "fp", "fn", "tn"), (int(cell.sum()) for cell in confusion_cells(truth, flagged)), strict=True)
    )
    return LabelResult(name, positives, negatives, int((~known).sum()), status, {}, float(threshold), counts)


SMALLEST = 10
"""Number of cases of a class below which a label is not judged in a group."""
GROUP_FIGURES = ("auroc", "sensitivity", "specificity")
UNKNOWN = "not stated"


@dataclass(frozen=True)
class SubgroupLabel:
    """One label in one group.

    ``status`` says why there are no figures; else it is "".
    """

    positives: int
    negatives: int
    status: str
    figures: dict[str, Interval]


@dataclass(frozen=True)
class Subgroup:
    """One group of images.

    ``macro_over`` are the findings that can be judged in every group of this kind that has any.
    """

    by: str
    name: str
    cases: int
    patients: int
    labels: dict[str, SubgroupLabel]
    macro: Interval | None
    macro_over: tuple[str, ...]


def evaluate_subgroups(
    items: Sequence[Mapping[str, Any]],
    targets: Floats,
    scores: Floats,
    groups: NDArray,
    names: Sequence[str],
    thresholds: Mapping[str, float] | None = None,
    repeats: int = 2000,
    seed: int = 0,
) -> list[Subgroup]:
    """Judge the groups of each kind that items tell apart.

    A kind that no item states, or that is the same for all items, gives no groups. Items that do not state it form a
    group of their own.

    Arguments are as for `evaluate_labels`; targets, scores and groups are those of ``items``.
    """
    levels = np.array([(thresholds or {}).get(name, 0.5) for name in names])
    subgroups: list[Subgroup] = []
    for by, state in KINDS.items():
        stated = np.array([str(state(item) or UNKNOWN) for item in items], dtype=object)
        found = sorted(set(stated), key=_order)
        if len(found) > 1:
            rows = {name: stated == name for name in found}
            subgroups += _of_kind(by, rows, targets, scores, np.asarray(groups), names, levels, repeats, seed)
    return subgroups


def _of_kind(
    by: str,
    rows: Mapping[str, NDArray[np.bool_]],
    targets: Floats,
    scores: Floats,
    groups: NDArray,
    names: Sequence[str],
    levels: Floats,
    repeats: int,
    seed: int,
) -> list[Subgroup]:
    counts = {name: _count(targets[row], scores[row]) for name, row in rows.items()}
    enough = {name: count.min(0) >= SMALLEST for name, count in counts.items()}
    usable = [e for e in enough.values() if e.any()]
    common = np.flatnonzero(np.all(usable, axis=0)) if usable else np.array([], dtype=int)
    subgroups = []
    for name, row in rows.items():
        patients = len(np.unique(groups[row]))
        draws = figure_draws(targets[row], scores[row], groups[row], levels, GROUP_FIGURES, repeats, seed)
        labels = {
            label: SubgroupLabel(
                int(counts[name][0, c]),
                int(counts[name][1, c]),
                "" if enough[name][c] else f"too small: fewer than {SMALLEST} of a class",
                _intervals(draws, c, groups[row], targets[row] + scores[row]) if enough[name][c] else {},
            )
            for c, label in enumerate(names)
        }
        judged = len(common) and enough[name].any()
        macro = percentile_interval(macro_mean(draws["auroc"], list(common)), patients > 1) if judged else None
        over = tuple(names[c] for c in common) if judged else ()
        subgroups.append(Subgroup(by, name, int(row.sum()), patients, labels, macro, over))
    return subgroups


def _count(targets: Floats, scores: Floats) -> NDArray[np.int64]:
    """Count positives and negatives (2, C) among cases with a score."""
    known = ~np.isnan(scores)
    return np.stack([(known & (targets == value)).sum(0) for value in (1, 0)])


def _order(name: str) -> tuple[bool, int, str]:
    bands = [*(band for _, band in AGE_BANDS), "80+"]
    return name == UNKNOWN, bands.index(name) if name in bands else -1, name
