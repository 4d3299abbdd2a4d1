"""Decoded pictures at training size on disk: made once, read by any number of processes without copies."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import tokenize
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from afire_monai.core.console import hidden
from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.core.files import change_time, whole_file
from afire_monai.core.pool import Failure
from afire_monai.datalists.paths import ImagePaths
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.resize import area_average

FORMAT = 1
SHARD_ROWS = 4096  # 200 MB of 224 × 224 bytes; a million images are 250 files, which a process may hold open
PENDING, READY, REFUSED, FAILED = range(4)
_FIELDS: list[Any] = [
    *[("path", "<u8", 2), ("content", "<u8", 2), ("bytes", "<i8"), ("mtime", "<i8"), ("slot", "<i8")],
    *[("state", "u1"), ("reason", "u1")],
]
# to 64 bytes: a row never lies in two blocks of a disk, so it is written whole or not
ROW = np.dtype([*_FIELDS, ("checksum", "<u4"), ("unused", "u1", 2)])
"""A row: SHA-256 of the path and of the file's bytes (16 bytes of each), the file's size and time of change (ns), the
place of its pixels, its state, why it was refused, and the CRC-32 of its pixels (0 where earlier versions wrote it)."""
_EARLIER_ROW = np.dtype([*_FIELDS, ("unused", "u1", 6)])
DTYPES = {"uint8": 255, "uint16": 65535}


@dataclass
class CacheHeader:
    """What ``cache.json`` says: how the pixels came about.

    Attributes:
        size: height and width.
        dtype: uint8 or uint16; its largest value is 1.
        modalities: DICOM modalities that were read.
        reasons: why files were refused, in the order in which rows count them.
        shard_rows: images in a shard.
        format: of the cache.
        reading: how pictures were made smaller.
        options: other reader options than the standard ones, without ``modalities``.
    """

    size: tuple[int, int]
    dtype: str
    modalities: list[str]
    reasons: list[str] = field(default_factory=list)
    shard_rows: int = SHARD_ROWS
    format: int = FORMAT
    reading: str = "area average, aspect ratio not kept"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataListError(f"cache_dtype {self.dtype!r}: {' or '.join(DTYPES)} is expected")
        if len(self.size) != 2 or not all(_is_count(side) for side in self.size):
            raise DataListError(f"cache of size {tuple(self.size)}: a height and a width in pixels are expected")

        if not _is_count(self.shard_rows):
            raise DataListError(f"cache with {self.shard_rows!r} pictures in a file; a whole number is expected")

    @classmethod
    def load(cls, folder: Path) -> CacheHeader | None:
        """Read it; None where there is no cache yet.

        Raises:
            DataListError: not readable, or of another format.
        """
        try:
            raw = (folder / "cache.json").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataListError(f"cache {folder}: {error.strerror}; give another cache_dir") from error
        try:
            content = json.loads(raw.decode("utf-8"))
            content = {"options": {}, **content}  # which earlier versions did not have
            known = {name: content[name] for name in asdict(cls((1, 1), "uint8", []))}
            if known["format"] != FORMAT:
                raise ValueError(f"format {known['format']}")
            for name in ("modalities", "reasons"):
                if not isinstance(known[name], list) or not all(isinstance(word, str) for word in known[name]):
                    raise TypeError(f"{name} {known[name]!r}")
            return cls(**{**known, "size": tuple(known["size"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DataListError(
                f"cache {folder}: cache.json is not one of format {FORMAT} ({error}); delete the folder, or give "
                "another cache_dir"
            ) from error

    def save(self, folder: Path) -> None:
        """Write it in one piece."""
        with whole_file(folder / "cache.json", shared=True, sync=True) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def refuse_other(self, stored: CacheHeader, folder: Path) -> None:
        """Refuse a cache that was made otherwise.

        Raises:
            DataListError: naming what differs.
        """
        for name in ("size", "dtype", "modalities", "reading", "options"):
            mine, theirs = getattr(self, name), getattr(stored, name)
            if mine != theirs:
                raise DataListError(
                    f"cache {folder}: it was made with {name} {theirs}, and {mine} is asked for; delete the folder, or "
                    "give another cache_dir"
                )


def path_hashes(paths: ImagePaths) -> NDArray[np.uint64]:
    """Return the first 16 bytes of the SHA-256 of each path, (n, 2)."""
    sha256 = hashlib.sha256
    return as_hashes([sha256(path).digest()[:16] for path in paths.raw_paths()])


def as_hashes(digests: Sequence[bytes]) -> NDArray[np.uint64]:
    """Make an array (n, 2) from shortened digests."""
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def find_rows(table: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find hashes (m, 2) in a table of hashes (n, 2).

    Returns:
        Row of the table for each, (m,); -1 where it is not there.
    """
    if not len(table):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    asked = np.argsort(wanted[:, 0], kind="stable")  # looked up in order, a million are found ten times as fast
    at = np.empty(len(wanted), dtype=np.int64)
    at[asked] = np.searchsorted(table[order, 0], wanted[asked, 0])
    rows = order[np.minimum(at, len(order) - 1)]
    return np.where((table[rows] == wanted).all(axis=1), rows, -1).astype(np.int64)


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
    with ThreadPoolExecutor(8) as pool:  # a folder on the network answers late, but many at a time
        facts = [np.array(found, dtype=np.int64) for found in pool.map(look, parts)]
    both = np.concatenate([np.empty(0, dtype=np.int64), *facts]).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError, TypeError, tokenize.TokenError)
