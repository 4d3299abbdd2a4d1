"""Stored radiographs: where they lie in space, whose they are, and how the networks see them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.data import RadiographReader
from afire_monai.data.decode import list_images
from afire_monai.data.dicom import looks_like_dicom
from afire_monai.errors import AfireError, RadiographError
from afire_monai.hospital.header import read_header
from afire_monai.hospital.identity import IdentityKey
from afire_monai.inference.reading import Radiograph, Size, resize, without_names
from afire_monai.label.maps import Grid


@dataclass(frozen=True)
class StoredImage:
    """A radiograph of the store, read.

    Attributes:
        grid: its rows and columns in space.
        pixels: (1, rows, columns) float32 in 0…1, bright = dense.
    """

    grid: Grid
    pixels: Tensor

    def seen_at(self, sizes: Iterable[Size]) -> Radiograph:
        """Bring it to the sizes that networks want."""
        return Radiograph(0, {size: resize(self.pixels, size) for size in sizes}, self.grid.shape)


def open_image(path: str | Path) -> StoredImage:
    """Read a radiograph, and find out where it lies in space.

    Args:
        path: the file; or a folder of a series, of which the first image by name is taken.

    Raises:
        AfireError: if it is not there or no radiograph; without its name.
    """
    path = file_of(path)
    try:
        reader = RadiographReader()
        pixels, facts = reader.get_data(reader.read(path))
    except RadiographError as error:
        raise AfireError(f"this image cannot be used: {without_names(error, str(path))}") from None
    if not pixels.max() > pixels.min():
        raise AfireError("this image cannot be used: all its pixels have the same value")
    row, column = (float(step) if step > 0 else 1.0 for step in facts["spacing"])
    directions, origin = _place(path) if facts["format"] == "DICOM" else (np.eye(3), np.zeros(3))
    grid = Grid((pixels.shape[1], pixels.shape[2]), (row, column), directions, origin)
    return StoredImage(grid, torch.from_numpy(pixels))


def file_of(path: str | Path) -> Path:
    """Give the file itself: of a folder, as clients name a series, the first image by name.

    Raises:
        AfireError: if the folder holds none.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    files = list_images(path)
    if not files:
        raise AfireError("the series holds no image")
    return files[0]


def _place(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give directions and origin of a DICOM image; radiographs seldom have any, and then ITK takes the identity."""
    import pydicom

    try:
        header: Any = pydicom.dcmread(
            path, force=True, specific_tags=["ImageOrientationPatient", "ImagePositionPatient"]
        )
        columns, rows = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        directions = np.stack([columns, rows, np.cross(columns, rows)], 1)
        if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
            raise ValueError("not orthogonal")
        origin = np.array(header.get("ImagePositionPatient") or (0, 0, 0), dtype=np.float64).reshape(3)
        return directions, origin
    except Exception:  # absent, empty or damaged: no orientation is known
        return np.eye(3), np.zeros(3)


def patient_of(path: str | Path, image_id: str, key: IdentityKey) -> str:
    """Give the hash of a radiograph's patient, so that no patient is trained and validated on.

    Args:
        path: its file.
        image_id: stands for the patient where the file names none, as a PNG.
        key: of the store.
    """
    try:
        with Path(path).open("rb") as file:
            if not looks_like_dicom(file.read(352)):
                return key.image(image_id)
        header = read_header(Path(path))
    except (OSError, ValueError):
        return key.image(image_id)
    if header.patient_id:
        return key.patient(header.patient_id, header.issuer)
    return key.study(header.study_uid) if header.study_uid else key.image(image_id)
