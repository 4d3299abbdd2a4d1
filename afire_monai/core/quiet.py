"""Silence libraries that quote DICOM header values in their warnings: such a value can be a patient's name."""

from __future__ import annotations

import logging
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
    """Do the same for the rest of the process, and in all its threads."""
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
