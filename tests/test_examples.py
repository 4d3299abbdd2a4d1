"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[1] / "afire_monai"
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_give_what_they_say(module):
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted
    assert not result.failed  # doctest has printed where
