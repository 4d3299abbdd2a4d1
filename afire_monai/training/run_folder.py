"""One folder for each run: who may write to it, and the settings that it runs with."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.files import lock_file, write_text

logger = logging.getLogger(__name__)
LOCK = ".running"
BEAT = 30.0
"""Seconds between signs of life, by which other machines judge a run."""
SILENT = 300.0
"""Seconds without a sign of life after which an owner on another machine counts as gone."""

_SINCE = time.strftime("%Y-%m-%d %H:%M:%S")
_held: dict[Path, threading.Event] = {}
_waiting: dict[Path, str] = {}


def claim(folder: Path) -> None:
    """Make a run's folder this process's own until it ends or calls :func:`release`; twice is as good as once.

    An owner on the same machine is looked up by its number and start; the remains of a killed one are taken over. One
    on another machine counts as gone if it gave no sign of life for :data:`SILENT` seconds of the file server's clock,
    nor while this process watches for three beats, as that clock may have been set. It also counts as gone if
    ``torchrun``, which ends all processes first, has restarted the same job. Raises AfireError if another run writes
    into the folder.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        return
    with _guarded(path) as file:
        owner = _owner(file)
        if owner is not None and (reason := _life_of(owner, file, folder)):
            raise AfireError(
                f"output_dir {folder} belongs to a run on {owner.get('host', 'another machine')} (process "
                f"{owner.get('pid', '?')}, since {owner.get('since', '?')}), {reason}. Wait for its end or stop it, "
                "then continue with --resume true; or choose another --output_dir"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_self() | {"file": os.fstat(file).st_ino}).encode(), 0)
    ended = _held[path] = threading.Event()
    threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
    atexit.register(_release, path, os.getpid())


def release(folder: Path) -> None:
    """Let others have a folder that was claimed; nothing happens if it was not."""
    _release(folder.resolve() / LOCK, os.getpid())


def _release(path: Path, process: int) -> None:
    if process != os.getpid() or path not in _held:  # a forked child is not an owner
        return
    _held.pop(path).set()
    with contextlib.suppress(OSError), _guarded(path, make=False) as file:
        if _owner(file) == _self():
            path.unlink()


@contextlib.contextmanager
def _guarded(path: Path, make: bool = True) -> Iterator[int]:
    """Open the file with nobody else looking at or changing it, where the file system can do that."""
    while True:
        file = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o644)
        try:
            with contextlib.suppress(OSError):
                lock_file(file)
            if not path.exists() or path.stat().st_ino != os.fstat(file).st_ino:
                continue  # its owner removed it in between
            yield file
            return
        finally:
            os.close(file)  # this also releases the lock


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "space": _space(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "since": _SINCE,
        "job": os.environ.get("TORCHELASTIC_RUN_ID", "none"),
    }


def _space() -> str:
    """Name the space that process numbers count in: containers can share the name of a machine."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return when a process began, which tells it from a later one of the same number; None if it runs no more."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _owner(file: int) -> dict[str, Any] | None:
    """Return who wrote the file: None for nobody or if it is a copy, nothing known if it cannot be understood."""
    text = os.pread(file, 4096, 0)
    try:
        owner = json.loads(text)
    except ValueError:
        owner = {}
    owner = owner if isinstance(owner, dict) else {}
    copied = owner.pop("file", os.fstat(file).st_ino) != os.fstat(file).st_ino
    return None if copied or not text else owner


def _silence(file: int, folder: Path) -> float:
    """Seconds since the last sign of life, both ends by the clock of the machine that keeps the files."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(file).st_mtime


def _beats(file: int) -> bool:
    """Whether a sign of life comes while this process watches, for three beats."""
    before, end = os.fstat(file).st_mtime_ns, time.monotonic() + 3 * BEAT
    while time.monotonic() < end:
        time.sleep(BEAT / 30)
        if os.fstat(file).st_mtime_ns != before:
            return True
    return False


def _life_of(owner: dict[str, Any], file: int, folder: Path) -> str:
    """Return a sign of life of an owner; empty if it is dead."""
    here = _self()
    if all(owner.get(key) == here[key] for key in ("host", "space")) and isinstance(owner.get("pid"), int):
        return "which is running" if _began(owner["pid"]) == owner.get("began") else ""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and here["job"] != "none"
    if restarted and owner.get("job") == here["job"]:
        return ""
    silence = _silence(file, folder)
    if not 0 <= silence <= SILENT:  # or the clock was set
        logger.info("a run elsewhere held %s: waiting %.0f seconds for a sign of life of it", folder, 3 * BEAT)
        return "which gives signs of life" if _beats(file) else ""
    return f"heard of {silence:.0f} seconds ago (it counts as gone after {SILENT:.0f})"


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def offer_settings(folder: Path, text: str, going_on: bool) -> None:
    """Write ``settings.yaml``, or keep it back until :func:`settings_hold` where a run may yet be refused."""
    if going_on:
        _waiting[folder] = text
    else:
        write_text(folder / "settings.yaml", text)


def settings_hold() -> None:
    """Write the settings that were kept back: the run is going on with them."""
    while _waiting:
        folder, text = _waiting.popitem()
        write_text(folder / "settings.yaml", text)
