"""What is shown on a console, whatever it is: a terminal, a file, an encoding that lacks half of the letters."""

from __future__ import annotations


def hidden(shown: bool = True) -> bool | None:
    """Give tqdm's ``disable``: True for no bar, None for none where the standard error output is no terminal."""
    return None if shown else True
