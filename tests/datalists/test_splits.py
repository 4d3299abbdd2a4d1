from __future__ import annotations

import numpy as np
import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.splits import split_by_group


def random_items(seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, rng.integers(20, 300), size=rng.integers(100, 1000))
    strata = np.array(["normal", "pneumonia", "rare"])[rng.choice(3, size=len(groups), p=[0.6, 0.37, 0.03])]
    return [f"p{g}" for g in groups], strata.tolist()


@pytest.mark.parametrize("seed", range(25))
def test_no_group_is_in_two_splits(seed: int) -> None:
    groups, strata = random_items(seed)
    split = split_by_group(groups, strata, (0.7, 0.2, 0.1), seed)
    for group in set(groups):
        assert len({s for g, s in zip(groups, split, strict=True) if g == group}) == 1


@pytest.mark.parametrize("seed", range(25))
def test_split_sizes_are_off_by_at_most_the_largest_group_a_split(seed: int) -> None:
    groups, strata = random_items(seed)
    fractions = np.array([0.7, 0.2, 0.1])
    sizes = np.bincount(split_by_group(groups, strata, fractions, seed), minlength=3)
    largest = max(groups.count(group) for group in set(groups))
    assert (sizes - fractions * len(groups) <= largest).all()
    assert (fractions * len(groups) - sizes <= 2 * largest).all()


def test_each_stratum_is_shared_out_by_the_fractions() -> None:
    strata = ["normal"] * 700 + ["pneumonia"] * 250 + ["effusion"] * 50
    split = split_by_group(range(1000), strata, (0.8, 0.1, 0.1), seed=3)
    for name, size in (("normal", 700), ("pneumonia", 250), ("effusion", 50)):
        counts = np.bincount(split[np.array(strata) == name], minlength=3)
        np.testing.assert_allclose(counts, np.array([0.8, 0.1, 0.1]) * size, atol=2)


def test_rare_strata_do_not_all_go_to_the_first_split() -> None:
    split = split_by_group(range(1000), [f"only {i}" for i in range(1000)], (0.8, 0.1, 0.1))
    np.testing.assert_allclose(np.bincount(split, minlength=3), [800, 100, 100], atol=1)


def test_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    groups, strata = random_items(0)
    first = split_by_group(groups, strata, seed=5)
    np.testing.assert_array_equal(first, split_by_group(groups, strata, seed=5))
    assert (first != split_by_group(groups, strata, seed=6)).any()


def test_split_with_fraction_zero_stays_empty() -> None:
    assert set(split_by_group(range(50), None, (0.5, 0.0, 0.5))) == {0, 2}


def test_no_items_give_no_splits() -> None:
    assert split_by_group([], []).shape == (0,)


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (-0.1, 1.1), ()])
def test_wrong_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataListError, match="sum to 1"):
        split_by_group([1, 2], None, fractions)


def test_strata_of_another_length_are_refused() -> None:
    with pytest.raises(DataListError, match="2 groups, but 1 strata"):
        split_by_group([1, 2], ["a"])


def test_groups_go_where_most_items_are_lacking_and_the_default_is_eight_tenths() -> None:
    # one item each, no strata: of 10 items 8, 1 and 1; seed 0 decides who
    assert np.bincount(split_by_group(range(10))).tolist() == [8, 1, 1]
    np.testing.assert_array_equal(split_by_group(range(40)), split_by_group(range(40), seed=0))
    np.testing.assert_array_equal(split_by_group(range(40)), split_by_group(range(40), None, (0.8, 0.1, 0.1), 0))


def test_by_hand_with_two_groups() -> None:
    # the first group dealt out goes to the first split (3/4 of its items lack there), the next to the other one only
    # if more items lack there: groups of 1 and 3 items, halves: each has its own split
    for seed in range(5):
        split = split_by_group(["a", "b", "b", "b"], None, (0.5, 0.5), seed)
        assert split[0] != split[1]
        assert len(set(split[1:])) == 1
    # 4/5 of one and of two items are lacking first, then 2/5 against 3/5
    for size in (1, 2):
        assert split_by_group(["a", "b", "c"] * size, ["0", "1", "2"] * size, (0.8, 0.2))[:3].tolist() == [0, 0, 1]
    # of thirds and a stratum of one group each, strata are dealt out in the order of their names
    assert split_by_group(["x", "y", "z"], ["2", "0", "1"], (0.4, 0.35, 0.25)).tolist() == [2, 0, 1]


def test_fractions_must_be_a_list_of_numbers() -> None:
    with pytest.raises(DataListError, match="sum to 1"):
        split_by_group([1, 2], None, ((0.5, 0.5), (0.0, 0.0)))  # type: ignore[arg-type]
    with pytest.raises(DataListError, match="2 groups, but 3 strata"):
        split_by_group([1, 2], ["a", "b", "c"])


def test_numbers_of_the_result_are_whole() -> None:
    assert split_by_group([], []).dtype == split_by_group([1], ["a"]).dtype == np.int64
    assert split_by_group([1], None, (1.0,)).tolist() == [0]
