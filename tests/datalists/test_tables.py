"""Tables as spreadsheets and people write them: read with the meaning they have, or refused with the place."""

from __future__ import annotations

import csv
import io
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError
from afire_monai.datalists.csv_table import read_table
from afire_monai.datalists.file import SECTIONS, load_datalist, training_items
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.targets import target_matrix

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


def write(tmp_path: Path, content: str | bytes, pictures: tuple[str, ...] = ("a.png", "b.png", "c.png")) -> Path:
    """A manifest beside files that stand for pictures; reading of tables does not open them."""
    for name in pictures:
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def labels_of(datalist: Any) -> dict[str, dict[str, Any]]:
    """File name → label name → value."""
    return {
        Path(item["image"]).name: dict(zip(datalist.get("labels", []), item.get("label", []), strict=True))
        for section in SECTIONS
        for item in datalist.get(section, [])
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,group,labels,labels\na.png,1,x,y\n", r"m\.csv: line 1: 'labels' names several columns"),
        ("\n\npath,group,labels,labels\na.png,1,x,y\n", r"line 3: 'labels' names several"),
        ("path,group,labels\na.png,1,Edema, mild|Effusion\n", r"m\.csv: line 2: 4 cells, but the header has 3.*quotes"),
        ("path,group,labels\na.png,1,x\nb.png,2\n", r"line 3: 2 cells, but the header has 3.*none for 'labels'"),
        ('path,group,labels\n\n"a\n.png",1,x\nb.png,2\n', "line 5: 2 cells"),
        ("sep=;\npath;group;labels\na.png;1\n", "line 3: 2 cells"),
        ("path,group,labels\na.png,1,x\n./a.png,1,y\n", r"line 3, column 'labels': another value than in line 2"),
        ("path,group,labels,sex\na.png,1,x,M\nb.png,1,x,F\n", r"line 3, column 'sex': another value than in line 2"),
        ('path,group,labels\na.png,1,"x\n', r"line 2: unexpected end of data"),
        ("path,group,labels\na.png,1,x\0\n", "NUL characters"),
        (b"PK\x03\x04rubbish", "an Excel or OpenDocument workbook; save the sheet as CSV"),
        ("path,group,labels\na.png,1,Grö\n".encode() + b"\xff", "not utf-8.*--encoding"),
    ],
)  # fmt: skip
def test_table_that_could_be_read_in_two_ways_is_refused_with_its_place(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataListError, match=message):
        datalist_from_csv(write(tmp_path, text))


PLAIN = "path,group,labels,note\na.png,p1,Normal,Größe 0\nb.png,p2,Edema|Mass,-\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(mark, name) for name in ("utf-8", "utf-16-le", "utf-16-be") for mark in ("", "\ufeff")] + [("", "cp1252")],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("separator_line", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_encoding_and_line_ends_are_found(
    tmp_path: Path, mark: str, encoding: str, delimiter: str, separator_line: bool, end: str
) -> None:
    text = PLAIN.replace(",", delimiter).replace("\n", end)
    text = mark + (f"sep={delimiter}{end}" if separator_line else "") + text
    rows = read_table(write(tmp_path, text.encode(encoding)), ["path", "labels"])
    assert [dict(row) for row in rows] == [
        {"path": "a.png", "group": "p1", "labels": "Normal", "note": "Größe 0"},
        {"path": "b.png", "group": "p2", "labels": "Edema|Mass", "note": "-"},
    ]


def test_form_that_was_found_is_said_once_and_can_be_overridden(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, PLAIN.replace(",", ";").encode("cp1252"))
    datalist_from_csv(path)
    assert caplog.messages == [f"{path}: read as cp1252, semicolons between cells (from-csv and ingest take "
                               "--encoding and --delimiter)"]  # fmt: skip
    assert "ö" in read_table(path, encoding="latin-1")[0]["note"]
    with pytest.raises(DataListError, match="its text is not undefined"):
        read_table(path, encoding="undefined")
    with pytest.raises(DataListError, match="encoding 'klingon' is not known"):
        read_table(path, encoding="klingon")
    with pytest.raises(DataListError, match="no column 'path'; its columns are path;group;labels;note"):
        read_table(path, ["path"], delimiter=",")
    assert run(["datalist", "from-csv", str(path), "--out", str(tmp_path / "o.json"), "--delimiter", ",",
                "--encoding", "cp1252"]) == 2  # fmt: skip


