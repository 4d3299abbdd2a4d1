"""The MLVICX config as users run it, only smaller: training, resuming, export, and what later tasks make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import CONFIGS, cause_of, run_bundle

from afire_monai.models.folder import load_classifier, load_encoder
from afire_monai.phantom import write_phantom_dataset
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.handlers import read_csv_log

FILES = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_mlvicx.yaml")]
TINY = {
    **{"use_mlflow": False, "epochs": 2, "batch_size": 7, "health_images": 8, "device": "cpu"},
    **{"image_size": 64, "projector_dim": 32, "dense_dim": 16, "dense_side": 16},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=40, abnormal=8, size=96)


@pytest.fixture(scope="module")
def trained(phantoms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlvicx")
    run_bundle(folder, FILES, datalist=str(phantoms), output_dir="out", **TINY)
    return folder / "out"


def newest(run: Path) -> dict:
    return load_checkpoint(max((run / "checkpoints").glob("checkpoint_*.pt")))


def test_loss_falls_and_all_terms_and_health_are_logged(trained):
    first, second = read_csv_log(trained / "log.csv")
    assert second["loss"] < first["loss"]
    weights = {"invariance": 25, "variance": 25, "covariance": 1}
    expected = sum(first[f"{b}_{name}"] * w for b in ("global", "dense") for name, w in weights.items())
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    assert {"feature_std_ratio", "effective_rank", "validation_vicreg"} <= second.keys()
    assert (trained / "panels" / "epoch_0002.png").is_file()
    assert (trained / "report.html").is_file()


def test_exported_encoder_has_the_weights_and_running_statistics_of_the_checkpoint(trained):
    encoder, state = load_encoder(trained / "models"), newest(trained)["method"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"student.encoder.{name}"]), name
    assert state["student.encoder.stem.1.num_batches_tracked"] == 2 * 2 * 4  # views, epochs, batches
    assert encoder(torch.rand(2, 1, 64, 64)).shape == (2, 5, 512)
    description = json.loads((trained / "models" / "encoder.json").read_text(encoding="utf-8"))
    assert description["method_name"] == "MLVICX"
    assert description["architecture"]["kind"] == "resnet"


def test_optimiser_state_holds_every_parameter(trained):
    state = newest(trained)
    parameters = sum(len(group["params"]) for group in state["optimizer"]["param_groups"])
    trainable = [n for n in state["method"] if "running_" not in n and "num_batches" not in n]
    assert parameters == len(state["optimizer"]["state"]) == len(trainable)


def test_a_resumed_run_goes_on_from_its_checkpoint(trained, phantoms, tmp_path):
    shutil.copytree(trained, tmp_path / "out")  # the other tests look at the shorter run
    run_bundle(tmp_path, FILES, datalist=str(phantoms), output_dir="out", **{**TINY, "epochs": 3, "resume": True})
    assert [row["epoch"] for row in read_csv_log(tmp_path / "out" / "log.csv")] == [1, 2, 3]


def test_fine_tuning_takes_the_encoder(trained, tmp_path):
    findings = write_phantom_dataset(tmp_path / "findings", normal=30, abnormal=50, size=64)
    config = str(CONFIGS / "finetune_classification.yaml")
    settings = {"epochs": 1, "batch_size": 8, "device": "cpu", "init": str(trained / "models")}
    run_bundle(tmp_path, config, datalist=str(findings), output_dir="classifier", **settings)
    network, _ = load_classifier(tmp_path / "classifier" / "models")
    assert network(torch.rand(2, 1, 64, 64)).isfinite().all()
    assert network.encoder.config == load_encoder(trained / "models").config


def test_a_transformers_patch_size_is_refused_with_the_way_out(phantoms, tmp_path):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(tmp_path, FILES, datalist=str(phantoms), output_dir="none", **TINY, patch_size=16)
    assert "set patch_size to 32" in str(cause_of(caught.value))


def test_config_overrides_encoder_and_optimiser_of_the_base():
    base, method = (yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in FILES)
    assert {"encoder_preset", "patch_size", "optimizer", "clip"} <= {key for key in method if key in base}
