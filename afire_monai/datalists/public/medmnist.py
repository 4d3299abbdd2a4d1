"""The chest radiographs of MedMNIST (Yang et al., Scientific Data 2023): PneumoniaMNIST and ChestMNIST."""

from __future__ import annotations

import contextlib
import errno
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import Gathered, finish
from afire_monai.datalists.public.masks import output_folder, write_picture
from afire_monai.datalists.public.nih import FINDINGS

SETS = {"pneumoniamnist": (DEFAULT_NORMAL, "Pneumonia"), "chestmnist": (DEFAULT_NORMAL, *FINDINGS)}
SIDES = (28, 64, 128, 224)
SECTION = {"train": "training", "val": "validation", "test": "test"}


def datalist_from_medmnist(file: StrPath, out: StrPath | None = None, images: StrPath | None = None) -> DataList:
    """Build the list of PneumoniaMNIST or ChestMNIST: pictures written as PNG, official split.

    Read is one ``.npz`` file of any of the four sizes. Its pictures are unpacked one at a time, so memory stays small.
    The file tells no patients, so each picture counts as one: ChestMNIST keeps the patients of ChestX-ray14 apart, but
    PneumoniaMNIST takes its validation images at random from the children's training images.

    Args:
        file: ``pneumoniamnist.npz``, ``chestmnist_224.npz`` and so on.
        images: folder to write the pictures into; ``<list>_images`` beside ``out`` unless given.
    """
    path = Path(file)
    name = next((name for name in SETS if path.name.lower().startswith(name) and path.suffix.lower() == ".npz"), None)
    if name is None or not path.is_file():
        raise DataListError(
            f"{path}: {'pneumoniamnist or chestmnist is expected in its name' if path.is_file() else 'no such file'}. "
            "Give pneumoniamnist.npz, chestmnist.npz or one of their larger sizes, such as chestmnist_224.npz"
        )
    target = output_folder(images, out, "images")
    if target is None:
        raise DataListError(f"{path}: its pictures must become files. Give a folder for them as images, or give out")
    gathered = Gathered(list(SETS[name]))
    with _opened(path) as archive:
        for part, section in SECTION.items():
            labels = _labels(archive, f"{part}_labels.npy", len(SETS[name]) - 1)
            for number, pixels in enumerate(_pictures(archive, f"{part}_images.npy", len(labels))):
                image = target / path.stem / part / f"{number:06d}.png"
                label = [int(not labels[number].any()), *labels[number].tolist()]
                gathered.add(section, write_picture(pixels, image), f"{part} {number}", label)
    gathered.facts["split"] = "official"
    return finish(name, gathered, path, out, official=("validation", "test"))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataListError as error:
        raise DataListError(f"{path}: {error}. Fetch the file again") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError,
            OSError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an offset outside the file is not a disk error
            raise
        raise DataListError(f"{path}: it is broken or has other content ({error}). Fetch the file again") from error


@contextlib.contextmanager
def _array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Open an array of whole numbers in the archive: its bytes behind the header, and its shape."""
    with archive.open(name) as stream:
        try:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
            shape, fortran, kind = read(stream)
        except (ValueError, KeyError) as error:
            raise DataListError(f"{name} has no array") from error
        if kind != np.uint8 or fortran:
            raise DataListError(f"{name} holds {kind}; uint8 in the order of C is expected")
        yield stream, shape


def _labels(archive: zipfile.ZipFile, name: str, columns: int) -> NDArray[np.uint8]:
    with _array(archive, name) as (stream, shape):
        if len(shape) != 2 or shape[1] != columns or shape[0] > 1_000_000:
            raise DataListError(f"{name} is {shape}; (images, {columns}) is expected")
        values = np.frombuffer(_read(stream, shape[0] * columns, name), np.uint8).reshape(shape)
    if values.size and values.max() > 1:
        raise DataListError(f"{name} holds {values.max()}; 0 and 1 are expected")
    return values


def _pictures(archive: zipfile.ZipFile, name: str, count: int) -> Iterator[NDArray[np.uint8]]:
    with _array(archive, name) as (stream, shape):
        if shape not in [(count, side, side) for side in SIDES]:
            raise DataListError(f"{name} is {shape}; ({count}, side, side) is expected, with a side of {SIDES}")
        for _ in range(count):
            yield np.frombuffer(_read(stream, shape[1] * shape[2], name), np.uint8).reshape(shape[1:])


def _read(stream: IO[bytes], size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise DataListError(f"{name} is cut off")
    return data
