"""What a trained model's description says of the encoder that training started from."""

from __future__ import annotations

import pytest
import torch
from published_vits import facebook_names, random_vit

from afire_monai.core.errors import CheckpointError
from afire_monai.models.initial import origin_of
from afire_monai.models.shipped import DEFAULT, shipped_folder


def test_fresh_weights_and_those_of_a_bundle_are_named():
    assert origin_of("random") == "random"
    assert origin_of("bundle") == "bundle"


def test_a_model_that_comes_with_the_package_is_described_alike_by_its_name_and_its_folder():
    described = origin_of(DEFAULT)
    assert described == origin_of(str(shipped_folder(DEFAULT)))
    assert (described["name"], described["method_name"], described["epochs"]) == (DEFAULT, "AFiRe", 84)


def test_weights_from_elsewhere_are_named_without_their_folder(tmp_path):
    torch.save(facebook_names(random_vit()), tmp_path / "dino.pth")
    assert origin_of(str(tmp_path / "dino.pth")) == {"weights_from_elsewhere": "dino.pth"}


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        origin_of(str(tmp_path / "absent"))
