"""Commands that meet a fault at a chosen moment: at the n-th time that they write, or after some seconds.

A command is started in a process group of its own by forking a process that has everything imported, so that a try
takes seconds. What is counted are the calls that open a file for writing, move, link or delete one, or make a folder,
below one folder.
"""

from __future__ import annotations

import atexit
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate", "shutil.move")


IMPORTED = ("ignite.engine", "matplotlib.pyplot", "mlflow", "monai.bundle", "monai.handlers",
            "afire_monai.cli.main", "afire_monai.evaluation.evaluate", "afire_monai.predictions.predict",
            "afire_monai.training.finetuning", "afire_monai.training.report.page")  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (below 0 for a signal), its words, what it was about to write, seconds."""

    status: int
    text: str
    writes: int
    seconds: float


def preload() -> None:
    """Import what commands import; nothing is computed, so that no thread is there when this process is forked."""
    for name in IMPORTED:
        import_module(name)


def kill_group() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run(
    words: Sequence[str],
    folder: Path,
    at: int | None = None,
    action: Callable[[], None] = kill_group,
    kill_after: float | None = None,
    prepare: Callable[[], None] = lambda: None,
    limit: float = 300.0,
) -> Ended:
    """Run ``afire`` with these words.

    Args:
        words: of the command line.
        folder: what is watched; the command's folder for temporary files is ``tmp`` in it.
        at: number of the write at which the fault comes; None for none.
        action: what is done then, in the command's own process.
        kill_after: seconds after which all its processes are killed.
        prepare: called in the new process first.
        limit: seconds after which it counts as hanging (status -9).
    """
    counter = mmap.mmap(-1, 8)
    (folder / "tmp").mkdir(exist_ok=True)
    log, begin = folder.with_suffix(".log"), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(words, folder, log, counter, at, action, prepare)
    deadline = begin + min(kill_after or limit, limit)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= deadline:
            os.killpg(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.01)
    _wait_for_group(pid)
    text = log.read_text(errors="replace")
    return Ended(
        os.waitstatus_to_exitcode(status), text, int.from_bytes(counter[:8], "little"), time.monotonic() - begin
    )


def _wait_for_group(pid: int, seconds: float = 10.0) -> None:
    """Wait until the last process of a group has gone: what a pool started ends a moment after its parent."""
    for _ in range(int(seconds * 100)):
        try:
            os.killpg(pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.01)


def _child(
    words: Sequence[str],
    folder: Path,
    log: Path,
    counter: mmap.mmap,
    at: int | None,
    action: Callable[[], None],
    prepare: Callable[[], None],
) -> None:
    status = 1
    try:
        os.setsid()
        os.environ["TMPDIR"] = str(folder / "tmp")
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        prepare()
        _watch(str(folder), counter, at, action)
        from afire_monai.cli.main import run as command

        status = command(list(words))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def _watch(folder: str, counter: mmap.mmap, at: int | None, action: Callable[[], None]) -> None:
    owner, lock, busy = os.getpid(), threading.RLock(), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & WRITES):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        path = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        if not os.path.abspath(path).startswith(folder) or os.getpid() != owner:
            return
        with lock:
            if busy:
                return
            busy = True
            number = int.from_bytes(counter[:8], "little") + 1
            counter[:8] = number.to_bytes(8, "little")
            if number == at:
                action()
            busy = False

    sys.addaudithook(hook)
