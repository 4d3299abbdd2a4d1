"""Filling a cache on disk: in parallel, resumable, one writer at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from afire_monai.core.console import hidden
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.locks import lock_file
from afire_monai.core.pool import Pool
from afire_monai.datalists.paths import ImagePaths
from afire_monai.loading.cache import (
    READY,
    REFUSED,
    ROW,
    SHARD_ROWS,
    Annotation,
    CacheHeader,
    CacheWriter,
    Decoded,
    DiskCache,
    Source,
    Survey,
    decode,
    file_facts,
    find_rows,
    load_index,
    path_hashes,
    stored_contents,
)
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES, modality_names

logger = logging.getLogger(__name__)
SECONDS_PER_FILE = 120.0
PARTS = (".cache.json.*.part", ".index.npy.*.part", ".pixels_*.part")


def build_cache(
    paths: ImagePaths,
    folder: str | Path,
    size: Sequence[int],
    dtype: str = "uint8",
    reader: Mapping[str, Any] | None = None,
    workers: int | None = None,
    shard_rows: int = SHARD_ROWS,
) -> int:
    """Decode the pictures of a list that a cache does not hold yet.

    A file is read again if its size or time of change differ and its content does too; one that is no longer there
    keeps its picture. A file that cannot be used is noted with its reason. Equal files are stored once. A picture
    counts as stored when its pixels have reached the disk, so that a killed build goes on where it was.

    Args:
        paths: of the images.
        folder: of the cache; made if absent.
        size: height and width.
        dtype: ``uint8`` (256 grey levels) or ``uint16``.
        reader: arguments of `read_picture` where they are not the standard ones.
        workers: processes; None for one a core, 0 for none besides this one.
        shard_rows: pictures in a file of a new cache.

    Returns:
        Files that were read.

    Raises:
        DataListError: the folder cannot be written to, is full, or holds a cache that was made otherwise.
    """
    folder = Path(folder)
    options = dict(reader or {})
    names = modality_names(options.pop("modalities", RADIOGRAPHY_MODALITIES))
    read = sorted(names) if names is not None else ["any"]
    header = CacheHeader((int(size[0]), int(size[1])), dtype, read, shard_rows=shard_rows, options=options)
    survey = _survey(paths, folder, header)
    if not len(survey.todo):
        return 0  # a cache that is complete may be read-only
    with _in_words(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _one_writer(folder):
            for pattern in PARTS:
                for part in folder.glob(pattern):  # of a build that was killed: only its one writer makes them
                    part.unlink(missing_ok=True)
            survey = _survey(paths, folder, header)  # another process may have been at work
            return _fill(
                paths, folder, CacheHeader.load(folder) or header, survey, dict(reader or {}), _workers(workers, survey)
            )


def _workers(workers: int | None, survey: Survey) -> int:
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(cores, 64)
    return min(workers, len(survey.todo))


def _survey(paths: ImagePaths, folder: Path, header: CacheHeader) -> Survey:
    stored = CacheHeader.load(folder)
    if stored is not None:
        header.refuse_other(stored, folder)
    index = np.array(load_index(folder))
    hashes = path_hashes(paths)
    rows = find_rows(index["path"], hashes)
    unknown = np.flatnonzero(rows < 0)
    _, first = np.unique(hashes[unknown, 0], return_index=True)  # the list may name a file twice
    unknown = unknown[np.sort(first)]
    added = np.zeros(len(unknown), dtype=ROW)
    added["path"], added["slot"] = hashes[unknown], -1
    if len(unknown):
        index = np.concatenate([index, added])
        rows = find_rows(index["path"], hashes)
    sizes, mtimes = file_facts(paths)
    state = index["state"][rows]
    known = (state == READY) | (state == REFUSED)
    changed = (sizes != index["bytes"][rows]) | (mtimes != index["mtime"][rows])
    todo = np.flatnonzero(~known | (changed & (sizes >= 0)))
    _, first = np.unique(rows[todo], return_index=True)
    return Survey(index, rows, sizes, mtimes, todo[np.sort(first)], len(unknown))


def _fill(
    paths: ImagePaths, folder: Path, header: CacheHeader, survey: Survey, reader: Mapping[str, Any], workers: int
) -> int:
    writer = CacheWriter(folder, header, survey)
    sources = (
        Source(int(place), paths.raw(int(place)), _known(survey.index[survey.rows[place]]), header.size, header.dtype)
        for place in survey.todo
    )
    logger.info("cache: %d pictures are decoded to %d × %d %s", len(survey.todo), *header.size, header.dtype)
    work = _Decode(reader, str(folder), uuid.uuid4().hex)
    try:
        with Pool(workers, seconds=SECONDS_PER_FILE) as pool:
            results = pool.run(work, sources)
            for source, result in tqdm(
                results, "decoding", len(survey.todo), unit="image", leave=False, disable=hidden()
            ):
                writer.take(source.place, result)
    finally:
        writer.close()
    return len(survey.todo)


def _known(row: Any) -> bytes:
    return row["content"].tobytes() if row["state"] in (READY, REFUSED) else b""


@dataclass(frozen=True)
class _Decode:
    """`decode` in a form that can be sent to a process."""

    reader: Mapping[str, Any]
    folder: str
    build: str

    def __call__(self, source: Source) -> Decoded:
        return decode(source, self.reader, stored_contents(self.folder, self.build))


@contextlib.contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process fills this cache; the system takes the lock from one that dies."""
    with open(folder / ".writer", "a", encoding="utf-8") as file:
        said = False
        while True:
            try:
                lock_file(file, wait=False)
                break
            except BlockingIOError:
                if not said:
                    logger.warning("another process is filling the cache; waiting for it")
                    said = True
                time.sleep(1.0)
        yield


@contextlib.contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataListError(
            f"cache {folder}: {error.strerror or type(error).__name__}; what is stored there stays usable, and the "
            "next start goes on from it. Make room, or give a cache_dir that can be written to"
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
        paths: as for `build_cache`, like all that follow.
        folder: of the cache.
        size: height and width.
        dtype: ``uint8`` or ``uint16``.
        reader: arguments of `read_picture`.
        annotate: what else is found in each picture and kept beside it.

    Raises:
        DataListError: as `build_cache`, in all processes alike; or a process of another machine sees no such folder.
    """
    from afire_monai.core.distributed import from_first, rank, world_size

    problem: str | None = None
    if rank() == 0:
        try:
            build_cache(paths, folder, size, dtype, reader)
            if annotate is not None:
                with _in_words(Path(folder)):
                    DiskCache(folder, paths).annotate(annotate)
        except AfireError as error:
            if world_size() == 1:
                raise
            problem = str(error)
    problem = from_first(problem)  # decoding may take a day
    if problem is not None:
        raise DataListError(problem)
    return DiskCache(folder, paths)
