"""Files of an ingest: private ones for their owner's eyes only, and all of them whole or absent."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file

PRIVATE = "private"
INDEX, LEFT_OUT, UNMATCHED = "index.csv", "left_out.csv", "unmatched_labels.csv"


def make_private_folder(out: Path) -> Path:
    """Make ``out`` and ``out/private`` (mode 0700); a wider mode that is there already is narrowed.

    Raises:
        AfireError: if it cannot be made, or is a link to somewhere else.
    """
    folder = out / PRIVATE
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise AfireError(f"{folder} is a link; it must be a folder of its own. Remove it, or give another --out")
        os.chmod(folder, 0o700)
    except OSError as error:
        raise AfireError(f"{out}: {error.strerror}; give a folder that can be written with --out") from error
    return folder


@contextmanager
def open_whole(path: Path, private: bool = False) -> Iterator[IO[str]]:
    """Open a text file for writing that takes its place only when all has been written.

    Args:
        path: of the file.
        private: only its owner may read it (mode 0600), at no moment anybody else.

    Raises:
        AfireError: if it cannot be written (disk full, permission). The earlier file is kept.
    """
    try:
        # names of files need not be text in any encoding: what is not comes back as the bytes that it was
        with (
            whole_file(path, private) as part,
            part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            yield file
    except OSError as error:
        raise AfireError(
            f"{path} cannot be written: {error.strerror}. Make room or give another folder, then repeat the command: "
            "it goes on where it stopped"
        ) from error


def write_rows(path: Path, rows: Iterable[Sequence[Any]], private: bool = False) -> None:
    """Write rows as CSV in one piece (see `open_whole`)."""
    with open_whole(path, private) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def refuse_wide(path: Path) -> None:
    """Refuse a file that others than its owner may use.

    Raises:
        AfireError: if the mode gives group or others any right.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise AfireError(
            f"{path}: others may use it (mode {mode:04o}), so what it protects is not protected. If nobody has read "
            f"it, chmod 600 {path}"
        )
