"""Names and descriptions in ISO 2022 and GB18030: read rightly by ingest, told to nobody, and kept in results."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest

pytest.importorskip("highdicom")

from hospital_files import radiograph, validator_errors
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from afire_monai.cli.main import run
from afire_monai.dicom_results import ImagePrediction, write_results
from afire_monai.radiographs.judgement import LATERAL, NOT_CHEST

HEAT = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
# bytes as PS3.5 has them in its annexes H.3.1, H.3.2, I.2 and J.3, so that nothing here rests on pydicom's encoder;
# then what they say, and descriptions of a chest from the side, of a knee, and of a frontal chest
SETS = {
    "IR 87": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        (b"\x1b$B6;ItB&LL\x1b(B", b"\x1b$BI(4X@a\x1b(B", b"\x1b$B6;It@5LL\x1b(B"),
    ),
    "IR 13 and IR 87": (
        ["ISO 2022 IR 13", "ISO 2022 IR 87"],
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        (b"\x1b$B6;ItB&LL\x1b(J", b"\x1b$BI(4X@a\x1b(J", b"\x1b$B6;It@5LL\x1b(J"),
    ),
    "IR 149": (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
        tuple(b"\x1b$)C" + text.encode("euc_kr") for text in ("胸部側面", "膝關節", "胸部正面")),
    ),
    "GB18030": (
        "GB18030",
        b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab",
        "Wang^XiaoDong=王^小东",
        # the last letter ends in the byte of a backslash, which divides values in other sets
        tuple(f"{text} 誠".encode("gb18030") for text in ("胸部侧位", "膝关节", "胸部正位")),
    ),
}


def plant(file: Path, number: int, characters: str | list[str], name: bytes, description: bytes) -> Path:
    """Write a radiograph with these very bytes; no other element says what is on it."""
    dataset = radiograph(number, SpecificCharacterSet=characters, BodyPartExamined="", ViewPosition="")
    texts = {"PatientName": ("PN", name), "StudyDescription": ("LO", description)}
    for keyword, (kind, text) in {**texts, "SeriesDescription": ("LO", description)}.items():
        even, tag = text + b" " * (len(text) % 2), Tag(keyword)
        dataset._dict[tag] = RawDataElement(tag, kind, len(even), even, 0, False, True)
    file.parent.mkdir(exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def stored(file: Path, keyword: str) -> bytes:
    """The bytes of an element, as they are in the file."""
    found = pydicom.dcmread(file).get_item(keyword)
    assert isinstance(found, RawDataElement)
    return (found.value or b"").rstrip(b" ")


@pytest.mark.parametrize("name", SETS)
def test_descriptions_are_read_and_nothing_of_names_is_told(name, tmp_path, capsys):
    characters, encoded, text, descriptions = SETS[name]
    for number, description in enumerate(descriptions):
        plant(tmp_path / "in" / f"{number}.dcm", number, characters, encoded, description)
    assert run(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
    printed = capsys.readouterr()
    with (tmp_path / "out" / "left_out.csv").open(newline="") as file:
        assert sorted(row["reason"] for row in csv.DictReader(file)) == sorted([LATERAL, NOT_CHEST])
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == ["2.dcm"]
    parts = {part for group in text.split("=") for part in (group, *group.split("^"))}
    hidden = {encoded} | {p.encode(how, "ignore") for p in parts for how in ("utf-8", "utf-16-le", "gb18030", "euc_kr")}
    hidden = {word for word in hidden if len(word) > 2}
    assert len(hidden) > 6
    looked_at = [printed.out.encode() + printed.err.encode()]
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "private" not in path.parts:
            looked_at.append(path.read_bytes())
    assert len(looked_at) > 5
    assert [word for word in hidden if any(word in content for content in looked_at)] == []


@pytest.mark.parametrize("name", SETS)
def test_results_keep_names_and_descriptions_byte_by_byte(name, tmp_path):
    characters, encoded, _, descriptions = SETS[name]
    source = plant(tmp_path / "in" / "a.dcm", 1, characters, encoded, descriptions[2])
    prediction = ImagePrediction({"Edema": 0.5}, {"Edema": 0.4}, 97.5, HEAT)
    for file in write_results(source, prediction, tmp_path / "out", ("sr", "seg", "sc", "gsps")):
        assert stored(file, "PatientName") == encoded
        assert stored(file, "StudyDescription") == descriptions[2]
        assert pydicom.dcmread(file).SpecificCharacterSet == characters
        # dciodvfy takes the last byte of a letter of GB18030 for a backslash
        assert [e for e in validator_errors(file) if name != "GB18030" or "<StudyDescription>" not in e] == []


@pytest.mark.parametrize("name", SETS)
def test_results_with_letters_of_other_sets_say_the_same_in_utf_8(name, tmp_path):
    characters, encoded, text, descriptions = SETS[name]
    source = plant(tmp_path / "in" / "a.dcm", 1, characters, encoded, descriptions[2])
    for file in write_results(source, ImagePrediction({"Ödem": 0.5}), tmp_path / "out", ("sr", "sc", "gsps")):
        assert pydicom.dcmread(file).SpecificCharacterSet == "ISO_IR 192"
        assert stored(file, "PatientName") == text.encode()
        assert stored(file, "StudyDescription").decode() == pydicom.dcmread(source).StudyDescription
