from __future__ import annotations

from afire_monai.datalists.patients import patient_of, shared_patients


def test_item_without_a_patient_counts_as_one_of_its_own():
    assert patient_of({"image": "a.png", "group": 7}) == "7"
    assert patient_of({"image": "a.png", "group": None}) == patient_of({"image": "a.png"}) == "a.png"
    assert patient_of({"image": "a.png", "group": float("nan")}) == "a.png"


def test_patients_in_two_sections_are_named_for_each_pair():
    first, second, both = ({"image": f"{name}.png", "group": name} for name in ("a", "b", "c"))
    alone = {"image": "d.png"}
    shared = shared_patients({"training": [first, both, alone], "validation": [second, both], "test": [second, alone]})
    assert shared == {("training", "validation"): {"c"}, ("training", "test"): {"d.png"}, ("validation", "test"): {"b"}}
