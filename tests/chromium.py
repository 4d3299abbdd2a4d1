"""Chromium without a window, driven by its own protocol over two pipes: nothing to install, no port to find."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
]  # fmt: skip
_CODES = {",": "Comma", ".": "Period", "?": "Slash", " ": "Space"}


class Browser:
    """One page of a running Chromium.

    ``problems`` has what its console complained of, and refused loads; ``requests`` the address of each request.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write = write
        self._answers: dict[int, Queue[dict[str, Any]]] = {}
        self._count = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _listen(self, read: int) -> None:
        rest = b""
        while part := os.read(read, 1 << 20):
            *messages, rest = (rest + part).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers[message["id"]].put(message)
                else:
                    self._note(message["method"], message["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details)))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            if params["type"] != "beforeunload":
                self.problems.append(f"dialog: {params['message']}")
            self._send("Page.handleJavaScriptDialog", accept=True)
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def _send(self, method: str, **params: Any) -> Queue[dict[str, Any]]:
        self._count += 1
        number = self._count
        self._answers[number] = Queue()
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._answers[number]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser; see the Chrome DevTools Protocol."""
        try:
            answer = self._send(method, **params).get(timeout=60)
        except Empty:
            raise TimeoutError(f"{method} was not answered") from None
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> Any:
        """Wait until an expression is true; errors count as not yet, as a page may be on its way."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                if found := self.value(expression):
                    return found
            time.sleep(0.05)
        message = self.value("document.getElementById('message')?.textContent")
        raise TimeoutError(f"{expression} did not come true; the page says {message!r}; {self.problems}")

    def press(self, key: str, shift: bool = False, control: bool = False) -> None:
        """Press and release a key."""
        code = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}" if key.isalpha() and len(key) == 1 else key
        letters = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        facts = {"key": key, "code": _CODES.get(key, code), "modifiers": 8 * shift + 2 * control}
        number = {"Enter": 13, "Tab": 9, "Escape": 27}.get(key)
        facts |= {"windowsVirtualKeyCode": number} if number else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": letters} if not control else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def drag(self, *points: tuple[float, float]) -> None:
        """Press the left button at the first point of the window, go along the others and let it go."""
        self._mouse("mousePressed", points[0])
        for point in points[1:]:
            self._mouse("mouseMoved", point)
        self._mouse("mouseReleased", points[-1])

    def _mouse(self, kind: str, point: tuple[float, float]) -> None:
        x, y = point
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def picture(self, path: Path) -> Path:
        """Write what the page looks like as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextlib.contextmanager
def browsing(profile: Path, width: int = 1280, height: int = 800) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it.

    Args:
        profile: empty folder.
        width: of the page.
        height: of the page.
    """
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # the protocol wants exactly the descriptors 3 and 4; the shell brings any two to these
    bring = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    command = ["bash", "-c", bring, "bash", CHROMIUM, *_QUIET, f"--user-data-dir={profile}", "about:blank"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=log, stderr=log)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        yield browser
    finally:
        os.close(ours_out)  # its end
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
