"""Bootstrap intervals, resampling patients and not pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.ranking import auroc, weighted_curve

# weights held at a time: 32 MB
MOST_WEIGHTS = 4_000_000


class Interval(NamedTuple):
    """A figure, or a difference of two, with the bounds of its 95 % interval; NaN where something cannot be said."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


AurocInterval = Interval


def patient_weights(groups: NDArray, repeats: int, seed: int, most: int = MOST_WEIGHTS) -> Iterator[NDArray]:
    """Draw whole patients with replacement, as many as there are.

    Args:
        groups: (n,) patient of each case.
        repeats: draws.
        seed: of the draws.
        most: numbers in one block; the draws do not depend on it.

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
        several: whether there was more than one patient; of one, no interval can be given.
    """
    draws = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(draws) or not several:
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def ratio_interval(above: NDArray, below: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Give Σ above / Σ below over cases with a percentile bootstrap 95 % interval over patients.

    With ``below`` 1 for each case that counts and 0 for the others, this is a mean.

    Args:
        above: (n,) finite.
        below: (n,) not negative; the figure is NaN where its sum is 0.
        groups: (n,) patient of each case.
        repeats: bootstrap draws.
        seed: of the draws.
    """
    above, below, groups = (np.asarray(a) for a in (above, below, groups))
    if not len(groups):
        return Interval(float("nan"), float("nan"), float("nan"))
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = [(w @ above) / (w @ below) for w in patient_weights(groups, repeats, seed)]
    return percentile_interval(np.concatenate(draws), several=len(np.unique(groups[below > 0])) > 1)


def mean_interval(values: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Give the mean over cases, those with NaN left out, with a percentile bootstrap 95 % interval over patients."""
    known = ~np.isnan(np.asarray(values, dtype=np.float64))
    return ratio_interval(np.where(known, values, 0.0), known.astype(np.float64), groups, repeats, seed)


def bootstrap_auroc(labels: NDArray, scores: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0) -> Interval:
    """Give the AUROC with a percentile bootstrap 95 % interval over patients.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,), higher means positive.
        groups: (n,) patient of each case.
        repeats: bootstrap draws; those that miss a class are left out.
        seed: of the draws.

    Raises:
        AfireError: if a class is missing or lengths differ.
    """
    return _interval(labels, [np.asarray(scores, dtype=np.float64)], groups, repeats, seed)


def bootstrap_auroc_difference(
    labels: NDArray, scores: NDArray, baseline: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0
) -> Interval:
    """Give AUROC(scores) − AUROC(baseline) on the same cases, with a paired bootstrap 95 % interval over patients.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) of the one model.
        baseline: (n,) of the other.
        groups: (n,) patient of each case.
        repeats: bootstrap draws.
        seed: of the draws.

    Raises:
        AfireError: if a class is missing or lengths differ.
    """
    both = [np.asarray(scores, dtype=np.float64), np.asarray(baseline, dtype=np.float64)]
    return _interval(labels, both, groups, repeats, seed)


def _interval(labels: NDArray, scores: list[NDArray], groups: NDArray, repeats: int, seed: int) -> Interval:
    groups = np.asarray(groups)
    truth = _check(labels, *scores, groups)
    blocks = []
    for weights in patient_weights(groups, repeats, seed):
        values = [auroc(weighted_curve(column, truth, weights)) for column in scores]
        blocks.append(values[0] - values[1] if len(values) == 2 else values[0])
    return percentile_interval(np.concatenate(blocks), several=len(np.unique(groups)) > 1)


def _check(labels: NDArray, *others: NDArray) -> NDArray[np.bool_]:
    labels = np.asarray(labels).astype(bool)
    if any(len(other) != len(labels) for other in others):
        raise AfireError(f"{len(labels)} labels need as many scores and groups, got {[len(o) for o in others]}")
    if labels.all() or not labels.any():
        raise AfireError(f"an AUROC needs both classes, got {labels.sum()} positives among {len(labels)}")
    return labels
