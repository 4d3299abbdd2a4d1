"""Transfer many instances from and to an archive: finished work is kept, failures are counted by reason."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file, write_rows
from afire_monai.core.quiet import hidden, quiet
from afire_monai.hospital.audit import AUDIT, audited, follow
from afire_monai.hospital.dicomweb.client import Query, SeriesReference, is_uid
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError
from afire_monai.hospital.identity import NOT_RETRIEVED, RETRIEVED, make_private_folder

if TYPE_CHECKING:
    from pydicom import Dataset


class Archive(Protocol):
    """An archive to fetch radiographs from and send results to: `DicomWeb`, or `Pacs` over DICOM's own protocol."""

    peer: str  # address, only for the audit log

    def find_series(self, query: Query) -> list[SeriesReference]:
        """Return the series that a query finds."""

    def find_instances(self, series: SeriesReference) -> list[str]:
        """Return the SOPInstanceUIDs of a series."""

    def retrieve(self, series: SeriesReference, instance: str, path: Path) -> None:
        """Fetch one instance into a file."""

    def store(self, dataset: Dataset) -> bool:
        """Send one instance; return whether it was new."""

    def settle(self) -> dict[str, str]:
        """Return why the archive does not keep objects stored since the last time, by UID, if it is to say so."""


AT_ONCE = 500
"""Number of objects in one request for storage commitment."""
GIVE_UP = 5
"""Number of consecutive connection failures that end a transfer."""


@dataclass
class Transfer:
    """Counts of a transfer.

    Attributes:
        done: instances that crossed the network.
        already: instances that were there before.
        failed: (what, reason) of the others; `what` is a UID or a file, which only the owner may see.
        skipped: files that are not DICOM.
        sent: paths of the files that the archive has, new or not.
    """

    done: int = 0
    already: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    sent: set[str] = field(default_factory=set)

    @property
    def status(self) -> int:
        """Exit status: 0 all there, 1 some failed, 2 nothing is there."""
        return 0 if not self.failed and self.done + self.already else 1 if self.done + self.already else 2

    def counts(self, done: str) -> str:
        """Return numbers in words, for a log."""
        return f"{self.done} files {done}, {self.already} were there, {len(self.failed)} failed"

    def reasons(self) -> list[tuple[str, int]]:
        """Return each reason and how often it was met, the most frequent first."""
        return Counter(reason for _, reason in self.failed).most_common()

    def write_failures(self, path: Path) -> None:
        """Write the failures and their reasons, readable by the owner only (mode 0600)."""
        write_rows(path, [("what", "reason"), *self.failed], private=True)


def retrieve_series(
    web: Archive,
    series: Sequence[SeriesReference],
    folder: str | Path,
    progress: bool = False,
    result: Transfer | None = None,
) -> Transfer:
    """Fetch all instances of series, one at a time, each into a file of its own.

    A file is written under another name and renamed when it is complete, so every file in the folder is complete and is
    not fetched again. The folder gets mode 0700, the files 0600.

    Args:
        web: the archive.
        series: series to fetch.
        folder: folder for the files, created if needed; files are named by SOPInstanceUID.
        progress: show a bar with the time left.
        result: counts to go on with, for whoever needs them after an error, too; it is returned.

    Raises:
        DicomWebError: if the server refuses the credentials or is lost for good; files fetched before that are kept.
        AfireError: if the folder cannot be written.
    """
    folder = Path(folder)
    result = Transfer() if result is None else result
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        known = _names(folder)
        for broken in folder.glob("*.part"):
            broken.unlink()
    except OSError as error:
        raise _cannot_write(error) from None
    patience = _Patience(result)
    for reference in tqdm(series, desc="retrieving", unit="series", disable=hidden(progress)):
        with patience.guard(reference.series):
            for instance in web.find_instances(reference):
                if instance in known:
                    result.already += 1
                    continue
                with patience.guard(instance):
                    with whole_file(folder / f"{instance}.dcm", private=True, sync=True) as part:
                        web.retrieve(reference, instance, part)
                    known.add(instance)
                    result.done += 1
                    patience.answered()
    return result


