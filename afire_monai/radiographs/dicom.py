"""Read single-frame grey radiographs from DICOM files, and refuse everything else."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.quiet import quiet
from afire_monai.radiographs.dicom_open import open_dataset
from afire_monai.radiographs.dicom_pixels import render
from afire_monai.radiographs.missing_data import DATA_MISSING, ends_early, ends_flat
from afire_monai.radiographs.picture import Picture, check_size, refusal

RADIOGRAPHY_MODALITIES = ("CR", "DX", "DR", "RG", "XR")
"""Modalities read by default: CR, DX and RG are defined terms; DR and XR are in use without being defined."""

RADIOGRAPH_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1", "7"))
"""SOP classes of objects that hold radiographs: CR, DX for presentation and for processing, Secondary Capture (public
collections often use it for radiographs)."""

_USED_ELEMENTS = (
    *("SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelSpacing", "ImagerPixelSpacing"),
)
_HEAD = 1 << 16
"""Bytes of a compressed frame in which its size is looked for."""
_RESCALE = frozenset(("RescaleSlope", "RescaleIntercept"))
_NUMBERS = frozenset((*_RESCALE, "WindowCenter", "WindowWidth"))
_OPTIONAL = frozenset(
    (*_NUMBERS, "PixelPaddingValue", "PixelPaddingRangeLimit", "VOILUTSequence", "VOILUTFunction", "PixelSpacing",
     "ImagerPixelSpacing", "PlanarConfiguration")
)  # fmt: skip
"""Without these an image can still be shown."""


@quiet()
def read_dicom(
    path: Path, modalities: Collection[str] | str | None = RADIOGRAPHY_MODALITIES, window_index: int = 0
) -> Picture:
    """Decode a DICOM radiograph; a file without preamble and file meta information is read as well.

    The order is fixed: modality LUT, then VOI, then inversion of MONOCHROME1; see `dicom_pixels.render`.
    Spacing is PixelSpacing, else ImagerPixelSpacing (at the detector: some 10 to 30 % larger than in the patient).

    Args:
        path: the file.
        modalities: modalities to read; None reads any single-frame grey image. Secondary captures ("OT", "SC") are
            left out by default because they are mostly pictures of screens; name them to include them.
        window_index: number of the window or VOI LUT to use if a file offers several.

    Raises:
        RadiographError: if the file has the wrong modality, several frames, colour or no pixels, is broken, truncated
            or too large, or needs a codec that is not installed.
    """
    return picture_of(path, open_dataset(path), modalities, window_index)


def picture_of(
    path: Path, dataset: Any, modalities: Collection[str] | str | None = RADIOGRAPHY_MODALITIES, window_index: int = 0
) -> Picture:
    """Decode a data set that has been read already; as :func:`read_dicom`."""
    odd = drop_unusable(path, dataset)
    modality = str(dataset.get("Modality") or "").strip().upper()
    if not modality:
        _check_image(path, dataset)  # a file without pixels is better refused for that than for a missing modality
    modalities = modality_names(modalities)
    if modalities is not None and modality not in modalities:
        raise refusal(
            path,
            f"modality {modality or 'absent'}",
            f"one of {', '.join(sorted(modalities))} is read. If it is a radiograph, make a list with `afire datalist` "
            "or `afire check --write` and name all modalities there (--modalities): commands read the list so",
        )
    _check_image(path, dataset)
    stored = _decode(path, dataset)
    try:
        pixels, intensity, inverted = render(stored, dataset, window_index, odd)
    except ValueError as error:
        raise refusal(path, "unusable intensity transformation", str(error)) from error
    spacing, source = _spacing(dataset)
    bits = integer(dataset, "BitsStored", integer(dataset, "BitsAllocated", 16))
    return Picture(pixels, "DICOM", intensity, bits, spacing, source, inverted, modality, tuple(odd))


def modality_names(modalities: Collection[str] | str | None) -> tuple[str, ...] | None:
    """Modalities in capitals from several names, or from one text with commas; None stays None."""
    if modalities is None:
        return None
    names = modalities.split(",") if isinstance(modalities, str) else modalities
    return tuple(name.strip().upper() for name in names)


def integer(dataset: Any, keyword: str, default: int) -> int:
    """Value of an element as an integer; the default where it is absent, damaged or not a number."""
    try:
        return int(dataset.get(keyword, default))
    except Exception:  # pydicom raises many unrelated types on damaged elements
        return default


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first 132 or more bytes can be DICOM: the magic word, or a first tag of group 2 or 8."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def drop_unusable(path: Path, dataset: Any) -> list[str]:
    """Convert all elements in use, which shows damage; return optional ones that were removed as unusable.

    Raises RadiographError if something that is needed is damaged, or the file is not an image.
    """
    from pydicom import Sequence

    odd = []
    for keyword in _USED_ELEMENTS:
        try:
            value = dataset.get(keyword)  # elements are converted when first asked for
            if value is not None and isinstance(value, Sequence) != keyword.endswith("Sequence"):
                raise TypeError
            if keyword in _NUMBERS and value is not None and value != "":
                several = value if hasattr(value, "__len__") and not isinstance(value, str) else [value]
                if not all(math.isfinite(float(number)) for number in several):
                    raise ValueError
        except Exception as error:  # pydicom raises many unrelated types on damaged files
            if keyword not in _OPTIONAL:
                raise refusal(
                    path,
                    "broken or truncated",
                    f"not a readable DICOM file ({type(error).__name__}). Copy it again from its source",
                ) from error
            del dataset[keyword]
            odd.append(keyword)
    if odd and not _RESCALE.isdisjoint(odd):  # a window refers to rescaled values
        for keyword in (*_RESCALE, "WindowCenter", "WindowWidth"):
            dataset.pop(keyword, None)
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        items = dataset.get(keyword)
        if items and not all("LUTDescriptor" in item and "LUTData" in item for item in items):
            del dataset[keyword]
            odd.append(keyword)
    if not any(keyword in dataset for keyword in ("SOPClassUID", "Modality", "Rows")):
        raise refusal(path, "not an image", "it has no SOP class, modality or size; a DICOM radiograph has all three")
    return odd


def _check_image(path: Path, dataset: Any) -> None:
    """Refuse all but one grey frame, from the header alone."""
    if "PixelData" not in dataset:
        raise refusal(
            path, "no pixels", "it has no PixelData: not an image, or cut off before it. Copy it again from its source"
        )
    frames = integer(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise refusal(path, "multi-frame", f"it holds {frames} frames; one radiograph a file is read. Split it first")
    photometric = str(dataset.get("PhotometricInterpretation") or "absent").strip().upper()
    samples = integer(dataset, "SamplesPerPixel", 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        seen = f"photometric interpretation {photometric} with {samples} samples a pixel"
        raise refusal(path, "colour image", f"{seen}; MONOCHROME1 or MONOCHROME2 with one is read")
    check_size(path, integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))


def _decode(path: Path, dataset: Any) -> NDArray[np.integer[Any]]:
    """Stored values (H, W)."""
    from pydicom.pixels import get_decoder

    syntax = _transfer_syntax(path, dataset)
    install = "pip install 'afire-monai[dicom]' brings the decoders for JPEG, JPEG-LS, JPEG 2000 and RLE"
    try:
        available = not syntax.is_compressed or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):  # a codec without decoder; a UID that is not a transfer syntax
        raise refusal(
            path, "unsupported codec", f"no decoder is known for transfer syntax {syntax.name}. Export it uncompressed"
        ) from None
    if syntax.is_compressed:
        _check_codestream(path, dataset)
    if not available:
        raise refusal(path, "codec not installed", f"pixels are stored as {syntax.name}; {install}")
    try:
        shift = 0 if syntax.is_compressed else _stored_bits(dataset)[1]
        stored = _shifted(dataset) if shift else np.asarray(dataset.pixel_array)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # each codec raises its own types; codecs in Rust raise no Exception
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (
            "; ".join(lines[1:] or lines) or type(error).__name__
        )  # a general line comes first, then one for each decoder
        kind = "pixels do not decode" if syntax.is_compressed else "broken or truncated"
        raise refusal(
            path,
            kind,
            f"{syntax.name}, {reason}. The file is damaged, or its variant of the codec is not supported: copy it "
            "again, or write it uncompressed with another tool",
        ) from error
    shape = (integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))
    if stored.shape != shape:
        raise refusal(path, "pixels do not decode", f"decoded to shape {stored.shape}, but the header says {shape}")
    if syntax.is_compressed:
        _check_end(path, dataset, stored)
    return _with_sign(stored, dataset)


def _check_end(path: Path, dataset: Any, stored: NDArray[np.integer[Any]]) -> None:
    """Refuse JPEG and JPEG-LS with fewer data than the picture needs; the decoders of other codecs say so."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

    frame, whole = _frame(dataset), dataset.PixelData
    lossy = dataset.file_meta.TransferSyntaxUID in (JPEGBaseline8Bit, JPEGExtended12Bit)
    if not frame.startswith(b"\xff\xd8") or (lossy and not ends_flat(stored)):
        return

    def decode(stream: bytes) -> NDArray[Any]:
        dataset.PixelData = encapsulate([stream])
        return np.asarray(dataset.pixel_array)

    try:
        early = ends_early(frame, stored, decode)
    finally:
        dataset.PixelData = whole
    if early:
        raise refusal(path, "pixels do not decode", DATA_MISSING)


