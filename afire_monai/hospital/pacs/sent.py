"""Which objects an archive took already, remembered beside the files, so that the same command sends none twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.hospital.pacs.association import PacsAddress
from afire_monai.hospital.pacs.client import Pacs

SENT = ".afire-sent"


class SentObjects:
    """A list of hashes, a line for each object that an archive confirmed; only its owner can read it.

    Args:
        folder: that is sent; of a single file, the folder that it lies in.
        pacs: the archive; another one is sent everything anew.

    Raises:
        AfireError: if the list cannot be read or written.
    """

    def __init__(self, folder: Path, pacs: PacsAddress) -> None:
        self._path = (folder.parent if folder.is_file() else folder) / SENT
        self._archive = f"{pacs.aet}@{pacs.host}:{pacs.port}"
        self._known: set[str] = set()
        try:
            if self._path.exists():
                self._known = set(self._path.read_text(encoding="ascii", errors="replace").split("\n")[:-1])
        except OSError as error:
            raise self._unusable(error) from None

    def holds(self, dataset: Any) -> bool:
        """Whether the archive took this object, with this content."""
        return self._line(dataset) in self._known

    def add(self, dataset: Any) -> None:
        """Note that the archive took an object; AfireError if that cannot be written."""
        line = self._line(dataset)
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - 1, 0))
                # what a killed process began to write stays a line of its own
                file.write((b"\n" if end and file.read(1) != b"\n" else b"") + line.encode() + b"\n")
        except OSError as error:
            raise self._unusable(error) from None
        self._known.add(line)

    def _line(self, dataset: Any) -> str:
        digest = hashlib.sha256(f"{self._archive}\n{dataset.SOPInstanceUID}\n".encode())
        with open(dataset.filename, "rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        return digest.hexdigest()

    def _unusable(self, error: OSError) -> AfireError:
        return AfireError(
            f"the list of what was sent, {SENT} in the folder, cannot be used: {error.strerror}; make the folder "
            "writable, or copy it"
        )


class RememberingPacs(Pacs):
    """An archive that is not sent again what it took before, by a list beside the files that are sent.

    Args:
        folder: that is sent; the list lies in it, hidden and for its owner's eyes only.
        options: as for `Pacs`.
    """

    def __init__(self, folder: str | Path, pacs: str, **options: Any) -> None:
        super().__init__(pacs, **options)
        self._sent = SentObjects(Path(folder), self.address)

    def store(self, dataset: Any) -> bool:
        """Send one instance, unless it was sent before; see `Pacs.store`."""
        if self._sent.holds(dataset):
            return False
        new = super().store(dataset)
        self._sent.add(dataset)
        return new
