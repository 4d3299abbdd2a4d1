"""Fill a cache on disk: in parallel, resumable, one writer at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from afire_monai.core.errors import AfireError, DataListError, RadiographError
from afire_monai.core.files import change_time, lock_file
from afire_monai.core.pool import Failure, Pool
from afire_monai.core.quiet import hidden
from afire_monai.datalists.paths import ImagePaths
from afire_monai.loading.cache import (
    DTYPES,
    NOT_DECODED,
    PIXELS,
    READY,
    ROW,
    Annotation,
    CacheIndex,
    DiskCache,
    cache_settings,
    checksum,
    path_hashes,
)
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.resize import area_average

logger = logging.getLogger(__name__)
SECONDS_PER_FILE = 120.0
FLUSH_SECONDS = 5.0
FLUSH_SHARE = 20  # writing an index of millions takes a second: it gets a twentieth of the time at most
_AGAIN = " (tried again next time)"  # ends outcomes that do not depend on the file's content


def build_cache(
    paths: ImagePaths,
    folder: str | Path,
    size: Sequence[int],
    dtype: str = "uint8",
    reader: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> int:
    """Decode the pictures of a list that a cache does not hold yet.

    A file is read again if its size or time of change differ; one that is no longer there keeps its picture. A file
    that cannot be used is noted with its reason. A picture counts as stored when its pixels have reached the disk, so
    that a killed build continues where it stopped.

    Args:
        paths: paths of the images.
        folder: folder of the cache; made if absent.
        size: height and width.
        dtype: ``uint8`` (256 grey levels) or ``uint16``.
        reader: arguments of `read_picture` that differ from the standard ones.
        workers: number of processes; None for one per core, 0 for none besides this one.

    Returns:
        The number of files that were read.

    Raises:
        DataListError: if the folder cannot be written to, is full, or holds a cache with other settings.
    """
    folder, settings = Path(folder), cache_settings(size, dtype, reader)
    if not len(_Survey.of(paths, folder, settings).todo):
        return 0  # a cache that is complete may be read-only
    with _in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _one_writer(folder):
            survey = _Survey.of(paths, folder, settings)  # another process may have filled the cache
            _fill(paths, folder, survey, _Decode(tuple(settings["size"]), dtype, dict(reader or {})), workers)
            return len(survey.todo)


def _workers(workers: int | None, files: int) -> int:
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, 64)
    return min(workers, files)


@dataclass
class _Survey:
    """The part of a list that a cache lacks: files to be read, and the rows that the index will have for them.

    The index itself says nothing new before a file has been read: a build that stops before that changes nothing.
    """

    index: CacheIndex
    todo: NDArray[np.int64]  #: (m,) places in the list
    facts: NDArray[Any]  #: (m,) of `ROW`: path, size and time of change of each file
    rows: NDArray[np.int64]  #: (m,) of the index, for each of them
    before: NDArray[np.int64]  #: (m,) the row of the picture that a changed file had; -1 for others

    @classmethod
    def of(cls, paths: ImagePaths, folder: Path, settings: dict[str, Any]) -> _Survey:
        """Compare a list with a cache; refuse a cache with other settings."""
        index = CacheIndex.load(folder) or CacheIndex(settings)
        for name, wanted in settings.items():
            if index.settings[name] != wanted:
                raise DataListError(
                    f"cache {folder}: it was built with {name} {index.settings[name]}, but {wanted} is requested; "
                    "delete the folder, or give another cache_dir"
                )
        facts = np.zeros(len(paths), ROW)
        facts["path"] = path_hashes(paths)
        facts["bytes"], facts["mtime"] = file_facts(paths)
        places, stored = index.look_up(facts["path"])
        again = np.array([outcome.endswith(_AGAIN) for outcome in index.outcomes])
        again[NOT_DECODED] = True
        changed = (facts["bytes"] >= 0) & (facts[["bytes", "mtime"]] != stored[["bytes", "mtime"]])
        todo = np.flatnonzero(again[stored["outcome"]] | changed)
        _, first = np.unique(facts["path"][todo, 0], return_index=True)  # the list may name a file twice
        todo = todo[np.sort(first)]
        # the old picture of a changed file stays for processes that read it, and the file gets another row
        old = stored["outcome"][todo] == READY
        rows, before = places[todo], np.where(old, places[todo], -1)
        new = np.flatnonzero(old | (rows < 0))
        free = np.flatnonzero((index.rows["outcome"] == NOT_DECODED) & (index.rows["path"] == 0).all(1))[: len(new)]
        rows[new] = np.concatenate([free, len(index.rows) + np.arange(len(new) - len(free))])
        index.rows = np.concatenate([index.rows, np.zeros(len(new) - len(free), ROW)])
        return cls(index, todo, facts[todo], rows, before)

    def settle(self, numbers: list[int], outcomes: list[int]) -> None:
        """Enter the results of some files, by their places among those to be read."""
        table, rows, before = self.index.rows, self.rows[numbers], self.before[numbers]
        for name in ("path", "bytes", "mtime"):
            table[name][rows] = self.facts[name][numbers]
        table["outcome"][rows] = outcomes
        table["path"][before[before >= 0]] = 0


def file_facts(paths: ImagePaths) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return size and time of change (ns) of each file; -1 for one that is not there."""

    def look(part: list[bytes]) -> list[int]:
        facts: list[int] = []
        for path in part:
            try:
                found = os.stat(path)
            except OSError:
                facts += (-1, -1)
            else:
                facts += (found.st_size, change_time(found))
        return facts

    raw = paths.raw_paths()
    parts = [raw[start : start + 4096] for start in range(0, len(raw), 4096)]
    with ThreadPoolExecutor(8) as pool:  # a network folder answers slowly, but answers many requests at a time
        facts = [np.array(found, dtype=np.int64) for found in pool.map(look, parts)]
    both = np.concatenate([np.empty(0, dtype=np.int64), *facts]).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


