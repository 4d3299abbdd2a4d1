from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def on_path(monkeypatch) -> None:
    """Benchmarks import one another by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture
def module(request, on_path) -> ModuleType:
    """The benchmark that the test file is named after."""
    return importlib.import_module(request.module.__name__.rpartition("test_")[2])


@pytest.fixture
def call(module, monkeypatch) -> Callable[..., None]:
    """Run its command line."""

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words])
        module.main()

    return run
