"""Parts of a data list for few-label experiments and cross-validation: by patient, seeded, stratified on labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from afire_monai.core.errors import DataListError
from afire_monai.datalists.patients import patient_of

Indices = NDArray[np.int64]


def label_fraction(items: Sequence[Mapping[str, Any]], targets: ArrayLike, fraction: float, seed: int = 0) -> Indices:
    """Choose a share of the labelled images; patients stay whole, and a smaller share lies within a larger one.

    Patients are put into one seeded order, and a share is its beginning. First come patients who together show every
    label present and absent, the rarest first, so that even 1 % can be trained on; then the others, with those of each
    label set spread evenly over the order.

    Args:
        items: items of a data list; ``group`` is the patient, and an item without it is a patient of its own.
        targets: (n, C) of 1, 0 and NaN. Items that are NaN throughout are never chosen and do not count.
        fraction: share of the labelled images, above 0 and up to 1.
        seed: decides the order.

    Returns:
        Indices into ``items``, ascending. Their number is off the share by at most half the images of one patient
        (but there is always one patient).

    Raises:
        DataListError: for another fraction, no labelled item, or lengths that differ.
    """
    if not 0 < fraction <= 1:
        raise DataListError(f"fraction is {fraction}; a number above 0 and up to 1 is expected (0.01 is one per cent)")
    values = _checked(items, targets)
    labelled = np.flatnonzero(~np.isnan(values).all(axis=1))
    if len(labelled) == 0:
        raise DataListError("no item has a known label, so no share of them can be taken")
    patient, sizes = _patients([items[int(i)] for i in labelled])
    order = _stratified_order(_per_patient(patient, values[labelled]), np.random.default_rng(seed))
    reached = np.cumsum(sizes[order])
    count = 1 + int(np.argmin(np.abs(reached - fraction * len(labelled))))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:count]] = True
    return labelled[chosen[patient]]


def patient_folds(
    items: Sequence[Mapping[str, Any]], targets: ArrayLike, folds: int = 5, seed: int = 0
) -> list[tuple[Indices, Indices]]:
    """Divide items for cross-validation; patients stay whole, and each label is shared out as evenly as possible.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) over patients: the label with fewest positive
    patients left is dealt out first, each patient to the fold that lacks it most. A fold that has its share of images
    gets no more, so a fold is above its share by less than the images of one patient.

    Arguments are as for `label_fraction`; there are from 2 folds to as many as patients.

    Returns:
        (training, validation) indices for each fold, ascending; each item is in one validation part.

    Raises:
        DataListError: for a number of folds that is not possible, or lengths that differ.
    """
    values = _checked(items, targets)
    patient, sizes = _patients(items)
    if not 2 <= folds <= len(sizes):
        raise DataListError(f"folds is {folds}; a number from 2 to the number of patients ({len(sizes)}) is expected")
    shown = _per_patient(patient, values)[:, : values.shape[1]]
    fold = _deal(shown, sizes, folds, np.random.default_rng(seed))[patient]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def _checked(items: Sequence[Mapping[str, Any]], targets: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(targets, dtype=np.float32)
    if values.ndim != 2 or len(values) != len(items):
        raise DataListError(f"{len(items)} items, but targets of shape {values.shape}; (items, labels) is expected")
    return values


def _patients(items: Sequence[Mapping[str, Any]]) -> tuple[Indices, Indices]:
    """Patient number of each item, by first appearance, and images of each patient."""
    number: dict[Hashable, int] = {}
    keys = (patient_of(item) if "image" in item or item.get("group") else ("item", i) for i, item in enumerate(items))
    patient = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
    return patient, np.bincount(patient, minlength=len(number)).astype(np.int64)


def _per_patient(patient: Indices, values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(P, 2C): whether a patient has an image with each label present, then with each label absent."""
    facts = np.concatenate([values == 1, values == 0], axis=1)
    shown = np.zeros((int(patient.max(initial=-1)) + 1, facts.shape[1]), dtype=bool)
    np.logical_or.at(shown, patient, facts)
    return shown


def _stratified_order(shown: NDArray[np.bool_], generator: np.random.Generator) -> Indices:
    """Order of patients in which every beginning is a fair sample of the label sets."""
    count = len(shown)
    shuffled = generator.permutation(count)
    first = _cover(shown, shuffled)
    _, stratum = np.unique(shown, axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    sizes = np.bincount(stratum)
    offset = generator.random(len(sizes))
    order = np.concatenate([first, shuffled[~np.isin(shuffled, first)]])
    by_stratum = order[np.argsort(stratum[order], kind="stable")]
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.arange(count) - start[stratum[by_stratum]]
    place = np.empty(count)
    place[by_stratum] = (rank + offset[stratum[by_stratum]]) / sizes[stratum[by_stratum]]
    place[first] = np.arange(-len(first), 0)
    return np.argsort(place, kind="stable")


def _cover(shown: NDArray[np.bool_], shuffled: Indices) -> Indices:
    """Return few patients who together have every finding that any patient has; the rarest findings come first."""
    missing = shown.any(axis=0)
    rarity = shown.sum(axis=0)
    chosen: list[int] = []
    while missing.any():
        rarest = int(np.argmin(np.where(missing, rarity, np.iinfo(np.int64).max)))
        able = shuffled[shown[shuffled, rarest]]
        best = int(able[np.argmax(shown[able][:, missing].sum(axis=1))])
        chosen.append(best)
        missing &= ~shown[best]
    return np.array(chosen, dtype=np.int64)


def _deal(shown: NDArray[np.bool_], sizes: Indices, folds: int, generator: np.random.Generator) -> Indices:
    """Fold of each patient, by iterative stratification."""
    fold_of = np.full(len(shown), -1, dtype=np.int64)
    lacking = np.tile(shown.sum(axis=0) / folds, (folds, 1))
    room = np.full(folds, sizes.sum() / folds)
    shuffled = generator.permutation(len(shown))

    def deal(patients: Indices, label: int | None) -> None:
        for patient in patients:
            want = room if label is None else lacking[:, label]
            open_folds = np.flatnonzero(room > 1e-9)
            best = open_folds[np.lexsort((generator.random(len(open_folds)), -room[open_folds], -want[open_folds]))[0]]
            fold_of[patient] = best
            room[best] -= sizes[patient]
            lacking[best, shown[patient]] -= 1

    while True:
        left = shown[fold_of < 0].sum(axis=0)
        if not left.any():
            break
        label = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        deal(shuffled[(fold_of[shuffled] < 0) & shown[shuffled, label]], label)
    deal(shuffled[fold_of[shuffled] < 0], None)
    return fold_of
