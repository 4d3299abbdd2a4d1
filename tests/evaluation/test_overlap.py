from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.overlap import dice, evaluate_overlap, hausdorff95


def square(top, left, side, size=20, value=1):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def outline_distances(a, b):
    """Slow reference: from each pixel of the outline of a to the nearest one of b."""
    (pa, pb) = (np.argwhere(m & ~binary_erosion(m)) for m in (a, b))
    return np.sqrt(((pa[:, None] - pb[None]) ** 2).sum(-1)).min(1)


def test_dice_by_hand_and_its_conventions_for_empty_masks():
    a, empty = square(2, 2, 4) > 0, np.zeros((20, 20), dtype=bool)
    assert dice(a, square(4, 2, 4) > 0) == pytest.approx(2 * 8 / 32)
    assert dice(empty, empty) == 1
    assert dice(a, empty) == dice(empty, a) == 0
    assert dice(a, a) == 1


def test_hausdorff_distance_equals_a_slow_reference():
    a, b = square(2, 3, 9) > 0, square(6, 5, 11) > 0
    expected = max(np.percentile(outline_distances(a, b), 95), np.percentile(outline_distances(b, a), 95))
    assert hausdorff95(a, b) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(hausdorff95(a, np.zeros_like(a)))


def test_empty_masks_are_counted_and_never_spoil_a_mean():
    full, empty = square(2, 2, 4), square(0, 0, 0)
    pairs = [(full, full), (empty, empty), (empty, full), (full, empty)]
    result = evaluate_overlap(pairs, np.arange(4), repeats=50)["foreground"]
    assert (result.cases, result.positives) == (4, 2)
    assert (result.both_empty, result.missed, result.invented) == (1, 1, 1)
    assert result.dice.value == pytest.approx(0.5)
    assert result.dice_positives.value == pytest.approx(0.5)
    assert result.hd95.value == 0
    assert result.dice.low <= 0.5 <= result.dice.high


def test_pixels_to_ignore_count_in_neither_mask():
    drawn = square(2, 2, 4, value=255)
    drawn[2:6, 6:10] = 127
    predicted = square(2, 2, 4, value=255)
    predicted[2:6, 6:10] = 255
    assert evaluate_overlap([(predicted, drawn)], np.arange(1))["foreground"].dice.value == 1
    assert evaluate_overlap([(predicted, drawn)], np.arange(1), {"lung": 255})["lung"].dice.value == 1


def test_a_class_with_the_value_to_ignore_is_judged():
    drawn = square(2, 2, 4, value=127) + square(10, 10, 4, value=255)
    result = evaluate_overlap([(square(2, 4, 4, value=127), drawn)], np.arange(1), {"heart": 127, "lung": 255})
    assert {name: (row.dice.value, row.positives) for name, row in result.items()} == {
        "heart": (0.5, 1),
        "lung": (0, 1),
    }


def test_classes_are_judged_each_for_itself():
    drawn = square(0, 0, 4, value=1) + square(10, 10, 4, value=2)
    predicted = square(0, 0, 4, value=1) + square(12, 10, 4, value=2)
    result = evaluate_overlap([(predicted, drawn)], np.arange(1), {"a": 1, "b": 2})
    assert result["a"].dice.value == 1
    assert result["b"].dice.value == pytest.approx(0.5)


def test_a_predicted_mask_of_another_size_is_brought_to_the_drawn_one():
    drawn = np.kron(square(2, 2, 4), np.ones((2, 2), dtype=np.uint8))
    assert evaluate_overlap([(square(2, 2, 4), drawn)], np.arange(1))["foreground"].dice.value == 1


def test_interval_is_over_patients():
    full, empty = square(2, 2, 4), square(0, 0, 0)
    pairs = [(full, full)] * 6 + [(empty, full)] * 6
    by_image = evaluate_overlap(pairs, np.arange(12))["foreground"].dice
    by_patient = evaluate_overlap(pairs, np.arange(12) // 3)["foreground"].dice
    assert by_patient.high - by_patient.low > 1.3 * (by_image.high - by_image.low)
    one = evaluate_overlap(pairs, np.zeros(12))["foreground"].dice
    assert np.isnan([one.low, one.high]).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(AfireError, match=r"masks are \(H, W\)"):
        evaluate_overlap([(np.zeros((2, 2, 1)), np.zeros((2, 2)))], np.arange(1))
    with pytest.raises(AfireError, match="1 pairs of masks for 2 patients"):
        evaluate_overlap([(np.zeros((2, 2)), np.zeros((2, 2)))], np.arange(2))
