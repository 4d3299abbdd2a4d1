"""End the run at its next batch, with a message and the status for "try again", if a loader process is killed."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from torch.utils.data._utils import signal_handling

from afire_monai.training.stopping import EXIT_STATUS

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lost_workers_in_words() -> Iterator[None]:
    """Turn the loss of a loader's process within the block into words and an exit status.

    PyTorch raises an error at whatever point the main thread has reached, for example in the middle of writing a
    checkpoint. Here the error is only noted, and the loader notices the loss when it waits for the next batch.

    Raises:
        SystemExit: with status 75.
    """
    noted: list[str] = []
    main = threading.current_thread() is threading.main_thread()
    if main:
        signal_handling._set_SIGCHLD_handler()
        before = signal.getsignal(signal.SIGCHLD)

        def note(number: int, frame: FrameType | None) -> None:
            try:
                if callable(before):
                    before(number, frame)
            except RuntimeError as error:
                noted.append(str(error))

        signal.signal(signal.SIGCHLD, note)
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        how = re.search(r"signal: ([\w ]+)", " ".join(noted) or str(error))
        logger.error(
            "a process that loads images was lost%s, most often because memory ran out: take fewer --num_workers or a "
            "smaller --batch_size%s. Checkpoints are whole; the same command with --resume true continues from the "
            "last",
            f" ({how[1]})" if how else "",
            ", or give a container more shared memory (--shm-size)" if how and "Bus" in how[1] else "",
        )
        raise SystemExit(EXIT_STATUS) from error
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before)
