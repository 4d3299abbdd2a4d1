"""From a DICOMweb server into the private folder of an ingest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.client import DicomWeb
from afire_monai.hospital.dicomweb.query import Query
from afire_monai.hospital.dicomweb.transfer import Transfer, forget, retrieve_series
from afire_monai.hospital.files import make_private_folder

RETRIEVED, NOT_RETRIEVED = "dicom", "not_retrieved.csv"
"""Names in the private folder: of the retrieved files, and of the table of what could not be retrieved."""


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        folder: that holds all that was retrieved, in this run and in earlier ones.
        series: number of series that the query found.
        transfer: what became of their instances.
    """

    folder: Path
    series: int
    transfer: Transfer

    def lines(self) -> list[str]:
        """Say it in words that identify nobody."""
        done = self.transfer
        told = [
            f"fetched:  {done.done} files of {self.series} series"
            + f" ({done.already} were there)" * (done.already > 0)
        ]
        if done.failed:
            told.append(f"failed:   {len(done.failed)}; private/{NOT_RETRIEVED} says which")
            told += [f"  {count} x {reason}" for reason, count in done.reasons()[:5]]
        return told

    def forget(self) -> int:
        """Delete the retrieved files and give their number; see :func:`~.dicomweb_transfer.forget`."""
        return forget(self.folder)


def fetch(web: DicomWeb, query: Query, out: str | Path, progress: bool = False) -> Fetched:
    """Retrieve the series that a query finds into ``out/private/dicom``; what is there already is not fetched again.

    Args:
        web: the server.
        query: which series.
        out: folder of the ingest.
        progress: show a bar with the time left.

    Raises:
        DicomWebError: if the server cannot be used.
        AfireError: if nothing is found or nothing can be retrieved, or the folder cannot be written.
    """
    series = web.find_series(query)
    if not series:
        raise AfireError(
            "the DICOMweb server has no series that matches; look at --modality, --date and --description, and whether "
            "this user may see the studies"
        )
    private = make_private_folder(Path(out))
    transfer = retrieve_series(web, series, private / RETRIEVED, progress)
    if transfer.failed:
        transfer.write_failures(private / NOT_RETRIEVED)
    else:
        (private / NOT_RETRIEVED).unlink(missing_ok=True)
    if transfer.status == 2:
        reason = next((reason for reason, _ in transfer.reasons()), "the series are empty")
        raise AfireError(f"nothing of {len(series)} series could be retrieved: {reason}")
    return Fetched(private / RETRIEVED, len(series), transfer)
