"""An own listener that an archive sends to when it is asked to (C-MOVE)."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from afire_monai.core.errors import AfireError
from afire_monai.hospital.pacs.association import (
    COMPRESSED,
    LARGEST_OBJECT,
    UNCOMPRESSED,
    PacsAddress,
    Tls,
    ae_title,
    application,
    cut,
    limit_connection,
    object_received,
)
from afire_monai.radiographs.dicom import RADIOGRAPH_CLASSES

T = TypeVar("T")
SPEECHLESS = 2.0
"""Seconds after which a connection should have identified itself."""


class Mailbox(Generic[T]):
    """Take what the threads of connections receive, while somebody waits for it."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._open: dict[str, T | None] = {}
        self._over = False
        self._server: Any = None

    def _listen(
        self, aet: str, port: int, pacs: PacsAddress, tls: Tls, timeout: float, contexts: list[Any], **handlers: Any
    ) -> None:
        """Let an archive connect to the address that faces it, with TLS if there is an own certificate; see `start`."""
        entity = application(aet, timeout)
        entity.require_called_aet = True
        entity.supported_contexts = contexts
        secured = tls.server() if tls.cert else None
        self._server = start(entity, facing(pacs), port, secured, timeout, **handlers)

    def close(self) -> None:
        """Stop to listen."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    @contextlib.contextmanager
    def expect(self, name: str) -> Iterator[Callable[[float], T | None]]:
        """Take what comes under a name while the block runs.

        Yields:
            A function that waits for the given number of seconds and returns what came, or None.
        """

        def arrived(timeout: float) -> T | None:
            with self._arrived:
                self._arrived.wait_for(lambda: self._over or self._open[name] is not None, timeout)
                return self._open[name]

        with self._arrived:
            self._open[name] = None
        try:
            yield arrived
        finally:
            with self._arrived:
                del self._open[name]

    def put(self, name: str, content: Callable[[], T]) -> bool:
        """Take what ``content`` returns; give whether somebody waits for it."""
        with self._arrived:
            if name not in self._open:
                return False
            self._open[name] = content()
            self._arrived.notify_all()
            return True

    def give_up(self) -> None:
        """Let whoever waits go on without anything, now and from now on; for other threads."""
        with self._arrived:
            self._over = True
            self._arrived.notify_all()


class MoveListener(Mailbox[bytes]):
    """Take the files of objects that were asked for by UID, and no others, on the address that faces the archive.

    Args:
        move_to: ``AET:PORT``, as the archive knows it.
        pacs: the archive.
        tls: files for a listener with TLS; used only if they include an own certificate.
        timeout: seconds of silence after which a connection is closed.

    Raises:
        AfireError: for a value other than ``AET:PORT``, or a port that is in use.
    """

    def __init__(self, move_to: str, pacs: PacsAddress, tls: Tls, timeout: float) -> None:
        found = re.fullmatch(r"([^:]+):([0-9]{1,5})", move_to.strip())
        if found is None or int(found[2]) > 65535:
            raise AfireError("--move-to takes AET:PORT of a listener that the archive knows, for example AFIRE:11113")
        self.aet = ae_title(found[1], "--move-to")
        super().__init__()
        self._listen(self.aet, int(found[2]), pacs, tls, timeout, scp_contexts(), store=self._take)

    def _take(self, event: Any) -> int:
        object_received(event)
        expected = self.put(str(event.request.AffectedSOPInstanceUID), event.encoded_dataset)
        return 0x0000 if expected else 0x0124  # not authorised


def start(
    entity: Any,
    host: str,
    port: int,
    tls: Any,
    timeout: float,
    store: Callable[[Any], int] | None = None,
    largest: int = LARGEST_OBJECT,
    report: Callable[[Any], tuple[int, None]] | None = None,
) -> Any:
    """Start to listen in threads of their own; return pynetdicom's server, with `shutdown` and `server_address`.

    ``store`` is called for each object and returns the status, ``report`` for each N-EVENT-REPORT; ``timeout`` is
    seconds of silence.

    Raises:
        AfireError: if the address or port cannot be used.
    """
    from pynetdicom import evt

    handlers = [
        (evt.EVT_CONN_OPEN, limit_connection, [timeout, largest]),
        (evt.EVT_CONN_OPEN, _leave_room),
        (evt.EVT_CONN_CLOSE, _let_go),
        *([(evt.EVT_C_STORE, store)] if store else []),
        *([(evt.EVT_N_EVENT_REPORT, report)] if report else []),
    ]
    try:
        return entity.start_server((host, port), block=False, ssl_context=tls, evt_handlers=handlers)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such address or port"
        raise AfireError(f"port {port} of {host} cannot be listened on: {reason}; give another") from None


def _leave_room(event: Any) -> None:
    """Close the oldest connections that still do not say who they are, where such take over half of the places.

    They count among the associations until the time for the request is over.
    """
    entity, now = event.assoc.ae, time.monotonic()
    event.assoc.afire_since = now
    silent = [one for one in entity.active_associations if one.is_acceptor and one.requestor.primitive is None]
    earlier = [one for one in silent if one is not event.assoc]
    too_many = max(len(earlier) + 1 - entity.maximum_associations // 2, 0)
    for association in [one for one in earlier if now - getattr(one, "afire_since", now) > SPEECHLESS][:too_many]:
        cut(association)


def _let_go(event: Any) -> None:
    """End the thread of a connection that was closed before it asked for an association, as port checks do.

    Otherwise the thread would wait for the request, and count among the associations, until the time for that is over.
    """
    association = event.assoc
    if association.requestor.primitive is None:
        association.dul.to_user_queue.put(None)


def scp_contexts() -> list[Any]:
    """Return a context for each class of radiographs, with all ways of compression."""
    from pynetdicom.presentation import build_context

    return [build_context(kind, [*UNCOMPRESSED, *COMPRESSED]) for kind in RADIOGRAPH_CLASSES]


def facing(pacs: PacsAddress) -> str:
    """Return the own address that a connection to the archive comes from."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(pacs.host, pacs.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # this sends nothing from a datagram socket
            return str(probe.getsockname()[0])
    except OSError as error:
        raise AfireError(f"the archive's address cannot be found: {error.strerror}; check --pacs") from None
