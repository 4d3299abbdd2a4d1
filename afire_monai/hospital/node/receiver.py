"""Receive radiographs from other applications: C-STORE and C-ECHO, with an allow-list and limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.client import is_uid
from afire_monai.hospital.dicomweb.connection import is_loopback
from afire_monai.hospital.node.queue import Queue
from afire_monai.hospital.pacs.association import VERIFY, Tls, ae_title, application, cut, object_received
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports, report_context
from afire_monai.hospital.pacs.listener import scp_contexts, start

ASSOCIATIONS = 8
"""Maximum number at the same time; further ones are told to try again."""
GRACE = 5.0
"""Seconds that connections have to finish when the node ends."""
SUCCESS, NOT_AUTHORISED, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0x0124, 0xA700, 0xC000


class Receiver:
    """Listen until `close`; an object whose receipt was confirmed is on disk.

    Arguments are as for `run_node`; port 0 stands for any free port. With ``reports``, the archive may report here
    which objects it keeps, even if it is not allowed to send. Raises AfireError for wrong values, or an address that
    cannot be listened on.
    """

    def __init__(
        self,
        queue: Queue,
        aet: str,
        host: str,
        port: int,
        allow: Sequence[str],
        tls: Tls,
        timeout: float,
        largest: int,
        archive: Pacs | None = None,
        reports: Reports | None = None,
    ) -> None:
        from pynetdicom.presentation import build_context

        if not allow and not is_loopback(host):
            raise AfireError(
                "--host opens the node to other machines, but --allow is empty, so anyone could send; name the AE "
                "titles that may send"
            )
        self._queue = queue
        self._entity = application(ae_title(aet, "--aet"), timeout)
        self._entity.require_called_aet = True
        callers = [ae_title(name, "--allow") for name in allow]
        self._senders = frozenset(callers)
        reporters = [archive.address.aet] if callers and archive and reports else []
        self._entity.require_calling_aet = [*callers, *reporters]
        self._entity.maximum_associations = ASSOCIATIONS
        others = [build_context(VERIFY), *([report_context()] if reports else [])]
        self._entity.supported_contexts = [*scp_contexts(), *others]
        report = reports.take if reports else None
        self._server = start(self._entity, host, port, tls.server(), timeout, self._store, largest, report)
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        """Stop to listen, let objects that are on their way come in for a few seconds, and hang up on the others."""
        self._server.shutdown()
        self._wait()
        for association in self._entity.active_associations:
            cut(association)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + GRACE
        while self._entity.active_associations and time.monotonic() < end:
            time.sleep(0.1)

    def _store(self, event: Any) -> int:
        from pynetdicom.dsutils import encode_file_meta

        object_received(event)
        if self._senders and event.assoc.requestor.ae_title not in self._senders:
            return NOT_AUTHORISED  # the archive, which may only report
        uid = str(event.request.AffectedSOPInstanceUID)
        content = event.request.DataSet
        if not is_uid(uid) or content is None or not content.getbuffer():
            return CANNOT_UNDERSTAND
        head = b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta)
        try:
            room = self._queue.put(uid, head, content.getbuffer())
        except OSError:
            room = False
        return SUCCESS if room else OUT_OF_RESOURCES
