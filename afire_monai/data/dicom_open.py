"""Open DICOM files of unknown origin: bounded in memory, whatever the file claims."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from afire_monai.data.picture import refusal

MAX_FILE_BYTES = 1 << 30
"""Larger files are not read with their pixels: a radiograph of `MAX_PIXELS` pixels is smaller."""
MAX_INFLATED_BYTES = 400_000_000
"""Room for the largest picture that is read, 16 bits a pixel, and its header."""
_META_BYTES = 1 << 16
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def open_dataset(path: Path, header_only: bool = False, tags: Sequence[str] | None = None) -> Any:
    """Read a DICOM file, with or without preamble and file meta information; deflated ones up to a limit.

    Args:
        path: the file; opened for reading only.
        header_only: stop before the pixels.
        tags: keywords of the elements that are needed; None for all.

    Returns:
        The pydicom data set. One that was deflated looks like one that was never deflated and has no file meta
        information.

    Raises:
        RadiographError: not readable (permissions), too large, inflating beyond `MAX_INFLATED_BYTES`, or broken.
    """
    import pydicom

    options = {"force": True, "stop_before_pixels": header_only, "specific_tags": list(tags) if tags else None}
    try:
        with path.open("rb") as file:
            if not header_only and (size := _size(file)) > MAX_FILE_BYTES:
                limit = f"at most {MAX_FILE_BYTES / 2**30:.0f} GiB is read"
                raise refusal(path, "file too large", f"{size / 2**30:.1f} GiB; {limit}. Export it as single frames")
            start = _start_of_deflated(file)
            if start is None:
                file.seek(0)
                return pydicom.dcmread(file, **options)
            file.seek(start)
            return pydicom.dcmread(io.BytesIO(_inflate(path, file)), **options)
    except Exception as error:  # pydicom raises many unrelated types on damaged files
        if hasattr(error, "kind"):  # a refusal of our own
            raise
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or type(error).__name__
            raise refusal(path, "not readable", f"{reason}. Check the path and its permissions") from error
        raise refusal(
            path,
            "broken or truncated",
            f"not a readable DICOM file ({type(error).__name__}). Copy it again from its source",
        ) from error


def _size(file: BinaryIO) -> int:
    file.seek(0, io.SEEK_END)
    return file.tell()


def _start_of_deflated(file: BinaryIO) -> int | None:
    """Where the deflated data set starts; None where the file meta information names no deflated transfer syntax."""
    from pydicom.filereader import read_dataset, read_preamble

    file.seek(0)
    head = file.read(_META_BYTES)
    if _DEFLATED not in head:
        return None
    buffer = io.BytesIO(head)
    read_preamble(buffer, True)
    meta = read_dataset(buffer, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    return buffer.tell() if str(meta.get("TransferSyntaxUID", "")).encode() == _DEFLATED else None


def _inflate(path: Path, file: BinaryIO) -> bytes:
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = machine.decompress(file.read(MAX_FILE_BYTES), MAX_INFLATED_BYTES)
    if machine.unconsumed_tail:
        raise refusal(
            path,
            "inflates too far",
            f"its deflated content is longer than {MAX_INFLATED_BYTES / 1e6:.0f} million bytes. No radiograph is: "
            "remove the file, or write it uncompressed",
        )
    return inflated
