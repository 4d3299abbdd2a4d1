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

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.hospital.header import read_header
from afire_monai.hospital.identity import IdentityKey
from afire_monai.label.maps import Grid
from afire_monai.predictions.reading import Radiograph, Size, resize, without_names
from afire_monai.radiographs.decode import list_images
from afire_monai.radiographs.dicom import looks_like_dicom
from afire_monai.radiographs.reader import RadiographReader

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


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
    shape = (pixels.shape[1], pixels.shape[2])
    if facts["format"] == "DICOM":
        return StoredImage(_dicom_grid(path, shape), torch.from_numpy(pixels))
    row, column = (float(step) if step > 0 else 1.0 for step in facts["spacing"])
    return StoredImage(Grid(shape, (row, column)), torch.from_numpy(pixels))


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


def _dicom_grid(path: Path, shape: Size) -> Grid:
    """Give a DICOM image's place in space as ITK sees it, or maps would not lie on the image in 3D Slicer.

    ITK takes the spacing at the detector for CR and DX, and for secondary captures PixelSpacing; 1 mm where that is
    absent. Orientation and position, which radiographs seldom have, count if they are there.
    """
    import pydicom

    tags = ["SOPClassUID", "PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"]
    try:
        header: Any = pydicom.dcmread(path, force=True, specific_tags=tags)
    except Exception:  # it was read before; what of its geometry cannot be, is not known
        return Grid(shape)
    capture = str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE)
    spacing = _numbers(header, "PixelSpacing" if capture else "ImagerPixelSpacing", 2)
    spacing = spacing if spacing is not None and (spacing > 0).all() else np.ones(2)
    axes, origin = _numbers(header, "ImageOrientationPatient", 6), _numbers(header, "ImagePositionPatient", 3)
    directions = np.eye(3)
    if axes is not None:
        columns, rows = axes.reshape(2, 3)
        turned = np.stack([columns, rows, np.cross(columns, rows)], 1)
        directions = turned if np.allclose(turned.T @ turned, np.eye(3), atol=1e-3) else directions
    return Grid(shape, (float(spacing[0]), float(spacing[1])), directions, np.zeros(3) if origin is None else origin)


def _numbers(header: Any, keyword: str, count: int) -> NDArray[np.float64] | None:
    try:
        values = np.array([float(value) for value in header.get(keyword)], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return values if values.size == count and np.isfinite(values).all() else None


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
