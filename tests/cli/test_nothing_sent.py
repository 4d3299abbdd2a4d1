"""No command asks for a host: name resolution and connections are recorded in the processes that users start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from asked_hosts import asked_for, recording
from hospital.planted import small, write

from afire_monai.phantom import write_phantom_dataset

ROOT = Path(__file__).resolve().parents[2]


COMMANDS = """
import sys
from afire_monai.cli.main import run
for command in sys.argv[1:]:
    assert run(command.split()) == 0, command
"""


def call(folder: Path, *words: str) -> list[str]:
    """Run an interpreter of its own; return the hosts that it asked for."""
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=folder, env=recording(folder, str(ROOT)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return asked_for(folder)


def test_recorder_sees_a_host_that_is_asked_for(tmp_path):
    (tmp_path / "asking.py").write_text(
        "import socket\ntry: socket.create_connection(('a.invalid', 80))\nexcept OSError: pass\n"
    )
    assert call(tmp_path, "-m", "asking") == ["a.invalid"]


@pytest.mark.slow
def test_pretraining_with_mlflow_predicting_and_evaluating_ask_for_no_host(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=14, abnormal=6, size=64)
    configs = str([str(ROOT / "bundle" / "configs" / name) for name in ("pretrain.yaml", "method_afire.yaml")])
    words = ("--datalist", "data/datalist.json", "--output_dir", "out", "--epochs", "1", "--image_size", "48")
    tiny = ("--batch_size", "4", "--health_images", "4")
    assert call(tmp_path, "-m", "monai.bundle", "run", "--config_file", configs, *words, *tiny) == []
    assert (tmp_path / "out" / "mlflow.db").is_file()
    predict = "predict data/datalist.json --out found"
    assert call(tmp_path, "-c", COMMANDS, predict, "evaluate found --datalist data/datalist.json --out page") == []
    assert (tmp_path / "page").is_dir()


@pytest.mark.slow
def test_fine_tuning_with_mlflow_and_ingesting_ask_for_no_host(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=20, abnormal=12, size=48)
    tiny = "epochs=1 image_size=32 batch_size=4 use_mlflow=True"
    finetune = f"finetune data/datalist.json {tiny} --init random --out classifier"
    for number in range(4):
        write(small(number), tmp_path / "archive" / f"{number}.dcm")
    assert call(tmp_path, "-c", COMMANDS, finetune, "ingest archive --out ingested") == []
    assert (tmp_path / "classifier" / "mlflow.db").is_file()
    assert (tmp_path / "ingested" / "datalist.json").is_file()