"""What NumPy raises for a file of another format or a damaged one: its head is a Python literal."""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**31


def load_index(folder: Path) -> NDArray[Any]:
    """Map the index, read-only; no rows where there is none.

    Raises:
        DataListError: it is damaged.
    """
    path = folder / "index.npy"
    if not path.exists():
        return np.empty(0, dtype=ROW)
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataListError(f"cache {folder}: index.npy cannot be read; delete the folder, or copy it anew") from error
    if index.dtype == _EARLIER_ROW and index.ndim == 1:
        index = index.view(ROW)
    if index.dtype != ROW or index.ndim != 1:
        raise DataListError(f"cache {folder}: index.npy is not an index of format {FORMAT}; delete the folder")
    return np.asarray(index)


def shard_path(folder: Path, shard: int) -> Path:
    """Name a shard: images ``shard · shard_rows`` and on."""
    return folder / f"pixels_{shard:05d}.npy"


@dataclass(frozen=True)
class Source:
    """A file to be read.

    Attributes:
        place: of the image in the list.
        path: of the file.
        content: hash of what was read before; empty if nothing was.
        size: height and width to reduce to.
        dtype: uint8 or uint16.
    """

    place: int
    path: bytes
    content: bytes
    size: tuple[int, int]
    dtype: str


@dataclass(frozen=True)
class Decoded:
    """What came of a file: its pixels, or that it is what it was, or a reason.

    Attributes:
        content: SHA-256 of the file's bytes, 16 bytes; empty if it cannot be opened.
        pixels: (H, W); None if there are none.
        reason: why not; one of the reader's constant kinds, which name no file and no patient.
        unchanged: whether the content is that of before.
        stored: whether the cache holds the pixels of another file of this content.
    """

    content: bytes
    pixels: NDArray[Any] | None = None
    reason: str = ""
    unchanged: bool = False
    stored: bool = False


@functools.lru_cache(maxsize=1)
def stored_contents(folder: str, build: str) -> NDArray[np.uint64]:
    """Return the contents that a cache held when its filling began, sorted, (n, 2).

    Args:
        folder: of the cache.
        build: names one filling; a process asks once for each.
    """
    index = load_index(Path(folder))
    contents = np.ascontiguousarray(index["content"][index["state"] == READY])
    return contents[np.argsort(contents[:, 0], kind="stable")]


def _holds(contents: NDArray[np.uint64], content: bytes) -> bool:
    wanted = np.frombuffer(content, dtype="<u8")
    at = int(np.searchsorted(contents[:, 0], wanted[0]))
    return at < len(contents) and bool((contents[at] == wanted).all())


def decode(source: Source, reader: Mapping[str, Any], stored: NDArray[np.uint64]) -> Decoded:
    """Read a file, reduce it to the size and round it to whole numbers.

    Args:
        source: the file.
        reader: arguments of `read_picture`.
        stored: contents whose pixels need not be made again, as `stored_contents` gives them.
    """
    path = os.fsdecode(source.path)
    content = b""
    try:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()[:16]
        if content == source.content:
            return Decoded(content, unchanged=True)
        if _holds(stored, content):
            return Decoded(content, stored=True)
        pixels = read_picture(path, **reader).pixels
    except RadiographError as error:
        return Decoded(content, reason=error.kind)
    except OSError:
        return Decoded(content, reason="not readable")
    if not np.isfinite(pixels).all():
        return Decoded(content, reason="not finite")
    return Decoded(content, quantised(area_average(pixels, source.size), source.dtype))


