"""A process is lost in the middle of a training: torchrun starts all of them again, and nothing is different."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS

from afire_monai.data.phantom import write_phantom_dataset
from afire_monai.engines import find_checkpoint

FILES = str([str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml", "multi_gpu.yaml")])
TINY = {
    **{"use_mlflow": False, "epochs": 6, "image_size": 48, "batch_size": 4, "health_images": 4, "device": "cpu"},
    **{"prototype_dim": 16, "head_hidden": 32, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}


def start(folder: Path, name: str, restarts: int) -> subprocess.Popen[str]:
    settings = {key: value for key, value in TINY.items() if key != "device"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max-restarts={restarts}", "-m", "monai.bundle", "run", "--config_file", FILES]
    command += ["--datalist", "data/datalist.json", "--output_dir", name, "--resume", "true", *words]
    log = (folder / f"{name}.txt").open("w")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


def ranks(launcher: int) -> list[int]:
    """Processes that a launcher has started, in the order of their ranks."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == launcher:
                environment = dict(
                    part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if "=" in part
                )
                found[int(environment["RANK"])] = int(entry.name)
        except (OSError, KeyError):
            continue
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("AFIRE_ELASTIC_TEST") or not Path("/proc/self/environ").exists(),
    reason="restarted gloo processes now and then wait for each other for ever; AFIRE_ELASTIC_TEST=1 runs it, on Linux",
)
def test_training_restarts_by_itself_when_a_process_is_killed(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=40, abnormal=2, size=64)
    whole = start(tmp_path, "whole", 0)
    assert whole.wait(300) == 0, (tmp_path / "whole.txt").read_text()[-2000:]
    lossy = start(tmp_path, "lossy", 3)
    until = time.monotonic() + 200
    while not list((tmp_path / "lossy" / "checkpoints").glob("checkpoint_*.pt")):
        assert time.monotonic() < until
        assert lossy.poll() is None, (tmp_path / "lossy.txt").read_text()[-2000:]
        time.sleep(0.02)
    os.kill(ranks(lossy.pid)[1], signal.SIGKILL)
    assert lossy.wait(300) == 0, (tmp_path / "lossy.txt").read_text()[-2000:]
    assert "going on from checkpoint_" in (tmp_path / "lossy.txt").read_text()
    ends = [find_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "lossy")]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0][1]["progress"]["iteration"] == ends[1][1]["progress"]["iteration"]
    for name, value in ends[0][1]["method"].items():
        assert torch.equal(value, ends[1][1]["method"][name]), name
    exported = [(tmp_path / name / "models" / "encoder.safetensors").read_bytes() for name in ("whole", "lossy")]
    assert exported[0] == exported[1]
