"""Convert the label values of a data list to the matrix that a classifier is trained on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from afire_monai.core.errors import DataListError

UncertainPolicy = Literal["ignore", "zeros", "ones"]
LARGEST_WEIGHT = 20.0
"""Bound of `positive_weights`: beyond it a few images of a rare label would decide each step."""

_UNCERTAIN: dict[str, float] = {"ignore": float("nan"), "zeros": 0.0, "ones": 1.0}


def target_matrix(
    items: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    uncertain: UncertainPolicy = "ignore",
    select: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """Targets of items: 1 present, 0 absent, NaN where the label is to be left out of loss and metrics.

    Args:
        items: items of a data list; ``label`` holds one of 1, 0, -1 (uncertain) and None or NaN (not known) for each of
            ``labels``.
            No label of an item without ``label`` is known.
        labels: names of the list's labels, in the order of the values.
        uncertain: meaning of -1: left out, absent or present (U-Ignore, U-Zeros and U-Ones of CheXpert, Irvin et
            al. 2019). None is always left out.
        select: the labels to return, in this order; None for all.

    Returns:
        (n, C) float32.

    Raises:
        DataListError: for an unknown policy or label (the nearest names are given), a label vector of another length,
            or another value in it.
    """
    if uncertain not in get_args(UncertainPolicy):
        raise DataListError(f"uncertain is {uncertain!r}; one of {', '.join(get_args(UncertainPolicy))} is expected")
    columns = _columns(labels, select)
    unknown = [None] * len(labels)
    rows = [unknown if item.get("label") is None else item["label"] for item in items]
    for number, row in enumerate(rows):
        _check_row(row, len(labels), number)
    values = np.array(rows, dtype=np.float32).reshape(len(rows), len(labels))
    values[values == -1] = _UNCERTAIN[uncertain]
    return values[:, columns]


def positive_weights(targets: ArrayLike) -> NDArray[np.float32]:
    """Weight of the positive class of each label in a binary cross-entropy: negatives divided by positives.

    Args:
        targets: (n, C) of 1, 0 and NaN, as `target_matrix` returns.

    Returns:
        (C,) float32 in 1/20…20; 1 for a label without a positive or without a negative.
    """
    values = np.asarray(targets, dtype=np.float32)
    positives, negatives = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
    weights = np.clip(negatives / np.maximum(positives, 1), 1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    return np.where((positives == 0) | (negatives == 0), 1.0, weights).astype(np.float32)


def _columns(labels: Sequence[str], select: Sequence[str] | None) -> list[int]:
    if select is None:
        return list(range(len(labels)))
    if isinstance(select, str) or not select or len(set(select)) < len(select):
        raise DataListError(f"labels to select are {select!r}; different names, at least one, are expected")
    for name in select:
        if name not in labels:
            near = difflib.get_close_matches(name, labels, 2, 0.5)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise DataListError(f"the data list has no label {name!r}{hint}. Its labels are {', '.join(labels)}")
    return [list(labels).index(name) for name in select]


def _check_row(row: Any, length: int, number: int) -> None:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != length:
        seen = f"{len(row)} values" if isinstance(row, Sequence) else type(row).__name__
        raise DataListError(f"item {number}: its label has {seen}; one for each of the list's {length} is expected")
    for value in row:
        if value is not None and value == value and (isinstance(value, bool | str) or value not in (0, 1, -1)):
            raise DataListError(
                f"item {number}: {value!r} among its labels; 1 (present), 0 (absent), -1 (uncertain) or null "
                "(not known) is expected"
            )
