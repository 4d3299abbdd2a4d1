"""Who may use a label server: whoever knows the token that is printed when it starts."""

from __future__ import annotations

import hmac
import os
import re
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN, NO_TOKEN = "AFIRE_LABEL_TOKEN", "AFIRE_LABEL_NO_TOKEN"
_LEAST = 20
_IN_PATH = re.compile(r"/token/([^/]+)(/.*)")
_REFUSAL = (
    "this server needs its token: open the address that scripts/label_server.sh start (or status) prints, or send it "
    "as the header Authorization: Bearer TOKEN"
)


class TokenRequired:
    """Lets no request pass without the token.

    A browser gets the token in the printed address (``/?token=…``), and keeps it as a cookie that no script can read
    and no other page can send; the token is then removed from the address. Programs send the header
    ``Authorization: Bearer …``. Programs that cannot do so, such as 3D Slicer, put ``/token/…`` before each path.

    Args:
        app: the rest of the server.
        token: the token, of at least 20 characters.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        port = (scope.get("server") or ("", 0))[1]
        cookie = f"afire_label_{port}"  # browsers keep cookies by host, for all its ports
        request = Request(scope)
        if request.method == "GET" and (rest := self._without_token(request)) is not None:
            await self._welcome(cookie, rest)(scope, receive, send)
            return
        scope = self._without_prefix(scope) or scope
        if scope.get("afire_token") or self._bears_token(request, cookie):
            await self.app(scope, receive, send)
            return
        refused = JSONResponse({"detail": _REFUSAL}, 401, {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"})
        await refused(scope, receive, send)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    def _bears_token(self, request: Request, cookie: str) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        return self._is_token(request.cookies.get(cookie, ""))

    def _without_token(self, request: Request) -> str | None:
        """Return the address without the token in its query; None if the right one is not there."""
        query = request.query_params.multi_items()
        if not any(name == "token" and self._is_token(value) for name, value in query):
            return None
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + quote(request.scope["path"].lstrip("/"))  # with two slashes it would name another server
        return f"{path}?{rest}" if rest else path

    def _without_prefix(self, scope: Scope) -> Scope | None:
        found = _IN_PATH.fullmatch(scope["path"])
        if found is None or not self._is_token(found[1]):
            return None
        return {**scope, "path": found[2], "raw_path": quote(found[2]).encode(), "afire_token": True}

    def _welcome(self, cookie: str, address: str) -> Response:
        kept = f"{cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = {"Location": address, "Set-Cookie": kept, "Cache-Control": "no-store"}
        return Response(status_code=303, headers={**headers, "Referrer-Policy": "no-referrer"})


def token_of_environment() -> str | None:
    """Return the token that the server was started with; None if it was started without one on purpose.

    Raises:
        SystemExit: if neither a token nor the choice of none is given, or the token is too short.
    """
    token = os.environ.get(TOKEN, "")
    if not token and os.environ.get(NO_TOKEN) == "1":
        return None
    if len(token) < _LEAST or not re.fullmatch(r"[\w-]+", token, re.ASCII):
        raise SystemExit(
            f"error: {TOKEN} must hold at least {_LEAST} letters, digits, - or _; start the server with "
            "scripts/label_server.sh, which makes one (or takes --no-token)"
        )
    return token
