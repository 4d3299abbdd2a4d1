"""An audit log of who fetched, sent, wrote or erased what, by counts and pseudonyms; it never makes a run fail."""

from __future__ import annotations

import csv
import getpass
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath

from afire_monai.core.files import write_text
from afire_monai.hospital.identity import INDEX, KEY, PRIVATE
from afire_monai.hospital.state import STATE

logger = logging.getLogger(__name__)

AUDIT = "audit.csv"
COLUMNS = ("time", "user", "command", "what", "pseudonyms", "peer")
POINTER = ".afire-audit.json"
"""File in a folder of DICOM results: names its log, and the pseudonym of the image that each file belongs to."""
_A_LINE = 1000


@dataclass
class AuditEntry:
    """Facts that a command notes while it works."""

    what: str = ""  #: counts in words; no name, number, UID or address
    pseudonyms: Sequence[str] = field(default_factory=tuple)  #: hashes of the patients or images concerned


@contextmanager
def audited(path: Path | None, command: str, peer: str = "") -> Iterator[AuditEntry]:
    """Append a line to a log at the end, also when the block is left by an error, whose type is then noted.

    Args:
        path: log file, in an existing folder; None for no log.
        command: name of the command.
        peer: address of the archive that objects are fetched from or sent to.
    """
    entry, ended = AuditEntry(), ""
    try:
        yield entry
    except BaseException as error:
        ended = f"ended by {type(error).__name__}"
        raise
    finally:
        if path is not None:
            what = ", ".join(text for text in (entry.what, ended) if text)
            _append(path, command, what, list(entry.pseudonyms), peer)


def _append(path: Path, command: str, what: str, pseudonyms: list[str], peer: str) -> None:
    """Write one line for each thousand pseudonyms, so that every program can read it; a failure is a warning."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    rows = [
        (time, user, command, what if start == 0 else "continued", " ".join(pseudonyms[start : start + _A_LINE]), peer)
        for start in range(0, max(1, len(pseudonyms)), _A_LINE)
    ]
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            os.chmod(path, 0o600)
            new = file.tell() == 0
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows] if new else rows)
    except OSError as error:
        logger.warning("%s cannot be written (%s): this run is not in the audit log", path.name, error.strerror)


def audit_of_index(index: str | os.PathLike[str] | None) -> Path | None:
    """Return the log beside ``private/index.csv`` of an ingest; None for any other table."""
    if index is None:
        return None
    path, folder = Path(index), Path(index).absolute().parent
    ingested = any((folder / name).exists() for name in (KEY, STATE))
    return folder / AUDIT if path.name == INDEX and folder.name == PRIVATE and ingested else None


def images_of_results(predictions: Path, objects: Path) -> dict[str, str]:
    """Return of which image (hash) each file of a folder of DICOM results is, as its table of objects says."""
    try:
        with (predictions / INDEX).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            pictures = {row["index"]: PurePath(row["file"]).stem for row in csv.DictReader(file)}
        with objects.open(encoding="utf-8", newline="") as file:
            return {row["file"]: pictures[row["index"]] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}


def leave_pointer(folder: Path, log: Path, images: dict[str, str]) -> None:
    """Note in a folder of DICOM results where its log is, and of which image (hash) each file is; see `follow`."""
    try:
        write_text(folder / POINTER, json.dumps({"log": str(log), "images": images}) + "\n", private=True)
    except OSError as error:
        logger.warning("%s cannot be written (%s): their sending is not logged", POINTER, error.strerror)


def follow(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """Return the log that a pointer in a folder leads to, and the hashes of images by name of file.

    Without a pointer to an existing log, this returns None and an empty dictionary: folders that this program did not
    write are only read.
    """
    folder = folder.parent if folder.is_file() else folder
    try:
        found = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        log, images = Path(found["log"]), {str(name): str(image) for name, image in found["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None, {}
    return (log, images) if log.name == AUDIT and log.is_file() else (None, {})
