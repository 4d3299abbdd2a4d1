"""Decoded pictures at training size on disk, read by any number of processes without copies.

A cache is a folder of two files. ``pixels.bin`` holds pictures one after the other, (n, H, W) of uint8 or uint16, and
is mapped into memory. ``index.npz`` says how they came about and has a row for each; it is replaced as a whole, after
the pixels that it counts have reached the disk. Pixels that it counts never change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from afire_monai.core.errors import DataListError
from afire_monai.core.files import whole_file
from afire_monai.core.quiet import hidden
from afire_monai.datalists.paths import ImagePaths
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES, modality_names

FORMAT = 2
PIXELS = "pixels.bin"
DTYPES = {"uint8": 255, "uint16": 65535}
NOT_DECODED, READY = 0, 1
ROW = np.dtype(
    [("path", "<u8", 2), ("bytes", "<i8"), ("mtime", "<i8"), ("checksum", "<u4"), ("outcome", "<u2"), ("unused", "u2")]
)
"""A row: SHA-256 of the path (its first 16 bytes), the file's size and time of change (ns), the CRC-32 of the picture,
and what came of the file, by its place in `CacheIndex.outcomes`. The picture has the row's place in ``pixels.bin``."""
_AGAIN = "copy the cache again, or delete its folder so that it is built again"


@dataclass
class CacheIndex:
    """The index of a cache.

    Attributes:
        settings: how the pictures came about, as `cache_settings` returns it.
        outcomes: possible results of reading a file; rows give their place in this list.
        rows: (n,) of `ROW`.
    """

    settings: dict[str, Any]
    outcomes: list[str] = field(default_factory=lambda: ["not decoded yet", "ready"])
    rows: NDArray[Any] = field(default_factory=lambda: np.empty(0, ROW))

    @classmethod
    def load(cls, folder: Path) -> CacheIndex | None:
        """Read the index; None if there is no cache yet.

        Raises:
            DataListError: if it cannot be read, is damaged, or has another format.
        """
        try:
            with np.load(folder / "index.npz", allow_pickle=False) as stored:
                (settings, outcomes), rows = json.loads(str(stored["about"])), stored["rows"]
            if settings["format"] != FORMAT or rows.dtype != ROW or rows.ndim != 1:
                raise ValueError("another format")
        except FileNotFoundError:
            if (folder / "cache.json").exists():
                raise DataListError(
                    f"cache {folder}: it has an earlier format; delete the folder, or give another cache_dir"
                ) from None
            return None
        except (OSError, MemoryError) as error:  # the index may be intact
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise DataListError(
                f"cache {folder}: index.npz cannot be read now ({reason}); try again, or give another cache_dir"
            ) from error
        except Exception as error:  # a damaged archive can raise any exception
            raise DataListError(
                f"cache {folder}: index.npz cannot be read ({error}); delete the folder, or give another cache_dir"
            ) from error
        return cls(settings, outcomes, rows)

    def save(self, folder: Path) -> None:
        """Write the index in one piece."""
        with whole_file(folder / "index.npz", sync=True) as part, part.open("wb") as file:
            np.savez(file, about=json.dumps([self.settings, self.outcomes]), rows=self.rows)

    def look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Find files by the hashes of their paths, (m, 2).

        Returns:
            The place of each one's row, (m,), -1 if there is none; and the rows, (m,), of zeros if there is none.
        """
        places = _find(self.rows["path"], hashes)
        return places, np.concatenate([self.rows, np.zeros(1, ROW)])[places]


def cache_settings(size: Sequence[int], dtype: str, reader: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all settings that change the pictures, as JSON holds them.

    Args:
        size: height and width.
        dtype: uint8 or uint16; its largest value is 1.
        reader: arguments of `read_picture` that differ from the standard ones.

    Raises:
        DataListError: if the size or the type is not a valid one.
    """
    if dtype not in DTYPES:
        raise DataListError(f"cache_dtype {dtype!r}: {' or '.join(DTYPES)} is expected")
    if len(size) != 2 or not all(int(side) == side and side >= 1 for side in size):
        raise DataListError(f"cache of size {tuple(size)}: a height and a width in pixels are expected")
    options = dict(reader or {})
    names = modality_names(options.pop("modalities", RADIOGRAPHY_MODALITIES))
    read = {"modalities": sorted(names) if names is not None else ["any"], "options": options}
    settings = {"format": FORMAT, "size": [int(side) for side in size], "dtype": dtype, **read}
    return json.loads(json.dumps(settings))


