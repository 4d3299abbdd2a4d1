"""Whether a model serves all alike: figures by sex, age, view and source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.evaluation.bootstrap import Interval, figure_draws, macro_mean, percentile_interval

Floats = NDArray[np.float64]

SMALLEST = 10
"""Cases of a class below which a label is not judged in a group."""
AGE_BANDS = ((18, "<18"), (40, "18-39"), (60, "40-59"), (80, "60-79"))
FIGURES = ("auroc", "sensitivity", "specificity")
UNKNOWN = "not stated"


@dataclass(frozen=True)
class SubgroupLabel:
    """One label in one group.

    Attributes:
        positives: cases with the finding.
        negatives: cases without.
        status: "" or why there are no figures.
        figures: ``auroc``, and ``sensitivity`` and ``specificity`` at the label's threshold.
    """

    positives: int
    negatives: int
    status: str
    figures: dict[str, Interval]


@dataclass(frozen=True)
class Subgroup:
    """One group of images.

    Attributes:
        by: ``sex``, ``age``, ``view`` or ``source``.
        name: of the group.
        cases: images.
        patients: patients.
        labels: of each finding.
        macro: mean AUROC over ``macro_over``; None if that is empty.
        macro_over: findings that can be judged in every group of this kind that has any, so that the means of groups
            can be compared.
    """

    by: str
    name: str
    cases: int
    patients: int
    labels: dict[str, SubgroupLabel]
    macro: Interval | None
    macro_over: tuple[str, ...]


def age_band(age: Any) -> str | None:
    """Name the age band of an age in years; None if it is not known."""
    if isinstance(age, bool) or not isinstance(age, int | float) or not age >= 0:  # NaN is not
        return None
    return next((name for bound, name in AGE_BANDS if age < bound), "80+")


KINDS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "sex": lambda item: item.get("sex"),
    "age": lambda item: age_band(item.get("age")),
    "view": lambda item: item.get("view"),
    "source": lambda item: item.get("source"),
}


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

    A kind that no item states, or of which all items are alike, gives no groups. Items that do not state it are a group
    of their own.

    Args:
        items: of the data list.
        targets: (n, C), 1, 0, NaN unknown.
        scores: (n, C), NaN unknown.
        groups: (n,) patient of each.
        names: of the C labels.
        thresholds: for each label; 0.5 where not given.
        repeats: bootstrap draws.
        seed: of the draws.
    """
    levels = np.array([(thresholds or {}).get(name, 0.5) for name in names])
    made: list[Subgroup] = []
    for by, state in KINDS.items():
        stated = np.array([str(state(item) or UNKNOWN) for item in items], dtype=object)
        found = sorted(set(stated), key=_order)
        if len(found) > 1:
            rows = {name: stated == name for name in found}
            made += _of_kind(by, rows, targets, scores, np.asarray(groups), names, levels, repeats, seed)
    return made


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
    made = []
    for name, row in rows.items():
        patients = len(np.unique(groups[row]))
        draws = figure_draws(targets[row], scores[row], groups[row], levels, FIGURES, repeats, seed)
        labels = {
            label: SubgroupLabel(
                int(counts[name][0, c]),
                int(counts[name][1, c]),
                "" if enough[name][c] else f"too small: fewer than {SMALLEST} of a class",
                {f: percentile_interval(draws[f][c], patients > 1) for f in FIGURES} if enough[name][c] else {},
            )
            for c, label in enumerate(names)
        }
        judged = len(common) and enough[name].any()
        macro = percentile_interval(macro_mean(draws["auroc"], list(common)), patients > 1) if judged else None
        over = tuple(names[c] for c in common) if judged else ()
        made.append(Subgroup(by, name, int(row.sum()), patients, labels, macro, over))
    return made


def _count(targets: Floats, scores: Floats) -> NDArray[np.int64]:
    """Count positives and negatives (2, C) among cases with a score."""
    known = ~np.isnan(scores)
    return np.stack([(known & (targets == value)).sum(0) for value in (1, 0)])


def _order(name: str) -> tuple[bool, int, str]:
    bands = [*(band for _, band in AGE_BANDS), "80+"]
    return name == UNKNOWN, bands.index(name) if name in bands else -1, name
