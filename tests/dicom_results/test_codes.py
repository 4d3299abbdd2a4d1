from __future__ import annotations

import pytest
from pydicom.sr._concepts_dict import concepts

from afire_monai.dicom_results import codes


def multiply(a: int, b: int) -> int:
    """In the dihedral group of order ten: rotations are 0…4, reflections 5…9."""
    if a < 5:
        return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
    return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5


def verhoeff_holds(number: str) -> bool:
    first = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place % 8):
            value = first[value]
        check = multiply(check, value)
    return check == 0


def test_check_digit_is_told_from_a_wrong_one():
    assert verhoeff_holds("2363")  # the textbook's example
    assert not verhoeff_holds("2364")


@pytest.mark.parametrize("label", sorted(codes.FINDINGS))
def test_every_snomed_code_has_its_check_digit_and_every_dicom_code_is_in_the_standard(label):
    value, scheme, meaning = codes.FINDINGS[label]
    if scheme == "SCT":
        assert verhoeff_holds(value)
    published = {v: m for entry in concepts[scheme].values() for v, (m, _) in entry.items()}
    if scheme == "DCM" or value in published:
        assert meaning.split()[-1].lower() in published[value].lower()


@pytest.mark.parametrize("code", [codes.PROBABILITY, codes.THRESHOLD, codes.PERCENTILE, codes.COMMENT, codes.DEVICE])
def test_codes_of_the_standard_mean_what_the_standard_says(code):
    published = {v: m for entry in concepts["DCM"].values() for v, (m, _) in entry.items()}
    assert published[code.value] == code.meaning


def test_labels_of_public_lists_have_published_codes_whatever_their_spelling():
    assert codes.finding_code("Pneumothorax").value == "36118008"
    assert codes.finding_code("Pleural Effusion") == codes.finding_code("effusion")
    assert codes.finding_code("Pleural_Effusion").scheme_designator == "SCT"


def test_other_labels_have_private_codes_that_differ_and_fit():
    labels = ["Pleural_Thickening", "Pleural_Thickenings", "mass lesion", "Mass lesion", "Erguß", "影", "Hernia"]
    made = [codes.finding_code(label) for label in labels]
    assert len({code.value for code in made}) == len(labels)
    assert all(1 <= len(code.value) <= 16 and len(code.meaning) <= 64 for code in made)
    assert {code.scheme_designator for code in made} == {"99AFIRE"}
    assert codes.finding_code("Hernia").value == "Hernia"


def test_backslash_never_reaches_a_meaning():
    assert codes.finding_code("a\\b").meaning == "a/b"
