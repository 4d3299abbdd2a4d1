"""Which objects an archive took already, remembered beside the files, so that the same command sends none twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError
from afire_monai.hospital.pacs.association import PacsAddress, Tls
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports

SENT = ".afire-sent"


class SentObjects:
    """A list of hashes, a line for each object that an archive confirmed; only its owner can read it.

    Args:
        folder: that is sent; of a single file, the folder that it lies in.
        pacs: the archive; another one is sent everything anew.
        committed: list only what the archive said that it keeps; what it merely took is sent again.

    Raises:
        AfireError: if the list cannot be read or written.
    """

    def __init__(self, folder: Path, pacs: PacsAddress, committed: bool = False) -> None:
        self._path = (folder.parent if folder.is_file() else folder) / SENT
        self._archive = f"{pacs.aet}@{pacs.host}:{pacs.port}" + " committed" * committed
        self._known: set[str] = set()
        try:
            if self._path.exists():
                self._known = set(self._path.read_text(encoding="ascii", errors="replace").split("\n")[:-1])
        except OSError as error:
            raise self._unusable(error) from None

    def holds(self, line: str) -> bool:
        """Whether the archive took the object of a line."""
        return line in self._known

    def add(self, line: str) -> None:
        """Note that the archive took an object; AfireError if that cannot be written."""
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

    def line(self, dataset: Any) -> str:
        """Return what an object with its present content is known by."""
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
        commit: port of a listener for the archive's reports that it keeps the objects; 0 for reports on the same
            connection, None for no reports.
        options: as for `Pacs`.
    """

    def __init__(self, folder: str | Path, pacs: str, commit: int | None = None, **options: Any) -> None:
        reports = None if commit is None else Reports()
        super().__init__(pacs, reports=reports, **options)
        if reports is not None and commit:
            reports.listen(self._aet, commit, self.address, options.get("tls") or Tls(), self._timeout)
        self._sent = SentObjects(Path(folder), self.address, committed=self._reports is not None)
        self._stored_lines: dict[str, str] = {}

    def store(self, dataset: Any) -> bool:
        """Send one instance, unless it was sent before; see `Pacs.store`."""
        line = self._sent.line(dataset)
        if self._sent.holds(line):
            return False
        new = super().store(dataset)
        self._stored_lines[str(dataset.SOPInstanceUID)] = line
        if self._reports is None:
            self.settle()
        return new

    def settle(self) -> dict[str, str]:
        """Note what was stored unless the archive did not say that it keeps it; return why not, by SOPInstanceUID."""
        lines, self._stored_lines = self._stored_lines, {}
        try:
            failed = super().settle()
        except (AnswerError, ConnectionLostError) as error:
            failed = dict.fromkeys(lines, str(error))
        for uid, line in lines.items():
            if uid not in failed:
                self._sent.add(line)
        return failed
