from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, create_workflow, run_workflow

from afire_monai.core.errors import AfireError, user_error
from afire_monai.training import settings

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
FILES = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")]
METADATA = str(CONFIGS / "metadata.json")


@pytest.fixture(autouse=True)
def notebook(monkeypatch):
    """Run as a notebook does, where the command line is none of the bundle's."""
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def settings_of(folder: Path, files: list[str] | None = None, **overrides) -> dict:
    """Initialize a workflow from Python and return the settings that it wrote."""
    values = {"output_dir": str(folder), **overrides}
    ConfigWorkflow(files or FILES, METADATA, logging_file=False, workflow_type="train", **values).initialize()
    return yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("start", [create_workflow, run_workflow])
def test_misspelt_key_is_refused_before_anything_is_read(tmp_path, start):
    values = {"output_dir": str(tmp_path), "imagesize": 64, "meta_file": METADATA, "logging_file": False}
    with pytest.raises(RuntimeError, match="prepare_run") as caught:
        start(config_file=FILES, **values)
    cause = user_error(caught.value)
    assert isinstance(cause, AfireError)
    assert "unknown setting --imagesize" in str(cause)
    assert "nearest: image_size" in str(cause)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train#dataloadr", 1, "nearest: dataloader"),
        ("labels", ["Mass"], "unknown setting --labels"),  # of another config of the same folder
        ("epochs", 0, "--epochs 0: a whole number of at least 1"),
        ("cache", "true", "write --cache True"),
        ("lesion_peak", 1.5, "--lesion_peak 1.5: a number from 0 to 1"),
        ("image_size", 100, "--image_size 100: a multiple of patch_size 16 is expected, for example 112"),
    ],
)
def test_wrong_settings_are_refused_as_on_the_command_line(tmp_path, key, value, words):
    with pytest.raises(RuntimeError, match="prepare_run") as caught:
        settings_of(tmp_path, **{key: value})
    assert words in str(user_error(caught.value))


def test_settings_are_written_with_the_overrides_as_plain_values_and_the_hook_is_left_alone(tmp_path):
    hook = sys.excepthook
    settings = settings_of(tmp_path / "run", epochs=3, device=torch.device("cpu"), **{"train#sampler#seed": 9})
    assert (settings["epochs"], settings["train"]["sampler"]["seed"], settings["device"]) == (3, 9, "cpu")
    assert settings["shift"] == 2  # of the method's config
    assert not {"output_dir", "_meta_"} & settings.keys()
    assert sys.excepthook is hook


def test_a_config_of_the_callers_own_may_add_what_it_refers_to(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("twice: 4\nepochs: $@twice * 2\n", encoding="utf-8")
    assert settings_of(tmp_path / "run", [*FILES, str(own)])["twice"] == 4


def test_each_shipped_config_and_tracking_start_from_python(tmp_path):
    for name in ("finetune_classification", "finetune_segmentation", "evaluate"):
        assert settings_of(tmp_path / name, [str(CONFIGS / f"{name}.yaml")])
    for name in ("method_dino", "method_mae", "method_peac", "method_mlvicx"):
        assert settings_of(tmp_path / name, [str(CONFIGS / "pretrain.yaml"), str(CONFIGS / f"{name}.yaml")])
    values = {"config_file": FILES, "meta_file": METADATA, "logging_file": False, "tracking": "mlflow"}
    create_workflow(output_dir=str(tmp_path / "tracked"), **values)
    assert (tmp_path / "tracked" / "settings.yaml").is_file()


def test_a_scripts_own_option_of_the_same_name_is_not_taken_for_the_runners(tmp_path, monkeypatch):
    hook = sys.excepthook
    monkeypatch.setattr(sys, "argv", ["script.py", "--config_file", FILES[0], "--fast", "1"])
    assert settings_of(tmp_path, epochs=2)["epochs"] == 2
    assert sys.excepthook is hook


def test_names_in_a_setting_are_the_users_own():
    known = {"classes": {"lesion": [1]}, "train": {"sampler": {"_target_": "a.B"}}}
    config = {"classes": {"right_lung": [1]}, "train": {"sampler": {"_target_": "a.B"}, "smapler": 1}}
    assert list(settings._new_paths(config, known)) == ["train#smapler"]
