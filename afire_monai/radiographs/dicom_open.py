"""Open DICOM files of unknown origin with bounded memory, whatever the file claims."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.picture import refusal

MAX_FILE_BYTES = 1 << 30
"""Larger files are not read with their pixels: a radiograph of `MAX_PIXELS` pixels is smaller."""
MAX_INFLATED_BYTES = 64_000_000
"""Nearly twice the pixels of the largest detectors (43 cm at 0.1 mm, 16 bits); real archives hardly deflate at all."""
_META_BYTES = 1 << 16
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def open_dataset(path: Path, header_only: bool = False, tags: Sequence[str] | None = None) -> Any:
    """Read a DICOM file, with or without preamble and file meta information; deflated ones up to a limit.

    Args:
        path: the file; opened for reading only.
        header_only: stop before the pixels.
        tags: keywords of the elements that are needed; None for all.

    Returns:
        The pydicom data set. A deflated one is returned as if it had never been deflated and had no file meta
        information.

    Raises:
        RadiographError: if the file is not readable (permissions), too large, inflates beyond `MAX_INFLATED_BYTES`, or
            is broken.
    """
    import pydicom

    options = {"force": True, "stop_before_pixels": header_only, "specific_tags": list(tags) if tags else None}
    with in_words(path), path.open("rb") as file:
        if not header_only:
            _refuse_large(path, file)
        return pydicom.dcmread(_plain(path, file), **options)


@contextlib.contextmanager
def open_in_two(path: Path, check: Callable[[bytes], None]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Read a DICOM file up to its pixels, and the rest of it if it is asked for; it is opened once.

    Args:
        path: as for `open_dataset`.
        check: function that gets the first 132 bytes before anything is parsed, and raises if they are not those of
            DICOM.

    Yields:
        The data set as read so far, and a function that adds the pixels and all later elements to it.

    Raises:
        RadiographError: as `open_dataset`, at the start or from the function.
    """
    import pydicom
    from pydicom.filereader import read_dataset

    with contextlib.ExitStack() as stack:
        with in_words(path):
            file = stack.enter_context(path.open("rb"))
            check(file.read(132))
            plain = _plain(path, file)
            dataset = pydicom.dcmread(plain, force=True, stop_before_pixels=True)

        def add_rest() -> None:
            with in_words(path):
                here = plain.tell()
                _refuse_large(path, file)
                plain.seek(here)
                implicit, little = dataset.original_encoding
                dataset.update(read_dataset(plain, bool(implicit), little is not False))

        yield dataset, add_rest


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn errors while a file is read into a refusal that names it."""
    try:
        yield
    except RadiographError:
        raise
    except Exception as error:  # pydicom raises many unrelated types on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            reason = error.strerror or type(error).__name__
            raise refusal(path, "not readable", f"{reason}. Check the path and its permissions") from error
        raise refusal(
            path,
            "broken or truncated",
            f"not a readable DICOM file ({type(error).__name__}). Copy it again from its source",
        ) from error


def _plain(path: Path, file: BinaryIO) -> BinaryIO:
    """Return the file, or its inflated content, at the start."""
    start = _start_of_deflated(file)
    file.seek(start or 0)
    return file if start is None else io.BytesIO(_inflate(path, file))


def _refuse_large(path: Path, file: BinaryIO) -> None:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        limit = f"at most {MAX_FILE_BYTES / 2**30:.0f} GiB is read"
        raise refusal(path, "file too large", f"{size / 2**30:.1f} GiB; {limit}. Export it as single frames")


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
            f"its deflated content is longer than {MAX_INFLATED_BYTES / 1e6:.0f} million bytes. No radiograph is "
            "that large: remove the file, or write it uncompressed",
        )
    return inflated
