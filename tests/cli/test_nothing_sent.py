"""No command asks for a host: name resolution and connections are recorded in the processes that users start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hospital.planted import small, write

from afire_monai.phantom import write_phantom_dataset

ROOT = Path(__file__).resolve().parents[2]
RECORDER = """
import os, socket

def note(host):
    if str(host) not in ("localhost", "127.0.0.1", "::1", "None"):
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{host}\\n")
        raise OSError("no network here")

def resolver(real):
    def resolve(host, *rest, **more):
        note(host.decode() if isinstance(host, bytes) else host)
        return real(host, *rest, **more)
    return resolve

for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, resolver(getattr(socket, name)))

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            note(address[0])
        return super().connect(address)

socket.socket = Socket
"""
# these switch MLflow's telemetry off by themselves, so they would hide that nobody else does
QUIET = ("PYTEST_", "CI", "GITHUB_", "GITLAB_", "JENKINS_", "BUILDKITE", "TEAMCITY_", "MLFLOW_", "DO_NOT_TRACK")


def call(folder: Path, *words: str) -> list[str]:
    """Run a module in a process of its own; return the hosts that it asked for."""
    (folder / "recorder").mkdir(exist_ok=True)
    (folder / "recorder" / "sitecustomize.py").write_text(RECORDER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(QUIET)}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "recorder"), str(ROOT)]),
        "ASKED_FOR": str(folder / "asked.txt"),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "asked.txt").read_text().split() if (folder / "asked.txt").exists() else []


def test_recorder_sees_a_host_that_is_asked_for(tmp_path):
    (tmp_path / "asking.py").write_text(
        "import socket\ntry: socket.create_connection(('a.invalid', 80))\nexcept OSError: pass\n"
    )
    assert call(tmp_path, "asking") == ["a.invalid"]


@pytest.mark.slow
def test_pretraining_with_mlflow_predicting_and_evaluating_ask_for_no_host(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=14, abnormal=6, size=64)
    configs = str([str(ROOT / "bundle" / "configs" / name) for name in ("pretrain.yaml", "method_afire.yaml")])
    words = ("--datalist", "data/datalist.json", "--output_dir", "out", "--epochs", "1", "--image_size", "48")
    tiny = ("--batch_size", "4", "--health_images", "4")
    assert call(tmp_path, "monai.bundle", "run", "--config_file", configs, *words, *tiny) == []
    assert (tmp_path / "out" / "mlflow.db").is_file()
    assert call(tmp_path, "afire_monai", "predict", "data/datalist.json", "--out", "found") == []
    assert call(tmp_path, "afire_monai", "evaluate", "found", "--datalist", "data/datalist.json", "--out", "page") == []


@pytest.mark.slow
def test_fine_tuning_with_mlflow_and_ingesting_ask_for_no_host(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=20, abnormal=12, size=48)
    tiny = ("epochs=1", "image_size=32", "batch_size=4", "use_mlflow=True")
    words = ("finetune", "data/datalist.json", *tiny, "--init", "random", "--out", "classifier")
    assert call(tmp_path, "afire_monai", *words) == []
    assert (tmp_path / "classifier" / "mlflow.db").is_file()
    for number in range(4):
        write(small(number), tmp_path / "archive" / f"{number}.dcm")
    assert call(tmp_path, "afire_monai", "ingest", "archive", "--out", "ingested") == []
    assert (tmp_path / "ingested" / "datalist.json").is_file()
