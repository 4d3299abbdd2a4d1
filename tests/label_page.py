"""What tests of the page to work in do in a browser, and see on its canvas."""

from __future__ import annotations

import base64
import json

import numpy as np
from chromium import Browser
from label_phantoms import SHAPE
from label_server import Server

ROWS, COLUMNS = SHAPE
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
"""True once what the page knows now is on the screen."""


def start(browser: Browser, server: Server) -> str:
    browser.open(f"{server.url}work/?token={server.token}")
    return settled(browser)


def settled(browser: Browser, other_than: str = "No image") -> str:
    """Wait for another image that can be worked on; gives its id."""
    shown = "document.getElementById('image').textContent"
    busy = "document.getElementById('stage').getAttribute('aria-busy')"
    return browser.until(f"{shown} != {json.dumps(other_than)} && {busy} == 'false' && {shown}")


def show(browser: Browser, image: str) -> None:
    """Open an image by its id, as a reload does."""
    browser.until("document.getElementById('stage').getAttribute('aria-busy') == 'false'")
    browser.value(f"sessionStorage.setItem('afire-image', {json.dumps(image)}), window.before = true")
    browser.call("Page.reload")
    browser.until("!window.before")
    assert settled(browser) == image


def enter(browser: Browser, server: Server, image: str) -> None:
    """Open the page at an image, which may have labels."""
    browser.open(f"{server.url}work/?token={server.token}")
    show(browser, image)


def layout(browser: Browser) -> tuple[float, float, float]:
    """Where the whole image lies in the window: left, top, and the size of its pixels."""
    left, top, wide, high = browser.value(
        "(({left, top, width, height}) => [left, top, width, height])(canvas.getBoundingClientRect())"
    )
    assert (wide, high) == tuple(browser.value("[canvas.clientWidth, canvas.clientHeight]"))
    scale = min(wide / COLUMNS, high / ROWS)
    return left + (wide - scale * COLUMNS) / 2, top + (high - scale * ROWS) / 2, scale


def greys(browser: Browser) -> np.ndarray:
    """(rows, columns, 3) colours that are on the screen in the middle of each pixel of the image."""
    browser.value(DRAWN)
    left, top, scale = layout(browser)
    edge = browser.value("(({left, top}) => [left, top])(canvas.getBoundingClientRect())")
    wide, high, data = browser.value(
        "(d => [canvas.width, canvas.height, btoa(Array.from(d, (c) => String.fromCharCode(c)).join(''))])"
        "(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"
    )
    seen = np.frombuffer(base64.b64decode(data), np.uint8).reshape(high, wide, 4)[..., :3].astype(int)
    rows = (top - edge[1] + scale * (np.arange(ROWS) + 0.5)).astype(int)
    columns = (left - edge[0] + scale * (np.arange(COLUMNS) + 0.5)).astype(int)
    return seen[np.ix_(rows, columns)]


def shown_mask(browser: Browser) -> np.ndarray:
    """Pixels that are tinted by the first class's blue."""
    colours = greys(browser)
    return colours[..., 2] - colours[..., 0] > 12


def message(browser: Browser) -> str:
    """What the line of messages says."""
    return browser.value("document.getElementById('message').textContent")


def save(browser: Browser) -> None:
    """Save with S, and wait until it is done."""
    browser.value("document.getElementById('message').textContent = ''")
    browser.press("s")
    browser.until("document.getElementById('message').textContent == 'Saved.'")


def states(browser: Browser) -> list[str]:
    """What is entered of each finding."""
    return browser.value("[...document.querySelectorAll('#findings .state')].map((e) => e.textContent)")
