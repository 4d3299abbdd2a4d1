"""How an archive is reached over DIMSE: address, AE titles, TLS, and limits on what the other side may send."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.core.errors import AfireError, require
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pynetdicom.ae import ApplicationEntity

PDU = 2**17
"""Size of the largest accepted PDU in bytes, as announced to the other side."""
LARGEST_OBJECT = 2**28
"""Size of the largest accepted object in bytes."""
CONNECTION_SECONDS = 10.0
"""Longest wait for a TCP connection: unlike an answer, it needs no work on the other side."""
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Explicit and Implicit VR Little Endian."""
COMPRESSED = tuple(
    f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.51", "4.57", "4.70", "4.80", "4.81", "4.90", "4.91", "5", "1.99")
)
"""JPEG, JPEG-LS, JPEG 2000, RLE, deflated."""
VERIFY = "1.2.840.10008.1.1"
"""Verification: C-ECHO."""


@dataclass(frozen=True)
class PacsAddress:
    """Where an archive listens."""

    aet: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "--pacs") -> PacsAddress:
        """Read ``AET@HOST:PORT``, an IPv6 address in brackets; AfireError for anything else."""
        found = re.fullmatch(r"([^@]+)@(\[[0-9A-Fa-f:.]+\]|[^@:\s/]+):([0-9]{1,5})", text.strip())
        if found is None or not 0 < int(found[3]) < 65536:
            raise AfireError(f"{option} takes AET@HOST:PORT, for example ARCHIVE@pacs.example:104")
        return cls(ae_title(found[1], option), found[2].strip("[]"), int(found[3]))

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


def ae_title(text: str, option: str) -> str:
    """Return an AE title without blanks around it.

    Raises AfireError if it is not 1 to 16 printable ASCII characters without a backslash.
    """
    title = text.strip()
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", title):
        raise AfireError(f"{option}: an AE title has 1 to 16 ASCII characters and no backslash")
    return title


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection; none of them for a plain one.

    The fields name PEM files: authorities to trust, own certificate, its private key.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def client(self) -> ssl.SSLContext | None:
        """Return the TLS context for connections to an archive; certificate and host name are checked.

        Raises AfireError for a file that is missing or not of the expected kind.
        """
        if not (self.ca or self.cert or self.key):
            return None
        return self._loaded(ssl.create_default_context(ssl.Purpose.SERVER_AUTH))

    def server(self) -> ssl.SSLContext | None:
        """Return a listener's TLS context; with `ca`, only clients with a certificate that it signed are let in.

        Raises AfireError as `client` does; also if there is no own certificate.
        """
        if not (self.ca or self.cert or self.key):
            return None
        if not self.cert:
            raise AfireError("a listener with TLS needs a certificate of its own; give --tls-cert and --tls-key")
        context = _LazyHandshake(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        if bool(self.cert) != bool(self.key):
            raise AfireError("--tls-cert and --tls-key go together; give both")
        for option, name in (("--tls-ca", self.ca), ("--tls-cert", self.cert), ("--tls-key", self.key)):
            if name and not Path(name).is_file():
                raise AfireError(f"{option} names a file that is not there; give a PEM file")
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, OSError, ValueError):
            raise AfireError(
                "--tls-ca, --tls-cert and --tls-key must be PEM files, the key without a password and that of the "
                "certificate; at least one is not"
            ) from None
        return context


class StatusError(AnswerError):
    """The archive answered with a status that is not a success.

    Attributes:
        status: the code; 0xA7.. if the archive is out of resources, which may pass.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _LazyHandshake(ssl.SSLContext):
    """Leave the handshake to the thread of the connection: a client that never ends it must not stop the others."""

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:
        options["do_handshake_on_connect"] = False
        return super().wrap_socket(sock, *args, **options)


def application(aet: str, timeout: float) -> ApplicationEntity:
    """Make an application entity with limits of time and PDU size; pynetdicom's log is silenced.

    Raises AfireError if pynetdicom is not installed.
    """
    require("pynetdicom", extra="pacs")
    from pynetdicom.ae import ApplicationEntity

    # its log quotes AE titles, addresses and, at lower levels, data sets
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    entity = ApplicationEntity(aet)
    entity.maximum_pdu_size = PDU
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout
    entity.connection_timeout = min(timeout, CONNECTION_SECONDS)
    return entity


def limit_connection(event: Any, timeout: float, largest: int = LARGEST_OBJECT) -> None:
    """Bound the input of a new connection: time for each PDU, its size, and bytes of an object.

    pynetdicom itself would read a PDU of any length into memory. Beyond the limits the connection is closed. Data is
    sent at once: otherwise the end of a message would wait 40 ms until the other side confirms its beginning.

    Args:
        event: EVT_CONN_OPEN of pynetdicom.
        timeout: seconds for each part of a PDU; ten times as much for all of it.
        largest: maximum number of bytes since the last call of `object_received`.
    """
    plain = event.assoc.dul.socket
    connection = plain.socket
    connection.settimeout(timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    event.assoc.afire_received = 0

    def receive(count: int) -> bytearray:
        if count > PDU + 2**16:  # some senders add their own header to the length that was announced
            raise OSError("larger PDU than announced")
        event.assoc.afire_received += count
        if event.assoc.afire_received > largest + 2**20:
            raise OSError("larger object than allowed")
        parts, end = bytearray(), time.monotonic() + 10 * timeout
        while len(parts) < count:
            if time.monotonic() > end:
                raise TimeoutError
            part = connection.recv(min(count - len(parts), 2**16))
            if not part:
                break
            parts += part
        return parts

    plain.recv = receive


def cut(association: Any) -> None:
    """Close the connection under an association, from any thread.

    pynetdicom's own methods wait for a stalled peer, and fail for a peer that has not identified itself yet.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # it is closed already
        # a TLS socket's own shutdown drops its keys first: data from another thread would then go out unencrypted
        socket.socket.shutdown(association.dul.socket.socket, socket.SHUT_RDWR)


