"""A process is lost in the middle of a training: torchrun starts all of them again, and nothing is different."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from helpers import CONFIGS

from afire_monai.phantom import write_phantom_dataset
from afire_monai.training.checkpoint import find_checkpoint

FILES = str([str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml", "multi_gpu.yaml")])
TINY = {
    **{"use_mlflow": False, "epochs": 6, "image_size": 48, "batch_size": 4, "health_images": 4, "device": "cpu"},
    **{"prototype_dim": 16, "head_hidden": 32, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}


class Interpreter(subprocess.Popen):
    """An interpreter of its own where `warm.Program` forks; one test does with it what the others do without."""

    def __init__(self, words: list[str], log: Path, folder: Path, environment: dict[str, str]) -> None:
        self.log = log
        environment = {**os.environ, **warm.ALONE, **environment}
        with log.open("a") as file:
            super().__init__([sys.executable, *words], cwd=folder, env=environment, stdout=file, stderr=file)

    def output(self) -> str:
        return self.log.read_text()


def start(
    folder: Path, name: str, restarts: int, nodes: int = 1, workers: int = 0, kind: type = warm.Program
) -> list[warm.Program]:
    """Start two processes under one launcher, or under two as on two nodes."""
    settings = {key: value for key, value in TINY.items() if key != "device"} | {"num_workers": workers}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = ["-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=elastic"]
    command += ["--local_addr=127.0.0.1", f"--max-restarts={restarts}", "-m", "monai.bundle", "run"]
    command += ["--config_file", FILES, "--datalist", "data/datalist.json", "--output_dir", name, "--resume", "true"]
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(nodes > 1))}
    log = folder / f"{name}.txt"
    log.unlink(missing_ok=True)
    return [kind([*command, *words], log, folder, environment) for _ in range(nodes)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def second_rank(launchers: list[warm.Program]) -> int:
    """The second of the processes that launchers have started."""
    if isinstance(launchers[0], warm.Program):
        return int(Path(f"{launchers[0].log}.1.pid").read_text())
    found, parents = {}, [launcher.pid for launcher in launchers]
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) in parents:
                environment = dict(
                    part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if "=" in part
                )
                found[int(environment["RANK"])] = int(entry.name)
        except (OSError, KeyError):
            continue
    return found[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    write_phantom_dataset(folder / "data", normal=40, abnormal=2, size=64)
    (launcher,) = start(folder, "whole", 0)
    assert launcher.wait(300) == 0, (folder / "whole.txt").read_text()[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("nodes", [1, 2])
def test_training_restarts_by_itself_when_a_process_is_killed(whole, nodes):
    name, log = f"lossy_{nodes}", whole / f"lossy_{nodes}.txt"
    launchers = start(whole, name, 3, nodes, kind=Interpreter if nodes == 1 else warm.Program)
    try:
        until = time.monotonic() + 200
        while not list((whole / name / "checkpoints").glob("checkpoint_*.pt")):
            assert time.monotonic() < until
            assert all(launcher.poll() is None for launcher in launchers), log.read_text()[-2000:]
            time.sleep(0.02)
        os.kill(second_rank(launchers), signal.SIGKILL)
        assert [launcher.wait(300) for launcher in launchers] == [0] * nodes, log.read_text()[-2000:]
    finally:
        for launcher in launchers:
            launcher.terminate()
    assert "continuing from checkpoint_" in log.read_text()
    assert_same_ends(whole, name)


def assert_same_ends(whole: Path, name: str) -> None:
    ends = [find_checkpoint(whole / run / "checkpoints") for run in ("whole", name)]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0][1]["progress"]["iteration"] == ends[1][1]["progress"]["iteration"]
    for key, value in ends[0][1]["method"].items():
        assert torch.equal(value, ends[1][1]["method"][key]), key
    exported = [(whole / run / "models" / "encoder.safetensors").read_bytes() for run in ("whole", name)]
    assert exported[0] == exported[1]


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["launcher", "one process"])
def test_processes_that_are_asked_to_stop_write_one_checkpoint_and_go_on_when_started_again(whole, asked):
    name = f"asked_{asked.split()[0]}"
    log = whole / f"{name}.txt"
    # a launcher sends the signal on to all processes there are, those that read images included
    (launcher,) = start(whole, name, 0, workers=1)
    try:
        until = time.monotonic() + 200
        while not list((whole / name / "checkpoints").glob("checkpoint_*.pt")):
            assert time.monotonic() < until
            assert launcher.poll() is None, log.read_text()[-2000:]
            time.sleep(0.02)
        if asked == "launcher":
            launcher.send_signal(signal.SIGTERM)
        else:
            os.kill(second_rank([launcher]), signal.SIGUSR1)
        assert launcher.wait(100) != 0
    finally:
        launcher.terminate()
    text = log.read_text()
    assert "asked to stop: a checkpoint is written at iteration" in text, text[-2000:]
    assert "--resume true continues from there" in text
    assert "DataLoader worker" not in text
    found = find_checkpoint(whole / name / "checkpoints")
    assert found is not None
    assert found[1]["progress"]["iteration"] < 6 * found[1]["progress"]["epoch_length"]
    assert not (whole / name / "models").exists()
    (launcher,) = start(whole, name, 0)
    assert launcher.wait(300) == 0, log.read_text()[-2000:]
    assert_same_ends(whole, name)
