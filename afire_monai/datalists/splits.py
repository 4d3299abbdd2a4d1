"""Splits that keep a patient on one side, stratified and seeded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import DataListError


def split_by_group(
    groups: Sequence[Hashable],
    strata: Sequence[Hashable] | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> NDArray[np.int64]:
    """Assign every item to a split so that no group is in two, and each stratum is shared out by the fractions.

    Groups are shuffled within their stratum (a group's stratum is the set of its items' strata) and dealt out one
    after the other to the split that lacks most items, counted over all strata so far. So the size of a split is off
    its share by at most the largest group for each split, and rare strata do not all fall to the first split.

    Args:
        groups: patient, or another unit that may not be divided, of each of n items.
        strata: label set of each item; None for no stratification.
        fractions: share of each split; not negative, sum 1.
        seed: the same seed and input give the same splits.

    Returns:
        (n,) index of the split of each item.

    Raises:
        DataListError: for fractions that are negative or do not sum to 1, or lists of different lengths.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise DataListError(f"fractions are {tuple(fractions)}; numbers from 0 to 1 that sum to 1 are expected")
    if strata is not None and len(strata) != len(groups):
        raise DataListError(f"{len(groups)} groups, but {len(strata)} strata; one of each for every item is expected")
    group_of_item, sizes, stratum_of_group = _summarise(groups, strata)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(stratum_of_group[order], kind="stable")]
    split_of_group = np.empty(len(sizes), dtype=np.int64)
    filled = np.zeros(len(shares))
    total = 0
    for group in order:
        total += sizes[group]
        # the deficits add up to this group's size, so a split with a share of 0 never has the largest
        split = int(np.argmax(shares * total - filled))
        split_of_group[group] = split
        filled[split] += sizes[group]
    return split_of_group[group_of_item]


def _summarise(
    groups: Sequence[Hashable], strata: Sequence[Hashable] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Group number of each item, size of each group, and number of each group's stratum.

    Groups are numbered by first appearance and strata by name, so the order of a Python set plays no part.
    """
    number: dict[Hashable, int] = {}
    group_of_item = np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)
    sizes = np.bincount(group_of_item)
    sets: list[set[str]] = [set() for _ in number]
    if strata is not None:
        for group, stratum in zip(group_of_item, strata, strict=True):
            sets[group].add(str(stratum))
    names = ["\x1f".join(sorted(names)) for names in sets]
    return group_of_item, sizes, np.unique(names, return_inverse=True)[1]
