"""The state of each file between runs of an ingest, so that nothing is read twice."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import STOPPED, TOO_SLOW, UNEXPECTED, Failure
from afire_monai.hospital.convert import BINS, Converted, Read
from afire_monai.hospital.forgotten import FORGOTTEN
from afire_monai.hospital.scan import NOT_READABLE, Found
from afire_monai.radiographs.header import Header

T = TypeVar("T")
STATE = "state.sqlite"
_FORMAT = 3
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
  number INTEGER PRIMARY KEY, path BLOB UNIQUE, size INTEGER, mtime INTEGER, run INTEGER, problem TEXT, detail TEXT,
  header TEXT, setting TEXT, result TEXT, verdict TEXT);
"""
_AT_ONCE = 200
# outcomes worth retrying even if the file is unchanged
_PASSING = (NOT_READABLE, TOO_SLOW, STOPPED)
KEPT = "kept"


@dataclass(frozen=True)
class Entry:
    """One file whose header was read.

    ``reason`` says why it was left out, or is `KEPT`.
    """

    number: int
    path: str
    reason: str
    header: Header
    result: Converted | Failure | None


class State:
    """Facts of files in an SQLite data base that only its owner can read and one process at a time may use.

    Args:
        folder: the private folder.
        new_run: begin a new run; if False, show the files that the last run found, and give up at the end what was not
            saved.

    Raises:
        AfireError: if the state is in use, damaged or of another format.
    """

    def __init__(self, folder: Path, new_run: bool = True) -> None:
        self.path, self._new_run = folder / STATE, new_run
        self._waiting = 0
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
            os.chmod(self.path, 0o600)
            self._base = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AfireError(f"{self.path}: {reason}; give a folder that can be written with --out") from error
        try:
            self.run = self._begin()
        except BaseException:
            self._base.close()
            raise

    def _begin(self) -> int:
        """Take the file for this process alone, and return the number of this run."""
        try:
            self._base.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._base.execute("PRAGMA temp_store=MEMORY")
            self._base.execute("BEGIN EXCLUSIVE")
            for statement in _TABLES.split(";"):
                self._base.execute(statement)
            known, run = self.fact("format", str(_FORMAT)), int(self.fact("run", "0")) + 1
            if known != str(_FORMAT):
                raise AfireError(
                    f"{self.path}: written by another version of this program. Remove it; all files will then be "
                    "read again"
                )
            self.set_fact("format", known)
            if self._new_run:
                self.set_fact("run", str(run))
            else:
                run = int(self._base.execute("SELECT COALESCE(MAX(run), 0) FROM files").fetchone()[0])
        except AfireError:
            raise
        except sqlite3.OperationalError as error:
            raise AfireError(
                f"{self.path}: another `afire ingest` writes here, or the folder cannot be written ({error}). Wait for "
                "it to end"
            ) from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise self._damaged(error) from error
        return run

    def _unwritable(self, error: Exception) -> AfireError:
        """Return the error for a data base that cannot be written."""
        return AfireError(
            f"{self.path}: cannot be written ({error}). Make room, then repeat the command: it continues where it "
            "stopped"
        )

    def _damaged(self, error: Exception) -> AfireError:
        """Return the error for a data base that cannot be read, or holds damaged values."""
        return AfireError(f"{self.path}: damaged ({error}). Remove it: the files are then read again")

    def __enter__(self) -> State:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if isinstance(error, sqlite3.DatabaseError):
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the bits that tell kinds of a code apart
                full = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
                raise (self._unwritable(error) if full else self._damaged(error)) from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; pending changes of a new run are written."""
        try:
            if self._new_run:
                self.save()
        finally:
            self._base.close()

    def save(self) -> None:
        """Write notes to disk, so that they survive an interruption."""
        try:
            self._base.execute("COMMIT")
            self._base.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise self._unwritable(error) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
        self._waiting = 0

    def fact(self, name: str, default: str = "") -> str:
        """Return the value that was stored under a name."""
        row = self._base.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return default if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Store a text under a name."""
        self._base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def note_found(self, found: Found) -> None:
        """Note that a file is there; earlier notes on it stay if its size and time are the same."""
        path = os.fsencode(found.path)
        row = self._base.execute("SELECT number, size, mtime, problem FROM files WHERE path=?", (path,)).fetchone()
        if row is None:
            self._base.execute(
                "INSERT INTO files (path, size, mtime, run, problem) VALUES (?, ?, ?, ?, ?)",
                (path, found.size, found.mtime_ns, self.run, found.problem),
            )
        elif row[1:3] == (found.size, found.mtime_ns) and not found.problem and row[3] not in _PASSING:
            self._base.execute("UPDATE files SET run=?, verdict=NULL WHERE number=?", (self.run, row[0]))
        else:
            self._base.execute(
                "UPDATE files SET size=?, mtime=?, run=?, problem=?, detail='', header=NULL, setting=NULL, "
                "result=NULL, verdict=NULL WHERE number=?",
                (found.size, found.mtime_ns, self.run, found.problem, row[0]),
            )
        self._noted()

    def note_read(self, number: int, read: Read | Failure) -> None:
        """Store the result of the first reading of a file."""
        if isinstance(read, Failure):
            values: tuple[Any, ...] = (read.kind, read.detail, None, None, None)
        else:
            converted = None if read.result is None else _text(read.result)
            values = ("", "", json.dumps(read.header.as_values(), separators=(",", ":")), read.setting, converted)
        self._base.execute(
            "UPDATE files SET problem=?, detail=?, header=?, setting=?, result=? WHERE number=?", (*values, number)
        )
        self._noted()

    def note_result(self, number: int, setting: str, result: Converted | Failure) -> None:
        """Store the result of converting a file under a setting."""
        self._base.execute("UPDATE files SET setting=?, result=? WHERE number=?", (setting, _text(result), number))
        self._noted()

    def note_verdicts(self, verdicts: Iterable[tuple[int, str]]) -> None:
        """Store why files are left out, or that they are kept."""
        self._base.executemany(
            "UPDATE files SET verdict=? WHERE number=?", ((verdict, number) for number, verdict in verdicts)
        )

    def count(self) -> int:
        """Files of this run."""
        return int(self._base.execute("SELECT COUNT(*) FROM files WHERE run=?", (self.run,)).fetchone()[0])

    def without_header(self) -> list[tuple[int, str]]:
        """Numbers and paths of files whose header has not been read."""
        rows = self._base.execute(
            "SELECT number, path FROM files WHERE run=? AND header IS NULL AND problem='' ORDER BY path", (self.run,)
        )
        return [(number, self._path(path)) for number, path in rows]

    def result(self, number: int, setting: str, passing: bool = False) -> Converted | Failure | None:
        """Return the result of converting a file under this setting; None if it is not known.

        With ``passing``, failures that are worth retrying are returned, too.
        """
        row = self._base.execute("SELECT result FROM files WHERE number=? AND setting=?", (number, setting)).fetchone()
        result = None if row is None else self._result(row[0])
        return None if isinstance(result, Failure) and result.kind in _PASSING and not passing else result

    def path_of(self, number: int) -> str:
        """Path of a file."""
        return self._path(self._base.execute("SELECT path FROM files WHERE number=?", (number,)).fetchone()[0])

    def entries(self, kept_only: bool = False, any_run: bool = False) -> Iterator[Entry]:
        """Return the files of this run whose header was read, in the order of their paths; one at a time is in memory.

        Args:
            kept_only: only those that are kept.
            any_run: also those that earlier runs found and this one did not.
        """
        rows = self._base.execute(
            "SELECT number, path, verdict, problem, header, result FROM files "
            "WHERE header IS NOT NULL AND (run=? OR ?) AND (verdict=? OR ?) ORDER BY path",
            (self.run, any_run, KEPT, not kept_only),
        )
        for number, path, verdict, problem, text, result in rows:
            reason = self._text(verdict) or self._text(problem) or UNEXPECTED
            header = self._parsed(text, Header.from_values)
            yield Entry(number, self._path(path), reason, header, self._result(result))

    def reasons(self) -> Iterator[tuple[str, str, str]]:
        """Return path, reason (or `KEPT`) and detail of each file of this run, in the order of their paths."""
        rows = self._base.execute(
            "SELECT path, verdict, problem, detail, result FROM files WHERE run=? ORDER BY path", (self.run,)
        )
        for path, verdict, problem, detail, result in rows:
            reason = self._text(verdict) or self._text(problem) or UNEXPECTED
            converted = None if reason == KEPT else self._result(result)
            if isinstance(converted, Failure) and converted.kind == reason:
                detail = converted.detail
            yield self._path(path), reason, self._text(detail)

    def forget(self, numbers: Iterable[int]) -> None:
        """Leave of files nothing but path, size and that they are forgotten; not saved before `erase_forgotten`."""
        self._base.executemany(
            "UPDATE files SET problem=?, detail='', header=NULL, setting=NULL, result=NULL, verdict=NULL "
            "WHERE number=?",
            ((FORGOTTEN, number) for number in numbers),
        )

    def forgotten_paths(self) -> list[str]:
        """Paths of files of forgotten patients."""
        rows = self._base.execute("SELECT path FROM files WHERE problem=?", (FORGOTTEN,))
        return [self._path(path) for (path,) in rows]

    def erase_forgotten(self) -> None:
        """Erase also that there are files of forgotten patients, and save.

        The data base is then rewritten, because deleted values remain in its free space; that takes as much memory as
        it has bytes.
        """
        self._base.execute("DELETE FROM files WHERE problem=?", (FORGOTTEN,))
        self.save()
        self._base.execute("COMMIT")
        self._base.execute("VACUUM")
        self._base.execute("BEGIN EXCLUSIVE")

    def _text(self, value: Any) -> str:
        if not isinstance(value, str | None):
            raise self._damaged(TypeError(f"a value of type {type(value).__name__} is not text"))
        return value or ""

    def _path(self, value: Any) -> str:
        if not isinstance(value, bytes):
            raise self._damaged(TypeError(f"a value of type {type(value).__name__} is not a path"))
        return os.fsdecode(value)

    def _result(self, text: str | None) -> Converted | Failure | None:
        return None if text is None else self._parsed(text, _result)

    def _parsed(self, text: str, read: Callable[[dict[str, Any]], T]) -> T:
        try:
            return read(json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error

    def _noted(self) -> None:
        self._waiting += 1
        if self._waiting >= _AT_ONCE:
            self.save()


def _text(result: Converted | Failure) -> str:
    return json.dumps(vars(result), separators=(",", ":"))


def _result(values: dict[str, Any]) -> Converted | Failure:
    """Return the value that `_text` was given."""
    if "kind" in values:
        return Failure(**_of_types(values, {"kind": str, "detail": str}))
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    converted = Converted(**_of_types(plain, _CONVERTED))
    if (
        len(converted.shape) != 2
        or len(converted.histogram) != BINS
        or not all(isinstance(n, int | float) for n in (*converted.shape, *converted.histogram))
    ):
        raise TypeError(f"shape and histogram hold something else than 2 and {BINS} numbers")
    return converted


_CONVERTED = {"size": int, "pixels": str, "shape": tuple, "look": (int, float), "letters": int, "histogram": tuple}


def _of_types(values: dict[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values; raises TypeError, without the value, for an unknown name or another type."""
    if wrong := [name for name, value in values.items() if not isinstance(value, types.get(name, ()))]:
        raise TypeError(f"{wrong[0]} is of type {type(values[wrong[0]]).__name__}")
    return values
