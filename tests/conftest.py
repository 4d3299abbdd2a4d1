from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """Keep the collector from going through torch and MONAI, a third of a second each time, in all that follows."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def umask():
    """A command closes what it writes to others, which must not reach the next test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def console():
    """A run sets up the console's log, which must not reach the next test."""
    before = list(logging.root.handlers)
    yield
    for handler in list(logging.root.handlers):
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real radiographs and DICOM files, not part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("AFIRE_REAL_DATA", default))
    if not (folder / "cxr" / "manifest.csv").is_file():
        pytest.skip(f"no real data at {folder}; set AFIRE_REAL_DATA")
    return folder
