"""Thumbnails for review of the pictures that no tag confirms; they stay in the hospital."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from afire_monai.core.files import open_whole
from afire_monai.pages import elements as pages

SHEET = "contact_sheet.html"
A_PAGE, MOST_PAGES = 200, 25
_SIDE = 160
_STYLE = (
    "<style>.sheet{display:flex;flex-wrap:wrap;gap:.6rem}.sheet label{width:10.5rem;font:.68rem monospace;"
    "overflow-wrap:anywhere}.sheet img{display:block;max-width:10rem;max-height:10rem}"
    ".sheet label:has(:checked){background:#fbeceb}textarea{width:100%;height:5rem}</style>"
)
_SCRIPT = (
    "<script>const b=[...document.querySelectorAll('.sheet input')],t=document.querySelector('textarea'),"
    "f=()=>{t.value=b.filter(x=>x.checked).map(x=>x.value).join('\\n')};b.forEach(x=>x.onchange=f);f()</script>"
)


def write_contact_sheet(private: Path, images: Path, hashes: Sequence[str]) -> int:
    """Write ``contact_sheet.html``, and further pages ``contact_sheet_2.html`` … (mode 0600), or remove them.

    A page has up to 200 pictures and needs no other file; there are 25 pages at most.

    Returns:
        Number of pictures shown.

    Raises:
        AfireError: if a page cannot be written.
    """
    shown = hashes[: A_PAGE * MOST_PAGES]
    parts = [shown[start : start + A_PAGE] for start in range(0, len(shown), A_PAGE)]
    names = [_name(number) for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        with open_whole(private / name, private=True) as file:
            file.write(_page(images, part, name, names, len(hashes)))
    for path in sheets(private):
        if path.name not in names:
            path.unlink(missing_ok=True)
    return len(shown)


def sheets(private: Path) -> list[Path]:
    """Return the pages that are there."""
    return [path for number in range(1, MOST_PAGES + 1) if (path := private / _name(number)).exists()]


def _name(number: int) -> str:
    return SHEET if number == 1 else SHEET.replace(".", f"_{number}.")


def _page(images: Path, hashes: Sequence[str], name: str, names: Sequence[str], total: int) -> str:
    links = " ".join(
        f"<b>{place}</b>" if other == name else f"<a href='{other}'>{place}</a>"
        for place, other in enumerate(names, start=1)
    )
    figures = [
        f"<label>{_thumbnail(images / f'{image}.png')}<input type='checkbox' value='{image}'>{image}</label>"
        for image in hashes
    ]
    parts = [
        _STYLE,
        pages.paragraph("Private: pictures of patients. Keep this page in the hospital.", "bad"),
        pages.paragraph(
            f"{total} pictures rest on their look alone, as their tags do not say what they show; the most doubtful "
            "come first. Tick what is not an upright frontal chest radiograph, save the list below the pictures as a "
            "text file, and give it to the same command: afire ingest … --exclude FILE."
        ),
        f"<p>Page {links}</p>" if len(names) > 1 else "",
        f"<div class='sheet'>{''.join(figures)}</div>",
        "<h2>To leave out (of this page)</h2><textarea aria-label='Hashes to leave out'></textarea>",
        _SCRIPT,
    ]
    return pages.page("Pictures that rest on their look", parts)


def _thumbnail(path: Path) -> str:
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture, dtype=np.float32) / 65535
    except (OSError, ValueError):
        return "(cannot be shown)"
    small = Image.fromarray((values * 255).astype(np.uint8))
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return pages.embedded(buffer.getvalue(), "radiograph")
