"""One file to the pixels that a cache keeps; what the processes that fill it do."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import RadiographError
from afire_monai.loading.cache_index import DTYPES, READY, load_index
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.resize import area_average


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
    """Give the contents that a cache held when its filling began, sorted, (n, 2).

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


def decode(source: Source, modalities: Collection[str] | None, stored: NDArray[np.uint64]) -> Decoded:
    """Read a file, reduce it to the size and round it to whole numbers.

    Args:
        source: the file.
        modalities: DICOM modalities to read; None for any.
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
        pixels = read_picture(path, modalities).pixels
    except RadiographError as error:
        return Decoded(content, reason=str(getattr(error, "kind", "refused")))
    except OSError:
        return Decoded(content, reason="not readable")
    if not np.isfinite(pixels).all():
        return Decoded(content, reason="not finite")
    return Decoded(content, quantised(area_average(pixels, source.size), source.dtype))


def quantised(pixels: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round 0…1 to the whole numbers of a type, the largest of which stands for 1."""
    return np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(DTYPES[dtype])).astype(dtype)
