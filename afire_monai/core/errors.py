"""Errors that a user can act on: each names the file or key, what was seen, what was expected, and the way out."""

from __future__ import annotations

import errno

_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class AfireError(ValueError):
    """Base of all errors that this package raises for bad input."""


class RadiographError(AfireError):
    """A file is not a radiograph that can be used (corrupt, colour, multi-frame, unsupported, empty)."""


class DataListError(AfireError):
    """A data list is wrong: a key, a missing file, a patient in two splits."""


class CheckpointError(AfireError):
    """A checkpoint or a weights file cannot be read, or does not fit the network."""


class TrainingHaltedError(AfireError):
    """Training stopped itself because going on would waste the run (a loss that is not finite)."""


def user_error(error: BaseException) -> AfireError | None:
    """Give the error that a user can act on, if one is behind what was raised (MONAI wraps what a config raises).

    A disk that is full or may not be written to counts as one wherever it is met.
    """
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, AfireError):
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    if seen is not None:
        return seen
    for one in chain:
        if isinstance(one, OSError) and one.errno in _FULL_OR_FORBIDDEN:
            where = one.filename or "the output folder"
            return AfireError(f"{where}: {one.strerror}; make room or give another folder, then give the command again")
    return None
