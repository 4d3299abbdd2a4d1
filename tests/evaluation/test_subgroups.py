from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from afire_monai.evaluation.metrics import evaluate_subgroups


def cases(n=120, labels=2):
    generator = np.random.default_rng(0)
    targets = (generator.random((n, labels)) < 0.4).astype(float)
    scores = np.clip(generator.normal(0.4, 0.2, (n, labels)) + 0.2 * targets, 0, 1)
    return targets, scores, np.arange(n)


def test_each_group_is_judged_by_its_own_cases():
    targets, scores, groups = cases()
    items = [{"sex": "FM"[i % 2]} for i in range(120)]
    made = evaluate_subgroups(items, targets, scores, groups, ["a", "b"], {"a": 0.6}, repeats=20)
    assert [(g.by, g.name, g.cases, g.patients) for g in made] == [("sex", "F", 60, 60), ("sex", "M", 60, 60)]
    women = slice(0, None, 2)
    expected = [roc_auc_score(targets[women, c], scores[women, c]) for c in range(2)]
    assert made[0].labels["b"].figures["auroc"].value == pytest.approx(expected[1])
    assert made[0].macro.value == pytest.approx(np.mean(expected))
    flagged, truth = scores[women, 0] >= 0.6, targets[women, 0] == 1
    assert made[0].labels["a"].figures["sensitivity"].value == pytest.approx(flagged[truth].mean())


def test_kinds_that_tell_nothing_apart_give_no_groups():
    targets, scores, groups = cases(20)
    assert evaluate_subgroups([{"view": "PA"}] * 20, targets, scores, groups, ["a", "b"], repeats=5) == []
    assert evaluate_subgroups([{}] * 20, targets, scores, groups, ["a", "b"], repeats=5) == []


def test_small_groups_are_named_and_not_judged():
    targets, scores, groups = cases()
    items = [{"view": "AP" if i < 12 else "PA"} for i in range(119)] + [{}]
    made = {g.name: g for g in evaluate_subgroups(items, targets, scores, groups, ["a", "b"], repeats=20)}
    assert list(made) == ["AP", "PA", "not stated"]
    for name in ("AP", "not stated"):
        assert made[name].labels["a"].status == "too small: fewer than 10 of a class"
        assert made[name].labels["a"].figures == {}
        assert made[name].macro is None
    assert made["PA"].macro_over == ("a", "b")


def test_means_of_groups_are_over_the_same_findings():
    targets, scores, groups = cases()
    items = [{"sex": "FM"[i % 2]} for i in range(120)]
    targets[::2, 1] = 0  # no woman has finding b
    women, men = evaluate_subgroups(items, targets, scores, groups, ["a", "b"], repeats=20)
    assert women.macro_over == men.macro_over == ("a",)
    assert men.labels["b"].status == ""
    assert men.macro.value == pytest.approx(men.labels["a"].figures["auroc"].value)
