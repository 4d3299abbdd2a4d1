"""Tables as data sets publish them: CSV, perhaps gzipped or with a byte order mark, and the values in their cells."""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from afire_monai.core.errors import DataListError

Row = dict[str, str]
Fact = str | float

FACTS = ("sex", "age", "view", "source")
"""Optional facts of an item that a CSV column can give."""
OLDEST = 130
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_SEXES = {"F": "F", "FEMALE": "F", "WOMAN": "F", "M": "M", "MALE": "M", "MAN": "M"}


def read_table(
    path: Path, columns: Sequence[str] = (), several_names: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """Read a CSV with a header line; names and cells lose the blanks around them.

    Args:
        path: ``.csv`` or ``.csv.gz``; UTF-8 with or without byte order mark.
        columns: that must be there.
        several_names: name to use → names that published versions of the file give to the column, one of which must be
            there.

    Returns:
        One dictionary a line, with "" for a cell that a short line lacks.

    Raises:
        DataListError: no such file, not a CSV, or a column is missing (those that are there are named).
    """
    try:
        with _open_text(path) as file:
            reader = csv.reader(file)
            present = [name.strip() for name in next(reader, [])]
            names = _rename(path, present, columns, several_names or {})
            return [
                dict.fromkeys(names, "") | dict(zip(names, (cell.strip() for cell in cells), strict=False))
                for cells in reader
                if any(cells)
            ]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataListError(
            f"{path}: not a readable CSV file ({_reason(error)}). Check the path, or fetch it again"
        ) from error


def first_file(folder: Path, *patterns: str) -> Path:
    """Give the first file in a folder that fits a pattern, in the order of the patterns.

    Raises:
        DataListError: there is none.
    """
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[-1]
    if not folder.is_dir():
        raise DataListError(f"{folder}: no such folder. Give the folder that the data set was unpacked into")
    raise DataListError(
        f"{folder}: {' or '.join(patterns)} is not in it. Give the folder that the data set was unpacked into, "
        "with the tables that come with it"
    )


def optional_file(folder: Path, *patterns: str) -> Path | None:
    """As `first_file`, or None."""
    try:
        return first_file(folder, *patterns)
    except DataListError:
        return None


def parse_sex(text: str) -> str | None:
    """``F`` or ``M`` from what tables write (F, female, Woman, …); None for anything else."""
    return _SEXES.get(text.strip().upper())


def parse_age(text: str) -> float | None:
    """Age in years from ``57``, ``57.0``, ``057Y``, ``18M`` (months), ``3W`` or ``10D``; None unless up to 130."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([YMWD]?)\s*", text, re.IGNORECASE)
    if match is None:
        return None
    years = float(match[1]) * _YEARS[match[2].upper()]
    return round(years, 2) if 0 <= years <= OLDEST else None


def parse_label(text: str, where: str, blank: int | None = None) -> int | None:
    """A label value from a cell: 1, 0 or -1 (also as 1.0), ``blank`` for an empty one.

    Raises:
        DataListError: anything else.
    """
    if text == "":
        return blank
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value not in (-1, 0, 1):
        raise DataListError(f"{where}: {text!r}; 1 (present), 0 (absent), -1 (uncertain) or nothing is expected")
    return int(value)


def parse_numbers(cells: Sequence[str], where: str) -> list[float]:
    """Finite numbers from cells.

    Raises:
        DataListError: a cell is no number.
    """
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise DataListError(f"{where}: {', '.join(cells)}; numbers are expected")
    return numbers


def facts_of(sex: str = "", age: str = "", view: str = "", source: str = "") -> dict[str, Fact]:
    """Optional facts of an item; what is empty or makes no sense is left out."""
    known: dict[str, Fact | None] = {"sex": parse_sex(sex), "age": parse_age(age)}
    known |= {"view": view.strip() or None, "source": source.strip() or None}
    return {key: value for key, value in known.items() if value is not None}


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file


def _rename(path: Path, present: list[str], columns: Sequence[str], several: Mapping[str, Sequence[str]]) -> list[str]:
    missing = [repr(column) for column in columns if column not in present]
    names = list(present)
    for name, aliases in several.items():
        found = next((alias for alias in (name, *aliases) if alias in present), None)
        if found is None:
            missing.append(" or ".join(repr(alias) for alias in (name, *aliases)))
        else:
            names[present.index(found)] = name
    if missing:
        raise DataListError(
            f"{path}: no column {', '.join(missing)}; its columns are {', '.join(present) or 'none'}. "
            "Name the right one, or give None for a column that you do not have"
        )
    return names


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
