"""Which objects an archive took already, remembered beside the files, so that the same command sends none twice."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import IO, Any

from afire_monai.core.errors import AfireError
from afire_monai.core.files import lock_file
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError
from afire_monai.hospital.pacs.association import PacsAddress, Tls
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports

SENT, KEPT = ".afire-sent", " kept"
"""Name of the list; mark of an object that the archive confirmed to keep."""


class SentObjects:
    """A list of hashes, a line for each object that an archive confirmed; only its owner can read it.

    Args:
        folder: folder or single file that is sent; the list is in the folder, or beside the file.
        pacs: the archive; to another one, everything is sent again.
        committed: an object counts only if the archive confirmed that it keeps it.

    Raises:
        AfireError: by all methods, if the list cannot be read or written, or another process uses it.
    """

    def __init__(self, folder: Path, pacs: PacsAddress, committed: bool = False) -> None:
        self._path = (folder.parent if folder.is_file() else folder) / SENT
        self._archive = pacs
        self._committed = committed

    @functools.cached_property
    def _list(self) -> tuple[IO[bytes], set[str]]:
        """The list, open and locked until the end, and its lines."""
        try:
            file = open(self._path, "ab+", opener=lambda path, flags: os.open(path, flags, 0o600))  # noqa: SIM115
            try:
                lock_file(file, wait=False)
            except BlockingIOError:
                raise AfireError("another afire send works in this folder; wait until it is done") from None
            except OSError:  # a file system without locks
                pass
            file.seek(0)
            *lines, rest = file.read().decode("ascii", "replace").split("\n")
            if rest:  # the partial line of a killed process stays a line of its own
                file.write(b"\n")
        except OSError as error:
            raise self._unusable(error) from None
        return file, set(lines)

    def holds(self, line: str) -> bool:
        """Whether the archive took the object of a line, and keeps it if that is wanted."""
        _, known = self._list
        return line + KEPT in known or (line in known and not self._committed)

    def add(self, line: str) -> None:
        """Note that the archive took an object, or keeps it."""
        file, known = self._list
        line += KEPT * self._committed
        try:
            file.write(line.encode() + b"\n")
            file.flush()
        except OSError as error:
            raise self._unusable(error) from None
        known.add(line)

    def close(self) -> None:
        """Let others use the list."""
        if "_list" in vars(self):
            self._list[0].close()
            del self._list

    def line(self, dataset: Any) -> str:
        """Return the line that stands for an object with its present content."""
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
    """An archive that gets no object again that it took before, by a list beside the files that are sent.

    Args:
        folder: folder that is sent; it holds the list as a hidden file that only its owner can read.
        commit: port of a listener for the archive's reports that it keeps the objects; 0 for reports on the same
            connection, None for no reports.
        options: as for `Pacs`.
    """

    def __init__(self, folder: str | Path, pacs: str, commit: int | None = None, **options: Any) -> None:
        reports = None if commit is None else Reports()
        super().__init__(pacs, reports=reports, **options)
        if reports is not None and commit:
            reports.listen(self._aet, commit, self.address, options.get("tls") or Tls(), self._timeout)
        self._sent = SentObjects(Path(folder), self.address, committed=reports is not None)
        self._stored_lines: dict[str, list[str]] = {}

    def close(self) -> None:
        """End all associations, the listener, and the use of the list."""
        super().close()
        self._sent.close()

    def store(self, dataset: Any) -> bool:
        """Send one instance, unless it was sent before; see `Pacs.store`."""
        line = self._sent.line(dataset)
        if self._sent.holds(line):
            return False
        new = super().store(dataset)
        self._stored_lines.setdefault(str(dataset.SOPInstanceUID), []).append(line)
        if self._reports is None:
            self.settle()
        return new

    def settle(self) -> dict[str, str]:
        """Note stored objects unless the archive does not keep them; return why not, by SOPInstanceUID."""
        lines, self._stored_lines = self._stored_lines, {}
        try:
            failed = super().settle()
        except (AnswerError, ConnectionLostError) as error:
            failed = dict.fromkeys(lines, str(error))
        for uid, of_uid in lines.items():
            for line in of_uid if uid not in failed else ():
                self._sent.add(line)
        return failed
