from __future__ import annotations

import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.populations import number_populations


def test_each_combination_of_facts_is_a_kind_of_its_own_and_not_stated_as_well():
    people = [("F", 30), ("M", 30), ("F", 39), (None, 30), ("F", 70), ("M", None)]
    items = [{key: value for key, value in zip(("sex", "age"), one, strict=True) if value} for one in people]
    assert number_populations(items, ["sex"]) == [1, 2, 1, 0, 1, 2]
    # in the order of: not stated and 18-39, F and 18-39, F and 60-79, M and not stated, M and 18-39
    assert number_populations(items, ["sex", "age"]) == [1, 4, 1, 0, 2, 3]


def test_an_unknown_fact_and_images_of_one_kind_are_refused():
    with pytest.raises(DataListError, match="'height' does not tell people apart; sex, age, view, source do"):
        number_populations([{"sex": "F"}], ["sex", "height"])
    with pytest.raises(DataListError, match=r"all 2 images are of one kind by sex.*--keep sex"):
        number_populations([{"sex": "F"}, {"sex": "F"}], ["sex"])
