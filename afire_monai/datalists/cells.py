"""Parse the cells of a table: labels, numbers, sex and age."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from afire_monai.core.age_sex import parse_age, parse_sex
from afire_monai.core.errors import DataListError
from afire_monai.datalists.csv_table import Row

logger = logging.getLogger(__name__)

Fact = str | float

FACTS = ("sex", "age", "view", "source")
"""Optional facts of an item that a CSV column can give."""
NOT_KNOWN = frozenset(("nan", "na", "n/a", "#n/a", "#nv", "none", "null", "nil", "unknown", "?"))
"""Cells, in small letters, by which programs and people say that nothing is known."""
# truth values as spreadsheets of several languages and people write them
_WORDS: dict[str, float] = {
    **dict.fromkeys(("true", "yes", "y", "ja", "wahr", "oui", "vrai", "si", "sí", "verdadero", "vero", "sim"), 1),
    **dict.fromkeys(("false", "no", "n", "nein", "falsch", "non", "faux", "falso", "nee", "não"), 0),
}


def is_not_known(text: str) -> bool:
    """Whether a cell says that nothing is known: ``nan``, ``NA``, ``none``, a spreadsheet's ``#REF!`` and the like."""
    text = text.strip().lower()
    return text in NOT_KNOWN or (text.startswith("#") and text.endswith(("!", "?")))


def parse_label(row: Row, column: str, blank: int | None = None) -> int | None:
    """Return a label value: 1, 0 or -1 (also as 1.0, TRUE, yes, ja), ``blank`` for an empty cell, None for `nan`.

    Raises DataListError for anything else, with file, line and column.
    """
    text = row[column]
    if text == "":
        return blank
    if is_not_known(text):
        return None
    value = _WORDS.get(text.lower(), _number(text, row.decimal_comma))
    if value not in (-1, 0, 1):
        raise DataListError(
            f"{row.where(column)}: {text!r}; 1 (present), 0 (absent), -1 (uncertain) or nothing is expected"
        )
    return int(value)


def parse_numbers(row: Row, columns: Sequence[str], what: str) -> list[float]:
    """Return finite numbers from cells of a row.

    Raises DataListError if a cell is not a number; the message names file, line, column and ``what`` it is for.
    """
    numbers = [_number(row[column], row.decimal_comma) for column in columns]
    for column, number in zip(columns, numbers, strict=True):
        if not math.isfinite(number):
            cells = ", ".join(row[name] for name in columns)
            raise DataListError(f"{row.where(column)}: {what}: {cells}; numbers are expected")
    return numbers


def _number(text: str, decimal_comma: bool) -> float:
    """Return the number in a text; NaN if it is none, also for forms that only Python accepts (1_000, ١)."""
    if decimal_comma and re.fullmatch(r"[+-]?\d*,\d+", text):
        text = text.replace(",", ".")
    plain = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.IGNORECASE | re.ASCII)
    return float(text) if plain else math.nan


def facts_of(sex: str = "", age: str = "", view: str = "", source: str = "") -> dict[str, Fact]:
    """Return the optional facts of an item; empty and senseless values are left out."""
    known: dict[str, Fact | None] = {"sex": parse_sex(sex), "age": parse_age(age)}
    known |= {name: None if is_not_known(text) else text.strip() or None for name, text in
              (("view", view), ("source", source))}  # fmt: skip
    return {key: value for key, value in known.items() if value is not None}


def different_columns(names: Sequence[str]) -> list[str]:
    """Return names of columns; DataListError if there are none, or one is named twice."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise DataListError(f"label_columns are {names!r}; different names of columns, at least one, are expected")
    return list(names)


def split_names(cell: str, separator: str) -> tuple[str, ...]:
    """Return the names in a cell, without those that say that nothing is known."""
    return tuple(name.strip() for name in cell.split(separator) if name.strip() and not is_not_known(name))


def loose(name: str) -> str:
    """Return a name without case, blanks, ``_`` and the form of accents, so that two spellings of it are equal.

    ``Pleural_Thickening`` and ``pleural thickening`` are alike.
    """
    return re.sub(r"[\s_]+", "", unicodedata.normalize("NFKC", name).casefold())


def means_normal(name: str) -> bool:
    """Return whether a label says by itself that nothing was found, in any case, with blanks or without."""
    return loose(name) in ("normal", "nofinding", "nofindings")


def look_alikes(names: Iterable[str], preferred: Sequence[str] = ()) -> dict[str, str]:
    """Find names that differ from a more frequent one in case or blanks only.

    Args:
        names: all names, each as often as it occurs.
        preferred: spellings that win whatever their frequency.

    Returns:
        The other spelling → the one that counts. It is not certain that both mean the same.
    """
    counts = Counter(names)
    families: dict[str, list[str]] = defaultdict(list)
    for name in counts:
        families[loose(name)].append(name)
    others: dict[str, str] = {}
    for family in families.values():
        best = min(family, key=lambda name: (name not in preferred, -counts[name], name))
        others |= {name: best for name in family if name != best}
    return others


def padding_hint(wanted: Iterable[str], there: Iterable[str]) -> str:
    """Say how identifiers that were not found would be, if spreadsheets had not dropped their leading zeros.

    ``wanted`` was not found among what is ``there``.

    Returns:
        A sentence, or "" if padding zeros would not help.
    """
    padded: Mapping[str, str] = {name.lstrip("0"): name for name in there if name.startswith("0")}
    lengths = Counter(len(padded[name]) for name in set(wanted) if name in padded)
    if not lengths:
        return ""
    length = lengths.most_common(1)[0][0]
    return (
        f"{lengths.total()} of them would be found with leading zeros, which spreadsheets drop: fill them up to "
        f'{length} characters (format the column as text, or =TEXT(A2;"{"0" * length}") in a spreadsheet)'
    )
