"""The token of a label server, asked for by a bare ASGI application."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.responses import PlainTextResponse

from afire_monai.label.access import NO_TOKEN, TOKEN, TokenRequired, token_of_environment

SECRET = "0123456789abcdefghijklmnop"
COOKIE = f"afire_label_8000={SECRET}"


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(f"{scope['method']} {scope['path']} {scope['query_string'].decode()}")(scope, receive, send)


def ask(
    path: str, query: str = "", method: str = "GET", kind: str = "http", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of an answer; status 0 for a connection that is closed."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
             "headers": pairs, "server": ("127.0.0.1", 8000)}  # fmt: skip
    asyncio.run(TokenRequired(_page, SECRET)(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return 0, {}, ""
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(part.get("body", b"") for part in sent[1:]).decode()


@pytest.mark.parametrize(
    ("path", "query", "method", "headers"),
    [
        ("/", "", "GET", {}),
        ("/info/", "", "GET", {}),
        ("/ohif/index.html", "", "GET", {}),
        ("/static/x.js", "", "GET", {}),
        ("/proxy/dicom/wado/studies", "", "GET", {}),
        ("/datastore/label", "", "PUT", {}),
        ("/info/", "", "OPTIONS", {"Origin": "http://evil.example"}),
        ("/info/", "token=wrong", "GET", {}),
        ("/info/", f"token={SECRET}", "POST", {}),
        ("/info/", f"token={SECRET}x", "GET", {}),
        ("/info/", "", "GET", {"Authorization": "Bearer wrong"}),
        ("/info/", "", "GET", {"Authorization": f"Basic {SECRET}"}),
        ("/info/", "", "GET", {"Cookie": f"afire_label_8001={SECRET}"}),
        ("/info/", "", "GET", {"Cookie": "afire_label_8000="}),
        ("/token/wrong/info/", "", "GET", {}),
    ],
)
def test_nothing_is_answered_without_the_token(path, query, method, headers):
    status, _, body = ask(path, query, method, **headers)
    assert status == 401
    assert "needs its token" in body


def test_no_websocket_is_opened():
    assert ask("/", kind="websocket")[0] == 0


def test_the_printed_address_becomes_a_cookie_and_loses_its_token():
    status, headers, _ = ask("/ohif/viewer", f"a=1&token={SECRET}&b=")
    assert (status, headers["location"]) == (303, "/ohif/viewer?a=1&b=")
    cookie, *rules = headers["set-cookie"].split("; ")
    assert cookie == COOKIE
    assert {"HttpOnly", "SameSite=Strict"} <= set(rules)
    assert ask("/ohif/viewer", "a=1&b=", Cookie=f"other=1; {COOKIE}")[::2] == (200, "GET /ohif/viewer a=1&b=")


def test_the_printed_address_never_leads_to_another_server():
    assert ask("//evil.example/x", f"token={SECRET}")[1]["location"] == "/evil.example/x"


def test_scripts_send_a_header_and_slicer_a_path():
    assert ask("/train/x", "", "POST", Authorization=f"Bearer {SECRET}")[::2] == (200, "POST /train/x ")
    assert ask(f"/token/{SECRET}/info/", "q=1")[::2] == (200, "GET /info/ q=1")


def test_a_server_without_a_word_about_tokens_does_not_start(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.delenv(NO_TOKEN, raising=False)
    with pytest.raises(SystemExit, match="--no-token"):
        token_of_environment()
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(SystemExit, match="at least 20"):
        token_of_environment()
    monkeypatch.setenv(TOKEN, SECRET)
    assert token_of_environment() == SECRET
    monkeypatch.delenv(TOKEN)
    monkeypatch.setenv(NO_TOKEN, "1")
    assert token_of_environment() is None
