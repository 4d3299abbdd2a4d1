"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, private: bool = False, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Give a file beside ``path`` to write to; it takes that name at the end, and is gone if writing fails.

    A reader sees the old file or the new one, never a part. What a killed process leaves, ``.NAME.part``, is written
    over the next time (not so with ``shared``, whose part is named after the process).

    Args:
        path: of the file; its folder exists.
        private: only its owner may read it (mode 0600), at no moment anybody else.
        shared: other processes may write the same file at the same time: the last one wins.
        sync: be sure that it is on the disk before it takes its name.

    Raises:
        OSError: if it cannot be made or moved; an earlier file is kept.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        if private:
            part.unlink(missing_ok=True)
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield part
        if sync:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, private: bool = False, shared: bool = False) -> None:
    """Write a text in UTF-8, line ends as they stand, as a whole file (:func:`whole_file`)."""
    with whole_file(path, private, shared) as part:
        part.write_text(text, encoding="utf-8", newline="")
