"""Bootstrap intervals for the area under the ROC curve, resampling patients and not pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from afire_monai.errors import AfireError


class AurocInterval(NamedTuple):
    """An AUROC, or a difference of two, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def _weighted_auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray:
    """Give the AUROC of each row of ``weights`` (R, n): how often each case was drawn; nan where a class is missing."""
    # ties share a rank, so a cumulative sum over distinct scores counts each tied pair half
    dense = rankdata(scores, method="dense").astype(int) - 1
    bins = dense.max() + 1
    positive = np.zeros((len(weights), bins))
    negative = np.zeros((len(weights), bins))
    np.add.at(positive.T, dense[labels], weights.T[labels])
    np.add.at(negative.T, dense[~labels], weights.T[~labels])
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wins / (positive.sum(1) * negative.sum(1)))


def _draw_patients(groups: NDArray, repeats: int, seed: int) -> NDArray[np.float64]:
    """Give how often each case is drawn (repeats, n) when whole patients are drawn with replacement."""
    names, index = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    return counts[:, index].astype(np.float64)


def _check(labels: NDArray, *others: NDArray) -> NDArray[np.bool_]:
    labels = np.asarray(labels).astype(bool)
    if any(len(other) != len(labels) for other in others):
        raise AfireError(f"{len(labels)} labels need as many scores and groups, got {[len(o) for o in others]}")
    if labels.all() or not labels.any():
        raise AfireError(f"an AUROC needs both classes, got {labels.sum()} positives among {len(labels)}")
    return labels


def bootstrap_auroc(
    labels: NDArray, scores: NDArray, groups: NDArray, repeats: int = 2000, seed: int = 0
) -> AurocInterval:
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
) -> AurocInterval:
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


def _interval(labels: NDArray, scores: list[NDArray], groups: NDArray, repeats: int, seed: int) -> AurocInterval:
    truth = _check(labels, *scores, np.asarray(groups))
    weights = np.vstack([np.ones(len(truth)), _draw_patients(np.asarray(groups), repeats, seed)])
    values = _weighted_auroc(scores[0], truth, weights)
    if len(scores) == 2:
        values = values - _weighted_auroc(scores[1], truth, weights)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return AurocInterval(float(values[0]), float(low), float(high))
