"""A loader's process is killed: the run ends in words with the status for "try again", and goes on to the same end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from torch.utils.data import DataLoader
from training_runs import assert_same_state, run_or_stop

from afire_monai.training import CheckpointKeeper, PretrainTrainer
from afire_monai.training.checkpoint import list_checkpoints
from afire_monai.training.stopping import EXIT_STATUS

IMAGES = smooth_images(20, (48, 48))


def trainer_of(folder: Path, workers: int = 2, persistent: bool = False) -> PretrainTrainer:
    """5 iterations an epoch, 3 epochs."""
    trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 3, handlers=[CheckpointKeeper(folder)])
    loader = trainer.data_loader
    trainer.data_loader = DataLoader(
        loader.dataset, 4, sampler=loader.sampler, num_workers=workers, persistent_workers=persistent
    )
    return trainer


def kill_one() -> None:
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    time.sleep(0.3)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("when", ["loading", "writing a checkpoint"])
def test_run_ends_with_the_status_for_try_again_and_goes_on_to_the_same_weights(
    tmp_path, caplog, monkeypatch, persistent, when
):
    if when != "loading" and not persistent:
        pytest.skip("no process loads then")
    whole = trainer_of(tmp_path / "whole", workers=0)
    whole.run()
    killed = trainer_of(tmp_path / "killed", persistent=persistent)
    if when == "loading":
        killed.add_event_handler(Events.ITERATION_STARTED(once=7), kill_one)
    else:
        real = torch.save

        def save(content, file, *options):
            if killed.state.iteration == 10:
                kill_one()
            real(content, file, *options)

        monkeypatch.setattr(torch, "save", save)
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(SystemExit) as caught:
        killed.run()
    monkeypatch.undo()
    assert caught.value.code == EXIT_STATUS == 75
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert "a process that loads images was lost (Killed), most often because memory ran out" in caplog.text
    written = [int(path.stem.split("_")[1]) for path in list_checkpoints(tmp_path / "killed")]
    assert max(written) == (5 if when == "loading" else 10)
    resumed = run_or_stop(trainer_of(tmp_path / "killed", workers=0), tmp_path / "killed", resume=True)
    assert resumed.state.iteration == 15
    assert_same_state(whole.method.state_dict(), resumed.method.state_dict())


def test_other_errors_of_a_run_are_what_they_were(tmp_path):
    trainer = trainer_of(tmp_path)

    def fail() -> None:
        raise RuntimeError("something else")

    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), fail)
    with pytest.raises(RuntimeError, match="something else"):
        trainer.run()
