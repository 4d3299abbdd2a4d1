from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hospital_files import CR, DX_RAW, SC, coded, write

from afire_monai.core.errors import RadiographError
from afire_monai.hospital.series_choice import (
    Candidate,
    choose_per_series,
)
from afire_monai.radiographs.body_view_words import body_of, normalise, view_of
from afire_monai.radiographs.header import Header, read_header
from afire_monai.radiographs.judgement import (
    BURNED_IN,
    COLOUR,
    LATERAL,
    NOT_CHEST,
    NOT_HUMAN,
    NOT_RADIOGRAPH,
    OBLIQUE,
    SCREEN,
    SEVERAL_FRAMES,
    UNCLEAR_BODY,
    judge,
)

TABLE: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"Modality": "CR", "SOPClassUID": CR}, ""),
    ({"Modality": "CT"}, NOT_RADIOGRAPH),
    ({"Modality": None}, NOT_RADIOGRAPH),
    ({"Modality": "OT", "SOPClassUID": SC}, NOT_RADIOGRAPH),
    ({"Modality": "OT", "SOPClassUID": SC, "ConversionType": "DF"}, ""),
    ({"Modality": "SC", "SOPClassUID": SC, "ConversionType": "WSD"}, NOT_RADIOGRAPH),
    ({"Modality": "OT", "SOPClassUID": SC, "ConversionType": "DF", "BodyPartExamined": ""}, NOT_RADIOGRAPH),
    ({"PatientSpeciesDescription": "Canine"}, NOT_HUMAN),
    ({"PatientSpeciesDescription": "Homo sapiens"}, ""),
    ({"NumberOfFrames": 2}, SEVERAL_FRAMES),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, COLOUR),
    ({"BurnedInAnnotation": "YES"}, BURNED_IN),
    ({"BurnedInAnnotation": "NO"}, ""),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, SCREEN),
    ({"ImageType": ["DERIVED", "SECONDARY", "", "SCREEN_SAVE"]}, SCREEN),
    ({"ImageType": ["DERIVED", "SECONDARY", "POST_PROCESSED"]}, ""),
    ({"BodyPartExamined": "HIP"}, NOT_CHEST),
    ({"BodyPartExamined": "", "SeriesDescription": "Knie links"}, NOT_CHEST),
    ({"BodyPartExamined": "", "SeriesDescription": "Tórax PA"}, ""),
    ({"BodyPartExamined": "CHEST", "SeriesDescription": "Knee AP"}, UNCLEAR_BODY),
    ({"BodyPartExamined": "SKULL", "SeriesDescription": "Thorax PA"}, UNCLEAR_BODY),
    ({"BodyPartExamined": "CHEST", "StudyDescription": "Chest and knee"}, ""),
    ({"BodyPartExamined": "", "StudyDescription": "Chest and knee"}, UNCLEAR_BODY),
    ({"BodyPartExamined": "", "AnatomicRegionSequence": coded("51185008", "")}, ""),
    ({"BodyPartExamined": "", "AnatomicRegionSequence": coded("72696002", "Knee")}, NOT_CHEST),
    ({"BodyPartExamined": "CHESTABDOMEN"}, UNCLEAR_BODY),
    ({"ViewPosition": "LL"}, LATERAL),
    ({"ViewPosition": "RLD"}, OBLIQUE),
    ({"ViewPosition": "RAO"}, OBLIQUE),
    ({"ViewPosition": "", "ViewCodeSequence": coded("399173006", "left lateral")}, LATERAL),
    ({"ViewPosition": "", "ViewCodeSequence": coded("399006002", "")}, OBLIQUE),
    ({"ViewPosition": "", "ViewCodeSequence": coded("272479007", "postero-anterior")}, ""),
    ({"ViewPosition": "", "PatientOrientation": ["A", "F"]}, LATERAL),
    ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, ""),
    ({"ViewPosition": "", "SeriesDescription": "Thorax seitlich"}, LATERAL),
    ({"ViewPosition": "", "SeriesDescription": "胸部側面", "SpecificCharacterSet": "ISO_IR 192"}, LATERAL),
    ({"SeriesDescription": "Thorax PA und seitlich"}, ""),
    ({"ViewPosition": "", "SeriesDescription": "", "StudyDescription": "Chest lateral"}, LATERAL),
    ({"StudyDescription": "Chest 2 views"}, ""),
    ({"SeriesDescription": "Chest left lateral decubitus"}, OBLIQUE),
]


@pytest.mark.parametrize(("elements", "reason"), TABLE)
def test_tags_decide(tmp_path: Path, elements: dict[str, Any], reason: str) -> None:
    assert judge(read_header(write(tmp_path / "IM1", **elements))).reason == reason


def test_laterals_are_kept_when_asked_for_and_obliques_are_not(tmp_path: Path) -> None:
    lateral = judge(read_header(write(tmp_path / "a", ViewPosition="LL")), include_laterals=True)
    assert (lateral.reason, lateral.lateral, lateral.view) == ("", True, "LATERAL")
    assert judge(Header(modality="DX", body_part="CHEST", view="LAO"), include_laterals=True).reason == OBLIQUE


