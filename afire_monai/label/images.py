"""Stored radiographs: where they lie in space, whose they are, and how the networks see them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.hospital.identity import IdentityKey
from afire_monai.predictions.reading import Radiograph, Size, resize
from afire_monai.radiographs.decode import is_dicom, list_images
from afire_monai.radiographs.header import read_header
from afire_monai.radiographs.nifti import known_affine
from afire_monai.radiographs.reader import RadiographReader

Matrix = NDArray[np.float64]
MAP_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".png", ".bin")
_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes run to right, front, head; ITK's and DICOM's to left, back, head


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a stored picture in space.

    Attributes:
        shape: rows and columns.
        spacing: millimetres per (row, column) step; 1 if not known.
        directions: (3, 3), unit vectors of a step along a row (to the next column), a step down a column, and the
            normal, with axes to the patient's left, back and head. ITK places pictures without orientation as the
            identity.
        origin: (3,) millimetres, position of the first pixel.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    directions: Matrix = field(default_factory=lambda: np.eye(3))
    origin: Matrix = field(default_factory=lambda: np.zeros(3))

    @property
    def steps(self) -> Matrix:
        """(3, 3): millimetres of one step along columns, rows and normal, as columns of the matrix (LPS)."""
        return self.directions * np.array([self.spacing[1], self.spacing[0], 1.0])


def read_label(path: str | os.PathLike[str], grid: Grid) -> NDArray[np.uint8]:
    """Read a label map as the radiograph's rows and columns.

    Args:
        path: NIfTI, NRRD, PNG, or bare bytes (``.bin``, a byte a pixel, row by row).
        grid: grid of the radiograph.

    Returns:
        (rows, columns), 0 for background.

    Raises:
        AfireError: if the file is unreadable, has another size than the radiograph, or has values that are not whole
            numbers in 0…255.
    """
    suffix = map_suffix(os.fspath(path))
    readers: dict[str, Callable[[Path, Grid], NDArray[Any]]] = {
        ".nii": _read_nifti,
        ".nii.gz": _read_nifti,
        ".nrrd": _read_nrrd,
        ".seg.nrrd": _read_nrrd,
        ".png": _read_png,
        ".bin": _read_bytes,
    }
    try:
        values = readers[suffix](Path(path), grid)
    except (AfireError, MemoryError):
        raise
    except Exception as error:  # each library raises many types on damaged files
        raise AfireError(f"the label is not a readable {suffix} file ({type(error).__name__}); resend it") from error
    if values.shape != grid.shape:
        seen, wanted = (f"{rows} rows and {columns} columns" for rows, columns in (values.shape, grid.shape))
        raise AfireError(f"the label has {seen}, the radiograph {wanted}; draw it on the radiograph that it is for")
    if values.dtype.kind not in "biuf" or not np.allclose(values, np.round(values), rtol=0, atol=1e-3):
        raise AfireError("the label has values that are not whole numbers; a number for each class is expected")
    whole = np.round(values)
    if whole.min(initial=0) < 0 or whole.max(initial=0) > 255:
        raise AfireError(f"label values go from {whole.min():g} to {whole.max():g}; 0 to 255 is expected")
    return np.ascontiguousarray(whole, dtype=np.uint8)


def map_suffix(name: str) -> str:
    """Return the suffix of a map's file name, in small letters.

    Raises:
        AfireError: if it is none of `MAP_SUFFIXES`.
    """
    for suffix in MAP_SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    raise AfireError(f"a label or map is a file of one of the kinds {', '.join(MAP_SUFFIXES)}")


def to_rows(values: NDArray[Any], directions: Matrix, grid: Grid) -> NDArray[Any]:
    """Bring an array whose axes point anywhere to the rows and columns of a radiograph.

    Args:
        values: (n, m) or with further axes of length one.
        directions: (3, axes) direction of each axis (LPS), of any length.
        grid: grid of the radiograph.

    Raises:
        AfireError: for more than one slice or channel, or axes that do not lie in the picture's plane.
    """
    axes = list(range(values.ndim))
    for axis in reversed(range(values.ndim)):
        if len(axes) > 2 and values.shape[axis] == 1:
            axes.remove(axis)
    if len(axes) != 2:
        raise AfireError(f"the label has the shape {values.shape}; one slice with one channel is expected")
    along = grid.directions[:, :2].T @ directions[:, axes]  # (column step, row step) x the two axes
    lengths = np.linalg.norm(directions[:, axes], axis=0)
    main = np.abs(along).argmax(0)
    if sorted(main) != [0, 1] or (np.abs(along).max(0) < 0.9 * lengths).any():
        raise AfireError("the label's axes do not lie along the radiograph's rows and columns; save it on its grid")
    plane = values.reshape([values.shape[a] for a in axes])
    for axis in (0, 1):
        if along[main[axis], axis] < 0:
            plane = np.flip(plane, axis)
    return plane.T if main[0] == 0 else plane


def write_map(path: str | os.PathLike[str], rows: NDArray[Any], grid: Grid, compress: bool = True) -> Path:
    """Write a map of a radiograph's rows and columns so that it lies on the radiograph where ITK reads both.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.png`` (uint8 and uint16 only).
        rows: (rows, columns).
        grid: grid of the radiograph.
        compress: compress NRRD with gzip.

    Raises:
        AfireError: for another suffix, or a type of values that the format does not have.
    """
    suffix, path = map_suffix(os.fspath(path)), Path(path)
    if rows.shape != grid.shape:
        raise AfireError(f"a map of {rows.shape} does not fit a radiograph of {grid.shape}")
    stack = np.asfortranarray(rows.T[..., None])
    if suffix in (".nii", ".nii.gz"):
        import nibabel

        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = _TO_LPS @ grid.steps, _TO_LPS @ grid.origin
        nibabel.save(nibabel.Nifti1Image(stack, affine), path)
    elif suffix == ".nrrd":
        import nrrd

        header = {
            "space": "left-posterior-superior",
            "space directions": grid.steps.T,
            "space origin": grid.origin,
            "encoding": "gzip" if compress else "raw",
        }
        nrrd.write(str(path), stack, header)
    elif suffix == ".png" and rows.dtype in (np.uint8, np.uint16):
        from PIL import Image

        Image.fromarray(rows).save(path, compress_level=1)  # a user waits for it
    else:
        raise AfireError(
            f"{suffix} with values of type {rows.dtype}: .nii.gz, .nrrd, or .png of whole numbers expected"
        )
    return path


def _read_nifti(path: Path, grid: Grid) -> NDArray[Any]:
    import nibabel

    image: Any = nibabel.load(path)
    affine = known_affine(image)
    directions = grid.directions if affine is None else _TO_LPS @ affine[:3, :3]
    values = np.asanyarray(image.dataobj)
    return to_rows(values, _padded(directions, values.ndim), grid)


def _read_nrrd(path: Path, grid: Grid) -> NDArray[Any]:
    import nrrd

    values, header = nrrd.read(str(path))
    directions = header.get("space directions")
    if directions is None:
        return to_rows(values, _padded(grid.directions, values.ndim), grid)
    vectors = np.nan_to_num(np.asarray(directions, dtype=np.float64)).T  # channels have no direction
    spaces = str(header.get("space", "left-posterior-superior")).lower()
    if len(vectors) != 3:
        raise AfireError(f"the label lies in a space of {len(vectors)} dimensions; 3 are expected")
    signs = {"left-posterior-superior": (1, 1), "lps": (1, 1), "right-anterior-superior": (-1, -1), "ras": (-1, -1)}
    if spaces not in signs:
        raise AfireError("the label's space is neither left-posterior-superior nor right-anterior-superior")
    return to_rows(values, np.diag([*signs[spaces], 1.0]) @ vectors, grid)


def _padded(directions: Matrix, axes: int) -> Matrix:
    """Drop the direction of axes beyond the third."""
    return np.concatenate([directions, np.zeros((3, max(0, axes - 3)))], 1)[:, :axes]


def _read_png(path: Path, grid: Grid) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise AfireError(f"the label is a PNG of mode {image.mode}; one channel of class numbers is expected")
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def _read_bytes(path: Path, grid: Grid) -> NDArray[Any]:
    values = np.fromfile(path, dtype=np.uint8)
    rows, columns = grid.shape
    if values.size != rows * columns:
        raise AfireError(
            f"the label has {values.size} bytes, the radiograph {rows} rows of {columns} columns; a byte for each "
            "pixel is expected"
        )
    return values.reshape(rows, columns)


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


def open_image(path: str | Path, reader: Mapping[str, Any] | None = None) -> StoredImage:
    """Read a radiograph, and find out where it lies in space.

    Args:
        path: the file, or the folder of a series, whose first image by name is used.
        reader: options of `RadiographReader`.

    Raises:
        AfireError: if the file does not exist or is not a radiograph; the message does not name it.
    """
    path = file_of(path)
    try:
        opener = RadiographReader(**(reader or {}))
        pixels, facts = opener.get_data(opener.read(path))
    except RadiographError as error:
        raise AfireError(f"this image cannot be used: {error.reason(str(path))}") from None
    if not pixels.max() > pixels.min():
        raise AfireError("this image cannot be used: all its pixels have the same value")
    shape = (pixels.shape[1], pixels.shape[2])
    if facts["format"] == "DICOM":
        return StoredImage(_dicom_grid(path, shape), torch.from_numpy(pixels))
    row, column = (float(step) if step > 0 else 1.0 for step in facts["spacing"])
    return StoredImage(Grid(shape, (row, column)), torch.from_numpy(pixels))


def file_of(path: str | Path) -> Path:
    """Return the file itself: of a folder, as clients name a series, the first image by name.

    Raises:
        AfireError: if the folder holds no image.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    files = list_images(path)
    if not files:
        raise AfireError("the series holds no image")
    return files[0]


def _dicom_grid(path: Path, shape: Size) -> Grid:
    """Return a DICOM image's place in space as ITK sees it, or maps would not lie on the image in 3D Slicer.

    ITK uses the spacing at the detector for CR and DX, and PixelSpacing for secondary captures; 1 mm if that is absent.
    Orientation and position, which radiographs seldom have, are used if they are present.
    """
    import pydicom

    tags = ["SOPClassUID", "PixelSpacing", "ImagerPixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"]
    try:
        header: Any = pydicom.dcmread(path, force=True, specific_tags=tags)
    except Exception:  # the image was read before; geometry that cannot be read is not known
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
    """Return the hash of a radiograph's patient, so that no patient is trained and validated on.

    As in `afire ingest` by default, a PatientID is one patient, whoever issued it.

    Args:
        path: file of the radiograph.
        image_id: id that stands for the patient if the file names none, such as a PNG.
        key: key of the store.
    """
    try:
        if not is_dicom(path):
            return key.image(image_id)
        header = read_header(Path(path))
    except (OSError, ValueError):
        return key.image(image_id)
    if header.patient_id:
        return key.patient(header.patient_id)
    return key.study(header.study_uid) if header.study_uid else key.image(image_id)
