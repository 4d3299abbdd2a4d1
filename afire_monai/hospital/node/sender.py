"""Send predictions to an archive, and keep trying for as long as it takes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.quiet import quiet
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError
from afire_monai.hospital.node.queue import PREDICTED, SENT, UNSENT, Queue
from afire_monai.hospital.pacs.association import StatusError
from afire_monai.hospital.pacs.client import Pacs

logger = logging.getLogger(__name__)
MOST_TRIES = 8
"""An object that the archive refused this many times is given up until the node is started again."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 300.0
"""Seconds between two tries: doubled each time, up to the longest."""
AT_ONCE = 50
"""Number of radiographs whose results are in one request for storage commitment."""
TROUBLE = "trouble"
"""Name of the fact that holds the last problem with the archive; "" if there is none."""


class Sender:
    """Take results of the queue to an archive; a dead archive is waited for.

    With ``commit``, results stay in the queue until the archive has said that it keeps them (storage commitment).
    """

    def __init__(self, queue: Queue, pacs: Pacs, commit: bool = False) -> None:
        self._queue, self._pacs, self._commit = queue, pacs, commit
        self._failures = self._accepted = 0
        self._counted = -1  # how many were accepted when a lost connection last counted as a try
        self._broken: dict[str, int] = {}  # objects accepted before the connection was lost with an object, by its key
        self._stored: dict[str, tuple[str, int]] = {}  # stored objects without commitment: key and tries, by UID

    def run(self, stop: threading.Event) -> None:
        """Send until asked to stop."""
        while not stop.is_set():
            try:
                trouble = self.send_all(stop)
                self._queue.note(TROUBLE, trouble)
            except Exception as error:  # this thread has to continue, whatever the disk or the data base does
                trouble = f"unexpected error: {type(error).__name__}"
            self._pacs.close()
            if trouble:
                logger.warning("results wait: %s", trouble)
            wait = min(FIRST_WAIT * 2**self._failures, LONGEST_WAIT) if trouble else FIRST_WAIT
            self._failures = min(self._failures + 1, 20) if trouble else 0
            stop.wait(wait)

    def send_all(self, stop: threading.Event) -> str:
        """Send everything that waits, once; return the last failure, "" if all was sent."""
        trouble = ""
        self._stored.clear()
        try:
            for number, (key, tries) in enumerate(self._in_turn(), 1):
                if stop.is_set():
                    return trouble
                trouble = self._try(key, tries) or trouble
                if number % AT_ONCE == 0:
                    trouble = self._settle() or trouble
            return self._settle() or trouble
        except AfireError as error:
            if not stop.is_set():
                with contextlib.suppress(AfireError):  # so that objects stored before need not be sent again
                    self._settle()
            return str(error)

    def _in_turn(self) -> Iterator[tuple[str, int]]:
        """Yield key and tries of what waits, oldest first, behind all others those that a connection was lost with."""
        last = {}
        for _, key, tries in self._queue.waiting(PREDICTED):
            if key in self._broken:
                last[key] = tries
            else:
                yield key, tries
        yield from [(key, last[key]) for key in self._broken if key in last]

    def _try(self, key: str, tries: int) -> str:
        """Send the results of a radiograph; return why they are refused, "" if they are not.

        Raises AfireError if no others can be sent either.
        """
        try:
            self._send(key, tries)
            return ""
        except StatusError as error:
            if error.status >> 8 == 0xA7:  # the archive is full, also for the next object
                raise
            reason = str(error)
        except AnswerError as error:
            reason = str(error)
        except ConnectionLostError as error:
            before = self._broken.pop(key, self._accepted)
            self._broken[key] = self._accepted  # it is tried last from now on
            if self._accepted in (before, self._counted):
                raise
            self._counted = self._accepted
            reason = str(error)  # others succeeded since its last failure: the archive works
        except AfireError:
            raise
        except OSError as error:
            reason = f"results cannot be read: {error.strerror}"
        except Exception as error:  # pydicom raises many types on damaged files; the error may quote a header
            reason = f"unexpected error: {type(error).__name__}"
        self._refused(key, tries, reason)
        return reason

    def _send(self, key: str, tries: int) -> None:
        stored = {}
        for path in sorted(self._queue.results(key).iterdir()):
            dataset = _read(path)
            self._pacs.store(dataset)
            stored[str(dataset.SOPInstanceUID)] = key, tries
            if not self._commit:
                path.unlink()
        if self._commit and stored:
            self._stored |= stored
        else:
            self._end(key)

    def _settle(self) -> str:
        """End objects that the archive keeps; others are sent again. Return why one is not kept, "" if all are.

        Raises AfireError as `Pacs.settle` does; everything is then sent again.
        """
        stored, self._stored = self._stored, {}
        failed = self._pacs.settle()
        refused = {stored[uid]: reason for uid, reason in failed.items() if uid in stored}
        for key, tries in dict.fromkeys(stored.values()):
            if (key, tries) in refused:
                self._refused(key, tries, refused[key, tries])
            else:
                self._end(key)
        return next(iter(refused.values()), "")

    def _end(self, key: str) -> None:
        self._queue.end(key, SENT)
        self._failures = 0
        self._accepted += 1
        self._broken.pop(key, None)

    def _refused(self, key: str, tries: int, reason: str) -> None:
        if tries + 1 >= MOST_TRIES:
            self._queue.end(key, UNSENT, reason)
            self._broken.pop(key, None)
        else:
            self._queue.tried(key)


def _read(path: Path) -> Any:
    import pydicom

    with quiet():
        return pydicom.dcmread(path)
