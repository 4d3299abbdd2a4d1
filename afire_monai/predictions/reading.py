"""Read radiographs ahead of the network: threads decode while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.judgement import FIT
from afire_monai.radiographs.reader import RadiographReader, Unfit

Size = tuple[int, int]
T = TypeVar("T")
R = TypeVar("R")
DISPLAY_SIDE = 512
"""Longest side of pictures for people, in pixels; smaller radiographs keep their size."""


@dataclass(frozen=True)
class Radiograph:
    """One radiograph at the sizes that the networks want."""

    index: int  #: place in the source
    images: dict[Size, Tensor]  #: for each size (height, width) the picture (1, height, width) float32 in 0…1
    shape: Size  #: rows and columns of the file
    display: Tensor | None = None  #: (1, h, w) for people, of the file's aspect; None unless asked for
    judgement: str = ""  #: of a DICOM file that was judged: `FIT`, or why it is not a frontal chest radiograph; else ""


@dataclass(frozen=True)
class LeftOut:
    """A file that cannot be used, and why: in words without names and paths."""

    index: int
    reason: str


def display_size(shape: Size, side: int = DISPLAY_SIDE) -> Size:
    """Return the size of pictures that are written for a radiograph: its own, at most ``side`` on its long side."""
    scale = min(1.0, side / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def resize(picture: Tensor, size: Size) -> Tensor:
    """Average (C, H, W) over areas to a size, as the reading of training does (`training.startup.reading`)."""
    return F.interpolate(picture[None], size, mode="area")[0]


def read_radiograph(
    index: int,
    file: str,
    sizes: Iterable[Size],
    display: bool = False,
    options: Mapping[str, Any] | None = None,
    unfit: Unfit = "read",
) -> Radiograph | LeftOut:
    """Decode one file and bring it to the networks' sizes.

    Args:
        index: place in the source.
        file: path.
        sizes: (height, width) of each network.
        display: also keep a picture for people.
        options: of the reader, as a data list keeps them.
        unfit: treatment of DICOM files that are not frontal chest radiographs, see `RadiographReader`.

    Returns:
        The radiograph or, if anything is wrong with the file, the reason why there is none.
    """
    try:
        reader = RadiographReader(**(options or {}), unfit=unfit)
        pixels, metadata = reader.get_data(reader.read(file))
        if not pixels.max() > pixels.min():
            return LeftOut(index, "constant: all pixels have the same value, so there is no radiograph to see")
        picture = torch.from_numpy(pixels)
        shape = (picture.shape[1], picture.shape[2])
        shown = resize(picture, display_size(shape)) if display else None
        images = {size: resize(picture, size) for size in sizes}
        judged = unfit != "read" and metadata["format"] == "DICOM"
        return Radiograph(index, images, shape, shown, (metadata["unfit"] or FIT) if judged else "")
    except RadiographError as error:
        return LeftOut(index, error.reason(file))
    except Exception as error:  # one strange file must not end the prediction of thousands
        # its message is left out: other libraries quote the header
        return LeftOut(index, f"unexpected error: {type(error).__name__} while reading; please report this file")


def batches(
    results: Iterable[Radiograph | LeftOut], size: int, left_out: dict[int, str] | None = None
) -> Iterator[list[Radiograph]]:
    """Gather radiographs into lists of this length, the last one perhaps shorter; note why others are left out."""
    batch: list[Radiograph] = []
    for result in results:
        if isinstance(result, Radiograph):
            batch.append(result)
        elif left_out is not None:
            left_out[result.index] = result.reason
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def ahead(work: Callable[[T], R], tasks: Sequence[T], workers: int, depth: int) -> Iterator[R]:
    """Do work in threads, at most `depth` tasks ahead of whoever takes the results, which keep their order.

    Args:
        work: function to call for each task; threads suffice, as decoders and PyTorch release the interpreter.
        tasks: arguments of these calls.
        workers: number of threads; 0 does the work in the caller's thread.
        depth: number of results that may wait.
    """
    if workers == 0:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        following = iter(tasks)
        waiting: deque[Future[R]] = deque(pool.submit(work, task) for task in islice(following, depth))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, task) for task in islice(following, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