def test_nan_is_not_known_and_look_alikes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = tuple(f"{i}.png" for i in range(7))
    cells = ("Normal", "Normal ", "normal", "nan", "NA|Mass", "Mass", "None")
    text = "path,group,labels\n" + "".join(f"{n},{n},{c}\n" for n, c in zip(names, cells, strict=True))
    datalist = datalist_from_csv(write(tmp_path, text, names), fractions=(1, 0, 0), out=tmp_path / "l.json")
    assert datalist["labels"] == ["Normal", "Mass"]
    assert list(labels_of(datalist).values()) == [
        {"Normal": 1, "Mass": 0}, {"Normal": 1, "Mass": 0}, {"Normal": None, "Mass": 0},
        {"Normal": None, "Mass": None}, {"Normal": 0, "Mass": 1}, {"Normal": 0, "Mass": 1},
        {"Normal": None, "Mass": None},
    ]  # fmt: skip
    assert len([m for m in caplog.messages if "'normal', which looks like 'Normal'" in m]) == 1
    assert len([m for m in caplog.messages if "'nan' (1 rows)" in m and "'NA'" in m and "'None'" in m]) == 1
    assert len(training_items(tmp_path / "l.json")) == 2


def test_truth_values_of_several_languages_are_labels(tmp_path: Path) -> None:
    names = tuple(f"{i}.png" for i in range(14))
    cells = ("TRUE", "false", "Yes", "no", "ja", "NEIN", "1.0", "0.0", "-1.0", "", "nan", "1,0", "wahr", "1e0")
    text = "path;group;Mass\n" + "".join(f"{n};{n};{c}\n" for n, c in zip(names, cells, strict=True))
    datalist = datalist_from_csv(write(tmp_path, text, names), label_columns=["Mass"], fractions=(1, 0, 0))
    assert [v["Mass"] for v in labels_of(datalist).values()] == [1, 0, 1, 0, 1, 0, 1, 0, -1, None, None, 1, 1, 1]
    for wrong in ("2", "maybe", "1_0", "٣", "inf", "1,0"):
        with pytest.raises(DataListError, match=r"line 2, column 'Mass': "):
            datalist_from_csv(
                write(tmp_path, f'path,group,Mass\na.png,1,"{wrong}"\n'), label_columns=["Mass"], delimiter=","
            )


def test_cell_too_long_for_a_path_is_a_missing_image(tmp_path: Path) -> None:
    datalist = datalist_from_csv(write(tmp_path, f"path,group,labels\na.png,1,x\n{'n' * 5000},2,x\n"))
    assert datalist["meta"]["skipped"]["missing_image"] == 1


def test_lost_leading_zeros_are_hinted_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "path,group,labels\n0012.png,1,x\n13.png,2,x\n", ("0012.png", "0013.png"))
    datalist_from_csv(path)
    assert "1 of them would be found with leading zeros" in caplog.text
    assert "fill them up to 8 characters" in caplog.text
    path = write(tmp_path, "path,group,labels\n13.png,2,x\n", ("0013.png",))
    with pytest.raises(DataListError, match="leading zeros, which spreadsheets drop"):
        datalist_from_csv(path)


def test_unknown_patients_are_not_one_patient_and_repeated_rows_count_once(tmp_path: Path) -> None:
    datalist = datalist_from_csv(
        write(tmp_path, "path,group,labels\na.png,nan,x\nb.png, ,x\nc.png,NA,x\n./c.png,NA,x\n"), fractions=(1, 0, 0)
    )
    assert [item["group"] for item in datalist["training"]] == ["a.png", "b.png", "c.png"]
    assert datalist["meta"]["skipped"]["repeated_row"] == 1


