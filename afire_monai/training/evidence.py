"""What a classifier's probabilities rest on, in words that go with each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from afire_monai.evaluation.bootstrap import bootstrap_auroc

DRAWN = 2_000_000
"""Images drawn in all for one interval, so that a large test section costs seconds; at least 200 draws."""


def calibration_words(target: NDArray[np.floating], method: str) -> list[str]:
    """Return for each label on how many images its probability was calibrated (see `finetuning.fit_calibration`).

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
