"""Fit a classifier's calibration and thresholds to the validation set, and describe their basis in words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_curve
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import bootstrap_auroc
from afire_monai.networks.task_networks import ViTClassifier

CalibrationMethod = Literal["temperature", "platt", "none"]
ThresholdRule = Literal["youden", "specificity95"]
logger = logging.getLogger(__name__)
DRAWN = 2_000_000
"""Total number of images drawn for one interval, so that a large test section takes seconds; at least 200 draws."""
_STEEPEST = 20.0  # limit of a fitted slope: a perfectly separated validation set would give an infinite one


def fit_calibration(logits: Tensor, target: Tensor, method: CalibrationMethod = "temperature") -> tuple[Tensor, Tensor]:
    """Fit probabilities sigmoid(scale · logit + bias) by maximum likelihood (Platt 1999; Guo et al., ICML 2017).

    Args:
        logits: (n, C) of the validation set.
        target: (n, C), 1, 0, or NaN where not known.
        method: ``temperature``, one scale for all labels and no bias, which a small validation set can carry;
            ``platt``, a scale and a bias for each label that has both classes; ``none``.

    Returns:
        Scale and bias, each (C,). The scale is positive, so that calibration never changes the order of cases.

    Raises:
        AfireError: for an unknown method or shapes that differ.
    """
    if logits.shape != target.shape:
        raise AfireError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must have one shape")
    scale, bias = torch.ones(logits.shape[1]), torch.zeros(logits.shape[1])
    if method == "none":
        return scale, bias
    if method not in ("temperature", "platt"):
        raise AfireError(f"calibration must be temperature, platt or none, got {method!r}")
    known = ~target.isnan()
    if method == "temperature":
        truth = target[known]
        if len(truth) and truth.min() < truth.max():
            value, _ = _fit(logits[known], truth, with_bias=False)
            return torch.full_like(scale, value), bias
        logger.warning("not calibrated: the validation set lacks positives or negatives")
        return scale, bias
    for place in range(logits.shape[1]):
        values, truth = logits[known[:, place], place], target[known[:, place], place]
        if len(truth) and truth.min() < truth.max():
            scale[place], bias[place] = _fit(values, truth, with_bias=True)
    return scale, bias


def _fit(logits: Tensor, truth: Tensor, with_bias: bool) -> tuple[float, float]:
    logits, truth = logits.double(), truth.double()
    if with_bias:  # Platt's targets keep the fit finite if the classes are perfectly separated
        positive, negative = truth.sum(), (1 - truth).sum()
        truth = torch.where(truth > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=with_bias)
    parameters = [log_scale, bias] if with_bias else [log_scale]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits * log_scale.exp() + bias, truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    scale = float(log_scale.detach().exp().clamp(1 / _STEEPEST, _STEEPEST))
    return scale, float(bias.detach())


def calibrate(network: ViTClassifier, logits: Tensor, target: Tensor, method: CalibrationMethod) -> None:
    """Fit and set a classifier's calibration (see :func:`fit_calibration`)."""
    scale, bias = fit_calibration(logits.cpu().float(), target.cpu().float(), method)
    network.calibration_scale.copy_(scale)
    network.calibration_bias.copy_(bias)


def choose_thresholds(probabilities: np.ndarray, target: np.ndarray, rule: ThresholdRule = "youden") -> list[float]:
    """Choose for each label the probability from which a case counts as positive, on the validation set.

    Args:
        probabilities: (n, C) in 0…1.
        target: (n, C), 1, 0, or NaN where not known.
        rule: ``youden`` maximises sensitivity plus specificity; ``specificity95`` is the lowest threshold with at least
            95 % specificity.

    Returns:
        One threshold for each label; 0.5 for a label without both classes.

    Raises:
        AfireError: for an unknown rule.
    """
    if rule not in ("youden", "specificity95"):
        raise AfireError(f"threshold rule must be youden or specificity95, got {rule!r}")
    thresholds = []
    for place in range(probabilities.shape[1]):
        known = ~np.isnan(target[:, place])
        truth, score = target[known, place], probabilities[known, place]
        if not len(truth) or truth.min() == truth.max():
            thresholds.append(0.5)
            continue
        false_positive, sensitivity, cuts = roc_curve(truth, score, drop_intermediate=False)
        allowed = false_positive <= 0.05 if rule == "specificity95" else np.ones(len(cuts), bool)
        best = int(np.argmax(np.where(allowed, sensitivity - (rule == "youden") * false_positive, -1.0)))
        # half-way to the next lower score, so that a rounding error of a later prediction does not change the side; the
        # lowest score marks every case, which is never better than marking none, and marking none comes first
        upper = cuts[best] if np.isfinite(cuts[best]) else 1.0
        thresholds.append(float((upper + cuts[best + 1]) / 2))
    return thresholds


def calibration_words(target: NDArray[np.floating], method: str) -> list[str]:
    """Return for each label on how many images its probability was calibrated (see `fit_calibration`).

    Args:
        target: (n, labels) of the validation set: 1, 0, or NaN where not known.
        method: temperature, platt or none.
    """
    counts = []
    for place in range(target.shape[1]):
        known = target if method == "temperature" else target[:, place : place + 1]
        images = known[~np.isnan(known).all(1)]
        both = bool((images == 1).any() and (images == 0).any())
        counts.append(len(images) if both and method != "none" else 0)
    return [f"calibrated on {count} images" if count else "not calibrated" for count in counts]


def own_test_words(target: NDArray[np.floating], scores: NDArray[np.floating], patients: Sequence[str]) -> list[str]:
    """Return for each label its AUROC in the test section with a 95 % interval over patients.

    Args:
        target: (n, labels) of the test section: 1, 0, or NaN where not known.
        scores: (n, labels), higher means present.
        patients: (n,) of the images.
    """
    words = []
    for place in range(target.shape[1]):
        known = ~np.isnan(target[:, place])
        truth = target[known, place]
        if not len(truth) or truth.min() == truth.max():
            words.append("not tested")
            continue
        repeats = int(np.clip(DRAWN // len(truth), 200, 2000))
        found = bootstrap_auroc(truth, scores[known, place], np.asarray(patients)[known], repeats)
        interval = "" if np.isnan(found.low) else f" ({found.low:.2f} to {found.high:.2f})"
        words.append(f"AUROC {found.value:.2f}{interval} in its own test of {len(truth)} images")
    return words