def _fill(paths: ImagePaths, folder: Path, survey: _Survey, decode: _Decode, workers: int | None) -> None:
    logger.info("cache: %d pictures are decoded to %d × %d %s", len(survey.todo), *decode.size, decode.dtype)
    sources = ((number, paths.raw(int(place))) for number, place in enumerate(survey.todo))
    writer = CacheWriter(folder, survey)
    try:
        with Pool(_workers(workers, len(survey.todo)), seconds=SECONDS_PER_FILE) as pool:
            results = pool.run(decode, sources)
            for (number, _), result in tqdm(
                results, "decoding", len(survey.todo), unit="image", leave=False, disable=hidden()
            ):
                writer.take(number, result)
    finally:
        writer.close()


@dataclass(frozen=True)
class _Decode:
    """Reads a file, reduces it to the size and rounds it to whole numbers; can be sent to a process."""

    size: tuple[int, int]
    dtype: str
    reader: Mapping[str, Any]

    def __call__(self, source: tuple[int, bytes]) -> NDArray[Any] | str:
        """Return the picture (H, W), or a constant reason that names no file and no patient."""
        try:
            pixels = read_picture(os.fsdecode(source[1]), **self.reader).pixels
        except RadiographError as error:
            return error.kind + (_AGAIN if error.kind in ("not readable", "codec not installed") else "")
        except OSError:
            return "not readable" + _AGAIN
        if not np.isfinite(pixels).all():
            return "not finite"
        levels = np.clip(area_average(pixels, self.size), 0.0, 1.0) * np.float32(DTYPES[self.dtype])
        return np.rint(levels).astype(self.dtype)


