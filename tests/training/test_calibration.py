"""Calibration and thresholds against scikit-learn, known answers and a search by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration
from sklearn.metrics import log_loss

from afire_monai.core.errors import AfireError
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.training.calibration import calibrate, choose_thresholds, fit_calibration


def sample(n: int = 4000, scale: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose true probability is sigmoid(logit · scale)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 2, generator=generator) * 2
    return logits, (torch.rand(n, 2, generator=generator) < (logits * scale).sigmoid()).float()


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_temperature_finds_the_scale_that_the_labels_were_drawn_with(scale):
    logits, target = sample(scale=scale)
    found, bias = fit_calibration(logits, target, "temperature")
    assert found[0] == found[1] == pytest.approx(scale, rel=0.1)
    assert not bias.any()


def test_temperature_is_the_best_on_a_grid():
    logits, target = sample(300, 0.6)
    found, _ = fit_calibration(logits, target, "temperature")
    loss = lambda s: log_loss(target.flatten(), (logits * s).sigmoid().flatten())  # noqa: E731
    assert loss(found[0].item()) <= min(loss(s) for s in np.linspace(0.1, 3, 200)) + 1e-6


def test_platt_is_scikit_learns():
    logits, target = sample(400, 1.7)
    scale, bias = fit_calibration(logits, target, "platt")
    for place in range(2):
        theirs = _SigmoidCalibration().fit(logits[:, place].numpy(), target[:, place].numpy())
        assert scale[place] == pytest.approx(-theirs.a_, rel=1e-3)
        assert bias[place] == pytest.approx(-theirs.b_, abs=1e-3)


def test_platts_targets_of_a_few_cases_are_scikit_learns():
    logits = torch.tensor([[-2.0], [-1.5], [-0.5], [0.5], [-0.2], [1.5], [2.0]])
    target = torch.tensor([[0.0], [0], [0], [0], [1], [1], [1]])
    scale, bias = fit_calibration(logits, target, "platt")
    theirs = _SigmoidCalibration().fit(logits[:, 0].numpy(), target[:, 0].numpy())
    assert scale.item() == pytest.approx(-theirs.a_, rel=1e-3)
    assert bias.item() == pytest.approx(-theirs.b_, rel=1e-2)


def test_slope_has_bounds():
    logits, target = torch.tensor([[-0.1], [0.1]]), torch.tensor([[0.0], [1.0]])
    assert fit_calibration(logits, target, "temperature")[0].tolist() == [20.0]
    assert fit_calibration(-100 * logits, target, "temperature")[0].item() == pytest.approx(1 / 20)


def test_only_labels_with_both_classes_are_fitted_and_the_default_is_one_temperature():
    logits, target = sample(400, 0.5)
    target[:, 1] = 1
    scale, bias = fit_calibration(logits, target, "platt")
    assert scale[0] != 1
    assert bias[0] != 0
    assert (scale[1], bias[1]) == (1, 0)
    default, temperature = fit_calibration(logits, target), fit_calibration(logits, target, "temperature")
    assert torch.equal(default[0], temperature[0])


def test_temperature_that_cannot_be_fitted_is_said(caplog):
    fit_calibration(torch.zeros(3, 1), torch.ones(3, 1))
    assert "not calibrated: the validation set lacks positives or negatives" in caplog.text


def test_unknown_labels_are_left_out():
    logits, target = sample(400, 0.5)
    holes = target.clone()
    holes[200:] = math.nan
    for method in ("temperature", "platt"):
        for mine, theirs in zip(
            fit_calibration(logits, holes, method), fit_calibration(logits[:200], target[:200], method), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["temperature", "platt", "none"])
@pytest.mark.parametrize("kind", ["one class", "nothing known", "no image"])
def test_nothing_to_fit_leaves_probabilities_as_they_are(method, kind):
    n = 0 if kind == "no image" else 5
    logits, target = torch.randn(n, 2), torch.full((n, 2), math.nan if kind == "nothing known" else 1.0)
    scale, bias = fit_calibration(logits, target, method)
    assert scale.tolist() == [1, 1]
    assert bias.tolist() == [0, 0]


def test_labels_told_apart_perfectly_give_a_finite_fit_that_keeps_the_order():
    logits, target = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([[0.0], [0], [1], [1]])
    for method in ("temperature", "platt"):
        scale, bias = fit_calibration(logits, target, method)
        assert torch.isfinite(scale).all()
        assert torch.isfinite(bias).all()
        assert (scale > 0).all()


def test_reversed_scores_are_not_turned_round():
    logits, target = sample(500)
    scale, _ = fit_calibration(-logits, target, "platt")
    assert (scale > 0).all()


def test_calibrate_sets_the_network():
    torch.manual_seed(0)
    network = ViTClassifier(ViTEncoder(16, 8, embed_dim=16, depth=1, num_heads=2), ["a", "b"])
    logits, target = sample(400, 0.5)
    calibrate(network, logits, target, "temperature")
    assert network.calibration_scale[0] == pytest.approx(0.5, rel=0.3)
    calibrate(network, logits, target, "platt")
    scale, bias = fit_calibration(logits, target, "platt")
    assert torch.equal(network.calibration_scale, scale)
    assert torch.equal(network.calibration_bias, bias)


def test_wrong_names_and_shapes_are_refused():
    with pytest.raises(AfireError, match="temperature, platt or none"):
        fit_calibration(torch.zeros(2, 1), torch.zeros(2, 1), "isotonic")  # type: ignore[arg-type]
    with pytest.raises(AfireError, match="one shape"):
        fit_calibration(torch.zeros(2, 1), torch.zeros(2, 2))
    with pytest.raises(AfireError, match="youden or specificity95"):
        choose_thresholds(np.zeros((2, 1)), np.zeros((2, 1)), "best")  # type: ignore[arg-type]


def rates(score: np.ndarray, truth: np.ndarray, cut: float) -> tuple[float, float]:
    marked = score >= cut
    return marked[truth == 1].mean(), (~marked)[truth == 0].mean()


@pytest.mark.parametrize("seed", range(5))
def test_youden_is_the_best_of_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 60).astype(float)
    score = np.round(generator.random(60) * 0.5 + truth * 0.3, 2)  # with ties
    [cut] = choose_thresholds(score[:, None], truth[:, None])
    best = max(sum(rates(score, truth, c)) for c in [*np.unique(score), 2.0])
    assert sum(rates(score, truth, cut)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_specificity95_is_the_most_sensitive_of_the_specific_ones(seed):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 80).astype(float)
    score = np.round(generator.random(80) * 0.6 + truth * 0.3, 2)
    [cut] = choose_thresholds(score[:, None], truth[:, None], "specificity95")
    sensitivity, specificity = rates(score, truth, cut)
    assert specificity >= 0.95
    allowed = [rates(score, truth, c)[0] for c in [*np.unique(score), 2.0] if rates(score, truth, c)[1] >= 0.95]
    assert sensitivity == pytest.approx(max(allowed))


def test_a_label_without_both_classes_has_the_threshold_one_half():
    score = np.array([[0.2, 0.3], [0.9, 0.1]])
    assert choose_thresholds(score, np.array([[1.0, np.nan], [1.0, np.nan]])) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("score", "truth", "rule", "expected"),
    [
        # half-way to the next lower score, not to the next corner of the curve
        ([0.9, 0.8, 0.5, 0.4, 0.3], [1, 1, 0, 0, 0], "youden", 0.65),
        # no threshold is better than none: half-way to 1
        ([0.8, 0.2], [0, 1], "youden", 0.9),
        # one of 20 negatives may be marked, two may not
        ([0.9, 0.8, *[0.1] * 19], [0, 1, *[0] * 19], "specificity95", 0.45),
        ([0.9, 0.9, 0.8, *[0.1] * 18], [0, 0, 1, *[0] * 18], "specificity95", 0.95),
        # false positives count for youden alone
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.1], [1, 0, 0, 1, 0, 0], "youden", 0.85),
        ([0.9, 0.8, 0.7, *[0.1] * 20], [1, 0, 1, *[0] * 20], "specificity95", 0.4),
    ],
)
def test_threshold_by_hand(score, truth, rule, expected):
    unknown = [0.55, np.nan]
    columns = np.array([*zip(score, truth, strict=True), unknown])
    assert choose_thresholds(columns[:, :1], columns[:, 1:], rule) == [pytest.approx(expected)]
