"""What probabilities rest on, against counts and AUROC worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from afire_monai.training.calibration import calibration_words, own_test_words

NAN = float("nan")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("temperature", ["calibrated on 4 images"] * 3),  # one scale for all labels, from all that is known
        ("platt", ["calibrated on 3 images", "not calibrated", "calibrated on 2 images"]),
        ("none", ["not calibrated"] * 3),
    ],
)
def test_calibration_counts_the_images_it_was_fitted_on(method, words):
    target = np.array([[1, 0, NAN], [0, 0, 1], [NAN, NAN, NAN], [1, 0, 0], [NAN, 0, NAN]])
    assert calibration_words(target, method) == words


def test_nothing_is_calibrated_on_one_class():
    assert calibration_words(np.array([[1.0], [1.0], [NAN]]), "temperature") == ["not calibrated"]


def test_own_test_is_the_auroc_with_an_interval_over_patients():
    # of 2 x 2 pairs three are in order
    target = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, NAN], [0.0, 1.0]])
    scores = np.array([[0.9, 0.1], [0.4, 0.2], [0.3, 0.3], [0.2, 0.4]])
    auroc, none = own_test_words(target, scores, ["a", "b", "c", "d"])
    assert auroc.startswith("AUROC 0.75 (")
    assert auroc.endswith("in its own test of 4 images")
    assert none == "not tested"
    assert own_test_words(target, scores, ["a"] * 4)[0] == "AUROC 0.75 in its own test of 4 images"
