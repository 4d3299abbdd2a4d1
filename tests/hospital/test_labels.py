from __future__ import annotations

from pathlib import Path

import pytest

from afire_monai.core.errors import DataListError
from afire_monai.hospital.labels import LabelTable, Subject, join_labels
from afire_monai.radiographs.header import Header

SUBJECTS = [
    Subject("i1", Header(accession="A1", patient_id="P1", study_uid="1.1"), "/in/x/one.dcm"),
    Subject("i2", Header(accession="A1", patient_id="P1", study_uid="1.2"), "/in/x/two"),
    Subject("i3", Header(accession="A3", patient_id="P3", study_uid="1.3"), "/in/y/one.dcm"),
    Subject("", Header(accession="A4", patient_id="P4", study_uid="1.4"), "/in/y/four"),
]


def table(tmp_path: Path, text: str, join: str, **options: object) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return LabelTable(path, join, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("join", "head", "first", "second", "images"),
    [
        ("accession", "AccessionNumber", "A1", "A3", {"i1", "i2"}),
        ("patient", "patient_id", "P1", "P3", {"i1", "i2"}),
        ("study", "StudyInstanceUID", "1.1", "1.3", {"i1"}),
        ("file", "filename", "two.dcm", "y/one", {"i2"}),
        ("file", "path", "/in/x/one.dcm", "/in/y/one.dcm", {"i1"}),
    ],
)
def test_labels_are_joined_by_each_key(
    tmp_path: Path, join: str, head: str, first: str, second: str, images: set[str]
) -> None:
    text = f"{head},Effusion,Edema\n{first},1,\n{second},0,-1\n"
    joined = join_labels(table(tmp_path, text, join, label_columns=["Effusion", "Edema"]), SUBJECTS, ["/in"])
    assert joined.names == ("Effusion", "Edema")
    assert joined.by_image == {**dict.fromkeys(images, (1, None)), "i3": (0, -1)}
    assert (joined.matched, joined.unmatched, joined.without) == ([2, 3], [], 3 - len(images) - 1)


def test_lines_that_are_not_used_are_told_apart_by_number(tmp_path: Path) -> None:
    text = "AccessionNumber,E\nA1,1\nA1,0\nA3,1\nA3,1\nA4,1\nA9,0\n,1\n"
    detail: list[tuple[int, str]] = []
    joined = join_labels(table(tmp_path, text, "accession", label_columns=["E"]), SUBJECTS, [], detail)
    assert joined.by_image == {"i3": (1,)}
    assert (joined.matched, joined.contradicting) == ([4, 5], [2, 3])
    assert (joined.left_out, joined.unmatched, joined.rows) == ([6], [7], 6)
    assert sorted(detail) == [(2, "A1"), (3, "A1"), (6, "A4"), (7, "A9")]


def test_file_name_of_several_files_is_not_used(tmp_path: Path) -> None:
    joined = join_labels(table(tmp_path, "file,E\none.dcm,1\ntwo,1\n", "file", label_columns=["E"]), SUBJECTS, ["/in"])
    assert joined.by_image == {"i2": (1,)}
    assert joined.ambiguous == [2]


def test_names_in_one_column_are_split_and_normal_comes_first(tmp_path: Path) -> None:
    text = "accession,findings,id\nA1,Effusion | Atelectasis,A1\nA3,Normal,A3\nA4,,A4\n"
    names = table(tmp_path, text, "accession", labels_column="findings", join_column="id")
    assert names.names == ("Normal", "Atelectasis", "Effusion")
    assert [lines[0][1] for lines in names.lines.values()] == [(0, 1, 1), (1, 0, 0), (None, None, None)]


@pytest.mark.parametrize(
    ("text", "join", "options", "message"),
    [
        ("AccessionNumber,E\nA1,yes Zyxwolski\n", "accession", {"label_columns": ["E"]}, "line 2, column 'E'"),
        ("AccessionNumber,E\nA1,1\n", "accession", {}, "name one of the two"),
        ("AccessionNumber,E\nA1,1\n", "name", {"label_columns": ["E"]}, "join is 'name'"),
        ("AccessionNumber,E\nA1,1\n", "patient", {"label_columns": ["E"]}, "no column 'PatientID'"),
        ("AccessionNumber,E\nA1,1\n", "accession", {"label_columns": ["F"]}, "no column 'F'"),
        ("AccessionNumber,E\nA1,1\n", "accession", {"label_columns": ["E", "E"]}, "different names"),
        (
            "AccessionNumber,E\n" + "".join(f"A{i},Zyxwolski {i}\n" for i in range(300)),
            "accession", {"labels_column": "E"}, "300 different names",
        ),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_without_quoting_cells(
    tmp_path: Path, text: str, join: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataListError, match=message) as caught:
        table(tmp_path, text, join, **options)
    assert "Zyxwolski" not in str(caught.value)


def test_table_of_a_european_spreadsheet_is_read_and_lost_zeros_are_hinted_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("AccessionNumber;Normal;Größe\n4711;1;klein\n".encode("cp1252"))
    subjects = [Subject("i1", Header(accession="00004711"), "/in/one.dcm")]
    joined = join_labels(LabelTable(path, label_columns=["Normal"]), subjects)
    assert joined.unmatched == [2]
    assert "1 of them would be found with leading zeros" in caplog.text
    assert "fill them up to 8 characters" in caplog.text
    assert "4711" not in caplog.text.replace(str(path), "")