def test_paths_have_one_spelling_also_from_windows(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    text = f"path,group,labels,mask\ns\\a.png,1,Mass,s\\b.png\n{tmp_path}/s/a.png,1,Mass,./s/b.png\n"
    path = write(tmp_path, text, ("s/a.png", "s/b.png"))
    (tmp_path / "boxes.csv").write_text("path,label,x,y,width,height\ns\\a.png,Mass,1,1,2,2\n")
    options: dict[str, Any] = {"mask_column": "mask", "boxes_csv": tmp_path / "boxes.csv", "fractions": (1, 0, 0)}
    names = {"image": str(tmp_path / "s" / "a.png"), "mask": str(tmp_path / "s" / "b.png")}
    assert datalist_from_csv(path, **options)["training"] == [
        {**names, "group": "1", "boxes": [[1, 1, 2, 2, "Mass"]], "label": [1]}
    ]


def test_sexes_in_spanish_are_not_taken_for_english(tmp_path: Path) -> None:
    text = "path,group,labels,sex\na.png,1,x,{}\nb.png,2,x,M\n"
    with pytest.raises(DataListError, match="column 'sex' has M beside H"):
        datalist_from_csv(write(tmp_path, text.format("h")))
    for other, sexes in (("W", ["F", "M"]), ("H\nc.png,3,x,F", [None, "F", "M"])):
        datalist = datalist_from_csv(write(tmp_path, text.format(other)), fractions=(1, 0, 0))
        assert [item.get("sex") for item in datalist["training"]] == sexes


def test_patients_that_a_spreadsheet_has_shortened_are_refused(tmp_path: Path) -> None:
    for number in ("1.23457E+12", "1,2E+12"):
        with pytest.raises(DataListError, match=r"line 2, column 'group': a spreadsheet has shortened") as caught:
            datalist_from_csv(write(tmp_path, f"path;group;labels\na.png;{number};x\n"))
        assert number not in str(caught.value)


def test_cells_that_say_nothing_are_no_label_and_no_patient(tmp_path: Path) -> None:
    path = write(tmp_path, "path,group,labels\na.png,-,#REF!\nb.png,-,Unknown\nc.png,unknown,Mass|#WERT!\n")
    datalist = datalist_from_csv(path, fractions=(1, 0, 0))
    assert [item["group"] for item in datalist["training"]] == ["a.png", "b.png", "c.png"]
    assert datalist["labels"] == ["Mass"]
    assert [item["label"] for item in datalist["training"]] == [[None], [None], [1]]
    with pytest.raises(DataListError, match="column 'labels': '-' would be a label"):
        datalist_from_csv(write(tmp_path, "path,group,labels\na.png,1,-\n"))


def test_label_that_may_be_several_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datalist_from_csv(write(tmp_path, 'path,group,labels\na.png,1,"Mass, Edema"\nb.png,2,Mass\n'))
    assert "'Mass, Edema' counts as one label" in caplog.text
    with pytest.raises(DataListError, match="label_separator is empty"):
        datalist_from_csv(write(tmp_path, "path,group,labels\na.png,1,x\n"), label_separator="")


@pytest.mark.parametrize(("name", "expected"), [("No Finding", 1), ("no finding", 1), ("NORMAL", 1), ("Healthy", 0)])
def test_normal_label_is_found_or_the_labels_are_named(
    tmp_path: Path, name: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, f"path,group,labels\na.png,1,{name}\nb.png,2,Mass\n")
    assert run(["datalist", "from-csv", str(path), "--out", str(tmp_path / "o.json"), "--fractions", "1,0,0"]) == 0
    printed = capsys.readouterr().out
    assert f"known to be normal: {expected} images" in printed
    assert ("The labels are Healthy, Mass: --normal-label NAME" in printed) is (expected == 0)
    with pytest.raises(DataListError, match=r"no label 'Mas' .*did you mean 'Mass'"):
        datalist_from_csv(path, normal_label="Mas")


def test_sources_that_differ_in_odd_characters_get_files_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "path,group,labels,source\na.png,1,x,s/1\nb.png,2,x,s_1\nc.png,3,x,S_1\n")
    datalist_from_csv(path, tmp_path / "lists", by_source=True)
    read = {p.name: load_datalist(p)["name"] for p in (tmp_path / "lists").iterdir()}
    assert sorted(read.values()) == ["S_1", "s/1", "s_1"]


@pytest.mark.parametrize(
    ("file", "right"),
    [
        ("duplicate_col.csv", "line 1: 'labels' names several columns"),
        ("extra_cell.csv", "line 2: 4 cells"),
        ("nan_labels.csv", [None] * 6 + [1] * 6),
        ("semicolon.csv", None),
        ("sep_line.csv", None),
        ("cp1252.csv", None),
    ],
)
def test_shared_tables(file: str, right: Any) -> None:
    if not (CASES / "csv" / file).is_file():
        pytest.skip("no shared cases")
    if isinstance(right, str):
        with pytest.raises(DataListError, match=right):
            datalist_from_csv(CASES / "csv" / file)
        return
    values = labels_of(datalist_from_csv(CASES / "csv" / file))
    assert len(values) == 12
    if right:
        assert sorted((v["Edema"] for v in values.values()), key=str) == sorted(right, key=str)
    else:
        assert sum(v["Normal"] for v in values.values()) == 6


# ---- any table: what is accepted means what a slow reader says, and what cannot be read so is refused

WORDS = {"": None, "nan": None, "NA": None, "1": 1, "0": 0, "-1": -1, "1.0": 1, "TRUE": 1, "no": 0, "ja": 1}


