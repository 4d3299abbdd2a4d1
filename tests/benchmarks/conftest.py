from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from helpers import smooth_images
from PIL import Image


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


@pytest.fixture
def data(tmp_path) -> Path:
    """60 pictures of 32 x 32, every second with a bright square; 30, 10 and 20 in the sections."""
    items = []
    for number, image in enumerate(0.2 * smooth_images(60, (32, 32))):
        image[:, 8:16, 16:24] += 0.6 * (number % 2)
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / f"{number}.png")
        items.append({"image": f"{number}.png", "label": [number % 2], "group": f"patient {number}"})
    content = {"labels": ["Mass"], "training": items[:30], "validation": items[30:40], "test": items[40:]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path / "list.json"
