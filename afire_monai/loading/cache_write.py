"""Writing a cache on disk: pixels first, then the rows that say so."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.files import whole_file
from afire_monai.core.pool import Failure
from afire_monai.loading.cache_index import FAILED, READY, REFUSED, ROW, CacheHeader, as_hashes, shard_path
from afire_monai.loading.cache_read import Decoded

FLUSH_SECONDS = 5.0
_PASSING = ("not readable", "codec not installed")  # refusals that say nothing of the file's content


@dataclass
class Survey:
    """What a list asks of a cache: the index with a row for each file, and the places in the list to be read."""

    index: NDArray[Any]
    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    todo: NDArray[np.int64]
    added: int


class CacheWriter:
    """Puts results into a cache; one at a time may be at work in a folder.

    Args:
        folder: of the cache.
        header: written at once.
        survey: which rows there are to be.
    """

    def __init__(self, folder: Path, header: CacheHeader, survey: Survey) -> None:
        self.folder, self.header, self.survey = folder, header, survey
        self.index = survey.index
        self.dirty: list[int] = []
        self.new: dict[int, Any] = {}
        self.shards: dict[int, BinaryIO] = {}
        self.next_slot = int(self.index["slot"].max(initial=-1)) + 1
        ready = self.index["state"] == READY
        contents = self.index["content"][ready]
        self.slots = dict(zip(map(bytes, contents), self.index["slot"][ready].tolist(), strict=True))
        self.flushed = time.monotonic()
        header.save(folder)
        if survey.added or not (folder / "index.npy").exists():
            with whole_file(folder / "index.npy", shared=True, sync=True) as part, part.open("wb") as file:
                np.save(file, self.index)
        self.offset = int(np.load(folder / "index.npy", mmap_mode="r").offset)

    def take(self, place: int, result: Decoded | Failure) -> None:
        """Store one picture, or why there is none."""
        row = int(self.survey.rows[place])
        new = self.index[row].copy()
        new["bytes"], new["mtime"] = self.survey.sizes[place], self.survey.mtimes[place]
        if isinstance(result, Failure):
            new["state"], new["reason"] = FAILED, self._reason(result.kind)
        elif result.unchanged:
            pass
        else:
            new["content"] = as_hashes([result.content])[0] if result.content else 0
            if result.stored:
                new["state"], new["slot"] = READY, self.slots[result.content]
            elif result.pixels is None:
                new["state"] = FAILED if result.reason in _PASSING else REFUSED
                new["reason"] = self._reason(result.reason)
            else:
                new["state"], new["slot"] = READY, self._store(result.content, result.pixels)
        self.new[row] = new
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _reason(self, reason: str) -> int:
        reasons = self.header.reasons
        if reason not in reasons and len(reasons) < 255:
            reasons.append(reason)
            self.header.save(self.folder)
        return reasons.index(reason) if reason in reasons else 255

    def _store(self, content: bytes, pixels: NDArray[Any]) -> int:
        """Write pixels into the next free place, never over others: somebody may be reading those."""
        if content in self.slots:
            return self.slots[content]
        slot = self.next_slot
        number, place = divmod(slot, self.header.shard_rows)
        shard = self.shards.get(number)
        if shard is None:
            shard = self.shards[number] = self._open(number)
        shard.seek(-(self.header.shard_rows - place) * pixels.nbytes, os.SEEK_END)
        left = memoryview(pixels.tobytes())
        while left:  # an unbuffered file may take a part
            left = left[shard.write(left) :]
        self.slots[content], self.next_slot = slot, slot + 1
        return slot

    def _open(self, number: int) -> BinaryIO:
        """Open a shard; a new one has its whole length, of which the disk keeps what has been written."""
        path = shard_path(self.folder, number)
        shape = (self.header.shard_rows, *self.header.size)
        bytes_each = int(np.prod(shape)) * np.dtype(self.header.dtype).itemsize
        if not path.exists():
            facts = {"descr": np.dtype(self.header.dtype).str, "fortran_order": False, "shape": shape}
            with whole_file(path, shared=True, sync=True) as part, part.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, facts)
                file.truncate(file.tell() + bytes_each)
        return open(path, "r+b", buffering=0)

    def flush(self) -> None:
        """Bring pixels to the disk, then the rows that count on them."""
        new, self.new = self.new, {}  # whoever calls again after an error must not count what may be lost
        for shard in self.shards.values():
            os.fsync(shard.fileno())
        for number in [n for n in self.shards if n != (self.next_slot - 1) // self.header.shard_rows]:
            self.shards.pop(number).close()
        if new:
            rows = np.array(sorted(new))
            for row in rows.tolist():
                self.index[row] = new[row]
            with open(self.folder / "index.npy", "r+b", buffering=0) as file:
                for part in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
                    file.seek(self.offset + int(part[0]) * ROW.itemsize)
                    file.write(self.index[part[0] : part[-1] + 1].tobytes())
                os.fsync(file.fileno())
        self.flushed = time.monotonic()

    def close(self) -> None:
        """Keep what has been stored, also after an error."""
        try:
            self.flush()
        finally:
            for shard in self.shards.values():
                shard.close()
            self.shards.clear()
