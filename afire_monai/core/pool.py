"""A process pool that survives hangs, crashes and out-of-memory in its workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from afire_monai.core.errors import AfireError
from afire_monai.core.quiet import quiet

T = TypeVar("T")
R = TypeVar("R")
TOO_SLOW, STOPPED, MEMORY, UNEXPECTED = "too slow", "reader stopped", "needs too much memory", "unexpected error"
MEMORY_BYTES = 4 << 30
_AHEAD = 3
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Failure:
    """A task that gave no result."""

    kind: str  #: short constant reason
    detail: str = ""  #: further detail, only for the owner of the files


def threads(wanted: int | None = None) -> int:
    """Return how many workers to use: the number of cores, at most 8, unless given."""
    return min(os.cpu_count() or 1, 8) if wanted is None else wanted


class Pool:
    """Processes for tasks of any kind; to be used in a `with` statement, which ends them.

    A task that fails, hangs or crashes its process returns a `Failure`, and a new process replaces the old one.

    Args:
        workers: number of processes, started when they are needed; 0 for work in this process, without limits of time
            and memory.
        seconds: time after which a task counts as hanging.
        memory: bytes that one process may ask for (if the system can limit them).
    """

    def __init__(self, workers: int, seconds: float = 60.0, memory: int = MEMORY_BYTES) -> None:
        self.count, self.seconds, self.memory = workers, seconds, memory
        self._workers: list[_Worker] = []
        self._again: deque[Any] = deque()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def run(self, work: Callable[[T], R], tasks: Iterable[T]) -> Iterator[tuple[T, R | Failure]]:
        """Do work for each task.

        ``work`` is a function that can be pickled.

        Yields:
            Tasks with their results, in no order.

        Raises:
            AfireError: if processes cannot be started.
        """
        if self.count == 0:
            with quiet():
                for task in tasks:
                    yield task, _attempt(work, task)
            return
        waiting = iter(tasks)
        try:
            while True:
                self._hand_out(work, waiting)
                busy = [worker for worker in self._workers if worker.queue]
                if not busy:
                    return
                yield from self._collect(busy)
        finally:
            self._drop_busy()

    def _hand_out(self, work: Callable[[T], R], tasks: Iterator[T]) -> None:
        """Submit a few tasks to every process, so that none waits for this one between two."""
        for depth in range(1, _AHEAD + 1):
            for place in range(self.count):
                if place < len(self._workers) and len(self._workers[place].queue) >= depth:
                    continue
                try:
                    task = self._again.popleft() if self._again else next(tasks)
                except StopIteration:
                    return
                if place >= len(self._workers):
                    self._workers.append(_Worker(self.memory))
                self._workers[place].send(work, task, self.seconds)

    def _collect(self, busy: list[_Worker]) -> Iterator[tuple[Any, Any]]:
        left = min(worker.deadline for worker in busy) - time.monotonic()
        ready = wait([worker.connection for worker in busy], max(0.0, left))
        now = time.monotonic()  # the caller may take long over a result, while others arrive
        for worker in busy:
            if worker.connection in ready:
                yield from self._receive(worker)
            elif worker.deadline <= now:
                yield from self._replace(worker, TOO_SLOW, f"no result after {self.seconds:g} s")

    def _receive(self, worker: _Worker) -> Iterator[tuple[Any, Any]]:
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

    def _replace(self, worker: _Worker, kind: str, detail: str) -> Iterator[tuple[Any, Failure]]:
        worker.stop()
        self._workers.remove(worker)
        if not worker.ready:
            raise AfireError(
                f"a reading process did not start ({detail}); try --workers 0, which reads in the main process. From a "
                "script, call this below `if __name__ == '__main__':`"
            )
        task = worker.queue.popleft()
        self._again.extend(worker.queue)
        worker.queue.clear()
        yield task, Failure(kind, detail)

    def _drop_busy(self) -> None:
        """End processes whose results nobody waits for any more."""
        for worker in [worker for worker in self._workers if worker.queue]:
            worker.stop()
            self._workers.remove(worker)
        self._again.clear()


class _Worker:
    """One process, the tasks that it was given, and when the first of them counts as hanging."""

    def __init__(self, memory: int) -> None:
        context = multiprocessing.get_context("spawn")  # copies nothing of this process, in particular no open files
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote, memory), daemon=True)
        self.process.start()
        remote.close()
        self.queue: deque[Any] = deque()
        self.ready = False
        self.deadline = time.monotonic() + _START_SECONDS

    def send(self, work: Callable[[Any], Any], task: Any, seconds: float) -> None:
        if not self.queue and self.ready:
            self.deadline = time.monotonic() + seconds
        self.queue.append(task)
        with contextlib.suppress(OSError):  # the process has died; the next read from it shows that
            self.connection.send((work, task))

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _attempt(work: Callable[[Any], Any], task: Any) -> Any:
    try:
        return work(task)
    except MemoryError:
        return Failure(MEMORY)
    except Exception as error:  # one strange file must not end the work on thousands
        return Failure(UNEXPECTED, type(error).__name__)


def _serve(connection: Connection, memory: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # one process per core is enough, and each thread takes address space
    _limit(memory)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):  # decoders in C write there and bypass the warning filters
        os.dup2(silence, stream.fileno())
    with quiet():
        try:
            connection.send("ready")
            while True:
                work, task = connection.recv()
                connection.send(_attempt(work, task))
        except (EOFError, OSError):
            return


def _mapped() -> int:
    """Bytes of addresses in use already: a script that imports torch brings gigabytes of them."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limit(memory: int) -> None:
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        memory += _mapped()
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # no pixels on disk
    except (ImportError, ValueError, OSError):
        return
