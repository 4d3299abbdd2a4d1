"""Asking an archive for radiographs (C-FIND, C-GET or C-MOVE) and giving it results (C-STORE)."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from afire_monai.core.errors import AfireError
from afire_monai.core.quiet import quiet
from afire_monai.hospital.dicomweb.client import Query, SeriesReference, is_uid
from afire_monai.hospital.dicomweb.connection import LONGEST_WAIT, AnswerError, ConnectionLostError, is_loopback
from afire_monai.hospital.pacs.association import (
    PDU,
    UNCOMPRESSED,
    VERIFY,
    PacsAddress,
    Tls,
    ae_title,
    application,
    cut,
    drop_unasked,
    leave_answers,
    limit_connection,
    note_rejection,
    object_received,
    status_error,
    storage_contexts,
    text_of,
    why_not,
)
from afire_monai.hospital.pacs.commitment import ACTED_ON, COMMITMENT, Reports, commitment_request
from afire_monai.hospital.pacs.listener import MoveListener
from afire_monai.radiographs.dicom import RADIOGRAPH_CLASSES

T = TypeVar("T")
logger = logging.getLogger(__name__)
FIND, GET, MOVE = (f"1.2.840.10008.5.1.4.1.2.2.{end}" for end in (1, 3, 2))
"""Study Root query, C-GET and C-MOVE."""
OTHERS = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("88.11", "88.22", "88.33", "88.34", "66.4", "11.1"))
"""Classes of reports, segmentations and presentation states, which a query for SR, SEG or PR finds."""
MOST = 1_000_000
"""Maximum number of answers to one query."""
MOVE_GRACE = 2.0
"""Seconds to wait for an object that the archive reports as sent; its receipt was answered before that report."""
_PENDING = (0xFF00, 0xFF01)
_MOST_CONTEXTS = 128


class Pacs:
    """An archive that speaks DICOM's own protocol; it is used as `DicomWeb` is.

    Args:
        pacs: ``AET@HOST:PORT`` of the archive.
        aet: own AE title, as the archive knows it.
        move_to: ``AET:PORT`` of an own listener that the archive sends objects to (C-MOVE); C-GET unless given.
        tls: certificates; none for a plain connection.
        timeout: seconds to wait for a connection and for each answer.
        retries: how often a request is repeated after a lost connection.
        first_wait: seconds before the first repetition; doubled each time.
        reports: ask the archive to confirm that it keeps stored objects; it may report on the same connection or to the
            listener of this `Reports`.

    Raises:
        AfireError: for a wrong address, numbers out of range, or if pynetdicom is not installed.
    """

    def __init__(
        self,
        pacs: str,
        aet: str = "AFIRE",
        move_to: str | None = None,
        tls: Tls | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        first_wait: float = 1.0,
        reports: Reports | None = None,
    ) -> None:
        if not timeout > 0 or retries < 0:
            raise AfireError(f"--timeout must be above 0 and --retries at least 0, got {timeout:g} and {retries}")
        self.address, self._aet = PacsAddress.parse(pacs), ae_title(aet, "--aet")
        self.peer = str(self.address)
        self._tls, self._timeout = (tls or Tls()).client(), timeout
        self._retries, self._first_wait = retries, first_wait
        self._entity = application(self._aet, timeout)
        self._open: dict[str, Any] = {}
        self._connected: dict[str, Any] = {}
        self._stored: dict[tuple[str, str], None] = {}
        self._incoming: dict[str, bytes] = {}
        self._reports, self._unsettled = reports, dict[str, str]()
        self._listener = MoveListener(move_to, self.address, tls or Tls(), timeout) if move_to else None
        if self._tls is None and not is_loopback(self.address.host):
            logger.warning("no TLS: pictures of patients cross the network unencrypted; --tls-ca turns it on")

    def __enter__(self) -> Pacs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all associations and the listener."""
        for purpose in list(self._open):
            self._hang_up(purpose)
        for listener in (self._listener, self._reports):
            if listener is not None:
                listener.close()

    def interrupt(self) -> None:
        """Let whatever waits for the archive fail now, as if the connection was lost; for other threads."""
        if self._reports is not None:
            self._reports.give_up()
        for association in list(self._connected.values()):
            cut(association)

    def find_series(self, query: Query) -> list[SeriesReference]:
        """Ask for studies by date and modality, then for the series of each.

        Returns:
            Each series once, in the order that the archive gives.

        Raises:
            AfireError: if the archive does not answer or refuses.
        """
        found: dict[SeriesReference, None] = {}
        for modality in query.modalities:
            for study in self._matches(study_query(query, modality)):
                uid = text_of(study, "StudyInstanceUID")
                if not is_uid(uid):
                    continue
                for series in self._matches(series_query(uid, modality)):
                    reference = SeriesReference(uid, text_of(series, "SeriesInstanceUID"))
                    if is_uid(reference.series) and query.wants({**as_json(study), **as_json(series)}):
                        found[reference] = None
        return list(found)

    def find_instances(self, series: SeriesReference) -> list[str]:
        """Ask for the SOPInstanceUIDs of a series; AfireError as :meth:`find_series`; also for a UID that is none."""
        uids = [text_of(entry, "SOPInstanceUID") for entry in self._matches(instance_query(series))]
        if not all(map(is_uid, uids)):
            raise AnswerError("the archive names an instance by something that is not a UID")
        return list(dict.fromkeys(uids))

    def retrieve(self, series: SeriesReference, instance: str, path: Path) -> None:
        """Fetch one instance into a file, in the transfer syntax that the archive has it in if it can send that.

        Raises:
            AnswerError: if the archive does not send it, or sends something else.
            AfireError: as :meth:`find_series`.
            OSError: if the file cannot be written.
        """
        import pydicom

        wanted = instance_query(series, instance)
        content = self._repeated(lambda: self._get(wanted, instance) if self._listener is None else self._move(wanted))
        try:
            with quiet():
                dataset = pydicom.dcmread(io.BytesIO(content))
                uid = str(dataset.get("SOPInstanceUID", ""))
        except Exception as error:  # pydicom raises many unrelated types on damaged data
            raise AnswerError(f"what the archive sent cannot be read ({type(error).__name__})") from None
        if uid != instance:
            raise AnswerError("the archive sent another instance than the one asked for")
        path.write_bytes(content)

    def store(self, dataset: Any) -> bool:
        """Send one instance; return whether it was new; False if the archive says that it has it already.

        Raises:
            AnswerError: if the archive does not accept it.
            AfireError: as :meth:`find_series`.
        """
        new = self._repeated(lambda: self._store(dataset))
        if self._reports is not None:
            self._unsettled[str(dataset.SOPInstanceUID)] = str(dataset.SOPClassUID)
        return new

    def settle(self) -> dict[str, str]:
        """Ask for storage commitment of the objects stored since the last time, and wait for the report.

        Returns:
            Reasons why objects are not kept, by SOPInstanceUID; empty if all are kept, or without ``reports``.

        Raises:
            AnswerError: if the archive does not offer storage commitment, or refuses the request.
            AfireError: as :meth:`find_series`; also if no report comes within the time for an answer.
        """
        objects, self._unsettled = self._unsettled, {}
        if self._reports is None or not objects:
            return {}
        reports = self._reports
        try:
            report = self._repeated(lambda: self._committed(reports, objects))
        finally:
            reports.wait_for_answers(self._timeout)
            self._hang_up("commit")
        if report is None:
            raise ConnectionLostError(
                "the archive did not report in time whether it keeps what was sent; it has to know this AE title's "
                "address and port, or needs a higher --timeout"
            )
        reasons = {uid: report.get(uid, "its report does not name it") for uid in objects}
        return {uid: f"not kept by the archive: {reason}" for uid, reason in reasons.items() if reason}

    def echo(self) -> None:
        """See that the archive answers; AfireError if it does not."""
        status = self._association("echo").send_c_echo()
        if getattr(status, "Status", None) != 0:
            raise status_error(status, {})

    def _store(self, dataset: Any) -> bool:
        kind, syntax = str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)
        if (kind, syntax) not in self._stored:
            if len(self._stored) >= _MOST_CONTEXTS:
                self._stored.clear()
            self._stored[kind, syntax] = None
            self._hang_up("store")
        association = self._association("store")
        try:
            with quiet():
                status = association.send_c_store(dataset)
        except ValueError:  # no context was accepted, or the data set cannot be encoded
            raise AnswerError(f"the archive does not take this kind of object in {_name(syntax)}") from None
        except RuntimeError:
            self._hang_up("store")
            raise status_error(None, {}) from None
        code = status.get("Status")
        if code == 0x0111:
            return False
        if code is None:
            self._hang_up("store")
        if code != 0 and (code is None or code >> 12 != 0xB):
            raise status_error(status, {})
        return True

    def _committed(self, reports: Reports, objects: dict[str, str]) -> dict[str, str] | None:
        """Ask once, in a transaction of its own, as an archive refuses one that it knows; return its report."""
        from pydicom.uid import generate_uid

        transaction = str(generate_uid(prefix=None))
        with reports.expect(transaction) as arrived:
            try:
                self._request(commitment_request(transaction, objects))
            except AfireError:
                if (report := arrived(0.0)) is None:
                    raise
                return report
            return arrived(self._timeout)

    def _request(self, request: Any) -> None:
        self._hang_up("commit")
        association = self._association("commit")
        try:
            with quiet():
                status, _ = association.send_n_action(request, 1, COMMITMENT, ACTED_ON)
        except RuntimeError:
            status = {}
        if "Status" not in status:
            raise ConnectionLostError(
                "the archive ended the connection or did not answer when it was asked whether it keeps what was sent; "
                f"it may not know the AE title {self._aet!r}, or needs a higher --timeout"
            )
        if status.get("Status") != 0:
            raise status_error(status, {0x0112: "it does not offer storage commitment"})

    def _get(self, wanted: Any, instance: str) -> bytes:
        self._incoming.clear()
        final = self._exchange("get", lambda association: association.send_c_get(wanted, GET))
        content = self._incoming.pop(instance, None)
        if content is None:
            words = {0x0000: "it has the object no more", 0xA900: "it has no such object"}
            raise status_error(final, words)
        return content

    def _move(self, wanted: Any) -> bytes:
        listener = self._listener
        assert listener is not None
        with listener.expect(wanted.SOPInstanceUID) as arrived:
            final = self._exchange("move", lambda association: association.send_c_move(wanted, listener.aet, MOVE))
            content = arrived(min(self._timeout, MOVE_GRACE) if getattr(final, "Status", None) == 0 else 0.0)
        if content is None:
            words = "it says that it sent the object, but none came to --move-to; check the port it has for it"
            raise status_error(final, {0x0000: words})
        return content

    def _matches(self, identifier: Any) -> list[Any]:
        found: list[Any] = []

        def ask() -> None:
            found.clear()
            final = self._exchange("find", lambda association: association.send_c_find(identifier, FIND), found)
            if getattr(final, "Status", None) != 0:
                raise status_error(final, {})

        self._repeated(ask)
        return found

    def _exchange(self, purpose: str, request: Callable[[Any], Iterator[Any]], found: list[Any] | None = None) -> Any:
        """Make a request with several answers; return the last status and collect the matches."""
        final = None
        try:
            with quiet():
                for final, identifier in request(self._association(purpose)):
                    if found is not None and getattr(final, "Status", None) in _PENDING and identifier is not None:
                        found.append(identifier)
                        if len(found) > MOST:
                            self._hang_up(purpose)
                            raise AnswerError(f"more than {MOST} matches; ask for fewer with --date")
        except AfireError:
            raise
        except RuntimeError:  # the association ended
            final = None
        except ValueError:
            raise AnswerError(f"the archive does not offer C-{purpose.upper()}") from None
        if final is None or "Status" not in final:
            self._hang_up(purpose)
            return None
        return final

    def _association(self, purpose: str) -> Any:
        """Return the open association for a purpose; a new one where there is none."""
        from pynetdicom import evt
        from pynetdicom.presentation import build_role

        current = self._open.get(purpose)
        if current is not None and current.is_established:
            drop_unasked(current)
            return current
        contexts = self._contexts(purpose)
        # what is asked for by C-GET comes on the same connection
        kinds = dict.fromkeys(c.abstract_syntax for c in contexts if purpose == "get" and c.abstract_syntax != GET)
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened, [purpose]),
            (evt.EVT_PDU_RECV, note_rejection),
            (evt.EVT_C_STORE, self._keep),
            *([(evt.EVT_N_EVENT_REPORT, self._reports.take)] if self._reports and purpose == "commit" else []),
        ]
        with quiet():
            association = self._entity.associate(
                self.address.host,
                self.address.port,
                contexts=contexts,
                ae_title=self.address.aet,
                max_pdu=PDU,
                ext_neg=[build_role(kind, scp_role=True) for kind in kinds],
                tls_args=(self._tls, self.address.host) if self._tls else None,
                evt_handlers=handlers,
            )
        if not association.is_established:
            raise why_not(association, self._aet, self.address.aet)
        leave_answers(association)
        self._open[purpose] = association
        return association

    def _opened(self, event: Any, purpose: str) -> None:
        limit_connection(event, self._timeout)
        self._connected[purpose] = event.assoc

    def _contexts(self, purpose: str) -> list[Any]:
        from pynetdicom.presentation import build_context

        if purpose == "store":
            return [build_context(kind, _offered(syntax)) for kind, syntax in self._stored]
        if purpose == "get":
            reports = [build_context(kind, list(UNCOMPRESSED)) for kind in OTHERS]
            return [build_context(GET), *storage_contexts(RADIOGRAPH_CLASSES), *reports]
        return [build_context({"find": FIND, "move": MOVE, "echo": VERIFY, "commit": COMMITMENT}[purpose])]

    def _keep(self, event: Any) -> int:
        self._incoming.clear()  # only one object is requested at a time
        self._incoming[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        object_received(event)
        return 0x0000

    def _hang_up(self, purpose: str) -> None:
        association = self._open.pop(purpose, None)
        if association is not None and association.is_established:
            with contextlib.suppress(Exception):
                association.release()

    def _repeated(self, request: Callable[[], T]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return request()
            except ConnectionLostError:
                if attempt == self._retries:
                    raise
            time.sleep(min(self._first_wait * 2**attempt, LONGEST_WAIT))
        raise AssertionError  # the last attempt returns or raises


def _offered(syntax: str) -> Sequence[str]:
    """Ways to send a file: compressed as it is, else in any of the ways that differ in headers alone."""
    return list(dict.fromkeys((syntax, *UNCOMPRESSED))) if syntax in UNCOMPRESSED else [syntax]


def _name(syntax: str) -> str:
    from pydicom.uid import UID

    return f"its transfer syntax ({UID(syntax).name})"


def study_query(query: Query, modality: str) -> Any:
    """Return the identifier that finds the studies of a query with a modality."""
    wanted = {"ModalitiesInStudy": modality, "StudyDate": query.dates}
    return _dataset("STUDY", StudyInstanceUID="", StudyDescription="", **wanted)


def series_query(study: str, modality: str) -> Any:
    """Return the identifier that finds the series of a modality in a study."""
    return _dataset("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality=modality, SeriesDescription="")


def instance_query(series: SeriesReference, instance: str = "") -> Any:
    """Return the identifier of an object of a series, or of all."""
    return _dataset("IMAGE", StudyInstanceUID=series.study, SeriesInstanceUID=series.series, SOPInstanceUID=instance)


def _dataset(level: str, **elements: str) -> Any:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def as_json(entry: Any) -> dict[str, Any]:
    """Return the elements that a query looks at, as DICOM JSON."""
    tags = {
        "00080060": "Modality",
        "00080020": "StudyDate",
        "00081030": "StudyDescription",
        "0008103E": "SeriesDescription",
    }
    return {tag: {"Value": [text]} for tag, keyword in tags.items() if (text := text_of(entry, keyword))}
