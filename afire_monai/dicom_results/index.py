"""Which source file a prediction is of: tables that only their owner may read."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.predictions.results import KEY

_INDEX, _FILE, _IMAGE, _UID = "index", "file", "image", "sop_uid"


@dataclass(frozen=True)
class SourceFile:
    """A source file and how to know that it is still the same.

    Attributes:
        file: path.
        sop_instance_uid: that it must have; "" where the table does not say.
    """

    file: str
    sop_instance_uid: str = ""


def source_files(
    predictions: str | os.PathLike[str], index: str | os.PathLike[str] | None = None
) -> dict[int, SourceFile]:
    """Find the source file of each predicted image.

    Args:
        predictions: folder of ``afire predict``.
        index: None for predictions of DICOM files, whose own ``index.csv`` names them; a table with the columns
            ``index`` and ``file``; or ``private/index.csv`` of ``afire ingest`` for predictions of its data list, whose
            rows are found by the hashes that its images are named after (columns ``image``, ``file``, ``sop_uid``).

    Returns:
        Index to file; images that the table does not hold are not in it.

    Raises:
        AfireError: if a table is missing, cannot be read, or has other columns.
    """
    own = Path(predictions) / KEY
    where = own if index is None else Path(index)
    rows = _rows(where, (_FILE,))
    if _INDEX in rows[0]:
        return {_number(row[_INDEX], where): _found(row, where) for row in rows}
    if _IMAGE not in rows[0]:
        raise AfireError(
            f"{where}: columns {', '.join(rows[0])}; expected are {_INDEX} and {_FILE}, or {_IMAGE} and {_FILE} "
            "(private/index.csv of `afire ingest`)"
        )
    known = {row[_IMAGE]: _found(row, where) for row in rows}
    images = {_number(row[_INDEX], own): Path(row[_FILE]).stem for row in _rows(own, (_INDEX, _FILE))}
    return {number: known[name] for number, name in images.items() if name in known}


def _found(row: dict[str, str], table: Path) -> SourceFile:
    return SourceFile(str(table.parent / row[_FILE]), row.get(_UID, ""))


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        # names of files need not be text in any encoding
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            rows = [dict(zip(head, row, strict=True)) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a table of equally long rows"
        raise AfireError(f"{path}: {reason}; give the table that says which file an image is with --index") from error
    missing = [name for name in needed if name not in head]
    if missing or not rows:
        seen = f"no column {missing[0]}" if missing else "no row"
        raise AfireError(f"{path}: {seen}; a table with a row for each image is expected. Predict or ingest again")
    return rows


def _number(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise AfireError(f"{path}: column index holds something that is no whole number; places from 0 on are expected")
    return int(text)
