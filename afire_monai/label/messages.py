"""The log of a label server: requests and their duration, and nothing that tells whose picture it was.

MONAI Label itself logs ids, paths and parameters of requests. Its loggers are limited to errors, and the remaining
messages pass through a filter that takes out paths and UIDs.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, causes, user_error
from afire_monai.hospital.dicomweb.credentials import DicomWebError

_PART = r"[^\s/'\":,;]+"
# in quotation marks up to their end; elsewhere only folders may hold blanks
_PATH = re.compile(
    rf"(?<=')/[^'\n]+(?=')|(?<=\")/[^\"\n]+(?=\")|(?:file://)?(?<![\w.])/(?:{_PART}(?: +{_PART})*/)+[^\s'\":,;]*"
)
_UID = re.compile(r"\d+(?:\.\d+){4,}")  # also as a part of a file's name, or at the end of a sentence
_ADDRESS = re.compile(r"https?://\S+")
_TRAINING = "task_train"
_HELD = ("monailabel", "monai", "dicomweb_client", "urllib3", "httpx", "timeloop", "pydicom", "uvicorn.access")


def without_names(text: str) -> str:
    """Take addresses, paths and UIDs out of a text."""
    return _UID.sub("(uid)", _PATH.sub("(path)", _ADDRESS.sub("(address)", text)))


class NoNames(logging.Filter):
    """Removes addresses, paths and UIDs from log records, and tracebacks, which may quote file contents.

    Of a training process's messages, only the lines of this package and of its progress bars pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record; give whether it is to be written."""
        text = record.getMessage()
        if record.name.startswith(_TRAINING):
            if "afire" not in text and "fine-tuning" not in text and not text.startswith("error"):
                return False
        elif record.exc_info and record.exc_info[0] is not None:
            text = f"{text} ({record.exc_info[0].__name__})"
        record.msg, record.args, record.exc_info, record.exc_text = without_names(text), None, None, None
        return True


def quiet_monailabel() -> None:
    """Hold MONAI Label to errors in this process: for the processes that it starts, which set up logging themselves."""
    for name in _HELD:
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        if not any(isinstance(f, NoNames) for f in handler.filters):
            handler.addFilter(NoNames())


def write_log_config(path: str | Path, log_file: str | Path) -> Path:
    """Write the logging configuration that the server is started with (``--log_config``).

    Args:
        path: JSON file to write.
        log_file: log file, in addition to the console.
    """
    handlers: dict[str, Any] = {
        "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "filename": str(log_file),
            "maxBytes": 5_000_000,
            "backupCount": 2,
            "encoding": "utf-8",
        },
    }
    for handler in handlers.values():
        handler |= {"formatter": "plain", "filters": ["names"]}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"names": {"()": "afire_monai.label.messages.NoNames"}},
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": handlers,
        "root": {"level": "INFO", "handlers": ["console", "file"]},
        "loggers": {name: {"level": "ERROR"} for name in _HELD},
    }
    Path(path).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Path(path)


_FULL = (errno.ENOSPC, errno.EDQUOT)


class UnknownImageError(AfireError):
    """There is no image of this id."""


class NotFoundError(AfireError):
    """There is no such model, strategy, label or the like."""


def problem(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status of an error, and its message.

    Args:
        error: exception that was raised while a request was answered.

    Returns:
        404 if an object does not exist, 400 for input that cannot be used, 507 for a full disk, 502 for an archive that
        does not answer, and 500 for any other error. For the last, the message names only the type, as the text of the
        error may quote a header.
    """
    for one in causes(error):
        if isinstance(one, OSError) and one.errno in _FULL:
            full = one.strerror or "no space left"
            return 507, f"the disk is full ({full}): nothing was changed. Make room on the server, then try again"
    known = user_error(error)
    if isinstance(known, UnknownImageError | NotFoundError):
        return 404, str(known)
    if isinstance(known, DicomWebError):
        return 502, f"the DICOMweb archive: {known}"
    if known is not None:
        return 400, str(known)
    return 500, f"internal error ({type(error).__name__}); the server goes on. Please report it, without pictures"


if __name__ == "__main__":
    import sys

    write_log_config(*sys.argv[1:3])
