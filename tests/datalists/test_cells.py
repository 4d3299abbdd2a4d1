"""What cells and the form of a table say, by hand."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import pytest

from afire_monai.core.errors import DataListError
from afire_monai.datalists import csv_table
from afire_monai.datalists.cells import (
    facts_of,
    is_not_known,
    look_alikes,
    loose,
    means_normal,
    padding_hint,
    parse_label,
    parse_numbers,
    split_names,
)
from afire_monai.datalists.csv_table import Row, one_row_each, read_table

HERE = Path("t.csv")


def row(decimal_comma: bool = False, **cells: str) -> Row:
    return Row(cells.items(), HERE, 7, decimal_comma)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1", 1),
            ("0", 0),
            ("-1", -1),
            ("1.0", 1),
            ("TRUE", 1),
            ("no", 0),
            ("Wahr", 1),
            ("nan", None),
            ("N/A", None),
        ),
        *(("1e0", 1), ("+1", 1), ("-1.", -1), ("não", 0), ("Sí", 1)),
    ],
)
def test_labels_by_hand(text: str, value: int | None) -> None:
    found = parse_label(row(a=text), "a", blank=5)
    assert found == value
    assert found is None or type(found) is int


def test_empty_label_is_what_is_asked_for() -> None:
    assert [parse_label(row(a=""), "a", blank) for blank in (None, 0, -1)] == [None, 0, -1]
    assert parse_label(row(a=""), "a") is None


@pytest.mark.parametrize("text", ["2", "-2", "0.5", "maybe", "1_0", "١", "inf", "1,0"])
def test_what_is_no_label_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(DataListError, match=r"t\.csv: line 7, column 'a': .*1 \(present\)"):
        parse_label(row(a=text), "a")


def test_numbers_by_hand_and_the_first_that_is_none_is_named() -> None:
    assert parse_numbers(row(a="1", b=".5", c="-2e1"), ["a", "b", "c"], "box") == [1, 0.5, -20]
    assert parse_numbers(row(True, a="0,5", b="-,5", c="1.5"), ["a", "b", "c"], "box") == [0.5, -0.5, 1.5]
    for wrong in ("x", "0,5", "", "nan", "1e999"):
        with pytest.raises(DataListError, match=rf"line 7, column 'b': box: 1, {wrong}; numbers are expected"):
            parse_numbers(row(a="1", b=wrong), ["a", "b"], "box")
    with pytest.raises(DataListError, match="column 'a'"):
        parse_numbers(row(True, a="1,2,3"), ["a"], "box")


def test_facts_names_and_spellings() -> None:
    assert facts_of("F", "40", " PA ", "x") == {"sex": "F", "age": 40, "view": "PA", "source": "x"}
    assert facts_of("?", "", "none", " ") == {}
    assert split_names(" a |nan|| b c ", "|") == ("a", "b c")
    assert [is_not_known(text) for text in (" NaN ", "", "nano")] == [True, False, False]
    assert loose("Pleural_ Thickening") == loose("pleuralthickening") == "pleuralthickening"
    assert loose("ﬁbrosis") == "fibrosis"
    assert [means_normal(name) for name in ("No Finding", "no_findings", "NORMAL", "abnormal")] == [
        True,
        True,
        True,
        False,
    ]


def test_spelling_that_counts_is_preferred_or_frequent_or_first_by_name() -> None:
    assert look_alikes(["a b", "A B", "A B", "c"]) == {"a b": "A B"}
    assert look_alikes(["a b", "A B", "A B"], ["a b"]) == {"A B": "a b"}
    assert look_alikes(["b", "B"]) == {"b": "B"}


def test_leading_zeros_are_hinted_at_with_the_most_frequent_length() -> None:
    hint = padding_hint(["1", "2", "3", "x"], ["001", "002", "0003", "x", "4"])
    assert hint.startswith("3 of them would be found with leading zeros")
    assert "to 3 characters" in hint
    assert '"000"' in hint
    assert padding_hint(["5"], ["001", "5"]) == padding_hint([], []) == ""


def test_place_of_a_row() -> None:
    assert row().where() == "t.csv: line 7"
    assert row().where("a") == "t.csv: line 7, column 'a'"


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (b"a,b\n1,2\n", None),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", None),
        (b"a;b\n1;2\n", "utf-8, semicolons between cells"),
        (b"a\tb\n1\t2\n", "utf-8, tabs between cells"),
        (b"sep=;\r\na;b\r\n1;2\r\n", "utf-8, semicolons between cells"),
        (b'"sep=|"\na|b\n1|2\n', "utf-8, '|' between cells"),
        ("a,b\n1,2\n".encode("utf-16-le"), None),
        (b"a,b\n1,2\nM\xfcller,x\n", "cp1252, commas between cells"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), None),
        (b"\n\n a , b \n1, 2 \n\n", None),
    ],
)
def test_form_of_a_table_is_found_and_told(tmp_path: Path, content: bytes, form: str | None, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        if content.startswith(b"a\0"):
            content = b"\xff\xfe" + content
            form = "utf-16-le, commas between cells"
        rows = read_table(write(tmp_path / "t.csv", content), ["a"])
    assert rows[0] == {"a": "1", "b": "2"}
    assert rows[0].decimal_comma == (form is not None and "commas" not in form)
    told = [record.getMessage() for record in caplog.records]
    assert [form in text for text in told] == [True] if form else told == []


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_known_by_its_zeros(tmp_path: Path, name: str) -> None:
    text = "a,b\n" + "".join(f"{number},x\n" for number in range(60))
    rows = read_table(write(tmp_path / "t.csv", text.encode(name)), ["a"])
    assert [r["a"] for r in rows] == [str(number) for number in range(60)]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'sep=,\na,b\n\n"1\n",2\n,\n3,4\n')
    rows = read_table(path, ["a", "b"])
    assert [(dict(r), r.line, r.path) for r in rows] == [
        ({"a": "1", "b": "2"}, 4, path),
        ({"a": "3", "b": "4"}, 7, path),
    ]
    assert read_table(path, ["b"], only=True) == [{"b": "2"}, {"b": "4"}]
    assert read_table(write(tmp_path / "e.csv", "a\n"), ["a"]) == []


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("a,b\n1\n", {}, r"line 2: 1 cells, but the header has 2: none for 'b'. Put a cell that holds commas"),
        ("a,b\n1,2,3\n", {}, r"line 2: 3 cells, .*no column for what follows 'b'"),
        ("a,b,a\n1,2,3\n", {}, r"line 1: 'a' names several"),
        ("c,b\n1,2\n", {}, r"no column 'a'; its columns are c, b\."),
        ("", {}, r"no column 'a'; its columns are none\."),
        ('a,b\n1,"2\n', {}, "not a readable CSV file: line 2: "),
        ("a\0,b\n", {}, "NUL characters"),
        ("a,b\n", {"encoding": "klingon"}, "encoding 'klingon' is not known"),
        (b"a,b\n\xff\xfe,1\n", {"encoding": "utf-8"}, "its text is not utf-8"),
        ("a,b\n", {"delimiter": ",,"}, "delimiter is ',,'"),
        ("a,b\n", {"delimiter": '"'}, "one character such as"),
        ("a,b\n", {"delimiter": ""}, "delimiter is ''"),
        (b"PK\x03\x04", {}, "this is an Excel or OpenDocument workbook"),
        (b"\x1f\x8bx", {}, "not a readable CSV file"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: str | bytes, options: dict[str, str], words: str) -> None:
    with pytest.raises(DataListError, match=words):
        read_table(write(tmp_path / "t.csv", content), ["a"], **options)  # type: ignore[arg-type]


def test_table_of_more_than_the_limit_is_refused_and_one_of_the_limit_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    path = write(tmp_path / "t.csv", "a\n1\n2\n")
    monkeypatch.setattr(csv_table, "MOST_BYTES", 6)
    assert len(read_table(path)) == 2
    monkeypatch.setattr(csv_table, "MOST_BYTES", 5)
    with pytest.raises(DataListError, match="0 MiB unpacked"):
        read_table(path)


def test_encoding_that_is_given_counts_from_the_first_letter_on(tmp_path: Path) -> None:
    for content in (b"a,b\n1,\xfc\n", b"a,b\n1,\xc3\xbc\n", b"\xef\xbb\xbfa,b\n1,\xc3\xbc\n"):
        name = "utf-8" if b"\xc3" in content else "cp1252"
        assert read_table(write(tmp_path / "t.csv", content), ["a"], encoding=name) == [{"a": "1", "b": "ü"}]
    assert csv_table.MOST_BYTES == 256 * 1024**2


def test_columns_of_several_names_take_the_one_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "x;y\n1;2\n")
    assert read_table(path, ["y"], {"a": ["z", "x"]}) == [{"a": "1", "y": "2"}]
    assert read_table(path, delimiter="\\t") == [{"x;y": "1;2"}]
    assert read_table(path, delimiter="tab") == [{"x;y": "1;2"}]
    with pytest.raises(DataListError, match="no column 'a' or 'z'"):
        read_table(path, several_names={"a": ["z"]})
    with pytest.raises(DataListError, match="'x' and 'y' are the same thing"):
        read_table(path, several_names={"a": ["x", "y"]})
    # what is asked for decides, then the number of columns
    assert read_table(write(tmp_path / "u.csv", "a,b,c;a\n1,2,3;4\n"), ["a"]) == [{"a": "1", "b": "2", "c;a": "3;4"}]
    assert read_table(write(tmp_path / "v.csv", "p,q,r;a\n1,2,3;4\n"), ["a"]) == [{"p,q,r": "1,2,3", "a": "4"}]


def test_one_row_of_each_name_and_contradictions_named() -> None:
    rows = [
        Row({"i": i, "x": x, "y": y}.items(), HERE, n, False) for n, (i, x, y) in enumerate(["aab", "aac", "bab"], 2)
    ]
    assert one_row_each(rows, "i", ["x"]) == {"a": rows[0], "b": rows[2]}
    with pytest.raises(DataListError, match=r"line 3, column 'y': another value than in line 2, .*same 'i'"):
        one_row_each(rows, "i")
    assert one_row_each(rows[1:], "i") == {"a": rows[1], "b": rows[2]}
