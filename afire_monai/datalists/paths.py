"""The images of a long list in little memory, for training that only needs the file of each item."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class ImagePaths(Sequence[dict[str, Any]]):
    """Data-list items that hold an image and nothing else, as one block of bytes.

    An item is made when it is asked for: ``paths[3]`` is ``{"image": "/data/3.png"}``. A million items take some 100 MB
    less than as dictionaries, and loader processes share them: nothing is counted, so no page is ever written.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._set(b"".join(encoded), np.concatenate([[0], ends[:-1]]) if encoded else ends, ends)

    def _set(self, block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self._block, self._starts, self._ends = block, starts.astype(np.int64), ends

    @classmethod
    def of(cls, items: Sequence[Any]) -> ImagePaths:
        """Take the images of data-list items."""
        return items if isinstance(items, cls) else cls(str(item["image"]) for item in items)

    def take(self, places: NDArray[np.integer[Any]] | slice) -> ImagePaths:
        """Return the items at some places, in that order."""
        taken = object.__new__(ImagePaths)
        taken._set(self._block, self._starts[places], self._ends[places])
        return taken

    def raw(self, place: int) -> bytes:
        """Return a path as the file system spells it."""
        return self._block[self._starts[place] : self._ends[place]]

    def raw_paths(self) -> list[bytes]:
        """Return all paths as the file system spells them."""
        block = self._block
        return [block[start:end] for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True)]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> ImagePaths: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | ImagePaths:
        if isinstance(place, slice):
            return self.take(place)
        return {"image": os.fsdecode(self.raw(place))}


def names_hash(items: Sequence[Any]) -> str:
    """Return a hash (16 hexadecimal digits) of a run's training data: file names in their order, masks, targets.

    Folders do not count, so that data may move between two parts of a run.

    Args:
        items: data-list items, with ``image`` and, if present, ``mask`` and ``target``.
    """
    whole = hashlib.sha256()
    if isinstance(items, ImagePaths):
        for path in items.raw_paths():
            whole.update(os.path.basename(path) + b"\0")
    else:
        for item in items:
            whole.update(os.path.basename(os.fsencode(str(item["image"]))) + b"\0")
            mask = item.get("mask")
            extras = [os.path.basename(mask)] if isinstance(mask, str | os.PathLike) else []
            if "target" in item:
                extras.append(str([float(value) for value in item["target"]]))
            whole.update("".join(f"{extra}\1" for extra in extras).encode(errors="surrogateescape"))
    return whole.hexdigest()[:16]
