"""What people stumble over on a first day: each ends in a result or in a sentence that helps."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer

from afire_monai.cli.main import run
from afire_monai.cli.predictions import _summary
from afire_monai.core.errors import AfireError
from afire_monai.models.folder import export_encoder, load_encoder, model_files
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.training.checkpoint import save_checkpoint
from afire_monai.training.finetuning import Answers, score_lines
from afire_monai.training.handlers import ProgressBar
from afire_monai.training.startup import prepare_run
from afire_monai.training.tasks import Classification

ROOT = Path(__file__).resolve().parents[2]


def test_plan_takes_method_images_and_epochs_from_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    files = [str(ROOT / "bundle" / "configs" / name) for name in ("pretrain.yaml", "method_mae.yaml")]
    words = ["--image_size", "32", "--encoder_preset", "vit_ti6", "--batch_size", "4", "--epochs", "2"]
    prepare_run(tmp_path, ["run", "--config_file", str(files), *words])
    (tmp_path / "log.csv").write_text("epoch,images_per_second\n1,10\n2,10\n")
    progress = {"images": 3600, "max_epochs": 2}
    parts = {"method": {}, "optimizer": {}, "random": {}, "progress": progress}
    save_checkpoint(parts, tmp_path / "checkpoints" / "checkpoint_00000001.pt")
    assert run(["plan", "--from-run", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mae, vit_ti6, 32 px")
    assert "3600 a pass, 2 passes, 1800 steps of 4" in printed
    assert "time:        12.0 minutes" in printed
    assert run(["plan", "--from-run", str(tmp_path), "--epochs", "10", "--images", "7200"]) == 0
    assert "time:        2.0 hours" in capsys.readouterr().out
    assert run(["plan", "--from-run", str(tmp_path), "--preset", "vit_s", "--image-size", "64"]) == 2
    assert "leave out --preset, --image-size" in capsys.readouterr().err


def test_interrupt_while_a_checkpoint_is_written_is_no_full_disk(tmp_path, monkeypatch):
    def interrupted(state, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as torch's writer ends its archive

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({}, tmp_path / "checkpoint_00000001.pt")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run_folder(tmp_path):
    export_encoder(ViTEncoder(32, 8, embed_dim=32, depth=1, num_heads=2), tmp_path / "mine" / "models")
    return tmp_path / "mine"


def test_folder_of_a_run_stands_for_its_models(run_folder):
    assert load_encoder(run_folder).image_size == (32, 32)
    assert model_files([run_folder]) == {"encoder": run_folder / "models" / "encoder.safetensors"}


def test_misspelt_argument_of_an_encoder_is_named(run_folder):
    with pytest.raises(AfireError, match=r"no argument 'imagesize'; nearest: image_size"):
        load_encoder(run_folder, imagesize=64)


def classification() -> Classification:
    network = ViTClassifier(ViTEncoder(16, 8, embed_dim=32, depth=1, num_heads=2), ["Mass", "Edema", "Hernia"])
    return Classification(network.eval())


def test_scores_of_fine_tuning_are_said_for_each_section_and_marked_where_few_images_bear_them():
    target = torch.zeros(20, 3)
    target[:4, 0] = 1  # few
    target[:6, 1] = 1  # enough
    logits = target.clone()
    logits[0, 1] = -1.0  # of 6 × 14 pairs, 14 are in the wrong order
    lines = score_lines(classification(), {"test": Answers(None, logits, target)})
    assert lines == [
        "test: Mass: AUROC 1.000 (4 with, 16 without; fewer than 5, take it lightly)",
        "test: Edema: AUROC 0.833 (6 with, 14 without)",
        "test: Hernia: not judged (0 with, 20 without)",
        "test: mean AUROC 0.917",
    ]


def test_console_marks_what_the_evaluation_page_marks():
    figure = {"value": 0.9, "low": 0.5, "high": 1.0}
    rows = [
        {"name": name, "positives": count, "negatives": 40, "figures": {"auroc": figure}}
        for name, count in (("Mass", 4), ("Edema", 30))
    ]
    results = {
        "datalist": {"name": "a", "section": "test"}, "cases": 44, "patients": 44, "masks": None, "heatmaps": None,
        "labels": {"labels": rows, "macro": None}, "comparison": None, "anomaly": None, "notes": [],
    }  # fmt: skip
    notes = [line for line in _summary(results) if line.startswith("note:")]
    assert len(notes) == 1
    assert "lightly: Mass." in notes[0]


def test_bar_of_training_stays_out_of_files_and_a_line_an_epoch_takes_its_place(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="afire_monai"):
        tiny_trainer(tiny_afire(), smooth_images(8, (32, 32)), handlers=[ProgressBar(seconds=0)]).run()
    assert "step" not in capsys.readouterr().err
    lines = [message for message in caplog.messages if message.startswith("pre-training: epoch")]
    assert [line.split(": ")[1] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "images_per_second" in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "nowhere.json", "--out", "x"], "data list nowhere.json: no such file"),
        (["finetune", "here.json", "--init", "nowhere", "--out", "x"], "--init nowhere: no such file"),
        (["predict", "nowhere", "--out", "x"], "input nowhere: no such file"),
        (["predict", "here.json", "--model", "nowhere", "--out", "x"], "--model nowhere: no such file"),
        (["evaluate", "nowhere", "--datalist", "here.json", "--out", "x"], "predictions nowhere: no such file"),
        (["reference", "--model", ".", "--datalist", "nowhere.json"], "--datalist nowhere.json: no such file"),
        (["probe", "nowhere.json", "--out", "x"], "data list nowhere.json: no such file"),
    ],
)
def test_wrong_paths_are_said_before_torch_is_loaded(words, message, tmp_path):
    (tmp_path / "here.json").write_text("{}")
    script = "import sys; from afire_monai.cli.main import run; s = run(sys.argv[1:]); print(s, 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert message in done.stderr
    assert done.stdout.split("\n")[-2] == "2 False"
