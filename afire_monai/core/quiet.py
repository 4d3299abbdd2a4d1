"""Output for every console, and silence for libraries that quote DICOM header values: one can be a patient's name."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LOGGERS = ("pydicom", "highdicom")
_changing = threading.RLock()
_blocks = 0  # that run in all threads
_undo = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, and the logs of pydicom and highdicom, while the block runs.

    Filters and levels belong to the whole process, so the first of several threads sets them and the last one restores
    them.
    """
    global _blocks
    with _changing:
        if not _blocks:
            _undo.enter_context(_silenced())
        _blocks += 1
    try:
        yield
    finally:
        with _changing:
            _blocks -= 1
            if not _blocks:
                _undo.close()


@contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@contextmanager
def only_above(level: int) -> Iterator[None]:
    """Keep messages up to a level out of all logs while the block runs."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


def silence() -> None:
    """Silence warnings and logs of pydicom and highdicom for the rest of the process, in all its threads."""
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def hidden(shown: bool = True) -> bool | None:
    """Return tqdm's ``disable``: True for no bar, None for none where the standard error output is not a terminal."""
    return None if shown else True


def show_any_text() -> None:
    """Write the number of a letter that the console's encoding lacks, instead of ending in an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
