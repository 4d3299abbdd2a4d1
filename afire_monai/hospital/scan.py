"""Find the files of an ingest."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.core.files import change_time
from afire_monai.core.quiet import quiet

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
NOT_READABLE = "not readable"
_MOST_RECORDS = 5_000_000


@dataclass(frozen=True)
class Found:
    """One thing that a scan came upon.

    ``problem`` says why it cannot be opened at all; "" for an ordinary file.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    problem: str = ""


def scan(inputs: Collection[Path], without: Collection[Path] = ()) -> Iterator[Found]:
    """Go through folders, DICOMDIR files and single files; each file once, whatever names lead to it.

    Raises AfireError if one of the paths does not exist or a DICOMDIR cannot be read.
    """
    seen: set[str] = set()
    for path in inputs:
        if path.is_dir():
            entries = scan_folder(path, without)
        elif path.is_file():
            entries = scan_dicomdir(path) if is_dicomdir(path) else iter([_look(str(path.absolute()))])
        else:
            raise AfireError(f"{path}: no such folder or file; a folder of DICOM files or a DICOMDIR is expected")
        for found in entries:
            if found.path not in seen:
                seen.add(found.path)
                yield found


def scan_folder(folder: Path, without: Collection[Path] = ()) -> Iterator[Found]:
    """List all files below a folder, sorted within each folder; nothing is opened.

    Links are followed, but no folder is entered twice, so circles end. Folders that cannot be entered, broken links,
    and pipes, devices and the like come with a problem.
    """
    entered = {_identity(os.stat(path)) for path in without if path.exists()}
    waiting = [str(folder.absolute())]
    while waiting:
        where = waiting.pop()
        try:
            identity = _identity(os.stat(where))
            if identity in entered:
                continue
            entered.add(identity)
            with os.scandir(where) as listing:
                names = sorted(entry.path for entry in listing)
        except OSError:
            yield Found(where, problem=NOT_READABLE)
            continue
        below = []
        for path in names:
            if os.path.isdir(path):
                below.append(path)
            else:
                yield _look(path)
        waiting += reversed(below)


def scan_dicomdir(path: Path) -> Iterator[Found]:
    """List the files that a DICOMDIR refers to; names that lead out of its folder come with a problem.

    Raises AfireError if the DICOMDIR cannot be read.
    """
    import pydicom

    root = path.absolute().parent
    try:
        with quiet():
            records = pydicom.dcmread(path).DirectoryRecordSequence
            references = [record.get("ReferencedFileID") for record in records[:_MOST_RECORDS]]
    except Exception as error:  # pydicom raises many unrelated types on damaged files
        raise AfireError(
            f"{path}: the DICOMDIR cannot be read ({type(error).__name__}). Give its folder instead: all files in it "
            "are looked at"
        ) from error
    for reference in references:
        if reference:
            parts = [reference] if isinstance(reference, str) else [str(part) for part in reference]
            yield _referenced(root, parts)


def is_dicomdir(path: Path) -> bool:
    """Whether a file says that it is a DICOMDIR."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    return head[128:132] == b"DICM" and re.search(re.escape(DICOMDIR_CLASS).encode() + rb"(?![0-9.])", head) is not None


def _referenced(root: Path, parts: list[str]) -> Found:
    where = str(root)
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\\" in part or "\x00" in part:
            return Found(str(root / "DICOMDIR"), problem=NOT_READABLE)
        where = _named(where, part)
    return _look(where)


def _named(folder: str, name: str) -> str:
    """Path of a name in a folder; discs are often copied with their names in small letters."""
    if os.path.exists(os.path.join(folder, name)):
        return os.path.join(folder, name)
    try:
        return next((e.path for e in os.scandir(folder) if e.name.lower() == name.lower()), os.path.join(folder, name))
    except OSError:
        return os.path.join(folder, name)


def _look(path: str) -> Found:
    try:
        status = os.stat(path)
    except OSError:
        return Found(path, problem=NOT_READABLE)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return Found(path, problem=NOT_READABLE)
    return Found(path, status.st_size, change_time(status))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
