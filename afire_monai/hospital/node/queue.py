"""The node's queue on disk: each object once, complete or not at all, with its state."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.core.files import lock_file, whole_file

RECEIVED, REFUSED, PREDICTED, KEPT, SENT, UNSENT = "received", "refused", "predicted", "kept", "sent", "unsent"
"""States: to be predicted; left out; results to be sent; results without a destination; done; given up."""
INCOMING, RESULTS, BASE, KEY, LOCK = "incoming", "results", "node.sqlite", "key", "lock"
_VERSION = 1
"""Version of the tables."""
_TABLES = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS objects (
  number INTEGER PRIMARY KEY, key TEXT UNIQUE, state TEXT, reason TEXT DEFAULT '', size INTEGER,
  tries INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS waiting ON objects (state, number, size) WHERE state IN ('received', 'predicted');
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
PRAGMA user_version={_VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class Held:
    """An object of the queue."""

    key: str  #: keyed hash of its UID and content, which also names its files
    tries: int  #: how often work on it has begun without being finished


class Queue:
    """Objects in a folder that only its owner can enter; safe for several threads, and for one process at a time.

    An object is noted after its file is on the disk, and its file is removed after its new state is noted. So a kill at
    any moment loses nothing, and repeats at most work that was not yet reported to anyone.

    Args:
        folder: folder of the queue, created if needed (mode 0700).
        most: maximum number of waiting objects.
        most_bytes: maximum size of all waiting objects in bytes.

    Raises:
        AfireError: if the folder is in use, holds something else, or cannot be written.
    """

    def __init__(self, folder: str | Path, most: int = 10_000, most_bytes: int = 20 << 30) -> None:
        self.folder, self._most, self._most_bytes = Path(folder), most, most_bytes
        self._lock = threading.RLock()
        self.changed = threading.Event()
        try:
            self._make_folder()
            self._held = _take(self.folder / LOCK)
            self._secret = _secret(self.folder / KEY)
            self._base = open_base(self.folder)
            check_version(self._base)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.executescript(_TABLES)
            self._clean()
        except OSError as error:
            raise AfireError(f"--state: {error.strerror}; give a folder that can be written") from None
        except sqlite3.DatabaseError as error:
            raise AfireError(f"--state: {BASE} cannot be used ({error}); make room, or give another folder") from None

    def _make_folder(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / LOCK).exists():
            raise AfireError("--state: the folder holds something else; give a new one, or that of an earlier node")
        for folder in (self.folder, self.folder / INCOMING, self.folder / RESULTS):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def _clean(self) -> None:
        """Remove remains of a killed process, and take up abandoned objects again."""
        with self._lock:
            self._base.execute("UPDATE objects SET state=?, reason='', tries=0 WHERE state=?", (PREDICTED, UNSENT))
            with_files = (RECEIVED, PREDICTED, KEPT)
            states = dict(self._base.execute("SELECT key, state FROM objects WHERE state IN (?, ?, ?)", with_files))
            for path in (self.folder / INCOMING).iterdir():
                if states.get(path.name) != RECEIVED:
                    path.unlink()
            for path in (self.folder / RESULTS).iterdir():
                if states.get(path.name) not in (PREDICTED, KEPT):
                    shutil.rmtree(path)
            for key, state in states.items():
                if state == RECEIVED and not self.file(key).exists():
                    self.end(key, REFUSED, "its file is gone")

    def close(self) -> None:
        """Let go of the folder."""
        with self._lock:
            self._base.close()
            os.close(self._held)

    def key_of(self, uid: str, parts: Sequence[bytes | memoryview]) -> str:
        """Return an object's key: a hash of UID and content under a secret of this folder alone."""
        digest = hmac.new(self._secret, uid.encode() + b"\0", hashlib.sha256)
        for part in parts:
            digest.update(part)
        return digest.hexdigest()[:40]

    def seed(self, key: str) -> str:
        """Return the seed of the UIDs of an object's results: the same after a kill, and unique."""
        return hmac.new(self._secret, f"results {key}".encode(), hashlib.sha256).hexdigest()

    def file(self, key: str) -> Path:
        """Return where an object lies."""
        return self.folder / INCOMING / key

    def results(self, key: str) -> Path:
        """Return the folder of an object's results."""
        return self.folder / RESULTS / key

    def put(self, uid: str, head: bytes, content: bytes | memoryview) -> bool:
        """Keep an object; when this returns True it is on the disk, or was before.

        Args:
            uid: SOPInstanceUID of the object.
            head: preamble and file meta information; it is not part of the object's key.
            content: the data set.

        Returns:
            Whether there was room.

        Raises:
            OSError: if it cannot be written.
        """
        key = self.key_of(uid, [content])
        with self._using():
            if self._base.execute("SELECT 1 FROM objects WHERE key=?", (key,)).fetchone():
                self._count("repeated")
                return True
            waiting, size = self._base.execute(
                "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM objects WHERE state IN ('received', 'predicted')"
            ).fetchone()
            if waiting >= self._most or size + len(content) > self._most_bytes:
                self._count("turned away")
                return False
            with whole_file(self.file(key), private=True, sync=True) as part, part.open("wb") as file:
                file.write(head)
                file.write(content)
            try:
                sync(self.folder / INCOMING)
                new = (key, RECEIVED, len(content))
                self._base.execute("INSERT INTO objects (key, state, size) VALUES (?, ?, ?)", new)
            except (OSError, sqlite3.Error):
                self.file(key).unlink(missing_ok=True)
                raise
        self.changed.set()
        return True

    def take(self, state: str, count: int) -> list[Held]:
        """Return the oldest objects of a state, after noting that work on them begins.

        An object that was tried before is returned alone, so that it harms no others.
        """
        with self._using():
            rows = self._base.execute(
                "SELECT key, tries FROM objects WHERE state=? ORDER BY number LIMIT ?", (state, count)
            ).fetchall()
            held = [Held(key, tries) for key, tries in rows]
            tried = next((place for place, one in enumerate(held) if one.tries), len(held))
            held = held[: max(tried, 1)]
            self._many("UPDATE objects SET tries=tries+1 WHERE key=?", [(one.key,) for one in held])
        return held

    def waiting(self, state: str) -> Iterator[tuple[int, str, int]]:
        """Return number, key and tries of the objects of a state, oldest first, one page at a time."""
        after = 0
        while True:
            with self._using():
                rows = self._base.execute(
                    "SELECT number, key, tries FROM objects WHERE state=? AND number>? ORDER BY number LIMIT 100",
                    (state, after),
                ).fetchall()
            if not rows:
                return
            yield from rows
            after = rows[-1][0]

    def give_back(self, held: Sequence[Held]) -> None:
        """Forget that work on these objects began: it was not stopped by a fault of theirs."""
        with self._using():
            self._many("UPDATE objects SET tries=0 WHERE key=?", [(one.key,) for one in held])

    def tried(self, key: str) -> None:
        """Note a try that failed."""
        with self._using():
            self._base.execute("UPDATE objects SET tries=tries+1 WHERE key=?", (key,))

    def end(self, key: str, state: str, reason: str = "") -> None:
        """Note the state of an object, then remove the files that this state does not need."""
        with self._using():
            self._base.execute("UPDATE objects SET state=?, reason=?, tries=0 WHERE key=?", (state, reason, key))
            self.file(key).unlink(missing_ok=True)
            if state in (REFUSED, SENT):
                shutil.rmtree(self.results(key), ignore_errors=True)
        self.changed.set()

    def send_what_was_kept(self) -> None:
        """Have results sent that there was nobody to send to before."""
        with self._using():
            self._base.execute("UPDATE objects SET state=? WHERE state=?", (PREDICTED, KEPT))

    def note(self, name: str, text: str) -> None:
        """Keep a text for the status."""
        with self._using():
            self._base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text))

    def _count(self, name: str) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # a count must not cause a failure
            self._base.execute(
                "INSERT INTO facts VALUES (?, '1') ON CONFLICT (name) DO UPDATE SET value=CAST(value AS INTEGER)+1",
                (name,),
            )

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """Keep the data base for this thread; a full or broken disk is an OSError there, too."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise OSError(errno.EIO, f"{BASE}: {error}") from error

    def _many(self, statement: str, rows: list[tuple[str]]) -> None:
        with self._base:
            self._base.execute("BEGIN")
            self._base.executemany(statement, rows)


def open_base(folder: Path) -> sqlite3.Connection:
    """Open the data base of a folder; each statement is on the disk when it is done."""
    path = folder / BASE
    if not path.exists():  # closing an existing file would release this process's SQLite locks
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    return sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)


def check_version(base: sqlite3.Connection) -> None:
    """Refuse the data base of another version, which means something else by its tables."""
    (version,) = base.execute("PRAGMA user_version").fetchone()
    (tables,) = base.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if version != _VERSION and (version or tables):
        raise AfireError(
            f"--state: the folder is of another version of this program (tables {version}, {_VERSION} expected); "
            "finish its work with that version, or give a new folder"
        )


def is_running(folder: Path) -> bool:
    """Whether a node works in a folder now."""
    with (folder / LOCK).open("rb") as file:
        try:
            lock_file(file, wait=False, shared=True)
        except OSError:
            return True
    return False


def _take(path: Path) -> int:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    for _ in range(20):  # `is_running` may hold the lock for a moment
        with contextlib.suppress(OSError):
            lock_file(handle, wait=False)
            return handle
        time.sleep(0.05)
    os.close(handle)
    raise AfireError("--state: another node works in this folder; stop it, or give another folder")


def _secret(path: Path) -> bytes:
    if not path.exists():
        with whole_file(path, private=True, sync=True) as part:
            part.write_bytes(secrets.token_bytes(32))
        sync(path.parent)
    return path.read_bytes()


def sync(path: Path) -> None:
    """Put a file on the disk, or the names in a folder, which the files' own sync does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
