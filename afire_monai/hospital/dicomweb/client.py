"""Query a DICOMweb server for radiographs (QIDO-RS, WADO-RS) and store results on it (STOW-RS)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from afire_monai.core.errors import require
from afire_monai.hospital.dicomweb.connection import (
    AnswerError,
    ask,
    check_url,
    entries_of,
    is_loopback,
    name_json,
    open_session,
    refused_list,
)
from afire_monai.hospital.dicomweb.credentials import DicomWebError, find_credentials
from afire_monai.hospital.dicomweb.objects import check_object, failure_reason, save_object

if TYPE_CHECKING:
    from pydicom import Dataset


_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class SeriesReference:
    """A series on a server.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
    """

    study: str
    series: str


@dataclass(frozen=True)
class Query:
    """Which series are wanted.

    Attributes:
        modalities: accepted modalities.
        first: earliest study date, YYYYMMDD; "" for any.
        last: latest study date; "" for any.
        words: the description of the study or the series must contain one of these, in upper or lower case; empty for
            all series.
    """

    modalities: tuple[str, ...] = ("CR", "DX")
    first: str = ""
    last: str = ""
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, modalities: Sequence[str] = ("CR", "DX"), date: str | None = None, words: Sequence[str] = ()) -> Query:
        """Check the typed values.

        Args:
            modalities: codes of up to 16 capitals, digits, _ or blanks.
            date: YYYYMMDD, YYYYMMDD-YYYYMMDD, YYYYMMDD- or -YYYYMMDD.
            words: see the class.

        Raises:
            DicomWebError: for other values.
        """
        names = tuple(dict.fromkeys(name.strip().upper() for name in modalities))
        if not names or not all(re.fullmatch(r"[A-Z0-9_ ]{1,16}", name) for name in names):
            raise DicomWebError("--modality takes codes with commas between them, for example CR,DX")
        first, last = _range(date)
        return cls(names, first, last, tuple(word.strip().casefold() for word in words if word.strip()))

    @property
    def dates(self) -> str:
        """Return the range as archives take it: one day, or two with a hyphen between them; "" for any."""
        return self.first if self.first == self.last else f"{self.first}-{self.last}"

    def wants(self, found: Mapping[str, Any]) -> bool:
        """Whether a series that a server found is meant; servers may leave out filters that they do not know."""
        modality, date = value(found, "00080060"), value(found, "00080020").replace(".", "")  # old form of dates
        if modality and modality.upper() not in self.modalities:
            return False
        if date and ((self.first and date < self.first) or (self.last and date > self.last)):
            return False
        text = f"{value(found, '00081030')}\n{value(found, '0008103E')}".casefold()
        return not self.words or any(word in text for word in self.words)


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID, and so can be part of an address or a file name."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def value(entry: Mapping[str, Any], tag: str) -> str:
    """First value of an element in DICOM JSON as text; "" where there is none."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip(" \0") if isinstance(values, list) and values and values[0] is not None else ""


def _range(date: str | None) -> tuple[str, str]:
    if date is None:
        return "", ""
    first, dash, last = date.strip().partition("-")
    last = last if dash else first
    try:
        # strptime alone takes days of one digit, too
        right = all(re.fullmatch("[0-9]{8}", day) and time.strptime(day, "%Y%m%d") for day in (first, last) if day)
    except ValueError:
        right = False
    if not right:
        raise DicomWebError("--date takes YYYYMMDD, YYYYMMDD-YYYYMMDD, YYYYMMDD- or -YYYYMMDD")
    if not (first or last) or (first and last and first > last):
        raise DicomWebError("--date needs a first day that is not after the last one, as YYYYMMDD-YYYYMMDD")
    return first, last


T = TypeVar("T")
logger = logging.getLogger(__name__)
PAGE = 500
"""Number of series to request at once."""
MOST_PAGES = 10_000
"""Pages of an answer to a query; a server that sends more for one modality may never end."""
_DUPLICATE = 0x0111
_FAILURES = {
    0x0110: "processing failure",
    0x0122: "the server does not store this kind of object",
    0x0124: "not authorised",
    0xC122: "the server does not store this transfer syntax",
}


