from __future__ import annotations

import pytest

from afire_monai.core.age_sex import age_band


@pytest.mark.parametrize(
    ("age", "band"),
    [(0, "<18"), (17.9, "<18"), (18, "18-39"), (39, "18-39"), (40, "40-59"), (60, "60-79"), (80, "80+"), (119, "80+")],
)
def test_age_bands(age, band):
    assert age_band(age) == band


@pytest.mark.parametrize("age", [None, "forty", float("nan"), -1, True])
def test_an_age_that_is_not_known_has_no_band(age):
    assert age_band(age) is None
