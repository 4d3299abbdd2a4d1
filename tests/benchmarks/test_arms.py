from __future__ import annotations

import sys

import pytest
import yaml

from afire_monai.models.folder import load_encoder

TINY = {"method": "dino", "image_size": 32, "batch_size": 8, "local_views": 2, "local_size": 16}


def test_arms_are_trained_once_and_an_arm_with_other_settings_is_refused(module, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["arms.py"])
    monkeypatch.setattr("sys.excepthook", sys.excepthook)  # a run replaces it
    out, arms = tmp_path / "out", tmp_path / "arms.yaml"
    arms.write_text(yaml.safe_dump({"tiny": TINY, "other": {}}))
    (arm,) = module.read_arms(arms, ["tiny"]).items()
    assert not module.finished(out, "tiny", 1)
    module.train((arm[0], 1, arm[1]), str(data), out, 1, "cpu")
    assert arm[1] == TINY
    assert module.finished(out, "tiny", 1)
    assert load_encoder(out / "tiny" / "1" / "models").image_size == (32, 32)
    with pytest.raises(SystemExit, match="other settings"):
        module.train(("tiny", 1, {**TINY, "lr": 1.0}), str(data), out, 1, "cpu")


def test_arm_that_is_not_in_the_file_is_refused_with_those_that_are(module, tmp_path):
    (tmp_path / "arms.yaml").write_text("one: {}\ntwo:\n")
    assert module.read_arms(tmp_path / "arms.yaml", []) == {"one": {}, "two": {}}
    with pytest.raises(SystemExit, match=r"--arm three: .*has one, two"):
        module.read_arms(tmp_path / "arms.yaml", ["three"])
