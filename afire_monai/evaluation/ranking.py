"""Figures that depend on the order of scores, for many weightings of the same cases at once.

A weighting says how often each case counts; a bootstrap draw is one. Tied scores are one step of the curve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """Cases at or above each distinct score, scores falling.

    Attributes:
        true: (R, G) weight of positives.
        false: (R, G) weight of negatives.
        scores: (G,) the distinct scores.
    """

    true: Floats
    false: Floats
    scores: Floats


def weighted_curve(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Curve:
    """Count positives and negatives from the highest score down.

    Args:
        scores: (n,) without NaN, n at least 1.
        truth: (n,).
        weights: (R, n), not negative.
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


def sensitivity_at_specificity(curve: Curve, specificity: float = 0.95) -> Floats:
    """Highest sensitivity (R,) of a threshold with at least this specificity; NaN where a class is missing.

    No interpolation between thresholds: the operating point can be chosen on these cases.
    """
    allowed = (1 - specificity) * curve.false[:, -1:] + 1e-9
    best = np.where(curve.false <= allowed, curve.true, 0.0).max(1)
    return np.where(curve.false[:, -1] > 0, _ratio(best, curve.true[:, -1]), np.nan)


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)
