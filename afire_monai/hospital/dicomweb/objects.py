"""Write an object from a DICOMweb answer to a file piece by piece, so that memory does not grow with its size."""

from __future__ import annotations

import mmap
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from afire_monai.hospital.dicomweb.connection import AnswerError, not_dicomweb

if TYPE_CHECKING:
    import requests
    from pydicom.dataset import Dataset

PIECE = 2**20


def failure_reason(item: Dataset) -> int:
    """Return the code of why an object is not kept; 0 if an archive gives none, or something that is no code."""
    value = item.get("FailureReason")
    return value if isinstance(value, int) else 0


def save_object(response: requests.Response, path: Path) -> None:
    """Write the one object that an answer holds, as it is, without the lines around it.

    Args:
        response: response with status 200 whose body has not been read.
        path: file to write; meanwhile the body is in a nameless temporary file in the same folder.

    Raises:
        requests.ConnectionError: if the answer is cut off; without a length in its header, such an answer would look
            like a short one.
        AnswerError: if the answer holds something else or several objects, or exceeds the limits.
        OSError: if the file cannot be written.
    """
    kind = str(response.headers.get("Content-Type", ""))
    media = kind.partition(";")[0].strip().lower()
    if media not in ("multipart/related", "application/dicom"):  # some servers send the latter by mistake
        raise not_dicomweb()
    boundary = re.search(r"boundary=\"?([^\";]+)", kind) if media == "multipart/related" else None
    with tempfile.TemporaryFile(dir=path.parent) as body:
        for part in response.iter_content():
            body.write(part)
        body.flush()
        if not body.tell():
            raise not_dicomweb()
        with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as content, path.open("wb") as file:
            start, end = (0, len(content)) if boundary is None else _object_in(content, boundary[1].strip().encode())
            for at in range(start, end, PIECE):
                file.write(content[at : min(at + PIECE, end)])


def _object_in(content: mmap.mmap, boundary: bytes) -> tuple[int, int]:
    """Return where the first part begins and ends."""
    import requests

    last = b"--" + boundary + b"--"
    if last not in content[-len(last) - 200 :]:
        raise requests.ConnectionError("cut off")
    head = content.find(b"\r\n\r\n", max(content.find(b"--" + boundary), 0))
    end = content.find(b"\r\n--" + boundary, head + 4)
    if head < 0 or end < 0:
        raise not_dicomweb()
    if content[end + 2 : end + 2 + len(last)] != last:
        raise AnswerError("the server answered with several objects although one was requested")
    return head + 4, end


def check_object(path: Path, instance: str) -> None:
    """See that a file is the object that was asked for; it is not read into memory.

    Raises:
        AnswerError: if the file is another object or not a DICOM file.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(path, defer_size=PIECE, specific_tags=["SOPInstanceUID"])
        uid = str(dataset.get("SOPInstanceUID", ""))
    except Exception as error:  # pydicom raises many unrelated types on damaged data
        raise AnswerError(f"the answer cannot be read ({type(error).__name__})") from None
    if uid != instance:
        raise AnswerError("the server answered with a different instance from the one requested")