def random_table(random_: random.Random) -> tuple[str, dict[str, tuple[str, list[int | None], str | None]] | None]:
    """The text of a table, and by image patient, label values and mask; None where it must be refused."""
    columns = ["path", "group", "Mass", "Node, left", "mask", "remark"]
    random_.shuffle(columns)
    delimiter = random_.choice(",;\t")
    rows: list[list[str]] = []
    truth: dict[str, tuple[str, list[int | None], str | None]] = {}
    refused = False
    for number in range(random_.randint(1, 6)):
        group = random_.choice(["", " ", "nan", "p1", "p 2", "007", "ü;,"])
        cells = {
            "path": f"{number}.png", "group": group, "mask": random_.choice(["", "NA", "m.png"]),
            "Mass": random_.choice(list(WORDS)), "Node, left": random_.choice(list(WORDS)),
            "remark": random_.choice(["", "a;b", "a,b", 'he said "no"', "two\nlines", "ä", "x\ty"]),
        }  # fmt: skip
        if random_.random() < 0.05:
            cells["Mass"], refused = random_.choice(["2", "x", "0.5", "--1"]), True
        known = group.strip() if group.strip().lower() not in ("", "nan") else f"{number}.png"
        mask = "m.png" if cells["mask"] == "m.png" else None
        truth[f"{number}.png"] = (known, [WORDS.get(cells["Mass"]), WORDS.get(cells["Node, left"])], mask)
        row = [cells[column] for column in columns]
        if random_.random() < 0.05:
            row, refused = random_.choice([row[:-1], [*row, "more"]]), True
        rows.append(row)
        if random_.random() < 0.1:
            again = list(row)
            if random_.random() < 0.5 and len(row) == len(columns):
                again[columns.index("Mass")], refused = "1" if cells["Mass"] == "0" else "0", True
                refused = refused or again != row
            rows.append(again)
    header = list(columns)
    if random_.random() < 0.05:
        header[columns.index("remark")], refused = random_.choice(["Mass", "path", "mask"]), True
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=random_.choice(["\n", "\r\n"]))
    for row in [header, *rows]:
        writer.writerow(row)
        if random_.random() < 0.1:
            file.write("\n")
    return file.getvalue(), None if refused else truth


@pytest.mark.parametrize("block", range(8))
def test_accepted_tables_say_what_a_slow_reader_says(
    tmp_path: Path, block: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "afire_monai")
    for name in [*(f"{i}.png" for i in range(6)), "m.png"]:
        (tmp_path / name).write_bytes(b"x")
    refusals = 0
    for seed in range(block * 50, block * 50 + 50):
        random_ = random.Random(seed)
        text, truth = random_table(random_)
        encoding = random_.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
        path = tmp_path / "m.csv"
        path.write_bytes(text.encode(encoding))
        options: dict[str, Any] = {"label_columns": ["Mass", "Node, left"], "mask_column": "mask"}
        if truth is None:
            refusals += 1
            with pytest.raises(DataListError, match=r"m\.csv: line \d+"):
                datalist_from_csv(path, **options)
            continue
        datalist_from_csv(path, tmp_path / "l.json", **options)
        datalist = load_datalist(tmp_path / "l.json")
        items = [item for section in SECTIONS for item in datalist[section]]
        read = {
            Path(item["image"]).name: (
                item["group"],
                item["label"],
                Path(item["mask"]).name if "mask" in item else None,
            )
            for item in items
        }
        assert read == truth, (seed, text)
        targets = target_matrix(items, datalist["labels"])
        expected = [[np.nan if v in (None, -1) else v for v in truth[Path(i["image"]).name][1]] for i in items]
        np.testing.assert_array_equal(targets, np.array(expected, dtype=np.float32))
        by_patient: dict[str, set[str]] = {}
        for section in SECTIONS:
            for item in datalist[section]:
                by_patient.setdefault(item["group"], set()).add(section)
        assert all(len(sections) == 1 for sections in by_patient.values())
    assert 0 < refusals < 50


def test_a_list_of_one_source_has_its_name_counts_nothing_missing_and_holds_no_empty_labels(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / "table.csv").write_text("path,group,labels,source\na.png,1,,x\nb.png,2,,x\nc.png,3,,y\n")
    content = datalist_from_csv(tmp_path / "table.csv", source="x", fractions=(1, 0, 0))
    assert content["name"] == "x"
    assert content["meta"]["skipped"]["missing_image"] == content["meta"]["skipped"]["missing_mask"] == 0
    assert len(content["training"]) == 2
    assert not any("label" in item for item in content["training"])
    both = datalist_from_csv(tmp_path / "table.csv", source=["x", "y"], fractions=(1, 0, 0))
    assert both["name"] == "table"
