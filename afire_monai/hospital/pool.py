"""Processes that go on whatever a file does to one of them: hang, crash, or ask for all memory."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from afire_monai.errors import AfireError

T = TypeVar("T")
R = TypeVar("R")
TOO_SLOW, STOPPED, MEMORY, UNEXPECTED = "too slow", "reader stopped", "needs too much memory", "unexpected error"
MEMORY_BYTES = 4 << 30
_AHEAD = 3
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Failure:
    """A task that gave no result.

    Attributes:
        kind: short constant reason.
        detail: more, for the owner of the files only.
    """

    kind: str
    detail: str = ""


def run_tasks(
    work: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    seconds: float = 60.0,
    memory: int = MEMORY_BYTES,
) -> Iterator[tuple[T, R | Failure]]:
    """Do work for each task in other processes; a task that fails, hangs or takes its process down gives a `Failure`.

    Args:
        work: a function that can be pickled.
        tasks: taken as they are needed.
        workers: processes; 0 works in this one, without limits of time and memory.
        seconds: after which a task counts as hanging, and its process is replaced.
        memory: bytes that one process may ask for (where the system can limit them).

    Yields:
        Tasks with their results, in no order.

    Raises:
        AfireError: if processes cannot be started.
    """
    if workers == 0:
        with quiet():
            for task in tasks:
                yield task, _attempt(work, task)
        return
    pool: _Pool[T, R] = _Pool(work, tasks, workers, seconds, memory)
    try:
        yield from pool.results()
    finally:
        pool.close()


class quiet(warnings.catch_warnings):  # noqa: N801  # used like the function it is in the standard library
    """Keep what other libraries say of odd headers out of messages: they quote values, which can be a patient's."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("pydicom").level
        logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
        return entered

    def __exit__(self, *error: Any) -> None:
        logging.getLogger("pydicom").setLevel(self._level)
        super().__exit__(*error)


class _Worker(Generic[T]):
    def __init__(self, work: Callable[[Any], Any], memory: int) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of this process is copied, open files least of all
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, memory), daemon=True)
        self.process.start()
        theirs.close()
        self.queue: deque[T] = deque()
        self.ready = False
        self.deadline = time.monotonic() + _START_SECONDS

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Pool(Generic[T, R]):
    def __init__(self, work: Callable[[T], R], tasks: Iterable[T], workers: int, seconds: float, memory: int) -> None:
        self.work, self.seconds, self.memory = work, seconds, memory
        self.tasks, self.again = iter(tasks), deque[T]()
        self.count = workers
        self.workers: list[_Worker[T]] = []

    def results(self) -> Iterator[tuple[T, R | Failure]]:
        while True:
            self._hand_out()
            busy = [worker for worker in self.workers if worker.queue]
            if not busy:
                return
            left = min(worker.deadline for worker in busy) - time.monotonic()
            ready = wait([worker.connection for worker in busy], max(0.0, left))
            for worker in busy:
                if worker.connection in ready:
                    yield from self._receive(worker)
                elif worker.deadline <= time.monotonic():
                    yield from self._replace(worker, TOO_SLOW, f"no result after {self.seconds:g} s")

    def close(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def _hand_out(self) -> None:
        """Give every process a few tasks, so that none waits for this one between two."""
        for depth in range(1, _AHEAD + 1):
            for place in range(self.count):
                if place < len(self.workers) and len(self.workers[place].queue) >= depth:
                    continue
                try:
                    task = self.again.popleft() if self.again else next(self.tasks)
                except StopIteration:
                    return
                if place >= len(self.workers):
                    self.workers.append(_Worker(self.work, self.memory))
                self._send(self.workers[place], task)

    def _send(self, worker: _Worker[T], task: T) -> None:
        if not worker.queue and worker.ready:
            worker.deadline = time.monotonic() + self.seconds
        worker.queue.append(task)
        with contextlib.suppress(OSError):  # it has died; reading from it will say so
            worker.connection.send(task)

    def _receive(self, worker: _Worker[T]) -> Iterator[tuple[T, R | Failure]]:
        try:
            result = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(10)
            yield from self._replace(worker, STOPPED, f"exit status {worker.process.exitcode}")
            return
        worker.deadline = time.monotonic() + self.seconds
        if not worker.ready:
            worker.ready = True  # the first message says that it has started
            return
        yield worker.queue.popleft(), result

    def _replace(self, worker: _Worker[T], kind: str, detail: str) -> Iterator[tuple[T, R | Failure]]:
        worker.stop()
        self.workers.remove(worker)
        if not worker.ready:
            raise AfireError(
                f"a reading process did not start ({detail}); try --workers 0, which reads in the main process. From a "
                "script, call this below `if __name__ == '__main__':`"
            )
        task = worker.queue.popleft()
        self.again.extend(worker.queue)
        yield task, Failure(kind, detail)


def _attempt(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except MemoryError:
        return Failure(MEMORY)
    except Exception as error:  # one strange file must not end the work on thousands
        return Failure(UNEXPECTED, type(error).__name__)


def _serve(connection: Connection, work: Callable[[Any], Any], memory: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    _limit(memory)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # decoders in C write there, past any filter of warnings
        os.dup2(silence, stream.fileno())
    with quiet():
        try:
            connection.send("ready")
            while True:
                connection.send(_attempt(work, connection.recv()))
        except (EOFError, OSError):
            return


def _limit(memory: int) -> None:
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # no pixels on disk
    except (ImportError, ValueError, OSError):
        return
