"""Counts, intervals and bounds of the figures, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from afire_monai.core.age_sex import age_band
from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import (
    Interval,
    bootstrap_auroc,
    bootstrap_auroc_difference,
    calibration_bins,
    check_arrays,
    confusion_cells,
    figure_draws,
    macro_mean,
    mean_interval,
    patient_weights,
    percentile_interval,
    ratio_interval,
    sensitivity_at_specificity,
    weighted_curve,
)
from afire_monai.evaluation.metrics import Metrics, compare_labels, evaluate_labels, evaluate_subgroups

NAN = np.nan
TARGETS = np.array([[1.0, 0], [1, 1], [0, 0], [0, NAN]])
SCORES = np.array([[0.9, 0.2], [0.4, 0.7], [0.4, 0.6], [0.1, 0.5]])


def same(one: Interval, *other: float) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def test_intervals_are_percentiles_of_what_is_defined():
    assert same(percentile_interval(np.array([5.0, *range(41), NAN])), 5, 1, 39)
    assert same(percentile_interval(np.array([5.0, 1, 2]), several=False), 5, NAN, NAN)
    assert same(percentile_interval(np.array([5.0, NAN])), 5, NAN, NAN)
    assert same(percentile_interval(np.array([NAN, 1.0, 2])), NAN, NAN, NAN)
    assert same(percentile_interval(np.array([5.0, 1.0])), 5, 1, 1)


def test_ratio_is_of_sums_and_has_no_interval_over_one_patient_that_counts():
    assert same(ratio_interval(np.array([1, 2]), np.array([2, 4]), np.array([0, 0])), 0.5, NAN, NAN)
    assert same(ratio_interval(np.array([1, 2]), np.array([2, 0]), np.array([0, 1])), 1.5, NAN, NAN)
    assert same(ratio_interval(np.array([]), np.array([]), np.array([])), NAN, NAN, NAN)
    assert ratio_interval(np.array([1.0, 3]), np.array([2, 2]), np.array([0, 1])) == (1, 0.5, 1.5)
    assert math.isnan(ratio_interval(np.zeros(2), np.zeros(2), np.arange(2)).value)
    assert mean_interval(np.array([1.0, NAN, 3]), np.arange(3)) == (2, 1, 3)
    several = np.random.default_rng(0).random(40)
    assert mean_interval(several, several) == mean_interval(several, several, 2000, 0)
    assert mean_interval(several, several) != mean_interval(several, several, 1999, 0)
    assert ratio_interval(several, several + 1, several) == ratio_interval(several, several + 1, several, 2000, 0)
    assert ratio_interval(several, several + 1, several) != ratio_interval(several, several + 1, several, 1999, 0)


def test_auroc_by_default_of_two_thousand_draws_with_seed_0():
    generator = np.random.default_rng(0)
    labels, scores, other = generator.random(30) < 0.5, generator.random(30), generator.random(30)
    groups = np.arange(30)
    interval = bootstrap_auroc(labels, scores, groups)
    assert interval == bootstrap_auroc(labels, scores, groups, 2000, 0)
    assert (
        len({interval, *(bootstrap_auroc(labels, scores, groups, n, s) for n, s in ((1999, 0), (2001, 0), (2000, 1)))})
        == 4
    )
    blocks = patient_weights(groups, 2000, 0)
    weights = np.concatenate(list(blocks))
    area = []
    for column in (scores, other):
        above = (column[:, None] > column[None]) & labels[:, None] & ~labels[None]
        pairs = (weights @ (labels[:, None] & ~labels[None])) * weights
        area.append(((weights @ above) * weights).sum(1) / pairs.sum(1))
    expected = percentile_interval(area[0] - area[1])
    assert bootstrap_auroc_difference(labels, scores, other, groups) == pytest.approx(expected)
    assert np.isnan(bootstrap_auroc(labels, scores, np.zeros(30)).low)
    for wrong in (np.ones(30), np.zeros(30)):
        with pytest.raises(AfireError, match="needs both classes"):
            bootstrap_auroc(wrong, scores, groups)
    with pytest.raises(AfireError, match="30 labels need as many"):
        bootstrap_auroc(labels, scores, groups[:-1])


@pytest.mark.parametrize("most", [1, 6, 7, 1000])
def test_draws_do_not_depend_on_the_size_of_blocks_which_is_bounded(most):
    groups = np.array(["a", "b", "b"])
    blocks = list(patient_weights(groups, 5, 3, most))
    assert all(block.size <= max(most, 3) for block in blocks)
    assert len(blocks) == 1 + math.ceil(5 / max(1, most // 3))
    weights = np.concatenate(blocks)
    np.testing.assert_array_equal(weights, np.concatenate(list(patient_weights(groups, 5, 3))))
    assert weights.shape == (6, 3)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] + weights[:, 1] == 2).all()  # two patients are drawn
    assert (weights[:, 1] == weights[:, 2]).all()


def test_no_specificity_below_95_percent_is_allowed():
    truth = np.array([True, False, True, *[False] * 19])
    scores = np.array([0.9, 0.8, 0.7, *[0.1] * 19])
    assert sensitivity_at_specificity(weighted_curve(scores, truth, np.ones((1, 22)))) == 1  # 1 of 20 negatives
    one = np.ones((1, 22))
    one[0, -1] = 0
    assert sensitivity_at_specificity(weighted_curve(scores, truth, one)) == 0.5  # 1 of 19


def test_bins_have_their_lower_bound_and_the_last_one_both():
    mean, share, count = calibration_bins(np.array([True, False, True]), np.array([0.2, 0.4, 1.0]), bins=5)
    assert count.tolist() == [0, 1, 1, 0, 1]
    np.testing.assert_array_equal(mean, [NAN, 0.2, 0.4, NAN, 1])
    np.testing.assert_array_equal(share, [NAN, 1, 0, NAN, 1])
    assert len(calibration_bins(np.array([True]), np.array([0.5]))[2]) == 15


def test_cells_of_the_confusion_and_means_of_what_is_defined():
    truth, flagged = np.array([1, 0, 1, 0], bool), np.array([1, 1, 0, 0], bool)
    assert [cell.tolist() for cell in confusion_cells(truth, flagged)] == np.eye(4).tolist()
    found = figure_draws(truth[:, None] * 1.0, flagged[:, None] * 1.0, np.arange(4), np.full(1, 0.5), ["ppv"], 0, 0)
    assert found["ppv"].tolist() == [[0.5]]
    draws = np.array([[1.0, NAN, NAN], [3.0, 4.0, NAN], [9.0, 9.0, 9.0]])
    np.testing.assert_array_equal(macro_mean(draws, [0, 1]), [2, 4, NAN])


def test_figures_of_a_label_without_a_known_case_are_not_defined():
    targets, scores = np.array([[1.0, NAN], [0, NAN]]), np.array([[0.9, 0.5], [0.1, 0.5]])
    draws = figure_draws(targets, scores, np.arange(2), np.full(2, 0.5), ["auroc", "ece"], 4, 0)
    assert draws["auroc"].shape == (2, 5)
    assert draws["auroc"][0, 0] == 1
    assert draws["ece"][0, 0] == pytest.approx(0.1)
    assert np.isnan(draws["auroc"][1]).all()


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_bounds_of_probabilities(score):
    check_arrays(np.ones((1, 1)), np.full((1, 1), score), np.arange(1), ["a"])
    for wrong in (-0.01, 1.01):
        with pytest.raises(AfireError, match="probabilities"):
            check_arrays(np.ones((1, 1)), np.full((1, 1), wrong), np.arange(1), ["a"])
        check_arrays(np.ones((1, 1)), np.full((1, 1), wrong), np.arange(1), ["a"], probabilities=False)
    with pytest.raises(AfireError, match=r"targets \(2, 1\)"):
        check_arrays(np.ones((2, 1)), np.ones((1, 1)), np.arange(1), ["a"])


def test_scores_must_be_probabilities_only_where_they_are_taken_for_such():
    wide = SCORES * 3
    evaluate_labels(TARGETS, wide, np.arange(4), ["a", "b"], figures=["auroc"], repeats=2)
    compare_labels(TARGETS, wide, wide, np.arange(4), ["a", "b"], figures=["auroc"], repeats=2)
    for figures in (["ece"], ["auroc", "brier"]):
        with pytest.raises(AfireError, match="probabilities"):
            evaluate_labels(TARGETS, wide, np.arange(4), ["a", "b"], figures=figures, repeats=2)
        with pytest.raises(AfireError, match="probabilities"):
            compare_labels(TARGETS, SCORES, wide, np.arange(4), ["a", "b"], figures=figures, repeats=2)


def test_counts_of_cases_patients_and_classes():
    groups = np.array([0, 0, 1, 2])
    result = evaluate_labels(TARGETS, SCORES, groups, ["a", "b"], repeats=5)
    assert (result.cases, result.patients, result.macro_over) == (4, 3, ("a", "b"))
    assert [(r.positives, r.negatives, r.unknown, r.threshold) for r in result.labels] == [
        (2, 2, 0, 0.5),
        (1, 2, 1, 0.5),
    ]
    assert result.labels[1].confusion == {"tp": 1, "fp": 1, "fn": 0, "tn": 1}
    assert (Metrics([]).patients, Metrics([]).cases, Metrics([]).macro_over, Metrics([]).macro) == (0, 0, (), {})
    two = evaluate_labels(TARGETS, SCORES, np.array([0, 0, 1, 1]), ["a", "b"], repeats=50)
    assert not np.isnan(two.labels[0].figures["brier"].low)


def test_comparison_of_one_patient_of_two_and_of_cases_that_both_judged():
    other = SCORES.copy()
    other[0] = NAN  # the first case is judged by one model alone
    names, figures = ["a", "b"], ["auroc", "sensitivity"]
    result = compare_labels(TARGETS, SCORES, other, np.array([0, 0, 1, 1]), names, figures=figures, repeats=50)
    assert result.cases == 3
    assert result.macro_over == ("a", "b")
    assert result.labels["a"]["auroc"].value == 0
    assert not np.isnan(result.labels["b"]["auroc"].low)
    one = compare_labels(TARGETS, SCORES, 1 - SCORES, np.zeros(4), names, figures=figures, repeats=9)
    assert same(one.labels["b"]["sensitivity"], 1 - 0, NAN, NAN)
    assert same(one.macro["sensitivity"], 0.5 - 0.25 + 0.5 - 0.25, NAN, NAN)
    assert compare_labels(TARGETS, SCORES, SCORES, np.arange(4), names, ["b"], repeats=2).macro_over == ("b",)
    nothing = compare_labels(TARGETS * 0, SCORES, SCORES, np.arange(4), names, repeats=2)
    assert (nothing.labels, nothing.macro, nothing.macro_over) == ({}, {}, ())


def test_by_default_two_thousand_draws_with_seed_0():
    generator = np.random.default_rng(0)
    targets, scores, groups = (generator.random((80, 1)) < 0.5).astype(float), generator.random((80, 1)), np.arange(80)
    items = [{"sex": "FM"[i % 2]} for i in range(80)]
    calls = {
        evaluate_labels: lambda **o: evaluate_labels(targets, scores, groups, ["a"], **o).labels[0].figures["auroc"],
        compare_labels: lambda **o: compare_labels(targets, scores, 1 - scores, groups, ["a"], **o).macro["auroc"],
        evaluate_subgroups: lambda **o: [
            g.labels["a"].status or g.macro for g in evaluate_subgroups(items, targets, scores, groups, ["a"], **o)
        ],
    }
    for call in calls.values():
        assert str(call()) == str(call(repeats=2000, seed=0))
        assert repr(call()) != repr(call(repeats=1999, seed=0))
        assert repr(call()) != repr(call(repeats=2001, seed=0))


def test_ages_at_the_bounds_of_their_bands():
    ages = {
        17: "<18",
        18: "18-39",
        39: "18-39",
        40: "40-59",
        59.9: "40-59",
        60: "60-79",
        79: "60-79",
        79.5: "60-79",
        80: "80+",
    }
    assert {age: age_band(age) for age in ages} == ages
    assert age_band(0) == "<18"


def group_case():
    """Two labels of 80 cases; men have 10 positives and 30 negatives of each label, and one patient."""
    targets = np.tile(np.array([1.0, 0, 0, 0])[:, None], (20, 2))
    scores = np.random.default_rng(0).random((80, 2))
    items = [{"sex": "F" if i < 40 else "M", "age": 30 if i < 40 else 90} for i in range(80)]
    groups = np.where(np.arange(80) < 40, np.arange(80) % 2, 99)
    return items, targets, scores, groups


def test_groups_have_their_counts_and_no_interval_over_one_patient():
    items, targets, scores, groups = group_case()
    women, men, young, old = evaluate_subgroups(items, targets, scores, groups, ["a", "b"], repeats=20)
    assert [(g.by, g.name) for g in (women, men, young, old)] == [
        ("sex", "F"),
        ("sex", "M"),
        ("age", "18-39"),
        ("age", "80+"),
    ]
    assert [(g.cases, g.patients) for g in (women, men)] == [(40, 2), (40, 1)]
    for group in (women, men):
        assert [(label.positives, label.negatives, label.status) for label in group.labels.values()] == [
            (10, 30, "")
        ] * 2
    truth = targets[:40, 0] == 1
    assert women.labels["a"].figures["sensitivity"].value == (scores[:40, 0] >= 0.5)[truth].mean()
    assert not np.isnan([women.labels["a"].figures["auroc"].low, women.macro.low]).any()
    assert np.isnan([men.labels["a"].figures["auroc"].low, men.macro.low]).all()


def test_nine_of_a_class_are_too_few_and_ages_come_in_their_order():
    items, targets, scores, groups = group_case()
    targets[0] = 0
    scores[4, 1] = NAN
    targets[4] = 1
    women, men, *_ = evaluate_subgroups(items, targets, scores, groups, ["a", "b"], repeats=5)
    assert (women.labels["a"].positives, women.labels["b"].positives) == (9, 8)
    assert {label.status for label in women.labels.values()} == {"too small: fewer than 10 of a class"}
    assert (women.macro, women.macro_over, men.macro_over) == (None, (), ("a", "b"))
    ages = [85, 65, None, 45, 20, 5]
    found = evaluate_subgroups(
        [{"age": age} for age in ages], targets[:6], scores[:6], groups[:6], ["a", "b"], repeats=1
    )
    assert [g.name for g in found] == ["<18", "18-39", "40-59", "60-79", "80+", "not stated"]
    words = evaluate_subgroups(
        [{"view": view} for view in ("PA", "AP", "<18")], targets[:3], scores[:3], groups[:3], ["a", "b"], repeats=1
    )
    assert [g.name for g in words] == ["AP", "PA", "<18"]
