"""PEAC resumes exactly, and trains on two processes as on one of twice the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import smooth_images, tiny_trainer
from tiny_peac import tiny_peac
from training_runs import (
    assert_same_gradients,
    assert_same_state,
    assert_same_weights,
    recorded_by_processes,
    run_or_stop,
    train_and_record,
)

from afire_monai.training.checkpoint_keeper import CheckpointKeeper

IMAGES = smooth_images(24, (48, 48))


def train(folder: Path, epochs: int, resume: bool = False, stop_after: int | None = None):
    trainer = tiny_trainer(tiny_peac(), IMAGES, epochs, handlers=[CheckpointKeeper(folder)], accumulation_steps=2)
    return run_or_stop(trainer, folder, resume, stop_after)


def test_an_interrupted_run_ends_with_the_weights_of_a_whole_one(tmp_path):
    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 3, stop_after=9)
    resumed = train(tmp_path / "parts", 3, resume=True)
    assert_same_state(whole.method.state_dict(), resumed.method.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.5, 0.1])  # at 0.1, one of two processes often has no view in order
def test_two_processes_equal_one_of_twice_the_batch(tmp_path, keep):
    made = f"""
from helpers import smooth_images, tiny_trainer
from tiny_peac import tiny_peac
trainer = tiny_trainer(tiny_peac({keep}), smooth_images(24, (48, 48)), 2, 3)
"""
    two = recorded_by_processes(made, tmp_path)[0]
    one = train_and_record(tiny_trainer(tiny_peac(keep), IMAGES, 2, 6))
    assert len(one["losses"]) == 8
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=1e-5, rtol=1e-4)
    assert_same_gradients(two["gradients"], one["gradients"])
    assert_same_weights(two["state"], one["state"], atol=2e-5, rtol=1e-4)
