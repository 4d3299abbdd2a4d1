from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score, roc_curve

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.bootstrap import FIGURES, RATES, calibration_bins, figure_draws, macro_mean
from afire_monai.evaluation.metrics import compare_labels, evaluate_labels

NAN = np.nan


def cases(n=80, labels=3, levels=0, seed=0, unknown=0.1):
    generator = np.random.default_rng(seed)
    targets = (generator.random((n, labels)) < 0.35).astype(float)
    scores = np.clip(generator.normal(0.35, 0.2, (n, labels)) + 0.25 * targets, 0, 1)
    if levels:
        scores = np.round(scores * levels) / levels
    targets[generator.random((n, labels)) < unknown] = NAN
    scores[generator.random((n, labels)) < unknown / 3] = NAN
    groups = np.array([f"p{i}" for i in generator.integers(0, n // 2, n)])
    return targets, scores, groups


def names(targets):
    return [f"label {c}" for c in range(targets.shape[1])]


def slow_figures(truth, scores, threshold=0.5):
    """Slow reference for all figures of one label."""
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    error, n = 0.0, len(truth)
    for k in range(15):
        here = [i for i in range(n) if k / 15 <= scores[i] < (k + 1) / 15 or (k == 14 and scores[i] == 1)]
        if here:
            error += len(here) / n * abs(np.mean([truth[i] for i in here]) - np.mean([scores[i] for i in here]))
    tn, fp, fn, tp = confusion_matrix(truth, scores >= threshold, labels=[False, True]).ravel().tolist()
    return {
        "auroc": roc_auc_score(truth, scores),
        "average_precision": average_precision_score(truth, scores),
        "sensitivity_at_95_specificity": tpr[fpr <= 0.05 + 1e-12].max(),
        "brier": brier_score_loss(truth, scores),
        "ece": error,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp) if tp + fp else NAN,
        "npv": tn / (tn + fn) if tn + fn else NAN,
    }


@pytest.mark.parametrize("levels", [0, 10, 2], ids=["no ties", "some ties", "many ties"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_figure_equals_scikit_learn_on_the_known_cases(levels, seed):
    targets, scores, groups = cases(levels=levels, seed=seed)
    result = evaluate_labels(targets, scores, groups, names(targets), repeats=5)
    for c, label in enumerate(result.labels):
        known = ~np.isnan(targets[:, c]) & ~np.isnan(scores[:, c])
        truth, column = targets[known, c] == 1, scores[known, c]
        assert (label.positives, label.negatives) == (truth.sum(), (~truth).sum())
        assert label.unknown == (~known).sum()
        for figure, expected in slow_figures(truth, column).items():
            assert label.figures[figure].value == pytest.approx(expected, abs=1e-9, nan_ok=True), figure
    for figure in FIGURES:
        mean = np.mean([label.figures[figure].value for label in result.labels])
        assert result.macro[figure].value == pytest.approx(mean)


@pytest.mark.parametrize("levels", [0, 4])
def test_intervals_equal_a_slow_bootstrap_that_draws_patients_one_by_one(levels):
    targets, scores, groups = cases(50, 2, levels, unknown=0.05)
    repeats, seed = 40, 7
    patients = np.unique(groups)
    generator = np.random.default_rng(seed)
    slow = {f: [] for f in (*FIGURES, *RATES)}
    macro = {f: [] for f in FIGURES}
    for counts in generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), size=repeats):
        rows = [i for p, k in zip(patients, counts, strict=True) for _ in range(k) for i in np.flatnonzero(groups == p)]
        found = []
        for c in range(2):
            chosen = [i for i in rows if not np.isnan(targets[i, c]) and not np.isnan(scores[i, c])]
            found.append(slow_figures(targets[chosen, c] == 1, scores[chosen, c]))
        for figure in slow:
            slow[figure].append([f[figure] for f in found])
        for figure in macro:
            macro[figure].append(np.mean([f[figure] for f in found]))
    result = evaluate_labels(targets, scores, groups, names(targets), repeats=repeats, seed=seed)
    for figure in (*FIGURES, *RATES):
        low, high = np.nanpercentile(np.array(slow[figure]), [2.5, 97.5], axis=0)
        for c in range(2):
            got = result.labels[c].figures[figure]
            assert (got.low, got.high) == pytest.approx((low[c], high[c]), abs=1e-9), figure
    for figure in FIGURES:
        expected = np.percentile(macro[figure], [2.5, 97.5])
        assert (result.macro[figure].low, result.macro[figure].high) == pytest.approx(tuple(expected)), figure


@pytest.mark.parametrize("seed", range(4))
def test_order_of_cases_changes_no_figure(seed):
    targets, scores, groups = cases(60, levels=5, seed=seed)
    order = np.random.default_rng(seed).permutation(60)
    a = evaluate_labels(targets, scores, groups, names(targets), repeats=30)
    b = evaluate_labels(targets[order], scores[order], groups[order], names(targets), repeats=30)
    for one, other in zip(a.labels, b.labels, strict=True):
        assert one.confusion == other.confusion
        for figure in one.figures:
            assert one.figures[figure] == pytest.approx(other.figures[figure], nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_figures_depend_on_order_only_and_auroc_is_symmetric(seed):
    targets, scores, groups = cases(seed=seed, levels=7)
    plain = evaluate_labels(targets, scores, groups, names(targets), repeats=20)
    bent = evaluate_labels(targets, scores**3 / 2, groups, names(targets), repeats=20)
    turned = evaluate_labels(1 - targets, 1 - scores, groups, names(targets), repeats=20)
    for c, label in enumerate(plain.labels):
        for figure in ("auroc", "average_precision", "sensitivity_at_95_specificity"):
            assert label.figures[figure] == pytest.approx(bent.labels[c].figures[figure])
        for figure in ("auroc", "brier"):
            assert label.figures[figure] == pytest.approx(turned.labels[c].figures[figure])


def test_a_label_without_a_class_is_named_and_left_out_of_the_mean():
    targets = np.array([[1, 1, NAN, 0], [0, 1, NAN, 0], [1, 1, NAN, 0]], dtype=float)
    scores = np.array([[0.9, 0.5, 0.1, 0.2], [0.1, 0.5, 0.1, 0.2], [0.8, 0.5, 0.1, 0.2]])
    result = evaluate_labels(targets, scores, np.arange(3), ["a", "b", "c", "d"], repeats=50)
    assert [label.status for label in result.labels] == [
        "",
        "no negatives among 3 cases",
        "no case with a known target and a score",
        "no positives among 3 cases",
    ]
    assert result.labels[1].figures == {}
    assert result.macro_over == ("a",)
    assert result.macro["auroc"].value == result.labels[0].figures["auroc"].value == 1


def test_without_any_label_that_can_be_judged_there_is_no_mean():
    result = evaluate_labels(np.ones((2, 1)), np.full((2, 1), 0.5), np.arange(2), ["a"], repeats=10)
    assert result.macro == {}
    assert result.macro_over == ()
    empty = evaluate_labels(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros(0), ["a"], repeats=10)
    assert empty.labels[0].status == "no case with a known target and a score"


def test_the_mean_is_over_the_labels_asked_for():
    targets, scores, groups = cases()
    result = evaluate_labels(targets, scores, groups, names(targets), macro_over=["label 1"], repeats=10)
    assert result.macro["brier"] == result.labels[1].figures["brier"]


def test_one_patient_gives_values_and_no_interval():
    targets, scores, groups = cases(unknown=0)
    label = evaluate_labels(targets, scores, np.zeros(len(groups)), names(targets), repeats=10).labels[0]
    assert 0 < label.figures["auroc"].value < 1
    assert np.isnan([label.figures["auroc"].low, label.figures["auroc"].high]).all()


def test_thresholds_decide_confusion_and_rates():
    targets, scores = np.array([[1.0], [1], [0], [0], [0]]), np.array([[0.9], [0.3], [0.4], [0.2], [0.1]])
    label = evaluate_labels(targets, scores, np.arange(5), ["a"], {"a": 0.3}, repeats=10).labels[0]
    assert label.confusion == {"tp": 2, "fp": 1, "fn": 0, "tn": 2}
    assert label.figures["sensitivity"].value == 1
    assert label.figures["specificity"].value == pytest.approx(2 / 3)
    nothing = evaluate_labels(targets, scores, np.arange(5), ["a"], {"a": 0.95}, repeats=10).labels[0]
    assert nothing.threshold == 0.95
    assert np.isnan(nothing.figures["ppv"].value)  # nothing was flagged


def test_reliability_by_hand():
    truth = np.array([True, False, True, True])
    mean, share, count = calibration_bins(truth, np.array([0.0, 0.05, 0.95, 1.0]), bins=10)
    assert count.tolist() == [2] + [0] * 8 + [2]
    assert (mean[0], mean[9], share[0], share[9]) == (0.025, 0.975, 0.5, 1)
    assert np.isnan(mean[1])


def test_a_model_does_not_differ_from_itself_and_differences_change_sign():
    targets, scores, groups = cases()
    other = np.clip(scores + np.random.default_rng(1).normal(0, 0.1, scores.shape), 0, 1)
    same = compare_labels(targets, scores, scores, groups, names(targets), repeats=50)
    assert all(d == (0, 0, 0) for label in same.labels.values() for d in label.values())
    ab = compare_labels(targets, scores, other, groups, names(targets), repeats=50)
    ba = compare_labels(targets, other, scores, groups, names(targets), repeats=50)
    for figure in FIGURES:
        d, e = ab.macro[figure], ba.macro[figure]
        assert (d.value, d.low, d.high) == pytest.approx((-e.value, -e.high, -e.low))


def test_models_are_compared_on_the_cases_that_both_judged():
    targets, scores, groups = cases(unknown=0)
    other = scores[:, ::-1].copy()
    other[:20, 0] = NAN
    result = compare_labels(targets, scores, other, groups, names(targets), repeats=10)
    expected = roc_auc_score(targets[20:, 0], scores[20:, 0]) - roc_auc_score(targets[20:, 0], other[20:, 0])
    assert result.labels["label 0"]["auroc"].value == pytest.approx(expected)
    assert result.macro_over == ("label 0", "label 1", "label 2")


def test_draws_of_all_labels_are_the_same_patients():
    targets, scores, groups = cases(unknown=0)
    twice = [np.repeat(a[:, :1], 2, axis=1) for a in (targets, scores)]
    draws = figure_draws(*twice, groups, np.full(2, 0.5), ["auroc"], 30, 0)["auroc"]
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_allclose(macro_mean(draws, [0, 1]), draws[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([[2.0], [0]])}, "targets must be 1, 0 or NaN, got 2"),
        ({"scores": np.array([[1.5], [0]])}, "probabilities in 0…1, got 0 to 1.5"),
        ({"scores": np.array([[np.inf], [0]])}, "finite"),
        ({"scores": np.zeros((3, 1))}, r"scores \(3, 1\) must both be \(cases, labels\) = \(2, 1\)"),
        ({"figures": ["auc"]}, "figure 'auc' is not known"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"targets": np.array([[1.0], [0]]), "scores": np.array([[0.5], [0.1]]), "groups": np.arange(2)}
    with pytest.raises(AfireError, match=message):
        evaluate_labels(**{**given, "names": ["a"], **change})


def test_a_label_that_is_known_of_one_patient_only_has_no_interval():
    targets = np.array([[0, 1], [1, 0], [0, NAN], [1, NAN]])
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.5], [0.6, 0.5]])
    groups = np.array([0, 0, 1, 1])
    both, alone = (label.figures["auroc"] for label in evaluate_labels(targets, scores, groups, ["a", "b"]).labels)
    assert np.isfinite(both).all()
    assert alone.value == 1
    assert np.isnan(alone[1:]).all()
    compared = compare_labels(targets, scores, 1 - scores, groups, ["a", "b"]).labels["b"]["auroc"]
    assert compared.value == 1
    assert np.isnan(compared[1:]).all()
