"""Radiographs in NIfTI files: two dimensions, or one slice of three."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.radiographs.picture import Picture, check_size, refusal, stretch


def read_nifti(path: Path) -> Picture:
    """Decode a .nii or .nii.gz file that holds one picture.

    Axes (this project's reading; NIfTI defines none for a projection). The two axes longer than one become rows and
    columns by the affine: the axis nearest to left–right is the column axis and runs to the patient's left; the other,
    nearest to head–foot or front–back, is the row axis and runs to the feet or the back. (In a sagittal slice, columns
    run from front to back.) An axis that runs the other way is flipped. So pictures written by ITK, dcm2niix and this
    package come back upright. A file with exactly the identity as affine, or without
    qform and sform code, comes from a writer that knew no orientation:
    its first axis is columns from left to right, its second rows from top to bottom.

    Intensity. 8-bit unsigned values that are not rescaled are divided by 255; values that already lie in 0…1 stay;
    anything else is mapped from minimum…maximum of the image. Raises RadiographError: broken, several slices or
    channels, complex, NaN or infinite values, too large.
    """
    with _opened(path) as image:
        return _decoded(path, image)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, gzipped or not by its content, without reading its pixels."""
    import nibabel

    with path.open("rb") as raw, contextlib.ExitStack() as stack:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw
        with _in_words(path):
            kind = nibabel.Nifti2Image if file.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
            file.seek(0)
            image = kind.from_stream(file)
        yield image


def _decoded(path: Path, image: Any) -> Picture:
    with _in_words(path):
        shape = tuple(int(n) for n in image.shape)
        stored = np.dtype(image.get_data_dtype())
        zooms = [float(z) for z in image.header.get_zooms()]
    axes = _picture_axes(path, shape)
    if stored.kind not in "iuf":
        raise refusal(path, "colour image", f"values are stored as {stored}; one real number a pixel is read")
    check_size(path, *(shape[a] for a in axes))
    with _in_words(path):
        values = np.asarray(image.dataobj, dtype=np.float64).squeeze().reshape([shape[a] for a in axes])
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise refusal(path, "not finite", f"{bad} values are NaN or infinite. Replace them when the file is written")
    eight_bits = stored == np.uint8 and (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    pixels, intensity = _to_unit_range(values, eight_bits)
    return _upright(pixels, intensity, known_affine(image), axes, zooms, stored.itemsize * 8)


def known_affine(image: Any) -> NDArray[np.float64] | None:
    """Return the affine of an opened file; None if its writer knew no orientation (see `read_nifti`)."""
    affine = np.asarray(image.affine, dtype=np.float64)
    # without a code, the reading library makes up the affine
    coded = image.header["qform_code"] or image.header["sform_code"]
    known = coded and np.isfinite(affine).all() and not np.allclose(affine[:3, :3], np.eye(3))
    return affine if known else None


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn errors into a refusal: nibabel and gzip raise many unrelated types on damaged files."""
    try:
        yield
    except Exception as error:
        reason = str(error).replace(str(path), "").strip(" '\"") or type(error).__name__
        detail = f"not a readable NIfTI file ({reason}). Copy it again from its source"
        raise refusal(path, "broken or truncated", detail) from error


def _picture_axes(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """The two array axes of the picture; axes of length one are given up from the last to the first."""
    axes = list(range(len(shape)))
    for axis in reversed(range(len(shape))):
        if len(axes) > 2 and shape[axis] == 1:
            axes.remove(axis)
    if len(axes) != 2:
        raise refusal(
            path,
            "multi-frame",
            f"its shape is {shape}; a picture (X, Y) or one slice of a volume is read. Split it first",
        )
    return axes[0], axes[1]


def _to_unit_range(values: NDArray[np.float64], eight_bits: bool) -> tuple[NDArray[np.float64], str]:
    if values.min() >= 0 and values.max() <= 1:
        return values, "as stored"
    if eight_bits:
        return values / 255, "/255"
    return stretch(values), "minimum…maximum of the image"


def _upright(
    pixels: NDArray[np.float64],
    intensity: str,
    affine: NDArray[np.float64] | None,
    axes: tuple[int, int],
    zooms: list[float],
    bits: int,
) -> Picture:
    """Bring an array (first axis, second axis) to rows and columns, as `read_nifti` says."""
    import nibabel

    column, row = axes
    spacing, source = (float("nan"), float("nan")), "none"
    if affine is not None:
        world = nibabel.io_orientation(affine)  # per axis: nearest of left-right, back-front, foot-head; and its sign
        if world[column, 0] > world[row, 0]:
            column, row, pixels = row, column, pixels.T
        if world[column, 1] > 0:
            pixels = pixels[::-1]
        if world[row, 1] > 0:
            pixels = pixels[:, ::-1]
        if min(zooms[row], zooms[column]) > 0:
            spacing, source = (zooms[row], zooms[column]), "NIfTI"
    picture = np.ascontiguousarray(pixels.T, dtype=np.float32)
    return Picture(picture, "NIfTI", intensity, bits, spacing=spacing, spacing_source=source)