class CacheWriter:
    """Puts results into a cache; one at a time may be at work in a folder.

    Args:
        folder: folder of the cache.
        survey: the files whose results are stored; its index is written as they arrive.
    """

    def __init__(self, folder: Path, survey: _Survey) -> None:
        self.folder, self.survey = folder, survey
        self.waiting: dict[int, int] = {}  # outcomes by file that count once the pixels are on the disk
        self.kept = 0
        (folder / PIXELS).touch()
        # each write goes to the system at once, so that a failed one leaves nothing behind for later
        self.file = open(folder / PIXELS, "r+b", buffering=0)  # noqa: SIM115 - until `close`
        self.next_flush = time.monotonic() + FLUSH_SECONDS

    def take(self, number: int, result: NDArray[Any] | str | Failure) -> None:
        """Store one picture, or why there is none, of a file by its place among those to be read."""
        index = self.survey.index
        reason = result.kind + _AGAIN if isinstance(result, Failure) else result
        if isinstance(reason, np.ndarray):
            row = int(self.survey.rows[number])
            self.file.seek(row * reason.nbytes)
            left = memoryview(reason.tobytes())
            while left:  # a write may store a part only
                left = left[self.file.write(left) :]
            index.rows["checksum"][row] = checksum(reason)
            self.waiting[number] = READY
        elif reason.endswith(_AGAIN) and self.survey.before[number] >= 0:
            self.kept += 1  # the old picture is kept, because the outcome may be another one next time
        else:
            if reason not in index.outcomes:
                index.outcomes.append(reason)
            self.waiting[number] = index.outcomes.index(reason)
        if time.monotonic() > self.next_flush:
            self.flush()

    def flush(self) -> None:
        """Bring pixels to the disk, then the index that counts on them."""
        started = time.monotonic()
        new, self.waiting = self.waiting, {}  # a call after an error must not count pixels that may be lost
        os.fsync(self.file.fileno())
        self.survey.settle(list(new), list(new.values()))
        self.survey.index.save(self.folder)
        now = time.monotonic()
        self.next_flush = now + max(FLUSH_SECONDS, FLUSH_SHARE * (now - started))

    def close(self) -> None:
        """Close the files; stored pictures are kept, also after an error."""
        with self.file:
            self.flush()
        if self.kept:
            logger.warning("cache: %d files changed and could not be read; they keep their earlier pictures", self.kept)
        rows = self.survey.index.rows
        unused = int(((rows["outcome"] == READY) & (rows["path"] == 0).all(1)).sum())
        if 5 * unused > len(rows):
            logger.warning(
                "cache: %d of its %d pictures are of files that have changed since; delete the folder for their room",
                unused,
                len(rows),
            )


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process fills this cache; the system takes the lock from one that dies."""
    with open(folder / ".writer", "a", encoding="utf-8") as file:
        waiting = False
        while True:
            try:
                lock_file(file, wait=False)
                break
            except BlockingIOError:
                if not waiting:
                    logger.warning("another process is filling the cache; waiting for it")
                    waiting = True
                time.sleep(1.0)
        yield


@contextlib.contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataListError(
            f"cache {folder}: {error.strerror or type(error).__name__}; what is stored stays usable, and the next "
            "start continues from it. Make room, or give a writable cache_dir"
        ) from error


def cache_of(folder: str | Path, size: Sequence[int], dtype: str) -> Path:
    """Name the folder of one size and type in ``cache_dir``, so that trainings that differ in them can share that."""
    return Path(folder) / f"{size[0]}x{size[1]}_{dtype}"


def open_cache(
    paths: ImagePaths,
    folder: str | Path,
    size: Sequence[int],
    dtype: str = "uint8",
    reader: Mapping[str, Any] | None = None,
    annotate: Annotation | None = None,
) -> DiskCache:
    """Open the cache of a list, completed first; where several processes train, the first completes it.

    Args:
        paths: as for `build_cache`, like the arguments up to ``reader``.
        folder: folder of the cache.
        size: height and width.
        dtype: ``uint8`` or ``uint16``.
        reader: arguments of `read_picture`.
        annotate: annotation that is computed from each picture and kept beside it.

    Raises:
        DataListError: as `build_cache`, in all processes alike; or if a process of another machine sees no such folder.
    """
    from afire_monai.core.distributed import from_first, rank, world_size

    problem: str | None = None
    if rank() == 0:
        try:
            build_cache(paths, folder, size, dtype, reader)
            if annotate is not None and len(DiskCache(folder, paths).unknown(annotate)):
                with _in_words(Path(folder)), _one_writer(Path(folder)):
                    DiskCache(folder, paths).annotate(annotate)
        except AfireError as error:
            if world_size() == 1:
                raise
            problem = str(error)
    problem = from_first(problem)  # decoding may take a day
    if problem is not None:
        raise DataListError(problem)
    return DiskCache(folder, paths)
