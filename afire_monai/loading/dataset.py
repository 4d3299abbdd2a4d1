"""A data set of radiographs that survives bad files and can keep the decoded pictures in memory or on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info
from tqdm import tqdm

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.core.quiet import hidden
from afire_monai.datalists.paths import ImagePaths
from afire_monai.loading.cache import Annotation, DiskCache, left_out_in_words
from afire_monai.loading.cache_build import cache_of, open_cache

logger = logging.getLogger(__name__)


class RadiographDataset(Dataset[dict[str, Any]]):
    """Radiographs of a data list, read and resized by a transform.

    A file that cannot be used is left out with a warning, and the run continues. Its reason is kept in
    :attr:`left_out` (found while reading all files at the start) or :attr:`refused` (found later).

    A loader asks for a whole batch at once; use :meth:`collate` as its ``collate_fn``.

    Args:
        data: data-list items, each with ``image``.
        transform: function that turns an item into a dictionary with ``image`` (C, H, W) float32 in 0…1.
        cache: read everything once, in threads, and keep it in shared memory as float16 (2 bytes a pixel): the workers
            of a loader share it. ``"disk"``: keep it in ``cache_dir``, where later runs and other processes find it
            (`open_cache`). With False, each file is read on request, and the next usable one replaces one that
            cannot be used.
        skip: try all files first and leave out those that cannot be used, so that each usable image comes exactly once
            (for inference); costs a second reading unless ``cache`` is on, which does the same.
        extras: further keys of the transform's result to return as tensors of one shape each, such as ``target`` or
            ``mask``; cached as they are, in memory alone.
        cache_dir: folder for ``"disk"``; the transform must be `startup.reading`'s, which names a size.
        cache_dtype: type of the pictures there, ``uint8`` or ``uint16``.
        annotate: annotation that is computed once from each picture, and returned beside it under its ``kind``.

    Raises:
        DataListError: if there is no item, none of them can be used, or the cache cannot be made.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], Any],
        cache: bool | str = False,
        skip: bool = False,
        extras: Sequence[str] = (),
        cache_dir: str | Path = "",
        cache_dtype: str = "uint8",
        annotate: Annotation | None = None,
    ) -> None:
        if not data:
            raise DataListError("the data list has no image here; look at its sections with `afire check`")
        if cache not in (True, False, "disk"):
            raise DataListError(f"cache: {cache!r}; true (in memory), false or disk is expected")
        self.items: Sequence[Mapping[str, Any]] = data if isinstance(data, ImagePaths) else list(data)
        self.transform = transform
        self.refused: dict[int, str] = {}
        self.left_out: list[str] = []
        self.cached: Tensor | None = None
        self.extras = tuple(extras)
        self.annotate = annotate
        self.cached_extras: dict[str, Tensor] = {}
        self.disk: DiskCache | None = None
        if cache == "disk":
            self.disk = self._open_disk(cache_dir, cache_dtype)
        elif cache or skip:
            self._read_all(bool(cache))

    def _open_disk(self, folder: str | Path, dtype: str) -> DiskCache:
        size = getattr(self.transform, "size", None)
        if size is None or not str(folder) or self.extras:
            raise DataListError(
                "cache: disk keeps pictures alone, read by startup.reading, in a cache_dir; use cache: true for others"
            )
        options = getattr(self.transform, "options", {})
        paths = ImagePaths.of(self.items)
        disk = open_cache(paths, cache_of(folder, size, dtype), size, dtype, options, annotate=self.annotate)
        self.left_out = [f"image {place}: {reason}" for place, reason in disk.reasons.items()]
        if not len(disk):
            raise DataListError(f"none of {len(self.items)} images can be used; the first: {self.left_out[0]}")
        if disk.reasons:
            words = left_out_in_words(disk.reasons)
            logger.warning(
                "%d of %d images cannot be used and are left out: %s", len(disk.reasons), len(self.items), words
            )
        places = disk.usable.tolist()
        self.items = paths.take(disk.usable) if self.items is paths else [self.items[i] for i in places]
        return disk

    def _read_all(self, keep: bool) -> None:
        count = len(self.items)
        usable: list[int] = []
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(self._try, range(count))
            for index, tensors in enumerate(
                tqdm(results, "reading images", count, unit="image", leave=False, disable=hidden())
            ):
                if tensors is not None:
                    if keep:
                        self._keep(tensors, len(usable), count)
                    usable.append(index)
        if not usable:
            raise DataListError(f"none of {count} images can be used; the first: {self.refused[0]}")
        self.items = [self.items[i] for i in usable]
        self.cached_extras = {name: values[: len(usable)] for name, values in self.cached_extras.items()}
        self.cached = self.cached_extras.pop("image", None)
        if self.refused:
            logger.warning("%d of %d images cannot be used and are left out", len(self.refused), count)
            # the remaining items are renumbered
            self.left_out, self.refused = list(self.refused.values()), {}

    def _keep(self, tensors: dict[str, Tensor], place: int, count: int) -> None:
        """Copy what was read of an image to its place; the first one makes room for so many."""
        for name, values in tensors.items():
            if not place:
                dtype = torch.float16 if name == "image" else values.dtype
                self.cached_extras[name] = _shared((count, *values.shape), dtype)
            room = self.cached_extras[name][place]
            if room.shape != values.shape:
                raise DataListError(
                    f"{name} is {tuple(room.shape)} for some images and {tuple(values.shape)} for others"
                )
            room.copy_(values)

    def _try(self, index: int) -> dict[str, Tensor] | None:
        try:
            return self._read(index)
        except (RadiographError, OSError, RuntimeError) as error:
            # MONAI wraps a transform's error; the cause has the message for the user
            cause = error.__cause__ if isinstance(error.__cause__, RadiographError) else error
            # names and paths of DICOM files can identify a patient, so logs give only the place in the list
            reason = str(cause)
            for spelling in (self.file_of(index), getattr(cause, "path", "")):
                reason = reason.replace(spelling, f"image {index}") if spelling else reason
            if index not in self.refused:
                logger.warning("image %d of the list is left out: %s", index, reason.replace("\n", " ")[:300])
            self.refused[index] = reason
            return None

    def _read(self, index: int) -> dict[str, Tensor]:
        result = self.transform(self.items[index])
        tensors = {name: torch.as_tensor(result[name]).contiguous() for name in ("image", *self.extras)}
        if self.annotate is not None:
            tensors[self.annotate.kind] = torch.from_numpy(self.annotate(tensors["image"][0].numpy()))
        return tensors

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: list[int]) -> Sequence[dict[str, Any]]:
        """Return a batch, as loaders ask for it. Cached pictures are returned as stored (`grey_levels`)."""
        if self.disk is not None:
            images = _new_batch((len(indices), 1, *self.disk.size), getattr(torch, self.disk.dtype))
            self.disk.stored(indices, out=images[:, 0].numpy())
            return GatheredBatch({"image": images, **self._beside(indices), "index": torch.tensor(indices)})
        if self.cached is None:
            return [self[index] for index in indices]
        place = torch.tensor(indices)
        images = _new_batch((len(indices), *self.cached.shape[1:]), self.cached.dtype)
        torch.index_select(self.cached, 0, place, out=images)
        extras = {name: values[place] for name, values in self.cached_extras.items()}
        return GatheredBatch({"image": images, **extras, "index": place})

    def _beside(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return the annotations that a cache on disk holds beside pictures."""
        if self.annotate is None or self.disk is None:
            return {}
        return {self.annotate.kind: torch.from_numpy(self.disk.annotations(self.annotate, places))}

    @staticmethod
    def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make one dictionary of a batch, without copying tensors that are gathered already.

        Its ``image`` is for `grey_levels`: a quarter or half of the bytes go from a loader's process to the device.
        """
        return batch.tensors if isinstance(batch, GatheredBatch) else default_collate(list(batch))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.disk is not None:
            place = range(len(self))[index]  # also from the end; an index out of range is refused
            beside = {name: values[0] for name, values in self._beside([place]).items()}
            return {"image": torch.from_numpy(self.disk.gather([place])), **beside, "index": index}
        if self.cached is not None:
            extras = {name: values[index] for name, values in self.cached_extras.items()}
            return {"image": self.cached[index].float(), **extras, "index": index}
        for attempt in range(len(self.items)):
            place = (index + attempt) % len(self.items)
            tensors = None if place in self.refused else self._try(place)
            if tensors is not None:
                return {**tensors, "index": place}
        raise DataListError(f"none of {len(self.items)} images can be used; the first: {self.refused[index]}")

    def file_of(self, index: int) -> str:
        """Return the file behind an index, as the data list names it."""
        return str(self.items[index]["image"])


class GatheredBatch(Sequence[dict[str, Any]]):
    """A batch in one piece that looks like a list of its items.

    Args:
        tensors: by name, each with a first dimension of the batch's size.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["index"])

    def __getitem__(self, place: Any) -> Any:
        item: dict[str, Any] = {n: int(v[place]) if n == "index" else v[place] for n, v in self.tensors.items()}
        return {**item, "image": grey_levels(item["image"])}


def grey_levels(images: Tensor) -> Tensor:
    """Return pictures as float32 in 0…1, on their device, from float, or from uint8 or uint16 as a cache stores them.

    The values do not depend on the device.
    """
    if images.is_floating_point():
        return images.float()
    # divided by a tensor: with a number, a GPU would multiply by its reciprocal
    full = torch.full((), torch.iinfo(images.dtype).max, dtype=torch.float32, device=images.device)
    return images.float().div_(full)


def _new_batch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make room for a batch (B, C, H, W); in a loader's process where the parent can read it without a copy."""
    return torch.empty(shape, dtype=dtype) if get_worker_info() is None else _shared(shape, dtype)


def _shared(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make room for a tensor in memory that processes share."""
    storage = torch.UntypedStorage._new_shared(dtype.itemsize * math.prod(shape))  # as PyTorch's own collation does
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def image_statistics(dataset: RadiographDataset, samples: int = 256) -> tuple[float, float]:
    """Measure the grey-level mean and standard deviation of a data set.

    Returns:
        Mean and standard deviation in 0…1 units, rounded to four digits so that they can be written down.
    """
    step = max(1, len(dataset) // samples)
    total, squares, count = 0.0, 0.0, 0
    for index in range(0, len(dataset), step):
        image = dataset[index]["image"].double()
        total += image.sum().item()
        squares += image.square().sum().item()
        count += image.numel()
    mean = total / count
    return round(mean, 4), round(max(squares / count - mean**2, 1e-6) ** 0.5, 4)


def reader_facts(dataset: object) -> dict[str, Any]:
    """Return the reader options of a data set's images as ``reader``, for a model's description; nothing if none."""
    options = getattr(getattr(dataset, "transform", None), "options", {})
    return {"reader": dict(options)} if options else {}
