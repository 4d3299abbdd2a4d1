"""Files written completely or not at all, CSV, JSON objects, locks, and files that only their owner can read."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from afire_monai.core.errors import AfireError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def close_to_others() -> None:
    """Keep other users out of the files that this process writes; for commands, not for callers of the library.

    The permissions of the owner and the group stay those of the umask. ``AFIRE_UMASK`` (octal, as 022) overrides it:
    077 keeps files from the group as well, 002 lets a group write and everybody read. A crash leaves no core dump,
    which would hold pictures and headers; with ``AFIRE_TRACEBACK`` set the limit stays as it is. Raises AfireError if
    ``AFIRE_UMASK`` is not an octal number from 000 to 777.
    """
    wanted = os.environ.get("AFIRE_UMASK", "")
    if wanted and not (len(wanted) <= 4 and set(wanted) <= set("01234567") and int(wanted, 8) <= 0o777):
        raise AfireError(f"AFIRE_UMASK is {wanted!r}; an octal number from 000 to 777 is expected, such as 077 or 022")
    before = os.umask(0o077)
    os.umask(int(wanted, 8) if wanted else before | 0o007)
    if not os.environ.get("AFIRE_TRACEBACK"):
        with suppress(ImportError, OSError, ValueError):  # Windows has no such limits
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def usual_mode() -> int:
    """Return the permissions that a new file has under the process's umask."""
    before = os.umask(0o077)
    os.umask(before)
    return 0o666 & ~before


@contextmanager
def whole_file(
    path: Path, private: bool = False, shared: bool = False, sync: bool = False, new: bool = False
) -> Iterator[Path]:
    """Open a file beside ``path`` to write to; it takes that name at the end, and is gone if writing fails.

    A reader sees the old file or the new one, never a part. A killed process leaves ``.NAME.part``, which is
    overwritten next time, unless ``shared``, where the temporary name includes the process id.

    Args:
        path: path of the file; its folder must exist.
        private: only its owner may ever read it (mode 0600).
        shared: other processes may write the same file at the same time: the last one wins.
        sync: make sure that the data are on the disk before the file takes its name.
        new: never overwrite a file.

    Raises:
        FileExistsError: with ``new``, if the name is taken.
        OSError: if the file cannot be created or moved; an earlier file is kept.
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
        if new:
            _take_new_name(part, path)
        else:
            os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write to a full disk does not name the file
        raise


def change_time(status: os.stat_result) -> int:
    """Return when a file was changed, in nanoseconds that fit into 64 bits: a wrong clock can be centuries ahead."""
    return (status.st_mtime_ns + 2**63) % 2**64 - 2**63


def _take_new_name(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike renaming, this fails if the name is taken
        part.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK) or path.exists():
            raise
        os.rename(part, path)  # file systems without links


def write_text(path: Path, text: str, private: bool = False, shared: bool = False) -> None:
    """Write a text in UTF-8, line ends as they stand, as a whole file (:func:`whole_file`)."""
    with whole_file(path, private, shared) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextmanager
def open_whole(path: Path, private: bool = False) -> Iterator[IO[str]]:
    """Open a text file for writing that takes its place only when all has been written.

    Args:
        path: path of the file.
        private: only its owner may ever read it (mode 0600).

    Raises:
        AfireError: if it cannot be written (disk full, permission). The earlier file is kept.
    """
    try:
        # file names need not be text in any encoding: bytes that are not text are written back unchanged
        with (
            whole_file(path, private) as part,
            part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            yield file
    except OSError as error:
        raise AfireError(
            f"{path} cannot be written: {error.strerror}. Make room or give another folder, then repeat the command: "
            "it continues where it stopped"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file; empty if the file is missing or damaged, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))  # as it is written
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_object(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a JSON file in one piece (see `open_whole`)."""
    with open_whole(path) as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_rows(path: Path, rows: Iterable[Sequence[Any]], private: bool = False) -> None:
    """Write rows as CSV in one piece (see `open_whole`)."""
    with open_whole(path, private) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def lock_file(file: int | IO[Any], wait: bool = True, shared: bool = False) -> None:
    """Lock an open file for this process alone, or with others who share it, until it is closed.

    Args:
        file: handle, or open file.
        wait: wait for the holder of the lock; on Windows for ten seconds at most.
        shared: others may hold it in the same way; Windows has no such lock, so there it is exclusive.

    Raises:
        BlockingIOError: if another process holds it and ``wait`` is false.
        OSError: if the file system has no locks.
    """
    handle = file if isinstance(file, int) else file.fileno()
    if sys.platform == "win32":
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def refuse_wide(path: Path) -> None:
    """Refuse a file that others than its owner may use."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise AfireError(
            f"{path}: other users can access it (mode {mode:04o}), so its content is exposed. If nobody has read "
            f"it, run chmod 600 {path}"
        )
