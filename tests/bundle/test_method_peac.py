"""The PEAC config as users run it, only smaller: training, its health in the log, and what later tasks get from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CONFIGS, cause_of, run_bundle

from afire_monai.models.folder import load_encoder
from afire_monai.phantom import write_phantom_dataset
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.handlers import read_csv_log

FILES = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_peac.yaml")]
TINY = {
    **{"use_mlflow": False, "epochs": 2, "batch_size": 4, "health_images": 8, "device": "cpu"},
    **{"image_size": 64, "shift": 1, "projector_dim": 32, "global_weight": 400.0, "lr": 0.05},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=40, abnormal=4, size=96)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peac")
    run_bundle(folder, FILES, datalist=str(phantoms), output_dir="out", **TINY)
    return folder / "out"


def test_losses_fall_and_health_is_logged(trained):
    first, second = read_csv_log(trained / "log.csv")
    assert second["loss"] < first["loss"]
    assert second["restoration"] < first["restoration"]
    expected = first["order"] + first["restoration"] + 400 * first["global"] + first["local"]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    assert {"order_permuted", "cells_found", "projection_spread", "validation_restoration"} <= second.keys()
    assert (trained / "panels" / "epoch_0002.png").is_file()
    assert (trained / "report.html").is_file()


def test_exported_encoder_is_the_teacher(trained):
    encoder = load_encoder(trained / "models")
    state = load_checkpoint(max((trained / "checkpoints").glob("checkpoint_*.pt")))["method"]
    assert torch.equal(encoder.cls_token, state["teacher.encoder.cls_token"])
    assert encoder(torch.rand(2, 1, 64, 64)).shape == (2, 17, 192)
    description = json.loads((trained / "models" / "encoder.json").read_text(encoding="utf-8"))
    assert description["method_name"] == "PEAC"


def test_shift_without_overlap_is_refused_in_words(phantoms, tmp_path):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(tmp_path, FILES, datalist=str(phantoms), output_dir="none", **{**TINY, "shift": 4})
    assert "always overlap; got 4" in str(cause_of(caught.value))


def test_config_overrides_two_keys_of_the_base():
    base, method = (yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in FILES)
    assert {key for key in method if key in base} == {"run_name", "freeze_last_layer_epochs"}
