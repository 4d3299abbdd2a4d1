"""Which source file a prediction is of: tables that only their owner may read."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from afire_monai.errors import AfireError
from afire_monai.inference.results import KEY

_FILE, _HASH, _UID = ("file", "path", "source"), ("hash", "image"), ("sop_instance_uid", "sopinstanceuid")


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
            rows are found by the hashes that its images are named after.

    Returns:
        Index to file; images that the table does not hold are not in it.

    Raises:
        AfireError: if a table is missing, cannot be read, or has other columns.
    """
    own = Path(predictions) / KEY
    rows = _rows(Path(index) if index is not None else own)
    where = Path(index if index is not None else own)
    file = _column(rows, _FILE, where)
    by_index = "index" in rows[0]
    uid = next((name for name in _UID if name in rows[0]), None)

    def found(row: dict[str, str]) -> SourceFile:
        return SourceFile(str(where.parent / row[file]), row[uid] if uid else "")

    if by_index:
        return {_number(row["index"], where): found(row) for row in rows}
    hashes = _column(rows, _HASH, where)
    known = {Path(row[hashes]).stem: found(row) for row in rows}
    images = {_number(row["index"], own): Path(row["file"]).stem for row in _rows(own, ("index", "file"))}
    return {number: known[name] for number, name in images.items() if name in known}


def _rows(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Read a table; names of columns in small letters."""
    try:
        # names of files need not be text in any encoding
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            head = [name.strip().lower() for name in next(reader, [])]
            rows = [dict(zip(head, row, strict=True)) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a table of equally long rows"
        raise AfireError(f"{path}: {reason}; give the table of indices or hashes and files with --index") from error
    missing = [name for name in needed if name not in head]
    if missing or not rows:
        raise AfireError(
            f"{path}: {'no column ' + missing[0] if missing else 'no row'}; columns index and file expected"
        )
    return rows


def _column(rows: list[dict[str, str]], names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if name in rows[0]:
            return name
    raise AfireError(
        f"{path}: columns {', '.join(rows[0])}; expected are index and file, or hash and file (private/index.csv of "
        "`afire ingest`)"
    )


def _number(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise AfireError(f"{path}: column index holds something that is no whole number; places from 0 on are expected")
    return int(text)
