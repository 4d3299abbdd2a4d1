"""The command line as users type it: another process, in a folder that has nothing to do with the bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from afire_monai.phantom import write_phantom_dataset

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
PRETRAIN = str([str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")])
TINY = ("--use_mlflow", "False", "--epochs", "1", "--image_size", "48", "--batch_size", "4", "--health_images", "4")


def bundle_run(folder: Path, files: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("AFIRE_TRACEBACK", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_training_then_inference_run_from_a_foreign_folder(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=12, abnormal=2, size=64)
    trained = bundle_run(tmp_path, PRETRAIN, "--datalist", "data/datalist.json", "--output_dir", "out", *TINY)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "models" / "encoder.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    words = ("--model_dir", "out/models", "--dataset_dir", "data/images", "--output_dir", "results")
    written = bundle_run(tmp_path, str(CONFIGS / "inference.yaml"), *words)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "results" / "summary.csv").is_file()
    assert "14 images: results written to results" in written.stdout + written.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out", "results"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--batchsize", "4"), "unknown setting --batchsize: 'batchsize' is not there; nearest: batch_size"),
        (("--epochs", "0"), "--epochs 0: a whole number of at least 1 is expected"),
    ],
)
def test_wrong_setting_ends_in_one_line_that_names_it_and_in_a_failure(tmp_path, monkeypatch, words, error):
    monkeypatch.delenv("AFIRE_TRACEBACK", raising=False)
    command = ["-m", "monai.bundle", "run", "--config_file", PRETRAIN, "--output_dir", "out", *words]
    done = warm.Program(command, tmp_path / "log.txt", tmp_path)
    assert done.wait() == 1
    last = done.output().rstrip().splitlines()[-1]
    assert last.startswith(f"error: {error}")
    assert "Traceback" not in done.output()
    assert not (tmp_path / "out" / "phantoms").exists()