def _frame(dataset: Any) -> bytes:
    from pydicom.encaps import get_frame

    return bytes(get_frame(dataset.PixelData, 0, number_of_frames=1))


def _check_codestream(path: Path, dataset: Any) -> None:
    """Refuse pixels whose own header says another size than the file: decoders make room for what it says."""
    try:
        size = codestream_size(_frame(dataset)[:_HEAD])
    except Exception:  # the decoder reports the fault of the fragments
        return
    shape = (integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))
    if size is not None and size != shape:
        detail = f"the compressed pixels are {size[0]} × {size[1]}, but the header says {shape[0]} × {shape[1]}"
        raise refusal(path, "pixels do not decode", f"{detail}. Copy the file again from its source")


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns that the head of a JPEG, JPEG-LS or JPEG 2000 stream states; None if it states none."""
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 9 <= len(data) and data[at] == 0xFF:
            kind = data[at + 1]
            if kind == 0xFF or 0xD0 <= kind <= 0xD8 or kind == 0x01:
                at += 1 if kind == 0xFF else 2
                continue
            if (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)) or kind == 0xF7:
                return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return None
    at = data.find(b"\xff\x4f\xff\x51")  # at the start, or after the boxes of a JP2 file
    if at < 0 or len(data) < at + 24:
        return None
    x, y, left, top = (int.from_bytes(data[at + 8 + 4 * n : at + 12 + 4 * n], "big") for n in range(4))
    return y - top, x - left


def _stored_bits(dataset: Any) -> tuple[int, int]:
    """Return how many bits a sample has and above how many others they are: HighBit says so (PS3.5 8.1.1)."""
    allocated = integer(dataset, "BitsAllocated", 16)
    bits = integer(dataset, "BitsStored", allocated)
    shift = integer(dataset, "HighBit", bits - 1) + 1 - bits
    return (bits, shift) if 0 < bits <= allocated - shift and shift > 0 else (bits, 0)


def _shifted(dataset: Any) -> NDArray[np.integer[Any]]:
    """Decode samples that are not in the lowest bits, which the decoder would cut off."""
    bits, shift = _stored_bits(dataset)
    allocated = integer(dataset, "BitsAllocated", 16)
    high = dataset.HighBit
    dataset.BitsStored, dataset.HighBit = allocated, allocated - 1
    try:
        stored = np.asarray(dataset.pixel_array)
    finally:
        dataset.BitsStored, dataset.HighBit = bits, high
    if stored.dtype.kind == "u":
        return (stored >> shift) & ((1 << bits) - 1)
    return (stored << (allocated - bits - shift)) >> (allocated - bits)


def _with_sign(stored: NDArray[np.integer[Any]], dataset: Any) -> NDArray[np.integer[Any]]:
    """Carry the sign of signed values into the bits above the stored ones.

    JPEG-LS does not know signs, and streams that claim more bits than are stored come out of decoders without.
    """
    unused = stored.itemsize * 8 - integer(dataset, "BitsStored", stored.itemsize * 8)
    if stored.dtype.kind != "i" or not 0 < unused < stored.itemsize * 8:
        return stored
    return (stored << unused) >> unused


def _transfer_syntax(path: Path, dataset: Any) -> Any:
    """The file's transfer syntax; without file meta information, the one that the bare data set was found to be in."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.multival import MultiValue
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", None)
    if meta is not None and "TransferSyntaxUID" in meta:
        uid = meta.TransferSyntaxUID
        if isinstance(uid, MultiValue) and uid:
            uid = meta.TransferSyntaxUID = uid[0]  # some files name several by mistake; the first is right
        if not isinstance(uid, UID):
            raise refusal(
                path, "broken or truncated", "its transfer syntax is not a UID. Copy it again from its source"
            )
        return uid
    if dataset["PixelData"].is_undefined_length:
        raise refusal(
            path,
            "no transfer syntax",
            "compressed pixels without file meta information, so the codec is unknown. Export it as a Part 10 file",
        )
    implicit, little = dataset.original_encoding
    uid = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta = meta if meta is not None else FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid
    return uid


def _spacing(dataset: Any) -> tuple[tuple[float, float], str]:
    """Millimetres per (row, column) step and the element it comes from; values that are not positive do not count."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(v) for v in dataset.get(keyword))
        except (TypeError, ValueError):
            continue
        if math.isfinite(row * column) and min(row, column) > 0:
            return (row, column), keyword
    return (math.nan, math.nan), "none"
