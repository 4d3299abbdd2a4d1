"""The result of every decoder, and the error with which every decoder refuses a file."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import RadiographError

MAX_SIDE = 20_000
MAX_PIXELS = 150_000_000


@dataclass(frozen=True)
class Picture:
    """One decoded radiograph."""

    pixels: NDArray[np.float32]  #: (H, W) float32 in 0…1, bright = dense, row 0 at the top
    format: str  #: "PNG", "JPEG", "NIfTI" or "DICOM"
    intensity: str  #: mapping of the stored values to 0…1, in words
    bits: int  #: bits that the file stores per pixel
    #: millimetres per (row, column) step; NaN if the file does not say
    spacing: tuple[float, float] = (float("nan"), float("nan"))
    spacing_source: str = "none"  #: "PixelSpacing", "ImagerPixelSpacing", "NIfTI" or "none"
    polarity_inverted: bool = False  #: whether stored values were bright = lucent and were inverted
    modality: str = ""  #: DICOM modality, "" for other formats
    odd: tuple[str, ...] = ()  #: optional DICOM elements that cannot be used and count as absent


def refusal(path: str | PathLike[str], kind: str, detail: str) -> RadiographError:
    """Build the error that refuses a file.

    Args:
        path: the file.
        kind: short constant reason ("colour image"), by which refusals are counted.
        detail: the observation, the expectation and the remedy. Never values that identify a patient.
    """
    return RadiographError(f"{fspath(path)}: {kind}: {detail}", fspath(path), kind, detail)


def check_size(path: str | PathLike[str], height: int, width: int) -> None:
    """Refuse a size that cannot be a radiograph, before memory is asked for."""
    if min(height, width) < 1:
        raise refusal(path, "empty image", f"it has {height} rows and {width} columns; both must be at least 1")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise refusal(
            path,
            "image too large",
            f"{height} × {width} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS / 1e6:.0f} million in all are read. "
            "If the size is right, reduce the picture first",
        )


def stretch(values: NDArray[np.float64], keep: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Map minimum…maximum of an array to 0…1; a constant array becomes 0.

    Args:
        values: any shape.
        keep: same shape; a value marked False does not count for minimum and maximum, and is clipped.
    """
    counted = values if keep is None else values[keep]
    low, high = float(counted.min()), float(counted.max())
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)
