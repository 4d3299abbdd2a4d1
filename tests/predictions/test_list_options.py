"""Reader options that a list keeps reach what shows or exports its images."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from afire_monai.evaluation.page import _draw_case
from afire_monai.figures.views import read_sample
from afire_monai.predictions.exportable import comparison_images


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    """Pictures of 12 bits in files of 16."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 4096, (8, 8)).astype(np.uint16)
        pixels[0, 0] = 4095
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return [{"image": str(tmp_path / f"{number}.png")} for number in range(3)]


def test_figures_read_as_the_list_says(items):
    network, shift = SimpleNamespace(image_size=(8, 8), in_channels=1), SimpleNamespace(canvas_size=(8, 8))
    for options, white in (({}, 4095 / 65535), ({"png16_max": 4095}, 1.0)):
        sample = read_sample(items, network, shift, options)
        largest = max(float(t.max()) for t in vars(sample).values() if isinstance(t, torch.Tensor))
        assert largest == pytest.approx(white)


def test_cases_on_an_evaluation_page_are_read_as_the_list_says(items):
    shown = []
    axis = SimpleNamespace(imshow=lambda pixels, **_: shown.append(pixels.max()), text=pytest.fail)
    axis.set_xlim = axis.set_ylim = axis.add_patch = lambda *_, **__: None
    _draw_case(axis, items[0], {"png16_max": 4095}, None)
    assert shown == [1.0]


def test_exports_are_compared_on_images_read_as_the_list_says(items, tmp_path):
    content = {"meta": {"reader": {"png16_max": 4095}}, "test": items}
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    assert float(comparison_images((1, 8, 8), [str(tmp_path / "list.json")], "test", 3).max()) == pytest.approx(1.0)
