"""Choose the decoder for a file by its first bytes, not by its name."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES, integer, looks_like_dicom, modality_names, read_dicom
from afire_monai.radiographs.dicom_open import open_dataset
from afire_monai.radiographs.picture import Picture, refusal
from afire_monai.radiographs.raster import WhiteLevel, raster_size, read_raster

logger = logging.getLogger(__name__)

RADIOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".dcm", ".dicom")

_NOT_READ = (".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".mha", ".nrrd")
# files of a folder of predictions, as one that was begun or finished has them
_PREDICTIONS = (frozenset(("run.json", "index.csv")), frozenset(("predictions.json", "predictions.csv")))
_RESULTS = frozenset(("heatmaps", "masks", "overlays", "restored", "probabilities"))
_RASTER = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_NAMED_OTHERS = {
    b"GIF8": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
}


def read_picture(
    path: str | os.PathLike[str],
    modalities: Collection[str] | str | None = RADIOGRAPHY_MODALITIES,
    window_index: int = 0,
    png16_max: WhiteLevel = "dtype",
) -> Picture:
    """Decode one radiograph of any supported format.

    Args:
        path: PNG, JPEG, NIfTI or DICOM file.
        modalities: DICOM modalities to read; None for any. See `read_dicom`.
        window_index: number of the DICOM window to use if there are several.
        png16_max: white level of 16-bit PNG. See `read_raster`.

    Raises:
        RadiographError: if the file is missing, empty, not an image, or refused by the decoder of its format.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "raster":
        return read_raster(path, png16_max)
    if kind == "NIfTI":
        from afire_monai.radiographs.nifti import read_nifti

        return read_nifti(path)
    if kind == "DICOM":
        return read_dicom(path, modalities, window_index)
    raise refusal(
        path, "not a radiograph file", f"PNG, JPEG, NIfTI or DICOM is read, this is {kind}. Convert or remove it"
    )


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read as DICOM; RadiographError: missing, unreadable or empty."""
    return _kind(Path(path)) == "DICOM"


def checked_options(options: object, where: str = "reader") -> dict[str, Any]:
    """Return arguments of `read_picture` that come from a file or a command line.

    Args:
        options: ``modalities`` (names, or None for any), ``window_index`` (0, 1, …), ``png16_max`` (1…65535, "dtype" or
            "image"), each if it was given.
        where: origin of the options, for messages.

    Raises:
        RadiographError: for another name or value.
    """
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "modalities": (lambda v: v is None or all(modality_names(v) or [""]), "names such as CR,DX, or null for any"),
        "window_index": (lambda v: type(v) is int and v >= 0, "0, 1, …"),
        "png16_max": (
            lambda v: v in ("dtype", "image") or (type(v) is int and 0 < v < 65536),
            "1…65535, dtype or image",
        ),
    }
    given = dict(options) if isinstance(options, Mapping) else {"": options}
    for name, value in given.items():
        right, expected = rules.get(name, (lambda _: False, f"one of {', '.join(rules)}"))
        try:
            sound = right(value)
        except (TypeError, AttributeError):
            sound = False
        if not sound:
            raise refusal(where, "reader option", f"{name} is {value!r}; {expected} is expected")
    return given


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All files below a folder that look like radiographs, sorted by path.

    Taken are known suffixes in any case (PNG, JPEG, NIfTI, DICOM), and files without one of these that carry the DICOM
    magic word (archives name files by UID, without suffix). Hidden files and folders, DICOMDIR and pictures that
    `afire predict` wrote are left out; links to folders are not followed. Raises RadiographError: there is no such
    folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise refusal(root, "no such folder", "a folder of radiographs is expected. Check the path")
    found: list[Path] = []
    for where, folders, names in os.walk(root):
        predicted = any(results.issubset(names) for results in _PREDICTIONS)
        if written := sorted(_RESULTS.intersection(folders)) if predicted else []:
            logger.warning("%s: the pictures in %s are predictions, and are left out", where, ", ".join(written))
        folders[:] = [name for name in folders if not name.startswith(".") and name not in written]
        found += [Path(where, name) for name in names if not name.startswith(".") and name.upper() != "DICOMDIR"]
    skipped = Counter(path.suffix.lower() for path in found if path.suffix.lower() in _NOT_READ)
    if skipped:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
        logger.warning("%s: not read: %s. Convert them to PNG if they are radiographs", root, seen)
    return sorted(path for path in found if _is_candidate(path))


def _is_candidate(path: Path) -> bool:
    if path.name.lower().endswith(RADIOGRAPH_SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # the last part of a UID looks like a suffix of digits
        return False
    try:
        return _first_bytes(path)[128:132] == b"DICM"
    except ValueError:
        return False


def _first_bytes(path: Path) -> bytes:
    """The first 352 bytes, which hold every magic word."""
    try:
        with path.open("rb") as file:
            head = file.read(352)
    except OSError as error:
        raise refusal(path, "not readable", f"{error.strerror or type(error).__name__}. Check the path") from error
    if not head:
        raise refusal(path, "empty file", "it has 0 bytes. Copy it again from its source")
    return head


def _kind(path: Path) -> str:
    """Return ``raster``, ``NIfTI``, ``DICOM``, or what a file is that is not read."""
    head = _first_bytes(path)
    if head.startswith(_RASTER):
        return "raster"
    gzipped = head[:2] == b"\x1f\x8b"  # of the formats that are read, only NIfTI is packed so
    magic = head[344:348] in (b"n+1\x00", b"ni1\x00") or head[4:8] in (b"n+2\x00", b"ni2\x00")
    if gzipped or magic or path.name.lower().endswith((".nii", ".nii.gz")):
        return "NIfTI"
    if looks_like_dicom(head):
        return "DICOM"
    return next((name for magic, name in _NAMED_OTHERS.items() if head.startswith(magic)), "something else")


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return rows and columns of a radiograph, from its header where that says so.

    Raises RadiographError as `read_picture`.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "raster":
        return raster_size(path)
    if kind == "DICOM":
        header = open_dataset(path, header_only=True, tags=("Rows", "Columns"))
        return integer(header, "Rows", 0), integer(header, "Columns", 0)
    height, width = read_picture(path, modalities=None).pixels.shape
    return height, width
