from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import (
    auroc,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    patient_weights,
    weighted_curve,
)


def cases(n: int = 120, levels: int = 0, seed: int = 0, signal: float = 0.8):
    generator = np.random.default_rng(seed)
    labels = generator.random(n) < 0.4
    scores = generator.normal(size=n) + signal * labels
    return labels, np.round(scores * levels) / levels if levels else scores


@pytest.mark.parametrize("levels", [0, 2, 1], ids=["no ties", "some ties", "many ties"])
def test_value_equals_scikit_learn_with_and_without_ties(levels):
    labels, scores = cases(levels=levels)
    value = bootstrap_auroc(labels, scores, np.arange(len(labels)), repeats=10).value
    assert value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [0, 2])
def test_each_draw_equals_scikit_learn_on_the_cases_that_were_drawn(levels):
    labels, scores = cases(40, levels)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=20).astype(float)
    values = auroc(weighted_curve(scores, labels, weights))
    for value, weight in zip(values, weights, strict=True):
        drawn = np.repeat(np.arange(40), weight.astype(int))
        assert value == pytest.approx(roc_auc_score(labels[drawn], scores[drawn]), abs=1e-12)


def test_patients_are_drawn_whole():
    groups = np.array(["a", "b", "a", "c", "b", "a"])
    first, *blocks = patient_weights(groups, 200, 0, most=100)
    assert (first == 1).all()
    assert len(blocks) > 1
    counts = np.vstack(blocks)
    np.testing.assert_array_equal(counts, np.vstack(list(patient_weights(groups, 200, 0))[1:]))
    assert counts.shape == (200, 6)
    assert (counts[:, [0, 0, 1]] == counts[:, [2, 5, 4]]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()  # three patients a draw
    assert counts.mean() == pytest.approx(1, abs=0.1)


def test_more_pictures_of_the_same_patients_do_not_narrow_the_interval():
    labels, scores = cases()
    patients = np.arange(len(labels))
    once = bootstrap_auroc(labels, scores, patients)
    thrice = bootstrap_auroc(np.tile(labels, 3), np.tile(scores, 3), np.tile(patients, 3))
    assert thrice == pytest.approx(once)
    naive = bootstrap_auroc(np.tile(labels, 3), np.tile(scores, 3), np.arange(3 * len(labels)))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_interval_holds_the_value_and_has_about_the_width_of_the_normal_approximation():
    labels, scores = cases(400)
    value, low, high = bootstrap_auroc(labels, scores, np.arange(400))
    assert low < value < high
    # Hanley and McNeil 1982
    n, m = labels.sum(), (~labels).sum()
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    error = ((value * (1 - value) + (n - 1) * (q1 - value**2) + (m - 1) * (q2 - value**2)) / (n * m)) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    labels, scores = cases()
    groups = np.arange(len(labels))
    assert bootstrap_auroc(labels, scores, groups, seed=1) == bootstrap_auroc(labels, scores, groups, seed=1)
    assert bootstrap_auroc(labels, scores, groups, seed=1) != bootstrap_auroc(labels, scores, groups, seed=2)


def test_a_model_does_not_differ_from_itself():
    labels, scores = cases(levels=2)
    assert bootstrap_auroc_difference(labels, scores, scores, np.arange(len(labels))) == (0, 0, 0)
    # nor from one that gives the same order
    assert bootstrap_auroc_difference(labels, scores, 3 * scores + 7, np.arange(len(labels))) == (0, 0, 0)


def test_difference_is_that_of_the_values_and_pairing_narrows_its_interval():
    labels, scores = cases(200)
    worse = scores + np.random.default_rng(2).normal(size=200) * 0.3
    groups = np.arange(200)
    difference = bootstrap_auroc_difference(labels, scores, worse, groups)
    assert difference.value == pytest.approx(roc_auc_score(labels, scores) - roc_auc_score(labels, worse))
    single = bootstrap_auroc(labels, scores, groups)
    assert difference.high - difference.low < 0.6 * (single.high - single.low)
    reverse = bootstrap_auroc_difference(labels, worse, scores, groups)
    assert (reverse.value, reverse.low, reverse.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low)
    )


def test_draws_that_miss_a_class_are_left_out():
    labels = np.array([1, 0, 0, 0])  # a third of the draws have no positive
    value, low, high = bootstrap_auroc(labels, np.array([0.9, 0.1, 0.95, 0.3]), np.arange(4), repeats=200)
    assert value == pytest.approx(2 / 3)
    assert 0 <= low <= value <= high <= 1


def test_of_one_patient_no_interval_is_given():
    value, low, high = bootstrap_auroc(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.0]), np.array(["a", "a", "a"]))
    assert value == 0.5
    assert np.isnan([low, high]).all()


def test_integer_labels_and_scores_are_taken():
    assert bootstrap_auroc(np.array([0, 1, 0, 1]), np.array([1, 2, 3, 4]), np.arange(4)).value == 0.75


def test_text_is_value_and_interval():
    from afire_monai.evaluation.bootstrap import Interval

    assert str(Interval(0.81234, 0.7, 0.9)) == "0.812 (0.700 to 0.900)"


def test_a_missing_class_and_different_lengths_are_refused_with_the_numbers():
    with pytest.raises(AfireError, match="both classes, got 3 positives among 3"):
        bootstrap_auroc(np.ones(3), np.arange(3), np.arange(3))
    with pytest.raises(AfireError, match=r"3 labels need as many scores and groups, got \[4, 3\]"):
        bootstrap_auroc(np.array([0, 1, 1]), np.arange(4), np.arange(3))
    with pytest.raises(AfireError, match=r"3 labels"):
        bootstrap_auroc(np.array([0, 1, 1]), np.arange(3), np.arange(2))
