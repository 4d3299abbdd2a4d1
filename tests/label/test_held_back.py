"""Who is held back, and when a new model is better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.label import comparison
from afire_monai.label.comparison import Outcome, compare, is_better
from afire_monai.label.held_back import HELD_BACK, TRAINING, share_of, split
from afire_monai.label.training import keep_unlearned
from afire_monai.models.folder import export_task, load_classifier
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier


def people(count: int, positive: set[int]) -> tuple[list[dict[str, str]], list[list[str]]]:
    return [{"group": f"{n:020d}"} for n in range(count)], [[f"{int(n in positive)} Mass"] for n in range(count)]


def test_share_is_a_quarter_at_least_five_and_no_more_than_half():
    assert [share_of(n) for n in (1, 2, 3, 8, 10, 20, 40)] == [0, 1, 1, 4, 5, 5, 10]


@pytest.mark.parametrize("count", [2, 3])
def test_whoever_has_the_finding_training_never_lacks_it(count):
    for positive in itertools.combinations(range(8), count):
        items, facts = people(8, set(positive))
        training, validation, _ = split(items, facts)
        sides = [{int(item["group"]) in positive for item in side} for side in (training, validation)]
        assert sides == [{True, False}, {True, False}]


def test_the_only_patient_with_a_finding_is_trained_on():
    for only in range(8):
        training, _, _ = split(*people(8, {only}))
        assert only in {int(item["group"]) for item in training}


def test_patients_stay_on_their_side_as_labels_are_added():
    items, facts = people(60, set(range(0, 60, 3)))
    _, before, roles = split(items[:30], facts[:30])
    training, after, later = split(items, facts, roles)
    assert {i["group"] for i in before} <= {i["group"] for i in after}
    assert all(later[group] == role for group, role in roles.items())
    assert len(training) + len(after) == 60
    assert sum(facts[int(i["group"])] == ["1 Mass"] for i in after) == 5


def test_who_was_trained_on_is_not_held_back_later():
    items, facts = people(4, {0})
    roles = {item["group"]: TRAINING for item in items[:3]}
    training, validation, _ = split(items, facts, roles)
    assert [item["group"] for item in validation] == [items[3]["group"]]
    assert len(training) == 3


def test_where_all_were_trained_on_none_is_held_back():
    items, facts = people(4, {0})
    with pytest.raises(AfireError, match="label images of others too"):
        split(items, facts, {item["group"]: TRAINING for item in items})


def test_held_back_patient_is_trained_on_where_a_finding_would_be_lacking():
    items, facts = people(4, {0})
    training, _, _ = split(items, facts, {items[0]["group"]: HELD_BACK})
    assert items[0] in training


def test_one_patient_cannot_be_divided():
    items, facts = people(1, {0})
    with pytest.raises(AfireError, match="one patient"):
        split(items * 2, facts * 2)


def outcomes(patients: int, positives: int, before: float, after: float) -> tuple[Outcome, Outcome]:
    """Two classifiers of one label that are right for a share of the patients each."""
    truth = (np.arange(patients) < positives).astype(float)[:, None]
    right = np.random.default_rng(0).random((patients, 1))
    made = [np.where(right < share, truth, 1 - truth) + right / 100 for share in (before, after)]
    return tuple(Outcome(0.0, values, truth, np.arange(patients)) for values in made)


@pytest.mark.parametrize(
    ("patients", "positives", "before", "after", "verdict"),
    [
        (40, 20, 0.5, 1.0, "better"),
        (40, 20, 1.0, 0.5, "worse"),
        (40, 20, 0.8, 0.8, "not told apart"),
        (19, 9, 0.5, 1.0, "too few"),
        (40, 4, 0.5, 1.0, "too few"),
        (40, 36, 0.5, 1.0, "too few"),
        (40, 0, 0.5, 1.0, "too few"),
    ],
)
def test_label_is_judged_by_interval_and_only_with_enough_patients(patients, positives, before, after, verdict):
    judged = compare("classification", ["Mass"], *outcomes(patients, positives, before, after))
    assert judged["Mass"]["verdict"] == verdict
    assert is_better(judged) is (verdict == "better")


def test_many_images_of_one_patient_are_one_patient():
    before, after = (
        Outcome(0.0, some.values, some.target, np.minimum(some.groups, 3)) for some in outcomes(40, 20, 0.5, 1.0)
    )
    assert compare("classification", ["Mass"], before, after)["Mass"]["verdict"] == "too few"


def test_one_label_that_is_worse_keeps_the_old_model():
    assert is_better({"a": {"verdict": "better"}, "b": {"verdict": "not told apart"}})
    assert not is_better({"a": {"verdict": "better"}, "b": {"verdict": "worse"}})
    assert not is_better({"a": {"verdict": "not told apart"}})


def test_dice_is_compared_where_the_class_is():
    values = np.array([[0.5]] * 5 + [[1.0]] * 5)
    target = np.array([[1.0]] * 5 + [[0.0]] * 5)
    before = Outcome(0.0, values, target, np.arange(10))
    after = Outcome(0.0, values + np.array([[0.1]] * 5 + [[-1.0]] * 5), target, np.arange(10))
    judged = compare("segmentation", ["lung"], before, after)["lung"]
    assert judged["difference"] == pytest.approx([0.1, 0.1, 0.1])
    fewer = [Outcome(0.0, o.values[1:], o.target[1:], o.groups[1:]) for o in (before, after)]
    assert compare("segmentation", ["lung"], *fewer)["lung"]["verdict"] == comparison.TOO_FEW


def test_calibration_and_threshold_of_what_was_not_learned_stay(tmp_path):
    files = []
    for name, scale, threshold in (("old", 2.0, 0.3), ("new", 5.0, 0.7)):
        network = ViTClassifier(ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2), ["Mass", "Effusion"])
        network.calibration_scale.copy_(torch.tensor([scale, scale]))
        network.calibration_bias.copy_(torch.tensor([-scale, -scale]))
        facts = {"thresholds": {"Mass": threshold, "Effusion": threshold}, "calibration": "platt"}
        files.append(export_task(network, tmp_path / name, **facts))
    truth = np.stack([np.arange(40) < 20, np.arange(40) < 2], 1).astype(float)
    assert keep_unlearned(files[1], files[0], Outcome(0.0, truth, truth, np.arange(40))) == []
    network, description = load_classifier(files[1])
    assert network.calibration_scale.tolist() == [5, 2]
    assert network.calibration_bias.tolist() == [-5, -2]
    assert description["thresholds"] == {"Mass": 0.7, "Effusion": 0.3}
    assert description["not_calibrated"] == []
