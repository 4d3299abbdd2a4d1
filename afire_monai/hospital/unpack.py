"""Unpack the ZIP archives among the files of an ingest into the private folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from afire_monai.core.errors import AfireError
from afire_monai.hospital.identity import UNPACKED
from afire_monai.hospital.scan import Found, scan_folder

PROBLEM = "zip: unpack it"
MOST_FILES = 200_000
"""Maximum number of files in one archive."""
ALWAYS, RATIO = 1 << 30, 100
"""Bytes that any archive may unpack to, and the highest ratio to the size of a larger one: radiographs have less."""
SPARE = 1 << 30
"""Bytes to leave free on the disk."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


class _UnsafeError(ValueError):
    """An archive that is not unpacked."""


def unpacked(found: Iterable[Found], private: Path) -> Iterator[Found]:
    """Yield files as they are found, and in place of each ZIP archive the files in it.

    The files lie below ``private/unpacked``, in a folder for each archive, under their names in the archive, until the
    archive changes or is no longer found. An archive that cannot be unpacked, or not safely, comes with a problem, and
    so does an archive inside another.

    Raises:
        AfireError: if there is not enough room on the disk.
    """
    base = Path(os.path.abspath(private / UNPACKED))
    used = set()
    for one in found:
        if one.problem or not _is_zip(one):
            yield one
            continue
        key = hashlib.sha256(os.fsencode(one.path) + f" {one.size} {one.mtime_ns}".encode()).hexdigest()[:16]
        try:
            if not (base / key).is_dir():
                _unpack(one, base / key)
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise AfireError(f"{base}: {error.strerror}; make room, and run the command again") from error
            yield replace(one, problem=f"{PROBLEM} ({_reason(error)})")
            continue
        used.add(key)
        inside = scan_folder(base / key)
        yield from (replace(file, problem=f"{PROBLEM} (inside another)") if _is_zip(file) else file for file in inside)
    for folder in base.iterdir() if base.is_dir() else ():
        if folder.name not in used:
            shutil.rmtree(folder)


def _is_zip(found: Found) -> bool:
    return found.path.lower().endswith(".zip")


def _unpack(found: Found, folder: Path) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(found.path) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        size = sum(info.file_size for info in files)  # at most this much is read, whatever the archive holds
        if len(files) > MOST_FILES or size > max(ALWAYS, RATIO * found.size):
            raise _UnsafeError("too large")
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < size + SPARE:
            raise OSError(errno.ENOSPC, f"a ZIP archive needs {(size + SPARE) / 2**30:.1f} GiB")
        part.mkdir(mode=0o700)
        for info in files:
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts:
                raise _UnsafeError("a name that leads out of it")
            target = part / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with archive.open(info) as packed, open(target, "xb", opener=_private) as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    part.rename(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: Exception) -> str:
    """Return a reason without names of files."""
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return "password"
    return str(error) if isinstance(error, _UnsafeError) else "damaged"
