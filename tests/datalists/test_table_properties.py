"""Any table → list → targets, against a reader written here that goes through the text letter by letter."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import SECTIONS, load_datalist
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.targets import target_matrix

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis of the dev extra")
st = hypothesis.strategies

IMAGES = ("a.png", "b.png", "c d.png", "sub/e.png")
UNKNOWN = {"nan", "na", "n/a", "#n/a", "none", "null", "nil", "?"}
YES, NO = {"true", "yes", "y", "ja", "wahr"}, {"false", "no", "n", "nein", "falsch"}
HEADER = ("path", "group", "Edema", "Mass")

GOOD = ["", "1", "0", "-1", "1.0", "TRUE", "nein", "Ja", "nan", "NA", "?", " 1 ", "1e0", "+0"]
BAD = ["2", "x", "1_0", ".", "0,0"]  # the last where cells are separated by commas
cells = st.sampled_from(GOOD * 6 + BAD)
groups = st.sampled_from(["p1", "p2", "007", "7", "", "nan", "Ä b", "p;1", 'p"1', "two\nlines"])
rows = st.tuples(st.sampled_from([*IMAGES * 2, "./a.png", "gone.png", ""]), groups, cells, cells)
tables = st.tuples(
    st.lists(rows, min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["whole"] * 12 + ["short row", "long row", "column twice", "open quote"]),
    st.booleans(),
)


def written(table: Any) -> bytes:
    """Return the table as a spreadsheet saves it: quotes where needed or, for some, around every cell."""
    content, delimiter, encoding, end, damage, quoted = table

    def cell(text: str) -> str:
        needed = quoted or any(sign in text for sign in f'{delimiter}"\n\r')
        return '"' + text.replace('"', '""') + '"' if needed else text

    header = [*HEADER[:3], "Edema"] if damage == "column twice" else list(HEADER)
    lines = [delimiter.join(map(cell, row)) for row in [header, *content]]
    lines[-1] += {"long row": f"{delimiter}1", "open quote": f'{delimiter}"1'}.get(damage, "")
    if damage == "short row":
        lines[-1] = delimiter.join(map(cell, content[-1][:3]))
    return (end.join(lines) + end).encode(encoding)


def slow_records(text: str, delimiter: str) -> list[list[str]] | None:
    """Return the cells of each line, read letter by letter; None for a quote that is not closed."""
    records: list[list[str]] = [[""]]
    inside, at = False, 0
    while at < len(text):
        sign = text[at]
        if inside and text[at : at + 2] == '""':
            records[-1][-1] += '"'
            at += 1
        elif sign == '"' and (inside or records[-1][-1] == ""):
            inside = not inside
        elif inside or sign not in (delimiter, "\n", "\r"):
            records[-1][-1] += sign
        elif sign == delimiter:
            records[-1].append("")
        elif sign == "\n":
            records.append([""])
        at += 1
    return None if inside else [record for record in records if record != [""]]


def slow_value(cell: str, comma: bool) -> float | None:
    """Return 1, 0, -1 or NaN for "not known"; None for a cell that says none of them."""
    word = cell.strip().lower()
    if word == "" or word in UNKNOWN:
        return math.nan
    if word in YES or word in NO:
        return float(word in YES)
    if "_" in word:
        return None
    try:
        value = float(word.replace(",", ".") if comma else word)
    except ValueError:
        return None
    return value if value in (-1, 0, 1) else None


def slow_reading(text: str, delimiter: str) -> dict[str, tuple[str, tuple[float, ...]]] | None:
    """Return patient and values of each image that is there; None if the table must be refused."""
    records = slow_records(text, delimiter)
    if records is None or len(set(records[0])) < len(records[0]):
        return None
    found: dict[str, tuple[tuple[str, ...], str, tuple[float, ...]]] = {}
    for record in records[1:]:
        if len(record) != len(records[0]):
            return None
        cut = tuple(cell.strip() for cell in record)
        image = cut[0].removeprefix("./")
        if image == "":
            continue
        if image in found and found[image][0] != cut[1:]:
            return None
        if image in IMAGES:
            values = [slow_value(cell, delimiter != ",") for cell in cut[2:]]
            if None in values:
                return None
            patient = image if cut[1] == "" or cut[1].lower() in UNKNOWN else cut[1]
            found[image] = (cut[1:], patient, tuple(value for value in values if value is not None))
        else:
            found[image] = (cut[1:], "", ())
    there = {image: (patient, values) for image, (_, patient, values) in found.items() if image in IMAGES}
    return there or None


@pytest.mark.parametrize("uncertain", ["ignore", "zeros", "ones"])
@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(table=tables)
def test_each_label_and_patient_of_an_accepted_table_is_what_a_slow_reader_says(uncertain: Any, table: Any) -> None:
    delimiter, encoding = table[1], table[2]
    data = written(table)
    wanted = slow_reading(data.decode(encoding), delimiter)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "sub").mkdir()
        for image in IMAGES:
            (folder / image).write_bytes(b"x")
        (folder / "m.csv").write_bytes(data)
        options: dict[str, Any] = {"labels_column": None, "source_column": None, "label_columns": HEADER[2:]}
        if wanted is None:
            with pytest.raises(DataListError):
                datalist_from_csv(folder / "m.csv", **options)
            return
        datalist_from_csv(folder / "m.csv", folder / "list.json", **options)
        content = load_datalist(folder / "list.json")
        items = [item for section in SECTIONS for item in content.get(section, [])]
        seen = [Path(item["image"]).relative_to(folder).as_posix() for item in items]
        targets = target_matrix(items, content["labels"], uncertain)
    assert sorted(seen) == sorted(wanted)
    assert content["labels"] == list(HEADER[2:])
    unsure = {"ignore": math.nan, "zeros": 0.0, "ones": 1.0}[uncertain]
    for image, item, target in zip(seen, items, targets, strict=True):
        patient, values = wanted[image]
        assert item["group"] == patient
        assert [str(value) for value in target.tolist()] == [str(unsure if v == -1 else abs(v)) for v in values]
    sections = {(item["group"], section) for section in SECTIONS for item in content.get(section, [])}
    assert len(sections) == len({group for group, _ in sections})  # no patient in two sections
