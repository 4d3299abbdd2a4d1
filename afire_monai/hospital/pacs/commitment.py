"""An archive's reports on objects that it was asked to keep safely (storage commitment, PS3.4 annex J)."""

from __future__ import annotations

import threading
import time
from typing import Any

from afire_monai.hospital.dicomweb.objects import failure_reason
from afire_monai.hospital.pacs.association import VERIFY, PacsAddress, Tls, object_received, text_of
from afire_monai.hospital.pacs.listener import Mailbox

COMMITMENT, ACTED_ON = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
"""Storage Commitment Push Model, and the well-known instance that requests are made to."""
_REASONS = {
    0x0110: "processing failure",
    0x0112: "it has no such object",
    0x0119: "its class and its UID are in conflict",
    0x0122: "it does not take this kind of object",
    0x0131: "it was asked twice",
    0x0213: "it is out of resources",
}


class Reports(Mailbox[dict[str, str]]):
    """Take an archive's reports on transactions, whichever connection they come on, while somebody waits for them.

    A report is, by UID, the reason why an object is not kept, or "" if it is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answering: list[threading.Thread] = []

    def listen(self, aet: str, port: int, pacs: PacsAddress, tls: Tls, timeout: float) -> None:
        """Let the archive report on a connection of its own, to the address that faces it, and try it by C-ECHO.

        Raises AfireError for a port that is in use.

        Args:
            aet: own AE title, which the archive calls.
            port: port to listen on, as the archive knows it.
            pacs: the archive.
            tls: files for a listener with TLS; used only if they include an own certificate.
            timeout: seconds of silence after which a connection is closed.
        """
        from pynetdicom.presentation import build_context

        contexts = [report_context(), build_context(VERIFY)]
        self._listen(aet, port, pacs, tls, timeout, contexts, report=self.take)

    def take(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT; one that nobody waits for, such as a late one, is answered and forgotten."""
        object_received(event)
        with self._arrived:  # pynetdicom starts a thread for each report, and answers in it
            self._answering = [*filter(threading.Thread.is_alive, self._answering), threading.current_thread()]
        report = event.event_information
        kept = {text_of(item, "ReferencedSOPInstanceUID"): "" for item in report.get("ReferencedSOPSequence") or ()}
        failed = {
            text_of(item, "ReferencedSOPInstanceUID"): _REASONS.get(failure_reason(item), "no reason is given")
            for item in report.get("FailedSOPSequence") or ()
        }
        self.put(text_of(report, "TransactionUID"), lambda: kept | failed)
        return 0x0000, None

    def wait_for_answers(self, timeout: float) -> None:
        """Wait until the reports that were taken are answered, at most ``timeout`` seconds.

        A connection must not be ended before: the answer would be lost, and both sides would wait for each other.
        """
        end = time.monotonic() + timeout
        for thread in self._answering:
            thread.join(max(end - time.monotonic(), 0))


def report_context() -> Any:
    """Return the presentation context that reports come in: the archive is the provider, although it calls."""
    from pynetdicom.presentation import build_context

    context = build_context(COMMITMENT)
    context.scu_role = context.scp_role = True
    return context


def commitment_request(transaction: str, objects: dict[str, str]) -> Any:
    """Return a request to keep the objects with these UIDs, by SOP class, under the name of the transaction."""
    from pydicom.dataset import Dataset

    request = Dataset()
    request.TransactionUID = transaction
    request.ReferencedSOPSequence = []
    for uid, kind in objects.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = kind, uid
        request.ReferencedSOPSequence.append(item)
    return request
