"""Asking a DICOMweb server for radiographs (QIDO-RS, WADO-RS) and giving it results (STOW-RS)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from afire_monai.hospital.dicomweb.access import DicomWebError, check_url, find_credentials, is_loopback, open_session
from afire_monai.hospital.dicomweb.query import Query, SeriesReference, is_uid, value
from afire_monai.hospital.dicomweb.responses import AnswerError, ask, entries_of, refused_list, see_that_it_is_whole

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")
logger = logging.getLogger(__name__)
PAGE = 500
"""Series asked for at once."""
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

    Raises:
        DicomWebError: for a wrong address, incomplete or unprotected credentials, numbers out of range, or if
            dicomweb-client is not installed.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        retries: int = 4,
        ca: str | Path | None = None,
        insecure: bool = False,
        first_wait: float = 1.0,
    ) -> None:
        if not timeout > 0 or retries < 0:
            raise DicomWebError(f"--timeout must be above 0 and --retries at least 0, got {timeout:g} and {retries}")
        parts = check_url(url)
        host = parts.hostname or ""
        session = open_session(parts, find_credentials(host), ca, insecure)
        try:
            from dicomweb_client import DICOMwebClient
        except ImportError:
            raise DicomWebError("DICOMweb needs dicomweb-client; pip install 'afire-monai[dicom]' brings it") from None
        _keep_out_of_logs()
        if parts.scheme == "http" and not is_loopback(host):
            logger.warning("plain http: pictures of patients cross the network unencrypted; https is better")
        self._client = DICOMwebClient(
            parts.geturl().rstrip("/"),
            session=session,
            headers={"Accept": "application/dicom+json"},
            callback=see_that_it_is_whole,
            # not every server takes bodies of unknown length, and one radiograph fits into memory
            chunk_size=2**31,
            permissive_uid=True,
            timeout=timeout,
        )
        self._client.set_http_retry_params(retry=False)  # it repeats no lost connections, and empty bodies
        self._client.host = parts.netloc  # sent as the Host header, where the port belongs
        self._retries, self._first_wait = retries, first_wait

    def find_series(self, query: Query, page: int = PAGE) -> list[SeriesReference]:
        """Ask for series, page by page.

        Args:
            query: which ones.
            page: how many to ask for at once; the server may give fewer.

        Returns:
            Each series once, in the order that the server gives.

        Raises:
            DicomWebError: if the server does not answer, refuses, or speaks no DICOMweb.
        """
        found: dict[SeriesReference, None] = {}
        for modality in query.modalities:
            filters = {"Modality": modality}
            if query.first or query.last:
                one_day = query.first == query.last
                filters["StudyDate"] = query.first if one_day else f"{query.first}-{query.last}"
            for entry in self._pages(filters, page):
                uids = SeriesReference(value(entry, "0020000D"), value(entry, "0020000E"))
                if is_uid(uids.study) and is_uid(uids.series) and query.wants(entry):
                    found[uids] = None
        return list(found)

    def _pages(self, filters: dict[str, str], page: int) -> Iterator[Mapping[str, Any]]:
        fields = ["Modality", "StudyDate", "StudyDescription", "SeriesDescription"]
        seen: set[str] = set()
        offset = 0
        while True:
            entries = self._ask(
                self._client.search_for_series, fields=fields, limit=page, offset=offset, search_filters=filters
            )
            fresh = [entry for entry in entries_of(entries) if value(entry, "0020000E") not in seen]
            if not fresh:  # the end, or a server that begins anew whatever the offset
                return
            yield from fresh
            seen.update(value(entry, "0020000E") for entry in fresh)
            offset += len(entries)

    def find_instances(self, series: SeriesReference) -> list[str]:
        """Ask for the SOPInstanceUIDs of a series.

        Raises:
            DicomWebError: as :meth:`find_series`; also for a UID that is none.
        """
        entries = self._ask(self._client.search_for_instances, series.study, series.series)
        uids = [value(entry, "00080018") for entry in entries_of(entries)]
        if not all(map(is_uid, uids)):
            raise AnswerError("the server names an instance by something that is not a UID")
        return list(dict.fromkeys(uids))

    def retrieve(self, series: SeriesReference, instance: str) -> Dataset:
        """Fetch one instance in the transfer syntax that the server has it in.

        Raises:
            AnswerError: the server has it no more, or answers with something else.
            DicomWebError: as :meth:`find_series`.
        """
        dataset = self._ask(self._client.retrieve_instance, series.study, series.series, instance)
        if str(dataset.get("SOPInstanceUID", "")) != instance:
            raise AnswerError("the server answered with another instance than the one asked for")
        return dataset

    def store(self, dataset: Dataset) -> bool:
        """Give the server one instance.

        Returns:
            Whether it was new; False if the server says that it has it already.

        Raises:
            AnswerError: the server does not take it, or does not confirm that it did.
            DicomWebError: as :meth:`find_series`.
        """
        uid = str(dataset.get("SOPInstanceUID", ""))
        answer = self._ask(self._store, dataset)
        for item in answer.get("FailedSOPSequence") or ():
            code = int(item.get("FailureReason") or 0)
            if code == _DUPLICATE:
                return False
            raise AnswerError(f"refused by the server: {_FAILURES.get(code, 'failure')} (reason {code:04X})")
        if uid not in {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()}:
            raise AnswerError("the server answered, but did not confirm that it stored the object")
        return True

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
