"""Console output that works in terminals, in files, and with encodings that lack many letters."""

from __future__ import annotations

import io
import sys


def hidden(shown: bool = True) -> bool | None:
    """Return tqdm's ``disable``: True for no bar, None for none where the standard error output is not a terminal."""
    return None if shown else True


def show_any_text() -> None:
    """Let output go on where the console's encoding lacks a letter: its number is written instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
