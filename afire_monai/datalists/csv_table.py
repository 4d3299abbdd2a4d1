"""The only reader of tables: CSV as spreadsheets and data sets write it; ambiguous tables are refused."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from afire_monai.core.errors import DataListError

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 28
"""Of a table, unpacked; the largest public one (MIMIC-CXR's metadata) has a quarter of that."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_OTHERS = {b"PK\x03\x04": "an Excel or OpenDocument workbook", b"\xd0\xcf\x11\xe0": "an Excel workbook"}


class Row(dict[str, str]):
    """Cells of a row by column, without the blanks around them, and where the row stands.

    Attributes:
        path: the file.
        line: number of the line on which the row begins, as an editor counts.
        decimal_comma: whether 0,5 may stand for 0.5, as it does if cells are not separated by commas.
    """

    __slots__ = ("decimal_comma", "line", "path")

    def __init__(self, cells: Iterable[tuple[str, str]], path: Path, line: int, decimal_comma: bool) -> None:
        super().__init__(cells)
        self.path, self.line, self.decimal_comma = path, line, decimal_comma

    def where(self, column: str = "") -> str:
        """Return file, line and perhaps column in words, for messages."""
        return f"{self.path}: line {self.line}" + (f", column {column!r}" if column else "")


def read_table(
    path: Path,
    columns: Sequence[str] = (),
    several_names: Mapping[str, Sequence[str]] | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    only: bool = False,
) -> list[Row]:
    """Read a table with a header line; log encoding and separator if they are not UTF-8 and comma.

    Args:
        path: CSV, perhaps gzipped.
        columns: required columns.
        several_names: name to use → names that published versions of the file give to the column, one of which must be
            there.
        delimiter: separator of cells; None to detect it: that of a first line ``sep=;`` as spreadsheets write it, else
            the one of comma, semicolon and tab that gives the requested columns.
        encoding: encoding of the text; None to detect it: UTF-8 or UTF-16, else cp1252, which spreadsheets of Western
            Europe and America write.
        only: keep only the cells of ``columns``; for a table with long reports this saves most of the memory.

    Returns:
        One `Row` for each line; lines without any content are skipped.

    Raises:
        DataListError: if there is no such file, it is not a table, a column is missing (the message lists the columns
            of the file) or named twice, or a row has more or fewer cells than the header. No cell is quoted: it could
            be a patient's.
    """
    several = several_names or {}
    text, found_encoding = _text(path, encoding)
    text, skipped, announced = _without_separator_line(text)
    separator = _given(delimiter) or announced or _find_delimiter(text, columns, several)
    if (separator, found_encoding) != (",", "utf-8"):
        form = f"{found_encoding}, {DELIMITERS.get(separator, repr(separator))} between cells"
        logger.warning("%s: read as %s (from-csv and ingest take --encoding and --delimiter)", path, form)
    try:
        rows = _rows(text, separator, skipped + 1)
        line, header = next(rows, (1, []))
        names = _names(path, line, header, columns, several)
        return [_row(path, line, cells, names, separator, columns if only else names) for line, cells in rows
                if any(map(str.strip, cells))]  # fmt: skip
    except csv.Error as error:
        raise DataListError(f"{path}: not a readable CSV file: {error}. Save it again as CSV") from error


def _row(path: Path, line: int, cells: list[str], names: list[str], separator: str, kept: Sequence[str]) -> Row:
    if len(cells) != len(names):
        more = len(cells) > len(names)
        place = f"there is no column for what follows {names[-1]!r}" if more else f"none for {names[len(cells)]!r}"
        raise DataListError(
            f"{path}: line {line}: {len(cells)} cells, but the header has {len(names)}: {place}. Put a cell that holds "
            f"{DELIMITERS.get(separator, repr(separator))} into double quotes, and give each row all its cells"
        )
    named = ((name, cell.strip()) for name, cell in zip(names, cells, strict=True) if name in kept)
    return Row(named, path, line, separator != ",")


def _rows(text: str, separator: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = first + reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"line {line}: {error}") from error
        if cells:
            yield line, cells


def _text(path: Path, encoding: str | None) -> tuple[str, str]:
    """Return a file's text and its encoding."""
    data = _bytes(path)
    for magic, kind in _OTHERS.items():
        if data.startswith(magic):
            raise DataListError(f"{path}: this is {kind}; save the sheet as CSV (UTF-8), and give that file")
    mark, marked = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", None))
    zeros = [data[start:400:2].count(0) for start in (0, 1)]
    if marked is None and max(zeros) > 50 > 5 * min(zeros):
        marked = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    half = r"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}"  # letters in UTF-8, which hardly ever occur in cp1252
    guesses = ["utf-8"] if re.search(half.encode("latin-1"), data) else ["utf-8", "cp1252"]
    for name in [encoding] if encoding else [marked] if marked else guesses:
        try:
            text = data[0 if encoding else len(mark) :].decode(name).removeprefix("\ufeff")
        except LookupError as error:
            raise DataListError(f"encoding {name!r} is not known; utf-8, cp1252, … are") from error
        except UnicodeError:
            continue
        if "\0" in text:
            raise DataListError(
                f"{path}: not a readable CSV file: it contains NUL characters, so it is not text, or text in an "
                "encoding such as utf-16-le that only --encoding can name"
            )
        return text, name
    raise DataListError(
        f"{path}: not a readable CSV file: its text is not {encoding or marked or ' or '.join(guesses)}. Name its "
        "encoding with --encoding, or save it as UTF-8"
    )


def _bytes(path: Path) -> bytes:
    """Return a file's content, unpacked if it is gzipped (whatever its name)."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataListError(f"{path}: not a readable CSV file ({reason}). Check the path, or fetch it again") from error
    if len(data) > MOST_BYTES:
        raise DataListError(f"{path}: more than {MOST_BYTES >> 20} MiB unpacked; divide the table")
    return data


def _without_separator_line(text: str) -> tuple[str, int, str | None]:
    """Return the text behind a first line ``sep=;``, the number of lines left out, and the separator it names."""
    match = re.match(r'"?sep=([^\r\n])"?[^\S\t]*(\r\n|\r|\n)', text, re.IGNORECASE)
    return (text, 0, None) if match is None else (text[match.end() :], 1, match[1])


def _given(delimiter: str | None) -> str | None:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter or "", delimiter)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n '):
        raise DataListError(f"delimiter is {delimiter!r}; one character such as , or ; or the word tab is expected")
    return delimiter


def _find_delimiter(text: str, columns: Sequence[str], several: Mapping[str, Sequence[str]]) -> str:
    """Return the delimiter that gives most of the columns asked for, and then most columns at all."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            _, header = next(_rows(text, delimiter, 1), (0, []))
        except csv.Error:
            return -1, 0
        names = {name.strip() for name in header}
        wanted = [*([column] for column in columns), *([name, *others] for name, others in several.items())]
        return sum(not names.isdisjoint(choice) for choice in wanted), len(header)

    return max(DELIMITERS, key=score)


def _names(
    path: Path, line: int, header: list[str], columns: Sequence[str], several: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the names of the columns, renamed as ``several`` says."""
    present = [name.strip() for name in header]
    named = [name for name in present if name]
    missing = [repr(column) for column in columns if column not in present]
    names = list(present)
    for name, aliases in several.items():
        found = [alias for alias in dict.fromkeys((name, *aliases)) if alias in present]
        if not found:
            missing.append(" or ".join(repr(alias) for alias in (name, *aliases)))
        elif len(found) > 1:
            raise DataListError(f"{path}: its columns {' and '.join(map(repr, found))} are the same thing; keep one")
        else:
            names[present.index(found[0])] = name
    if missing:
        raise DataListError(
            f"{path}: no column {', '.join(missing)}; its columns are {', '.join(named) or 'none'}. "
            "Name the right one (from-csv: --image-column, --group-column, and --labels-column or --label-columns), or "
            "give None for a column that you do not have"
        )
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise DataListError(
            f"{path}: line {line}: {', '.join(map(repr, twice))} names several columns; give each column its own name"
        )
    return names


def one_row_each(rows: Sequence[Row], column: str, used: Sequence[str] | None = None) -> dict[str, Row]:
    """Return the row of each name in a column; rows that repeat another are left out.

    Args:
        rows: rows of a table.
        column: column of the names that may have one row only, such as images.
        used: columns that must agree; None for all.

    Raises:
        DataListError: if two rows of the same name disagree; the message names both lines and the column.
    """
    first: dict[str, Row] = {}
    for row in rows:
        before = first.setdefault(row[column], row)
        for name in used if used is not None else row:
            if before[name] != row[name]:
                raise DataListError(
                    f"{row.where(name)}: another value than in line {before.line}, which is of the same {column!r}. "
                    "Keep the right row, or join the two"
                )
    return first