def send_folder(web: Archive, folder: str | Path, progress: bool = False, audit: str | Path | None = None) -> Transfer:
    """Store every DICOM file of a folder and its subfolders in an archive; other files are passed over.

    Args:
        web: the archive.
        folder: folder to send, with its subfolders; files that are not DICOM are skipped. It may also be a single file.
        progress: show a bar with the time left.
        audit: audit log (CSV) to append to; unless given, the log of the ingest whose DICOM results are sent, and no
            log for other folders.

    Raises:
        DicomWebError: if the server refuses the credentials or is lost for good; objects sent before stay there.
        AfireError: if there is no such folder, or no DICOM file in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise AfireError("the folder to send is not there; give one that holds DICOM files")
    log, images = follow(folder)
    root = folder.parent if folder.is_file() else folder
    result = Transfer()
    with audited(log if audit is None else Path(audit), "send", web.peer) as entry:
        try:
            _send_all(web, folder, progress, result)
        finally:
            entry.what = result.counts("sent")
            entry.pseudonyms = sorted({image for name, image in images.items() if str(root / name) in result.sent})
    return result


def _send_all(web: Archive, folder: Path, progress: bool, result: Transfer) -> None:
    files = [folder] if folder.is_file() else sorted(_files(folder, result))
    wanted = [file for file in files if _has_magic_word(file)]
    result.skipped = len(files) - len(wanted)
    if not wanted and not result.failed:
        raise AfireError(f"no DICOM file among the {len(files)} files to send; give a folder that holds some")
    patience, stored = _Patience(result), dict[str, list[tuple[str, bool]]]()
    try:
        for file in tqdm(wanted, desc="sending", unit="file", disable=hidden(progress)):
            with patience.guard(str(file)):
                dataset = _read(file)
                if dataset is None:
                    result.skipped += 1
                else:
                    new = web.store(dataset)
                    result.done += new
                    result.already += not new
                    result.sent.add(str(file))
                    stored.setdefault(str(dataset.SOPInstanceUID), []).append((str(file), new))
                patience.answered()
            if len(stored) >= AT_ONCE:
                _settle(web, stored, result)
    except AfireError:
        with contextlib.suppress(AfireError):  # so that objects sent before need not be sent again
            _settle(web, stored, result)
        raise
    _settle(web, stored, result)


def _settle(web: Archive, stored: dict[str, list[tuple[str, bool]]], result: Transfer) -> None:
    """Count objects that the archive does not keep as failed, and begin anew.

    ``stored`` maps each UID to its files, and whether each was new.
    """
    for uid, reason in web.settle().items():
        for file, new in stored[uid]:
            result.done -= new
            result.already -= not new
            result.sent.discard(file)
            result.failed.append((file, reason))
    stored.clear()


class _Patience:
    """Notes single failures, and ends the transfer when the server is lost for good."""

    def __init__(self, result: Transfer) -> None:
        self._result = result
        self._lost = 0

    def answered(self) -> None:
        """Note that the server works."""
        self._lost = 0

    @contextlib.contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Note the failure of one object and continue after the block; other errors pass through."""
        try:
            with quiet():
                yield
        except ConnectionLostError as error:
            self._lost += 1
            if self._lost >= GIVE_UP:
                raise
            self._result.failed.append((what, str(error)))
        except AnswerError as error:
            self.answered()
            self._result.failed.append((what, str(error)))
        except OSError as error:
            raise _cannot_write(error) from None


def _read(file: Path) -> Dataset | None:
    """Read a file to be sent; None for a DICOMDIR, which is an index and no object."""
    import pydicom
    from pydicom.uid import MediaStorageDirectoryStorage

    try:
        dataset = pydicom.dcmread(file)
        kind, uid = dataset.file_meta.MediaStorageSOPClassUID, str(dataset.get("SOPInstanceUID", ""))
    except Exception as error:  # as above
        raise AnswerError(f"not a readable DICOM file ({type(error).__name__})") from None
    if kind == MediaStorageDirectoryStorage:
        return None
    if not is_uid(uid):
        raise AnswerError("has no valid SOPInstanceUID")
    return dataset


def _files(folder: Path, result: Transfer) -> Iterator[Path]:
    """List files (no pipes or the like) below a folder; folders that cannot be entered are noted as failures."""

    def closed(error: OSError) -> None:
        result.failed.append((str(error.filename), "folder that cannot be entered"))

    for where, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(where, name) for name in names if not name.startswith("."))
        # a file of which nothing can be known is reported when it is read
        yield from (path for path in paths if os.path.isfile(path) or not os.path.lexists(path))


def _has_magic_word(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:  # reading the whole file reports the problem
        return True


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.dcm")}


def _cannot_write(error: OSError) -> AfireError:
    return AfireError(
        f"the folder for retrieved files cannot be used: {error.strerror or type(error).__name__}; what is done is "
        "kept: mend it and give the command again"
    )


@dataclass(frozen=True)
class Fetched:
    """Counts of a retrieval.

    Attributes:
        folder: folder with all retrieved files, of this run and of earlier ones.
        series: number of series that the query found.
        transfer: result of the transfer of their instances.
    """

    folder: Path
    series: int
    transfer: Transfer

    def lines(self) -> list[str]:
        """Say it in words that identify nobody."""
        done = self.transfer
        lines = [
            f"fetched:  {done.done} files of {self.series} series"
            + f" ({done.already} were there)" * (done.already > 0)
        ]
        if done.failed:
            lines.append(f"failed:   {len(done.failed)}; private/{NOT_RETRIEVED} says which")
            lines += [f"  {count} x {reason}" for reason, count in done.reasons()[:5]]
        return lines

    def forget(self) -> int:
        """Delete the retrieved files, which the same transfer would fetch again, and return their number.

        Raises:
            AfireError: if they cannot be deleted.
        """
        names = _names(self.folder)
        try:
            for name in names:
                (self.folder / f"{name}.dcm").unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(error) from None
        return len(names)


def fetch(web: Archive, query: Query, out: str | Path, progress: bool = False) -> Fetched:
    """Retrieve the series that a query finds into ``out/private/dicom``; present files are not fetched again.

    Args:
        web: the archive.
        query: series to fetch.
        out: folder of the ingest.
        progress: show a bar with the time left.

    Raises:
        DicomWebError: if the server cannot be used.
        AfireError: if nothing is found or nothing can be retrieved, or the folder cannot be written.
    """
    series = web.find_series(query)
    if not series:
        raise AfireError(
            "the server has no matching series; check --modality, --date and --description, and whether "
            "this user may see the studies"
        )
    private = make_private_folder(Path(out))
    transfer = Transfer()
    with audited(private / AUDIT, "fetch", web.peer) as entry:
        try:
            retrieve_series(web, series, private / RETRIEVED, progress, transfer)
        finally:
            entry.what = transfer.counts(f"of {len(series)} series fetched")
    if transfer.failed:
        transfer.write_failures(private / NOT_RETRIEVED)
    else:
        (private / NOT_RETRIEVED).unlink(missing_ok=True)
    if transfer.status == 2:
        reason = next((reason for reason, _ in transfer.reasons()), "the series are empty")
        raise AfireError(f"nothing of {len(series)} series could be retrieved: {reason}")
    return Fetched(private / RETRIEVED, len(series), transfer)
