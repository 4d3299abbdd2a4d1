"""What goes wrong in a label server, as an HTTP status and words that name no file and no patient."""

from __future__ import annotations

import errno

from afire_monai.core.errors import AfireError, user_error
from afire_monai.hospital.dicomweb.connection import DicomWebError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class UnknownImageError(AfireError):
    """There is no image of this id."""


class NotFoundError(AfireError):
    """There is no such model, strategy, label or the like."""


def problem(error: BaseException) -> tuple[int, str]:
    """Give the HTTP status of an error, and what is said of it.

    Args:
        error: whatever was raised while a request was answered.

    Returns:
        404 for what is not there, 400 for input that cannot be used, 507 for a full disk, 502 for an
        archive that does not answer, 500 for anything else, of
        which only the type is told: its text may quote a header.
    """
    full = _full_disk(error)
    if full is not None:
        return 507, f"the disk is full ({full}): nothing was changed. Make room on the server, then try again"
    known = user_error(error)
    if isinstance(known, UnknownImageError | NotFoundError):
        return 404, str(known)
    if isinstance(known, DicomWebError):
        return 502, f"the DICOMweb archive: {known}"
    if known is not None:
        return 400, str(known)
    return 500, f"internal error ({type(error).__name__}); the server goes on. Please report it, without pictures"


def _full_disk(error: BaseException) -> str | None:
    """Say what the system says, if a full disk is behind an error or what was raised from it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return seen.strerror or "no space left"
        seen = seen.__cause__ or seen.__context__
    return None
