from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.subsets import label_fraction, patient_folds


def random_list(seed: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Patients with 1 to 6 images, labels from common to rare, some unknown, some items without group."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), draw.integers(1, 7, 60))
    draw.shuffle(groups)
    items = [{"image": f"{i}.png", "group": f"p{g}"} for i, g in enumerate(groups)]
    items += [{"image": f"alone{i}.png"} for i in range(draw.integers(0, 20))]
    rates = np.array([0.5, 0.2, 0.05, 0.01])
    targets = (draw.random((len(items), 4)) < rates).astype(np.float32)
    targets[draw.random(targets.shape) < 0.1] = np.nan
    targets[draw.random(len(items)) < 0.05] = np.nan
    return items, targets


def patients(items: list[dict[str, Any]], indices: np.ndarray) -> set[str]:
    return {items[i].get("group", items[i]["image"]) for i in indices}


def largest(items: list[dict[str, Any]]) -> int:
    names = [item.get("group", item["image"]) for item in items]
    return max(names.count(name) for name in set(names))


SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_folds_keep_patients_whole_and_validate_each_image_once(seed: int) -> None:
    items, targets = random_list(seed)
    folds = patient_folds(items, targets, 5, seed)
    for training, validation in folds:
        assert not patients(items, training) & patients(items, validation)
        np.testing.assert_array_equal(np.sort(np.concatenate([training, validation])), np.arange(len(items)))
        assert len(validation) < len(items) / 5 + largest(items)
    np.testing.assert_array_equal(np.sort(np.concatenate([v for _, v in folds])), np.arange(len(items)))


def test_folds_share_out_common_and_rare_labels() -> None:
    items = [{"image": str(i)} for i in range(500)]
    targets = np.zeros((500, 3), dtype=np.float32)
    targets[:250, 0], targets[240:265, 1], targets[:5, 2] = 1, 1, 1
    for _, validation in patient_folds(items, targets, 5, seed=1):
        np.testing.assert_array_equal(targets[validation].sum(axis=0), [50, 5, 1])


@pytest.mark.parametrize("seed", SEEDS)
def test_fractions_are_nested_whole_patients_and_of_the_right_size(seed: int) -> None:
    items, targets = random_list(seed)
    labelled = np.flatnonzero(~np.isnan(targets).all(axis=1))
    before: set[int] = set()
    for fraction in (0.01, 0.1, 0.35, 1.0):
        chosen = label_fraction(items, targets, fraction, seed)
        assert before <= set(chosen.tolist()) <= set(labelled.tolist())
        before = set(chosen.tolist())
        others = np.setdiff1d(labelled, chosen)
        assert not patients(items, chosen) & patients(items, others)
        assert abs(len(chosen) - fraction * len(labelled)) <= max(1, largest(items))
        assert (np.diff(chosen) > 0).all()
    assert before == set(labelled.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_share_shows_every_label_present_and_absent(seed: int) -> None:
    items, targets = random_list(seed)
    chosen = targets[label_fraction(items, targets, 0.25, seed)]
    for value in (0, 1):
        np.testing.assert_array_equal((chosen == value).any(axis=0), (targets == value).any(axis=0))


def test_a_share_has_the_prevalence_of_the_whole() -> None:
    draw = np.random.default_rng(0)
    items = [{"image": str(i), "group": str(i // 2)} for i in range(4000)]
    targets = (draw.random((4000, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    chosen = targets[label_fraction(items, targets, 0.1, seed=3)]
    np.testing.assert_allclose(chosen.mean(axis=0), targets.mean(axis=0), atol=0.02)


def test_the_seed_decides() -> None:
    items, targets = random_list(0)
    first = label_fraction(items, targets, 0.2, 1)
    np.testing.assert_array_equal(first, label_fraction(items, targets, 0.2, 1))
    assert first.tolist() != label_fraction(items, targets, 0.2, 2).tolist()
    folds = [v.tolist() for _, v in patient_folds(items, targets, 3, 1)]
    assert folds == [v.tolist() for _, v in patient_folds(items, targets, 3, 1)]
    assert folds != [v.tolist() for _, v in patient_folds(items, targets, 3, 2)]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, 10, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataListError, match="above 0 and up to 1"):
        label_fraction([{}], [[1]], fraction)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataListError, match="no item has a known label"):
        label_fraction([{}], [[np.nan]], 1)
    with pytest.raises(DataListError, match="no item has a known label"):
        label_fraction([], np.zeros((0, 2)), 1)
    with pytest.raises(DataListError, match=r"2 items, but targets of shape \(1, 1\)"):
        label_fraction([{}, {}], [[1]], 1)
    one_patient = [{"group": "p"}, {"group": "p"}]
    with pytest.raises(DataListError, match=r"number of patients \(1\)"):
        patient_folds(one_patient, [[1], [0]], 2)
    with pytest.raises(DataListError, match="folds is 1"):
        patient_folds([{}, {}], [[1], [0]], 1)
