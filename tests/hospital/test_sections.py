from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from afire_monai.core.errors import DataListError
from afire_monai.hospital.sections import SplitRule, assign_sections


def many(count: int = 300) -> tuple[list[str], list[str], list[str], list[str]]:
    rng = np.random.default_rng(0)
    groups = [f"p{n}" for n in rng.integers(0, 90, count)]
    days = [f"20{20 + n}0101" for n in rng.integers(0, 5, count)]
    sites = [("home", "away", "far")[n] for n in rng.choice(3, count, p=[0.8, 0.15, 0.05])]
    return groups, ["x" if group < "p5" else "" for group in groups], days, sites


@pytest.mark.parametrize("split_by", [None, "date:2022-01-01,2024-01-01", "date:2023-06-01", "site"])
def test_patient_is_never_divided(split_by: str | None) -> None:
    groups, strata, days, sites = many()
    rule = SplitRule.parse(split_by, (0.7, 0.1, 0.2), 0)
    sections = assign_sections(rule, groups, strata, days, sites)
    of_patient = defaultdict(set)
    for group, section in zip(groups, sections, strict=True):
        of_patient[group].add(section)
    assert all(len(found) == 1 for found in of_patient.values())
    assert sections == assign_sections(rule, groups, strata, days, sites)


def test_latest_image_of_a_patient_decides_by_date() -> None:
    groups = ["a", "a", "b", "c", "c", "d"]
    days = ["20190101", "20250101", "20211231", "20190101", "20220101", "20240101"]
    rule = SplitRule.parse("date:2022-01-01,2024-01-01", (0.7, 0.1, 0.2), 0)
    assert assign_sections(rule, groups, [""] * 6, days, [""] * 6) == [2, 2, 0, 1, 1, 2]
    one = SplitRule.parse("date:2022-01-01", (0.7, 0.1, 0.2), 0)
    assert assign_sections(one, groups, [""] * 6, days, [""] * 6) == [2, 2, 0, 2, 2, 2]


def test_largest_site_is_trained_on_and_nobody_of_another() -> None:
    groups = [f"p{i}" for i in range(16)] + ["p0"]
    sites = ["home"] * 12 + ["away"] * 3 + ["far"] + ["away"]
    sections = assign_sections(SplitRule.parse("site", (0.6, 0.2, 0.2), 0), groups, [""] * 17, [""] * 17, sites)
    assert [section for section, site in zip(sections, sites, strict=True) if site != "home"] == [2] * 5
    assert sections[0] == 2  # seen away as well
    assert sorted(sections[1:12]) == [0] * 8 + [1] * 3  # 3 : 1


@pytest.mark.parametrize(
    ("split_by", "split", "message"),
    [
        ("month", (0.7, 0.1, 0.2), "date:YYYY-MM-DD"),
        ("date:2022-13-01", (0.7, 0.1, 0.2), "YYYY-MM-DD"),
        ("date:2024-01-01,2022-01-01", (0.7, 0.1, 0.2), "the earlier one first"),
        (None, (0.7, 0.1), "three shares"),
        (None, (0.7, 0.1, 0.3), "sum to 1"),
        (None, (1.2, -0.1, -0.1), "three shares"),
    ],
)
def test_wrong_rules_are_refused(split_by: str | None, split: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataListError, match=message):
        SplitRule.parse(split_by, split, 0)


def test_no_training_patient_and_a_single_site_are_refused() -> None:
    with pytest.raises(DataListError, match="left for training"):
        assign_sections(SplitRule.parse("date:2000-01-01", (0.7, 0.1, 0.2), 0), ["a"], [""], ["20200101"], [""])
    with pytest.raises(DataListError, match="1 site"):
        assign_sections(SplitRule.parse("site", (0.7, 0.1, 0.2), 0), ["a"], [""], ["20200101"], ["home"])
