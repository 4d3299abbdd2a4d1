"""Self-contained parts of HTML pages: style, tables, embedded pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINE, SECOND, GREY = "#1f5f8b", "#b5541c", "#666666"
RESEARCH_ONLY = "Research use only: not a medical device, not for diagnosis."
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.6rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2.2rem} img{max-width:100%;height:auto}
table{border-collapse:collapse;font-size:.93rem} td,th{text-align:left;padding:.2rem .9rem .2rem 0;vertical-align:top}
tr+tr td{border-top:1px solid #e4e4e4} pre{background:#f3f3f1;padding:.8rem;overflow-x:auto;font-size:.88rem}
.good,.bad,.note{padding:.5rem .8rem;margin:.5rem 0;border-left:.35rem solid #2f7d4f;background:#eef6f0}
.bad{border-color:#b3261e;background:#fbeceb} .note{border-color:#888;background:#f3f3f1}
.small{color:#555;font-size:.9rem} details{margin:.6rem 0} summary{cursor:pointer}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Put a page together: head, title, and the parts that are not empty."""
    head = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
    )
    return "\n".join([head, *(part for part in parts if part), "</body></html>"])


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text; kinds are ``small``, ``good``, ``bad`` and ``note``."""
    return f"<p class='{kind}'>{html.escape(text)}</p>" if kind else f"<p>{html.escape(text)}</p>"


def embedded(picture: Path | bytes, name: str) -> str:
    """Return an image element that holds a PNG or JPEG itself."""
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
    data = base64.b64encode(content).decode("ascii")
    return f"<img alt='{html.escape(name, quote=True)}' src='data:image/{kind};base64,{data}'>"


def section(title: str, picture: Path | bytes | None, caption: str) -> str:
    """Return a heading, a PNG and its caption; nothing without a PNG."""
    if picture is None:
        return ""
    return f"<h2>{html.escape(title)}</h2>{embedded(picture, title)}{paragraph(caption, 'small')}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts; nothing without rows."""
    if not rows:
        return ""
    top = "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{top}{body}</table>"


def new_figure(width: float, height: float, constrained: bool = True) -> Any:
    """Return an empty figure (inches) without a window; with ``constrained``, matplotlib lays out the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, dpi: int = 100, **options: Any) -> bytes:
    """Return a figure as the bytes of a PNG, or of another format by the options of ``savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, **{"format": "png", **options})
    return buffer.getvalue()