def test_silence_is_told_from_a_statement() -> None:
    assert judge(Header(modality="CR", body_part="CHEST", view="AP")).stated
    assert not judge(Header(modality="CR", body_part="CHEST")).stated
    assert not judge(Header(modality="CR", view="AP")).stated
    assert judge(Header(modality="DX", body_part="CHEST", view="AP")).view == "AP"


def test_raw_images_are_known_by_intent_or_class() -> None:
    assert judge(Header(modality="DX", body_part="CHEST", view="PA", intent="FOR PROCESSING")).raw
    assert judge(Header(modality="DX", body_part="CHEST", view="PA", sop_class=DX_RAW)).raw
    assert not judge(Header(modality="DX", body_part="CHEST", view="PA", intent="FOR PRESENTATION")).raw


@pytest.mark.parametrize(
    "text",
    ["Chest", "THORAX PA", "RX TÓRAX", "Poumon face", "torace 2p", "Röntgen Thorax", "Klatka piersiowa", "胸部正位",
     "흉부", "Akciğer grafisi", "Органы грудной клетки", "Xquang ngực", "CHESTPA"],
)  # fmt: skip
def test_chest_is_known_in_many_languages(text: str) -> None:
    assert body_of([text]) == (True, False)


@pytest.mark.parametrize(
    "text", ["Thoracic spine", "BWS 2 Ebenen", "Ribs left", "Genou G", "Abdomen", "腹部", "T-Spine AP"]
)
def test_other_parts_are_not_taken_for_the_chest(text: str) -> None:
    assert body_of([text]) == (False, True)


@pytest.mark.parametrize(
    ("text", "views"),
    [("Thorax p.a.", {"frontal"}), ("postero-anterior", {"frontal"}), ("Thorax de profil", {"lateral"}),
     ("Bilateral", set()), ("PA and LAT", {"frontal", "lateral"}), ("2 views", {"frontal", "lateral"}),
     ("侧位", {"lateral"})],
)  # fmt: skip
def test_views_are_known_by_words(text: str, views: set[str]) -> None:
    assert view_of([text]) == views


def test_accents_and_punctuation_do_not_matter() -> None:
    assert normalise("Tórax_PA  (de-pé)") == "TORAX PA DE PE"


def test_header_counts_damaged_elements_as_absent_and_bounds_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a", ProtocolName="Thorax " * 8, PatientAge=None, StudyDate="20210304")
    header = read_header(path)
    assert header.age == pytest.approx(77.32, abs=0.01)  # 7 November 1943 to 4 March 2021
    nobody = {"PatientAge": "000Y", "StudyDate": "20210304"}
    assert read_header(write(tmp_path / "b", **nobody)).age == header.age
    assert read_header(write(tmp_path / "b", **nobody, PatientBirthDate=None)).age == 0
    assert read_header(write(tmp_path / "b", StudyDate="2021W101")).date == ""
    content = path.read_bytes().replace(b"20210304", b"20219999")
    path.write_bytes(content)
    assert read_header(path).date == ""


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "empty file"), (b"hello " * 99, "not DICOM"), (b"\x08\x00" * 99, "")]
)
def test_what_is_no_dicom_is_refused_by_kind(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(RadiographError) as caught:
        read_header(tmp_path / "a")
    assert kind in vars(caught.value)["kind"]


def candidate(place: int, image: str, raw: bool = False, pixels: int = 100, series: str = "s", lateral: bool = False):
    return Candidate(place, image, series, "study", lateral, raw, pixels, place)


def test_series_gives_one_image_processed_before_raw_large_before_small_copies_together() -> None:
    small, large, raw = candidate(0, "small", pixels=50), candidate(1, "large"), candidate(2, "raw", True, 900)
    copy, other, side = candidate(3, "large"), candidate(4, "other", series="t"), candidate(5, "side", lateral=True)
    slots = choose_per_series([raw, other, copy, side, large, small])
    assert sorted([[c.place for c in slot] for slot in slots]) == [[1, 3, 0, 2], [4], [5]]


def test_lists_of_raw_images_only_come_last() -> None:
    slots = choose_per_series([candidate(0, "raw", True, series="r"), candidate(1, "shown")])
    assert [slot[0].image for slot in slots] == ["shown", "raw"]


@pytest.mark.parametrize(
    ("declared", "left_out"), [("YES", True), ("Y", True), ("TRUE", True), ("NO", False), ("N", False), ("", False)]
)
def test_what_is_no_clear_no_counts_as_burned_in_text(declared: str, left_out: bool) -> None:
    header = Header(modality="CR", photometric="MONOCHROME2", frames=1, samples=1, burned_in=declared)
    assert (judge(header).reason == BURNED_IN) is left_out