class DicomWeb:
    """A DICOMweb server. Credentials come from the environment or a netrc file, never from arguments.

    Libraries that would log addresses (which hold UIDs) or headers are silenced for the whole process.

    Args:
        url: root of its services; without user name and password.
        timeout: seconds to wait for a connection, and for each part of an answer.
        retries: how often a request is repeated after lost connections, timeouts and answers such as 503.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        insecure: allow credentials over plain http to another machine.
        first_wait: seconds before the first repetition; doubled each time.
        cert: PEM file of this client's certificate, for a server that asks for one.
        key: PEM file of its private key, without a password.

    Raises:
        DicomWebError: for a wrong address, incomplete or unprotected credentials, files that hold no certificate or
            key, numbers out of range, or if dicomweb-client is not installed.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        retries: int = 4,
        ca: str | Path | None = None,
        insecure: bool = False,
        first_wait: float = 1.0,
        cert: str | Path | None = None,
        key: str | Path | None = None,
    ) -> None:
        if not timeout > 0 or retries < 0:
            raise DicomWebError(f"--timeout must be above 0 and --retries at least 0, got {timeout:g} and {retries}")
        parts = check_url(url)
        host = parts.hostname or ""
        session = open_session(parts, find_credentials(host), ca, insecure, cert, key)
        require("dicomweb_client", extra="dicom", error=DicomWebError)
        from dicomweb_client import DICOMwebClient

        _keep_out_of_logs()
        if parts.scheme == "http" and not is_loopback(host):
            logger.warning("plain http: pictures of patients cross the network unencrypted; https is better")
        self.peer = parts.geturl().rstrip("/")
        self._session, self._timeout = session, timeout
        self._client = DICOMwebClient(
            self.peer,
            session=session,
            headers={"Accept": "application/dicom+json"},
            callback=name_json,
            # not every server takes bodies of unknown length, and one radiograph fits into memory
            chunk_size=2**31,
            permissive_uid=True,
            timeout=timeout,
        )
        self._client.set_http_retry_params(retry=False)  # it never repeats lost connections, and repeats empty bodies
        self._client.host = parts.netloc  # sent as the Host header, where the port belongs
        self._retries, self._first_wait = retries, first_wait

    def find_series(self, query: Query, page: int = PAGE) -> list[SeriesReference]:
        """Ask for series, page by page.

        Args:
            query: series to find.
            page: number of series to request at once; the server may send fewer.

        Returns:
            Each series once, in the order that the server gives.

        Raises:
            DicomWebError: if the server does not answer, refuses, or does not speak DICOMweb.
        """
        found: dict[SeriesReference, None] = {}
        for modality in query.modalities:
            filters = {"Modality": modality}
            if query.dates:
                filters["StudyDate"] = query.dates
            for entry in self._pages(filters, page):
                uids = SeriesReference(value(entry, "0020000D"), value(entry, "0020000E"))
                if is_uid(uids.study) and is_uid(uids.series) and query.wants(entry):
                    found[uids] = None
        return list(found)

    def _pages(self, filters: dict[str, str], page: int) -> Iterator[Mapping[str, Any]]:
        fields = ["Modality", "StudyDate", "StudyDescription", "SeriesDescription"]
        seen: set[str] = set()
        offset = 0
        for _ in range(MOST_PAGES):
            entries = self._ask(
                self._client.search_for_series, fields=fields, limit=page, offset=offset, search_filters=filters
            )
            fresh = [entry for entry in entries_of(entries) if value(entry, "0020000E") not in seen]
            if not fresh:  # the end, or a server that ignores the offset and begins again
                return
            yield from fresh
            seen.update(value(entry, "0020000E") for entry in fresh)
            offset += len(entries)
        raise AnswerError(f"the server gives more than {MOST_PAGES} pages of series; ask for fewer with --date")

    def get(self, path: str, query: Sequence[tuple[str, str]] = (), accept: str = "*/*") -> tuple[bytes, str] | None:
        """Read the body at a path below the root of the services, unchanged.

        Args:
            path: path without a leading slash, checked by the caller.
            query: names and values.
            accept: media types to accept.

        Returns:
            The body and its media type; None if the server has nothing at this path.

        Raises:
            DicomWebError: as :meth:`find_series`.
        """

        def read() -> tuple[bytes, str] | None:
            response = self._session.get(
                f"{self.peer}/{path}", params=list(query), headers={"Accept": accept}, timeout=self._timeout
            )
            if response.status_code in (404, 410):
                return None
            response.raise_for_status()
            return response.content, str(response.headers.get("Content-Type", "application/octet-stream"))

        return self._ask(read)

    def find_instances(self, series: SeriesReference) -> list[str]:
        """Ask for the SOPInstanceUIDs of a series.

        Raises:
            DicomWebError: as :meth:`find_series`; also if a UID is not valid.
        """
        entries = self._ask(self._client.search_for_instances, series.study, series.series)
        uids = [value(entry, "00080018") for entry in entries_of(entries)]
        if not all(map(is_uid, uids)):
            raise AnswerError("the server names an instance by something that is not a UID")
        return list(dict.fromkeys(uids))

    def retrieve(self, series: SeriesReference, instance: str, path: Path) -> None:
        """Fetch one instance in the transfer syntax that the server has it in, into a file, as it is.

        Raises:
            AnswerError: if the server no longer has the instance, or answers with something else.
            DicomWebError: as :meth:`find_series`.
            OSError: if the file cannot be written.
        """
        if not all(map(is_uid, (series.study, series.series, instance))):
            raise AnswerError("an instance is asked for by something that is not a UID")
        url = f"{self.peer}/studies/{series.study}/series/{series.series}/instances/{instance}"
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}

        def fetch() -> None:
            with self._session.get(url, headers=accept, timeout=self._timeout, stream=True) as response:
                response.raise_for_status()
                save_object(response, path)
            check_object(path, instance)

        self._ask(fetch)

    def store(self, dataset: Dataset) -> bool:
        """Send one instance to the server.

        Returns:
            Whether it was new; False if the server says that it has it already.

        Raises:
            AnswerError: if the server does not accept the instance, or does not confirm that it stored it.
            DicomWebError: as :meth:`find_series`.
        """
        uid = str(dataset.get("SOPInstanceUID", ""))
        answer = self._ask(self._store, dataset)
        for item in answer.get("FailedSOPSequence") or ():
            code = failure_reason(item)
            if code == _DUPLICATE:
                return False
            raise AnswerError(f"refused by the server: {_FAILURES.get(code, 'failure')} (reason {code:04X})")
        if uid not in {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()}:
            raise AnswerError("the server answered, but did not confirm that it stored the object")
        return True

    def settle(self) -> dict[str, str]:
        """Return nothing: an object that a server confirms by STOW-RS counts as kept."""
        return {}

    def _store(self, dataset: Dataset) -> Dataset:
        import requests

        try:
            return self._client.store_instances([dataset])
        except requests.HTTPError as error:
            refused = refused_list(error)
            if refused is None:
                raise
            return refused

    def _ask(self, request: Callable[..., T], *values: Any, **options: Any) -> T:
        return ask(partial(request, *values, **options), self._retries, self._first_wait)


def _keep_out_of_logs() -> None:
    for name in ("dicomweb_client", "retrying", "urllib3", "requests", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
