from __future__ import annotations

import json
from pathlib import Path

import pytest

from afire_monai.hospital.datacard import FEW, WITHHELD, age_band, age_in_band, count_groups, describe, write_datacard


@pytest.mark.parametrize(
    ("age", "band", "middle"), [(0, "0-9", 5), (49.9, "40-49", 45), (90, "90+", 95), (104, "90+", 95)]
)
def test_ages_are_known_in_bands_of_ten_years_only(age: float, band: str, middle: int) -> None:
    assert (age_band(age), age_in_band(age)) == (band, middle)


def test_unknown_age_has_no_band() -> None:
    assert (age_band(-1), age_in_band(-1)) == ("not stated", None)


def test_groups_of_fewer_than_five_patients_are_not_told_apart() -> None:
    values = [("F", f"f{i}") for i in range(9)] + [("F", "f0")] + [("M", f"m{i}") for i in range(5)]
    assert count_groups(values) == {"F": {"patients": 9, "images": 10}, "M": {"patients": 5, "images": 5}}
    few = count_groups([*values, ("O", "o1"), ("O", "o2")])
    assert few["O"] == {"patients": FEW, "images": FEW}
    assert few["M"] == {"patients": WITHHELD, "images": WITHHELD}  # else 16 - 9 - 5 tells that of O
    assert few["F"] == {"patients": 9, "images": 10}
    two = count_groups([*values, ("O", "o1"), ("U", "u1")])
    assert two["M"] == {"patients": 5, "images": 5}


def datalist(positive: int, known: int) -> dict[str, object]:
    items = [
        {"image": f"images/{i}.png", "group": f"g{i}", "label": [int(i < positive) if i < known else None]}
        for i in range(20)
    ]
    return {"name": "x", "labels": ["Effusion"], "training": items}


def test_prevalence_is_that_of_known_labels_unless_few_patients_have_it() -> None:
    facts = {f"images/{i}.png": {"view": "PA" if i else ""} for i in range(20)}
    label = describe(datalist(6, 16), facts, [0.5, 0.5])["labels"][0]
    assert (label["known"], label["positive"], label["prevalence"]) == (16, 6, 0.375)
    for positive, shown in ((3, FEW), (13, WITHHELD)):  # 13 of 16: three are without it
        label = describe(datalist(positive, 16), facts, [0.5, 0.5])["labels"][0]
        assert (label["positive"], label["prevalence"]) == (shown, None)


def test_few_patients_without_a_finding_cannot_be_told_from_the_uncertain_ones() -> None:
    items = [{"image": str(i), "group": str(i), "label": [1 if i < 10 else -1 if i < 19 else 0]} for i in range(20)]
    facts: dict[str, dict[str, str]] = {str(i): {} for i in range(20)}
    (label,) = describe({"labels": ["Edema"], "training": items}, facts, [1.0])["labels"]
    assert (label["known"], label["positive"], label["uncertain"]) == (20, 10, WITHHELD)


def test_page_needs_no_other_file_and_escapes(tmp_path: Path) -> None:
    facts = {f"images/{i}.png": {"manufacturer_model": "<script>alert(1)</script>"} for i in range(20)}
    card = describe(datalist(6, 16), facts, [0.25] * 4)
    write_datacard(card, tmp_path)
    page = (tmp_path / "datacard.html").read_text()
    assert "<script>" not in page
    assert "src='data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads((tmp_path / "datacard.json").read_text()) == card
