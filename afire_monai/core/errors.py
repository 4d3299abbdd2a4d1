"""Errors that a user can act on: each names the file or key, what was seen, what was expected, and the way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_TAKEN = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}  # by a file, where a folder is needed, …


class AfireError(ValueError):
    """Base of all errors that this package raises for bad input."""


class RadiographError(AfireError):
    """A file is not a radiograph that can be used (corrupt, colour, multi-frame, unsupported, empty).

    Attributes:
        path: the file; "" if the pixels came without one.
        kind: short constant reason ("colour image"), by which refusals are counted.
        detail: the observation, the expectation and the remedy; the whole message unless given.
    """

    def __init__(self, message: str, path: str = "", kind: str = "refused", detail: str | None = None) -> None:
        super().__init__(message)
        self.path, self.kind, self.detail = path, kind, message if detail is None else detail

    def reason(self, *names: str) -> str:
        """Return kind and detail on one line without names of files, which can identify a patient.

        Args:
            names: other spellings of the path to remove.
        """
        text = f"{self.kind}: {self.detail}"
        for name in filter(None, (self.path, *names, os.path.basename(self.path), *map(os.path.basename, names))):
            # a longer name may tell who it is wherever it stands; those on a disc are 1, 2, …
            alone = rf"(?<!\w){re.escape(name)}(?!\w)" if len(name) < 4 else re.escape(name)
            text = re.sub(alone, "the file", text)
        return " ".join(text.split())


class DataListError(AfireError):
    """A data list is wrong: a key, a missing file, a patient in two splits."""


class CheckpointError(AfireError):
    """A checkpoint or a weights file cannot be read, or does not fit the network."""


class TrainingHaltedError(AfireError):
    """Training stopped itself because going on would waste the run (a loss that is not finite)."""


def require_path(option: str, path: str | os.PathLike[str] | None, remedy: str) -> None:
    """Refuse a path of the command line that was given but is not there, before anything heavy is loaded."""
    if path is not None and not os.path.exists(path):
        raise AfireError(f"{option} {path}: no such file or folder; {remedy}")


def require(*modules: str, extra: str, error: type[AfireError] = AfireError) -> None:
    """Raise an error if a library is missing that an extra of this package brings."""
    from importlib.util import find_spec

    if missing := [name for name in modules if find_spec(name) is None]:
        raise error(f"{', '.join(missing)} is missing; install the extra: pip install 'afire-monai[{extra}]'")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from, and so on; each once, as they can refer to one another."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or following.__context__


def user_error(error: BaseException) -> AfireError | None:
    """Return the error that a user can act on, if one is behind what was raised (MONAI wraps what a config raises).

    A disk that is full or may not be written to counts as one wherever it is met, and a name that cannot be used.
    """
    for one in causes(error):
        if isinstance(one, AfireError):
            return one
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in _FULL_OR_FORBIDDEN | _TAKEN:
            where = one.filename or "the output folder"
            return AfireError(f"{where}: {one.strerror}; make room or give another folder, then give the command again")
    return None


UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""What PyTorch's reader raises on wrong bytes: of the file, of the ZIP archive, and of its pickle machine."""
