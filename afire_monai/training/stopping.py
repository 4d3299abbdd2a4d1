"""Stopping when a scheduler asks for it: the signals, and how loader processes treat them."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

#: EX_TEMPFAIL of sysexits.h: nothing is wrong; the same command with --resume true continues
EXIT_STATUS = 75
SIGNALS = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))  # Windows has no SIGUSR1


class StopRequest:
    """Whether a scheduler asked this process to stop; listens as a context, in a main thread only.

    Slurm sends a chosen signal before a time limit or a pre-emption; Kubernetes sends SIGTERM before it kills. Signals
    after the first have no effect: launchers and schedulers send several.
    """

    def __init__(self) -> None:
        #: name of the signal, empty until there is one
        self.signal = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


def shield_workers(loader: DataLoader) -> None:
    """Let a loader's processes live on when a launcher sends their whole process group a signal to stop.

    Without them the training process could not reach its next update.
    """
    if loader.num_workers and loader.worker_init_fn is None and hasattr(signal, "sigwaitinfo"):
        loader.worker_init_fn = _obey_parent_only


def _obey_parent_only(_: int) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # blocked here, so that the thread gets it together with its sender; the parent sends it when everything is over
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
