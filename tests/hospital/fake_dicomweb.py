"""A small DICOMweb server that can be told to misbehave."""

from __future__ import annotations

import contextlib
import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom import Dataset

Trick = Callable[["Handler"], bool]
"""Answers a request by itself and says that it did, or leaves it to the server."""


@dataclass
class FakeServer:
    """What a server holds and was asked.

    Attributes:
        held: objects by SOPInstanceUID.
        page: it gives no more than so many results at once, whatever the limit.
        honest: it obeys filters, limit and offset.
        tricks: next misbehaviours, one a request.
        asked: (method, path and query) of each request.
        authorizations: what each request carried.
    """

    url: str = ""
    held: dict[str, Dataset] = field(default_factory=dict)
    page: int = 1000
    honest: bool = True
    tricks: list[Trick] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def hold(self, *datasets: Dataset) -> None:
        self.held.update({str(d.SOPInstanceUID): d for d in datasets})

    def paths(self, method: str = "GET", part: str = "") -> list[str]:
        return [path for m, path in self.asked if m == method and part in path]


class Handler(BaseHTTPRequestHandler):
    state: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, status: int, content: object, kind: str = "application/dicom+json; charset=utf-8") -> None:
        self.reply(status, json.dumps(content).encode(), kind)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _tricked(self) -> bool:
        self.state.asked.append((self.command, self.path))
        self.state.authorizations.append(self.headers.get("Authorization"))
        return bool(self.state.tricks) and self.state.tricks.pop(0)(self)

    def do_GET(self) -> None:
        if self._tricked():
            return
        parts = urlsplit(self.path)
        steps = parts.path.strip("/").split("/")
        if steps[-1] == "series":
            self._series({key: values[0] for key, values in parse_qs(parts.query).items()})
        elif steps[-1] == "instances":
            here = [d for d in self.state.held.values() if d.SeriesInstanceUID == steps[-2]]
            self.json(200, [{"00080018": {"vr": "UI", "Value": [str(d.SOPInstanceUID)]}} for d in here])
        elif steps[-1] in self.state.held:
            body, kind = multipart(self.state.held[steps[-1]])
            self.reply(200, body, kind)
        else:
            self.reply(404, b"", "text/plain")

    def _series(self, asked: dict[str, str]) -> None:
        found: dict[str, Dataset] = {str(d.SeriesInstanceUID): d for d in self.state.held.values()}
        series = list(found.values())
        if self.state.honest:
            series = [d for d in series if d.Modality == asked["Modality"]]
            first, dash, last = asked.get("StudyDate", "-").partition("-")
            last = (last or "99999999") if dash else first
            series = [d for d in series if first <= d.StudyDate <= last]
            start = int(asked["offset"])
            series = series[start : start + min(int(asked["limit"]), self.state.page)]
        keywords = ("StudyInstanceUID", "SeriesInstanceUID", "Modality", "StudyDate", "StudyDescription")
        self.json(200, [json.loads(only(d, keywords).to_json()) for d in series])

    def do_POST(self) -> None:
        body = self.body()
        if self._tricked():
            return
        dataset = pydicom.dcmread(BytesIO(body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]))
        uid = str(dataset.SOPInstanceUID)
        if uid in self.state.held:
            self.refuse(uid, 0x0111)
            return
        self.state.hold(dataset)
        done = {"00081155": {"vr": "UI", "Value": [uid]}}
        self.json(200, {"00081199": {"vr": "SQ", "Value": [done]}})

    def refuse(self, uid: str, reason: Any, status: int = 409) -> None:
        values = reason if isinstance(reason, list) else [reason]
        item = {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": values}}
        self.json(status, {"00081198": {"vr": "SQ", "Value": [item]}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hangs up is no fault
            super().handle_error(*_)


def only(dataset: Dataset, keywords: tuple[str, ...]) -> Dataset:
    part = Dataset()
    for keyword in keywords:
        setattr(part, keyword, dataset.get(keyword))
    return part


def multipart(dataset: Dataset, boundary: str = "a-b-c") -> tuple[bytes, str]:
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    head = f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return head + file.getvalue() + f"\r\n--{boundary}--\r\n".encode(), kind


@contextlib.contextmanager
def fake_dicomweb(tls: ssl.SSLContext | None = None) -> Iterator[FakeServer]:
    state = FakeServer()
    handler = type("OwnHandler", (Handler,), {"state": state})
    server = _Server(("127.0.0.1", 0), handler)
    state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}/dicom-web"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# misbehaviours --------------------------------------------------------------------------------------------------------


def busy(status: int = 503, **headers: str) -> Trick:
    def trick(handler: Handler) -> bool:
        handler.reply(status, b"busy", "text/plain", **headers)
        return True

    return trick


def hang_up(handler: Handler) -> bool:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.close()
    return True


def cut(framing: str) -> Trick:
    """Send half of an instance: with a length in the head, in chunks, or until the connection closes."""

    def trick(handler: Handler) -> bool:
        body, kind = multipart(handler.state.held[handler.path.rpartition("/")[2]])
        half = body[: len(body) // 2]
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if framing == "length":
            handler.send_header("Content-Length", str(len(body)))
        elif framing == "chunks":
            handler.send_header("Transfer-Encoding", "chunked")
            half = f"{len(half):x}\r\n".encode() + half + b"\r\n"
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(half)
        handler.close_connection = True
        return True

    return trick


def says(body: bytes, kind: str = "text/html", status: int = 200, **headers: str) -> Trick:
    def trick(handler: Handler) -> bool:
        handler.reply(status, body, kind, **headers)
        return True

    return trick


def plain(handler: Handler) -> bool:
    """No misbehaviour for this request."""
    return False