def note_rejection(event: Any) -> None:
    """Keep why an association was rejected (EVT_PDU_RECV), which pynetdicom only logs."""
    if type(event.pdu).__name__ == "A_ASSOCIATE_RJ":
        event.assoc.afire_rejection = (event.pdu.source, event.pdu.reason_diagnostic)


def leave_answers(association: Any) -> None:
    """Have each answer reach the request that waits for it.

    The thread of an association takes messages while no request waits, and pauses while one does. If the thread is
    suspended just after that check, it later takes one more message: the answer, for which the request then waits in
    vain. For an association that this side requested, nobody needs the messages that this thread takes.
    """
    take = association.dimse.get_msg
    association.dimse.get_msg = lambda block=False: take(block) if block else (None, None)


def drop_unasked(association: Any) -> None:
    """Drop messages that no request waits for, such as a second answer, before the next request takes one."""
    dimse = association.dimse
    while dimse.peek_msg()[1] is not None:  # the mark of a closed connection stays
        dimse.msg_queue.get(block=False)


def object_received(event: Any) -> None:
    """Begin to count the bytes of the next object."""
    event.assoc.afire_received = 0


def text_of(entry: Any, keyword: str) -> str:
    """Return an element of an answer as text, "" where there is none."""
    return str(entry.get(keyword) or "").strip(" \0")


def storage_contexts(classes: Sequence[str]) -> list[Any]:
    """Return a presentation context for each class and each way of compression, so that files come as they are."""
    from pynetdicom.presentation import build_context

    syntaxes = [list(UNCOMPRESSED), *([name] for name in COMPRESSED)]
    return [build_context(kind, names) for kind in classes for names in syntaxes]


def why_not(association: Any, aet: str, called: str) -> Exception:
    """Return the error for an association that was not established."""
    if association.is_rejected:
        source, reason = getattr(association, "afire_rejection", (0, 0))
        reasons = {
            3: f"it does not know the calling AE title {aet!r}; have it entered there, or give another with --aet",
            7: f"its AE title is not {called!r}",
        }
        if source == 1 and reason in reasons:
            return AfireError(f"the archive refuses the association: {reasons[reason]}")
        if source == 3:
            return ConnectionLostError("the archive is busy and takes no association now")
        return AfireError("the archive refuses the association; ask its administrator what it wants")
    if association.rejected_contexts and not association.accepted_contexts:
        return AnswerError("the archive takes no object or request of this kind")
    return ConnectionLostError(
        "the archive cannot be reached or ends the connection (address, port, or TLS on one side only); what is done "
        "is kept, the rest can follow when it is back"
    )


def status_error(status: Any, words: dict[int, str]) -> Exception:
    """Return the error for a status that is not a success.

    Args:
        status: data set that pynetdicom returns; empty if there was no answer.
        words: explanations of single codes.
    """
    if status is None or "Status" not in status:
        return ConnectionLostError("the archive did not answer in time or ended the connection; raise --timeout")
    code = int(status.Status)
    general = {
        0xA: "the archive is out of resources" if code >> 8 == 0xA7 else "the object does not match its kind",
        0xC: "the archive cannot understand the object or the request",
        0xF: "the archive cancelled",
    }
    text = words.get(code) or _COMMON.get(code) or general.get(code >> 12, "failure")
    return StatusError(f"refused by the archive: {text} (status {code:04X})", code)


_COMMON = {
    0x0110: "processing failure",
    0x0111: "it has it already",
    0x0112: "no such object",
    0x0117: "not a valid object UID",
    0x0119: "its class and its UID are in conflict",
    0x0122: "it does not take this kind of object",
    0x0124: "not authorised",
    0xA701: "it is out of resources and cannot count what matches",
    0xA702: "it is out of resources and cannot send",
    0xA801: "it does not know the move destination; have it entered there",
    0xB000: "some of what was asked for could not be sent",
}