def quantised(pixels: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round 0…1 to the whole numbers of a type, the largest of which stands for 1."""
    return np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(DTYPES[dtype])).astype(dtype)


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
        contents, stored = self.index["content"][ready], self.index[["slot", "checksum"]][ready]
        self.slots: dict[bytes, tuple[int, int]] = dict(zip(map(bytes, contents), stored.tolist(), strict=True))
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
                new["state"], (new["slot"], new["checksum"]) = READY, self.slots[result.content]
            elif result.pixels is None:
                new["state"] = FAILED if result.reason in _PASSING else REFUSED
                new["reason"] = self._reason(result.reason)
            else:
                new["state"], (new["slot"], new["checksum"]) = READY, self._store(result.content, result.pixels)
        self.new[row] = new
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def _reason(self, reason: str) -> int:
        reasons = self.header.reasons
        if reason not in reasons and len(reasons) < 255:
            reasons.append(reason)
            self.header.save(self.folder)
        return reasons.index(reason) if reason in reasons else 255

    def _store(self, content: bytes, pixels: NDArray[Any]) -> tuple[int, int]:
        """Write pixels into the next free place, never over others: somebody may be reading those; with checksum."""
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
        self.slots[content], self.next_slot = (slot, _checksum(pixels)), slot + 1
        return self.slots[content]

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


def _checksum(pixels: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).data) or 1  # 0 stands for none


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
        self._unseen = index["checksum"][rows[self.usable]]  # 0 once a picture has been found whole
        self.reasons = {
            int(place): _reason(header, index, int(rows[place])) for place in np.flatnonzero(states != READY)
        }
        if self.slots.min(initial=0) < 0:
            raise DataListError(f"cache {self.folder}: index.npy is damaged, a place is below 0; {_AGAIN}")
        self._shards: dict[int, NDArray[Any]] = {}
        self._beside: dict[str, NDArray[np.float16]] = {}
        for shard in np.unique(self.slots // header.shard_rows).tolist():
            self._check(shard)

    def __len__(self) -> int:
        return len(self.slots)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_beside": {}}  # pixels are mapped again, not sent

    def stored(self, places: Sequence[int] | NDArray[np.integer[Any]], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return pictures as they are stored, (B, H, W) of the cache's dtype; in ``out`` if it is given.

        Each is compared with its checksum when a process reads it for the first time.

        Raises:
            DataListError: one is not as it was written.
        """
        pictures = np.empty((len(places), *self.header.size), dtype=self.header.dtype) if out is None else out
        for shard, here, rows in self._by_shard(places):
            pictures[here] = shard[rows]
        places = np.asarray(places, dtype=np.int64)
        for here in np.flatnonzero(self._unseen[places]).tolist():
            if _checksum(pictures[here]) != self._unseen[places[here]]:
                place, shard_number = int(places[here]), int(self.slots[places[here]]) // self.header.shard_rows
                raise DataListError(
                    f"cache {self.folder}: the picture of image {self.usable[place]} of the list is damaged "
                    f"({shard_path(self.folder, shard_number).name}), so its disk may be failing; {_AGAIN}"
                )
        self._unseen[places] = 0
        return pictures

    def gather(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return pictures as float32 in 0…1, (B, H, W).

        Args:
            places: of the pictures, each from 0 to the cache's length.
        """
        return np.divide(self.stored(places), np.float32(DTYPES[self.header.dtype]), dtype=np.float32, casting="unsafe")

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
                unknown, tqdm(work, "anatomy", len(unknown), unit="image", leave=False, disable=hidden()), strict=True
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
        except _UNREADABLE as error:
            raise DataListError(f"cache {self.folder}: {path.name} cannot be read; delete it") from error
        if known.dtype != np.float16 or known.shape[1:] != (annotation.values,):
            raise DataListError(f"cache {self.folder}: {path.name} holds something else; delete it")
        return known

    def _by_shard(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> list[tuple[NDArray[Any], Any, Any]]:
        if not len(places):
            return []
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
            except _UNREADABLE as error:
                raise DataListError(f"cache {self.folder}: {path.name} cannot be read ({error}); {_AGAIN}") from error
            expected = (self.header.shard_rows, *self.header.size)
            if mapped.shape != expected or mapped.dtype != self.header.dtype or np.isfortran(mapped):
                raise DataListError(
                    f"cache {self.folder}: {path.name} holds {mapped.dtype} {mapped.shape}, {self.header.dtype} "
                    f"{expected} is expected; {_AGAIN}"
                )
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