def path_hashes(paths: ImagePaths) -> NDArray[np.uint64]:
    """Return the first 16 bytes of the SHA-256 of each path, (n, 2)."""
    sha256 = hashlib.sha256
    return np.frombuffer(b"".join(sha256(path).digest()[:16] for path in paths.raw_paths()), "<u8").reshape(-1, 2)


def _find(table: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(table):
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    asked = np.argsort(wanted[:, 0], kind="stable")  # sorted look-ups find a million ten times as fast
    at = np.empty(len(wanted), dtype=np.int64)
    at[asked] = np.searchsorted(table[order, 0], wanted[asked, 0])
    rows = order[np.minimum(at, len(order) - 1)]
    return np.where((table[rows] == wanted).all(axis=1), rows, -1).astype(np.int64)


class Annotation(Protocol):
    """Numbers that are computed once from each picture, and kept beside it."""

    #: key in the data set's items
    kind: str
    #: name of the file beside a cache on disk; it changes with the kind of numbers
    name: str
    #: number of values for each picture
    values: int

    def __call__(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return ``values`` float32 numbers for a picture (H, W) in 0…1."""


class DiskCache:
    """Read-only view of the pictures of a list in a cache that `build_cache` made.

    Pictures are mapped into memory: the system keeps one copy of what is read for all processes of a machine. Copies of
    this object in loader processes map them again.

    Args:
        folder: folder of the cache.
        paths: paths of the list's images.

    Attributes:
        size: height and width.
        dtype: uint8 or uint16.
        usable: places in the list whose pictures are there, (n,) int64; picture i is that of place ``usable[i]``.
        reasons: reason why each of the other pictures is missing, by place.

    Raises:
        DataListError: if there is no cache in the folder, or it is damaged.
    """

    def __init__(self, folder: str | Path, paths: ImagePaths) -> None:
        self.folder = Path(folder)
        index = CacheIndex.load(self.folder)
        if index is None:
            raise DataListError(
                f"no cache in {self.folder}; with several machines, cache_dir must be a folder that all of them see"
            )
        self.size, self.dtype = tuple(index.settings["size"]), index.settings["dtype"]
        places, rows = index.look_up(path_hashes(paths))
        ready = rows["outcome"] == READY
        self.usable = np.flatnonzero(ready)
        self.slots = places[ready]
        self._checksums = rows["checksum"][ready]
        self._unchecked = np.ones(len(self.slots), dtype=bool)
        self.reasons = {int(at): index.outcomes[rows["outcome"][at]] for at in np.flatnonzero(~ready)}
        self._beside: dict[str, NDArray[np.float16]] = {}
        self.pixels  # noqa: B018 - a file that is too short is refused here, not in the middle of a training

    def __len__(self) -> int:
        return len(self.slots)

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_beside": {}}
        state.pop("pixels", None)  # mapped again, not sent
        return state

    @functools.cached_property
    def pixels(self) -> NDArray[Any]:
        """Pictures as they are stored, by slot, (n, H, W)."""
        shape = (int(self.slots.max(initial=-1)) + 1, *self.size)
        if not len(self):
            return np.empty(shape, self.dtype)
        try:  # a plain array: subclasses cost time at each access
            return np.memmap(self.folder / PIXELS, self.dtype, "r", shape=shape).view(np.ndarray)
        except (OSError, ValueError) as error:  # ValueError: shorter than the shape
            raise DataListError(
                f"cache {self.folder}: {PIXELS} does not hold {shape[0]} pictures of {self.dtype} {self.size} "
                f"({error}); {_AGAIN}"
            ) from error

    def stored(self, places: Sequence[int] | NDArray[np.integer[Any]], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return pictures as they are stored, (B, H, W) of the cache's dtype; in ``out`` if it is given.

        Each is compared with its checksum when a process reads it for the first time.

        Raises:
            DataListError: if a picture has changed since it was written.
        """
        places = np.asarray(places, dtype=np.int64)
        # all slots are in range: only with clip does NumPy need no buffer
        pictures: NDArray[Any] = np.take(self.pixels, self.slots[places], axis=0, out=out, mode="clip")
        for here in np.flatnonzero(self._unchecked[places]).tolist():
            if checksum(pictures[here]) != self._checksums[places[here]]:
                raise DataListError(
                    f"cache {self.folder}: the picture of image {self.usable[places[here]]} of the list is damaged "
                    f"({PIXELS}), so its disk may be failing; {_AGAIN}"
                )
        self._unchecked[places] = False
        return pictures

    def gather(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return pictures as float32 in 0…1, (B, H, W).

        Args:
            places: places of the pictures, each from 0 to the cache's length.
        """
        return np.divide(self.stored(places), np.float32(DTYPES[self.dtype]), dtype=np.float32, casting="unsafe")

    def unknown(self, annotation: Annotation) -> NDArray[np.int64]:
        """Return the pictures of which it is not known yet, (m,).

        Raises:
            DataListError: if the file beside the pictures is damaged.
        """
        known = self._annotations(annotation)[:, 0]
        there = self.slots < len(known)
        there[there] = ~np.isnan(known[self.slots[there]])
        return np.flatnonzero(~there)

    def annotate(self, annotation: Annotation) -> None:
        """Compute missing annotations, and write them beside the pictures; one process of all does this.

        Raises:
            DataListError: as for :meth:`unknown`.
        """
        known, unknown = self._annotations(annotation), self.unknown(annotation)
        # the pictures of other lists keep their annotations
        found = np.full((max(len(self.pixels), len(known)), annotation.values), np.nan, dtype=np.float16)
        found[: len(known)] = known
        with ThreadPoolExecutor() as pool:
            work = pool.map(lambda place: annotation(self.gather([place])[0]), unknown.tolist())
            for slot, values in zip(
                self.slots[unknown],
                tqdm(work, "anatomy", len(unknown), unit="image", leave=False, disable=hidden()),
                strict=True,
            ):
                found[slot] = values
        path = self.folder / f"{annotation.name}.npy"
        with whole_file(path, shared=True, sync=True) as part, part.open("wb") as file:
            np.save(file, found)

    def annotations(self, annotation: Annotation, places: Sequence[int]) -> NDArray[np.float16]:
        """Return the annotations of pictures, (B, values) float16.

        Raises:
            DataListError: if they are missing for some pictures.
        """
        if annotation.name not in self._beside:
            if count := len(self.unknown(annotation)):
                raise DataListError(f"cache {self.folder}: {annotation.name}.npy lacks {count} pictures; start again")
            self._beside[annotation.name] = self._annotations(annotation)
        return np.ascontiguousarray(self._beside[annotation.name][self.slots[np.asarray(places, dtype=np.int64)]])

    def _annotations(self, annotation: Annotation) -> NDArray[np.float16]:
        path = self.folder / f"{annotation.name}.npy"
        try:
            known = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except FileNotFoundError:
            return np.empty((0, annotation.values), dtype=np.float16)
        except Exception as error:  # a damaged header can raise any exception
            raise DataListError(f"cache {self.folder}: {path.name} cannot be read; delete it") from error
        if known.dtype != np.float16 or known.shape[1:] != (annotation.values,):
            raise DataListError(f"cache {self.folder}: {path.name} holds something else; delete it")
        return known


def checksum(picture: NDArray[Any]) -> int:
    """Return the CRC-32 of a picture's bytes."""
    return zlib.crc32(np.ascontiguousarray(picture).data)


def left_out_in_words(reasons: dict[int, str]) -> str:
    """Count the reasons, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(reasons.values()).most_common())
