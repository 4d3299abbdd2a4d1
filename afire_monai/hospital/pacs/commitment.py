"""An archive's reports on objects that it was asked to keep safely (storage commitment, PS3.4 annex J)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from afire_monai.hospital.pacs.association import VERIFY, PacsAddress, Tls, application, object_received, text_of
from afire_monai.hospital.pacs.listener import facing, start

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


class Reports:
    """Take an archive's reports, whichever connection they come on, while somebody waits for them."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._open: dict[str, dict[str, str] | None] = {}
        self._over = False
        self._server: Any = None

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
        entity = application(aet, timeout)
        entity.require_called_aet = True
        entity.supported_contexts = [report_context()]
        entity.add_supported_context(VERIFY)
        secured = tls.server() if tls.cert else None
        self._server = start(entity, facing(pacs), port, secured, timeout, report=self.take)

    def close(self) -> None:
        """Stop to listen."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def give_up(self) -> None:
        """Let whoever waits go on without a report, now and from now on; for other threads."""
        with self._arrived:
            self._over = True
            self._arrived.notify_all()

    @contextlib.contextmanager
    def expect(self, transaction: str) -> Iterator[Callable[[float], dict[str, str] | None]]:
        """Take the report on one transaction while the block runs.

        Yields:
            A function that waits for the given number of seconds and returns, by UID, the reason why an object is not
            kept, or "" if it is kept; None if no report came.
        """

        def arrived(timeout: float) -> dict[str, str] | None:
            with self._arrived:
                self._arrived.wait_for(lambda: self._over or self._open[transaction] is not None, timeout)
                return self._open[transaction]

        with self._arrived:
            self._open[transaction] = None
        try:
            yield arrived
        finally:
            with self._arrived:
                del self._open[transaction]

    def take(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT; one that nobody waits for, such as a late one, is answered and forgotten."""
        object_received(event)
        report = event.event_information
        kept = {text_of(item, "ReferencedSOPInstanceUID"): "" for item in report.get("ReferencedSOPSequence") or ()}
        failed = {
            text_of(item, "ReferencedSOPInstanceUID"): _REASONS.get(item.get("FailureReason"), "no reason is given")
            for item in report.get("FailedSOPSequence") or ()
        }
        with self._arrived:
            if (transaction := text_of(report, "TransactionUID")) in self._open:
                self._open[transaction] = kept | failed
                self._arrived.notify_all()
        return 0x0000, None


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
