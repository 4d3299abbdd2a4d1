"""The node's counts as a page for a browser on the same machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.pages.elements import RESEARCH_ONLY, page, paragraph

REFRESH = 10
"""Seconds after which a browser asks again."""
_HOSTS = ("127.0.0.1", "localhost")


@contextmanager
def status_page(port: int | None, lines: Callable[[], list[str]]) -> Iterator[None]:
    """Show lines of text on loopback, rendered again for each request; nothing without a port.

    Requests that name another host are refused, as they come from other sites' pages.

    Raises:
        AfireError: if the port cannot be listened on.
    """
    if port is None:
        yield
        return
    try:
        server = _Server((_HOSTS[0], port), type("Handler", (_Handler,), {"lines": staticmethod(lines)}))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no port"
        raise AfireError(f"--status-port {port}: {reason}; give another, 1 to 65535") from error
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingTCPServer):  # the server of http.server asks the network for the machine's name
    daemon_threads = allow_reuse_address = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a browser that hangs up."""


class _Handler(BaseHTTPRequestHandler):
    lines: Callable[[], list[str]]
    timeout = 5

    def do_GET(self) -> None:
        """Answer with the page."""
        if self.headers.get("Host", "").partition(":")[0] not in _HOSTS or self.path != "/":
            self.send_error(404)
            return
        text = "\n".join(self.lines())
        body = page("AFiRe node", [f"<pre>{escape(text)}</pre>", paragraph(RESEARCH_ONLY)]).encode()
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
            ("Refresh", str(REFRESH)),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""
