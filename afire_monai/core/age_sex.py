"""Age and sex as tables and DICOM headers write them."""

from __future__ import annotations

import re
from typing import Any

OLDEST = 130
AGE_BANDS = ((18, "<18"), (40, "18-39"), (60, "40-59"), (80, "60-79"))
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_SEXES = {
    **dict.fromkeys(("F", "FEMALE", "WOMAN", "W", "WEIBLICH", "FRAU"), "F"),
    **dict.fromkeys(("M", "MALE", "MAN", "MÄNNLICH", "MAENNLICH", "MANN"), "M"),
}


def parse_sex(text: str) -> str | None:
    """Return ``F`` or ``M`` from the words of tables (F, female, Woman, w, weiblich, …); None for anything else."""
    return _SEXES.get(text.strip().upper())


def parse_age(text: str) -> float | None:
    """Return years from ``57``, ``57.0``, ``057Y``, ``18M`` (months), ``3W`` or ``10D``; None unless up to 130."""
    match = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*([YMWD]?)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    years = float(match[1].replace(",", ".")) * _YEARS[match[2].upper()]
    return round(years, 2) if 0 <= years <= OLDEST else None


def age_band(age: Any) -> str | None:
    """Name the age band of an age in years; None if it is not known."""
    if isinstance(age, bool) or not isinstance(age, int | float) or not age >= 0:  # also true for NaN
        return None
    return next((name for bound, name in AGE_BANDS if age < bound), "80+")
