"""What a label server writes down: what was asked and how long it took, and nothing that tells whose picture it was.

MONAI Label itself logs ids, paths and parameters of requests. Its loggers are held to errors, and what still comes is
passed through a filter that takes out paths and UIDs.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(?:file://)?(?<![\w.])/(?:[^\s/'\":,;]+/)+[^\s'\":,;]*")
_UID = re.compile(r"(?<![\w.])\d+(?:\.\d+){4,}(?![\w.])")
_ADDRESS = re.compile(r"https?://\S+")
_TRAINING = "task_train"
_HELD = ("monailabel", "monai", "dicomweb_client", "urllib3", "httpx", "timeloop", "pydicom", "uvicorn.access")


def without_names(text: str) -> str:
    """Take addresses, paths and UIDs out of a text."""
    return _UID.sub("(uid)", _PATH.sub("(path)", _ADDRESS.sub("(address)", text)))


class NoNames(logging.Filter):
    """Takes addresses, paths and UIDs out of records, and tracebacks, which quote what was read.

    Of what a training process says, only the lines of this package and of its progress bars pass.
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
        log_file: log, beside what is said on the console.
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
        "filters": {"names": {"()": "afire_monai.label.logs.NoNames"}},
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": handlers,
        "root": {"level": "INFO", "handlers": ["console", "file"]},
        "loggers": {name: {"level": "ERROR"} for name in _HELD},
    }
    Path(path).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Path(path)


if __name__ == "__main__":
    import sys

    write_log_config(*sys.argv[1:3])
