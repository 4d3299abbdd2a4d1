"""Locks on open files, where the system has them."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def lock_file(file: int | IO[Any], wait: bool = True, shared: bool = False) -> None:
    """Lock an open file for this process alone, or with others who share it, until it is closed.

    Args:
        file: handle, or open file.
        wait: wait for the holder of the lock; on Windows for ten seconds at most.
        shared: others may hold it in the same way; Windows has no such lock, so there it is exclusive.

    Raises:
        BlockingIOError: if another process holds it and ``wait`` is false.
        OSError: if the file system has no locks.
    """
    handle = file if isinstance(file, int) else file.fileno()
    if sys.platform == "win32":
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
    else:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
