"""The index of a cache on disk: what it holds of which file, without any file's name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import DataListError
from afire_monai.core.files import whole_file
from afire_monai.datalists.paths import ImagePaths

FORMAT = 1
SHARD_ROWS = 4096  # 200 MB of 224 × 224 bytes; a million images are 250 files, which a process may hold open
PENDING, READY, REFUSED, FAILED = range(4)
ROW = np.dtype(
    [
        *[("path", "<u8", 2), ("content", "<u8", 2), ("bytes", "<i8"), ("mtime", "<i8"), ("slot", "<i8")],
        *[("state", "u1"), ("reason", "u1")],
        ("unused", "u1", 6),  # to 64 bytes: a row never lies in two blocks of a disk, so it is written whole or not
    ]
)
"""A row: SHA-256 of the path and of the file's bytes (16 bytes of each), the file's size and time of change (ns), the
place of its pixels, its state, and why it was refused."""
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
    """

    size: tuple[int, int]
    dtype: str
    modalities: list[str]
    reasons: list[str] = field(default_factory=list)
    shard_rows: int = SHARD_ROWS
    format: int = FORMAT
    reading: str = "area average, aspect ratio not kept"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DataListError(f"cache_dtype {self.dtype!r}: {' or '.join(DTYPES)} is expected")
        if len(self.size) != 2 or min(self.size) < 1:
            raise DataListError(f"cache of size {tuple(self.size)}: a height and a width in pixels are expected")

    @classmethod
    def load(cls, folder: Path) -> CacheHeader | None:
        """Read it; None where there is no cache yet.

        Raises:
            DataListError: not readable, or of another format.
        """
        try:
            text = (folder / "cache.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataListError(f"cache {folder}: {error.strerror}; give another cache_dir") from error
        try:
            content = json.loads(text)
            known = {name: content[name] for name in asdict(cls((1, 1), "uint8", []))}
            if known["format"] != FORMAT:
                raise ValueError(f"format {known['format']}")
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
        for name in ("size", "dtype", "modalities", "reading"):
            mine, theirs = getattr(self, name), getattr(stored, name)
            if mine != theirs:
                raise DataListError(
                    f"cache {folder}: it was made with {name} {theirs}, and {mine} is asked for; delete the folder, or "
                    "give another cache_dir"
                )


def path_hashes(paths: ImagePaths) -> NDArray[np.uint64]:
    """Give the first 16 bytes of the SHA-256 of each path, (n, 2)."""
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
    """Give size and time of change (ns) of each file; -1 for one that is not there."""

    def look(part: list[bytes]) -> list[int]:
        facts: list[int] = []
        for path in part:
            try:
                found = os.stat(path)
            except OSError:
                facts += (-1, -1)
            else:
                facts += (found.st_size, found.st_mtime_ns)
        return facts

    raw = paths.raw_paths()
    parts = [raw[start : start + 4096] for start in range(0, len(raw), 4096)]
    with ThreadPoolExecutor(8) as pool:  # a folder on the network answers late, but many at a time
        facts = [np.array(found, dtype=np.int64) for found in pool.map(look, parts)]
    both = np.concatenate([np.empty(0, dtype=np.int64), *facts]).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


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
    except (OSError, ValueError, EOFError) as error:
        raise DataListError(f"cache {folder}: index.npy cannot be read; delete the folder, or copy it anew") from error
    if index.dtype != ROW or index.ndim != 1:
        raise DataListError(f"cache {folder}: index.npy is not an index of format {FORMAT}; delete the folder")
    return np.asarray(index)


def shard_path(folder: Path, shard: int) -> Path:
    """Name a shard: images ``shard · shard_rows`` and on."""
    return folder / f"pixels_{shard:05d}.npy"
