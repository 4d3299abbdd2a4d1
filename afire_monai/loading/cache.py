"""Decoded pictures at training size on disk: made once, read by any number of processes without copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from afire_monai.core.errors import DataListError
from afire_monai.core.files import whole_file
from afire_monai.datalists.paths import ImagePaths
from afire_monai.loading.cache_index import (
    DTYPES,
    FAILED,
    PENDING,
    READY,
    CacheHeader,
    find_rows,
    load_index,
    path_hashes,
    shard_path,
)

NOT_DECODED = "not decoded yet"


class Annotation(Protocol):
    """What is found in a picture once, when it is read, and kept beside it."""

    #: key in the data set's items
    kind: str
    #: of the file beside a cache on disk; another one when something else is found
    name: str
    #: how many numbers are found
    values: int

    def __call__(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``values`` float32 numbers for a picture (H, W) in 0…1."""


class DiskCache:
    """Read-only view of the pictures of a list in a cache that `build_cache` made.

    Shards are NumPy files (n, H, W) of uint8 or uint16, mapped when their first picture is asked for: the system keeps
    one copy of what is read for all processes of a machine. Copies of this object in loader processes map them anew.

    Args:
        folder: of the cache.
        paths: of the list's images.

    Attributes:
        usable: places in the list whose pictures are there, (n,) int64; picture i is that of place ``usable[i]``.
        reasons: why each of the others is not, by place.

    Raises:
        DataListError: there is no cache in the folder, or it is damaged.
    """

    def __init__(self, folder: str | Path, paths: ImagePaths) -> None:
        self.folder = Path(folder)
        header = CacheHeader.load(self.folder)
        if header is None:
            raise DataListError(
                f"no cache in {self.folder}; with several machines, cache_dir must be a folder that all of them see"
            )
        self.header = header
        index = load_index(self.folder)
        rows = find_rows(index["path"], path_hashes(paths))
        states = np.where(rows >= 0, index["state"][rows], PENDING) if len(index) else np.zeros(len(rows), np.uint8)
        self.usable = np.flatnonzero(states == READY)
        self.slots = index["slot"][rows[self.usable]].astype(np.int64)
        self.reasons = {
            int(place): _reason(header, index, int(rows[place])) for place in np.flatnonzero(states != READY)
        }
        self._shards: dict[int, NDArray[Any]] = {}
        self._beside: dict[str, NDArray[np.float16]] = {}
        for shard in np.unique(self.slots // header.shard_rows).tolist():
            self._check(shard)

    def __len__(self) -> int:
        return len(self.slots)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_beside": {}}  # pixels are mapped again, not sent

    def stored(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Give pictures as they are stored, (B, H, W) of the cache's dtype."""
        pictures = np.empty((len(places), *self.header.size), dtype=self.header.dtype)
        for shard, here, rows in self._by_shard(places):
            pictures[here] = shard[rows]
        return pictures

    def gather(
        self, places: Sequence[int] | NDArray[np.integer[Any]], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Give pictures as float32 in 0…1, (B, H, W).

        Args:
            places: of the pictures, each from 0 to the cache's length.
            out: array to write into.
        """
        pictures = np.empty((len(places), *self.header.size), dtype=np.float32) if out is None else out
        np.divide(
            self.stored(places), np.float32(DTYPES[self.header.dtype]), out=pictures, dtype=np.float32, casting="unsafe"
        )
        return pictures

    def annotate(self, annotation: Annotation) -> None:
        """Find what is not yet known of the pictures, and write it beside them; one process does this.

        Raises:
            DataListError: the file beside the pictures is damaged.
        """
        known = self._annotations(annotation)
        rows = int(self.slots.max(initial=-1)) + 1
        found = np.full((rows, annotation.values), np.nan, dtype=np.float16)
        found[: min(rows, len(known))] = known[:rows]
        unknown = np.unique(self.slots[np.isnan(found[self.slots, 0])])
        if not len(unknown):
            return
        first = {slot: place for place, slot in enumerate(self.slots.tolist())}
        with ThreadPoolExecutor() as pool:
            work = pool.map(lambda slot: annotation(self.gather([first[slot]])[0]), unknown.tolist())
            for slot, values in zip(
                unknown, tqdm(work, "anatomy", len(unknown), unit="image", leave=False), strict=True
            ):
                found[slot] = values
        with (
            whole_file(self.folder / f"{annotation.name}.npy", shared=True, sync=True) as part,
            part.open("wb") as file,
        ):
            np.save(file, found)

    def annotations(self, annotation: Annotation, places: Sequence[int]) -> NDArray[np.float16]:
        """Return what was found in pictures, (B, values) float16."""
        if annotation.name not in self._beside:
            self._beside[annotation.name] = self._annotations(annotation)
        return np.ascontiguousarray(self._beside[annotation.name][self.slots[np.asarray(places, dtype=np.int64)]])

    def _annotations(self, annotation: Annotation) -> NDArray[np.float16]:
        path = self.folder / f"{annotation.name}.npy"
        if not path.exists():
            return np.empty((0, annotation.values), dtype=np.float16)
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError, EOFError) as error:
            raise DataListError(f"cache {self.folder}: {path.name} cannot be read; delete it") from error
        if known.dtype != np.float16 or known.shape[1:] != (annotation.values,):
            raise DataListError(f"cache {self.folder}: {path.name} holds something else; delete it")
        return known

    def _by_shard(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> list[tuple[NDArray[Any], Any, Any]]:
        shards, rows = np.divmod(self.slots[np.asarray(places, dtype=np.int64)], self.header.shard_rows)
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        parts = np.split(order, starts[1:])
        return [(self._shard(n), part, rows[part]) for n, part in zip(numbers.tolist(), parts, strict=True)]

    def _shard(self, number: int) -> NDArray[Any]:
        if number not in self._shards:
            path = shard_path(self.folder, number)
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataListError(f"cache {self.folder}: {path.name} cannot be read ({error}); {_AGAIN}") from error
            self._shards[number] = mapped.view(np.ndarray)  # a plain array: subclasses cost time at each access
        return self._shards[number]

    def _check(self, number: int) -> None:
        """Refuse a shard that is shorter than it should be: reading behind its end would end the process."""
        height, width = self.header.size
        expected = self.header.shard_rows * height * width * np.dtype(self.header.dtype).itemsize
        path = shard_path(self.folder, number)
        size = path.stat().st_size if path.exists() else 0
        if size < expected:
            raise DataListError(f"cache {self.folder}: {path.name} has {size} bytes, {expected} are expected; {_AGAIN}")


_AGAIN = "copy the cache again, or delete its folder so that it is made anew"


def _reason(header: CacheHeader, index: NDArray[Any], row: int) -> str:
    if row < 0 or index[row]["state"] == PENDING:
        return NOT_DECODED
    reason = header.reasons[index[row]["reason"]] if index[row]["reason"] < len(header.reasons) else "refused"
    return f"{reason} (tried again next time)" if index[row]["state"] == FAILED else reason


def left_out_in_words(reasons: dict[int, str]) -> str:
    """Count the reasons, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(reasons.values()).most_common())
