"""MLVICX resumes exactly, and trains on two processes as on one of twice the batch, batch norm included."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers import smooth_images, tiny_trainer
from tiny_mlvicx import tiny_mlvicx, with_lars
from torch import nn
from training_runs import (
    assert_same_change,
    assert_same_gradients,
    assert_same_state,
    assert_same_weights,
    recorded_by_processes,
    run_or_stop,
    run_script,
    train_and_record,
)

from afire_monai.networks.blocks import SyncedBatchNorm, synced_batch_norm
from afire_monai.training import CheckpointKeeper

IMAGES = smooth_images(24, (80, 80))


def train(folder: Path, epochs: int, resume: bool = False, stop_after: int | None = None):
    trainer = with_lars(tiny_trainer(tiny_mlvicx(), IMAGES, epochs, handlers=[CheckpointKeeper(folder)], lr=2.0))
    return run_or_stop(trainer, folder, resume, stop_after)


def test_an_interrupted_run_ends_with_the_weights_statistics_and_momentum_of_a_whole_one(tmp_path):
    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 3, stop_after=8)
    resumed = train(tmp_path / "parts", 3, resume=True)
    assert_same_state(whole.method.state_dict(), resumed.method.state_dict())
    velocities = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    assert velocities[0].keys() == velocities[1].keys()
    assert len(velocities[0]) == len(list(whole.method.parameters()))
    for key, state in velocities[0].items():
        assert torch.equal(state["velocity"], velocities[1][key]["velocity"])


# two processes -------------------------------------------------------------------------------------------------------

NORM_JOB = """
import sys
import torch
import torch.distributed as dist
from afire_monai.networks.blocks import SyncedBatchNorm

dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.load(sys.argv[1], weights_only=True)
norm = SyncedBatchNorm(x["values"].shape[1])
norm.load_state_dict(x["state"])
share = (slice(0, 2), slice(2, None))[rank]  # of different sizes
values = x["values"][share].clone().requires_grad_()
out = norm(values)
(out * x["weights"][share]).sum().backward()
parts = [None, None]
dist.all_gather_object(parts, {"out": out.detach(), "values": values.grad, "weight": norm.weight.grad,
                               "bias": norm.bias.grad, "state": norm.state_dict()})
if rank == 0:
    torch.save(parts, sys.argv[2])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
def test_synchronised_batch_norm_equals_torchs_over_the_whole_batch(shape, tmp_path):
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(shape, generator=generator) * 3 + 1, torch.randn(shape, generator=generator)
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.0]))
    content = {"values": values, "weights": weights, "state": norm.state_dict()}
    torch.save(content, tmp_path / "in.pt")
    run_script(NORM_JOB, tmp_path, str(tmp_path / "in.pt"), str(tmp_path / "out.pt"))
    parts = torch.load(tmp_path / "out.pt", weights_only=True)
    whole = values.clone().requires_grad_()
    out = norm(whole)
    (out * weights).sum().backward()
    torch.testing.assert_close(torch.cat([p["out"] for p in parts]), out.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p["values"] for p in parts]), whole.grad, atol=1e-5, rtol=1e-5)
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(sum(p[name] for p in parts), parameter.grad, atol=1e-5, rtol=1e-5)
    for part in parts:
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(part["state"][name], value, atol=1e-6, rtol=1e-5)


def test_in_one_process_it_is_torchs():
    parts = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.2), nn.Sequential(nn.BatchNorm2d(3))]
    plain = nn.Sequential(*parts)
    synced = synced_batch_norm(copy.deepcopy(plain))
    assert sum(isinstance(m, SyncedBatchNorm) for m in synced.modules()) == 2
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(plain(x), synced(x))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, synced.state_dict()[name]), name
    assert torch.equal(plain.eval()(x), synced.eval()(x))


@pytest.mark.slow
def test_two_processes_equal_one_of_twice_the_batch(tmp_path):
    made = """
from helpers import smooth_images, tiny_trainer
from tiny_mlvicx import tiny_mlvicx, with_lars
trainer = with_lars(tiny_trainer(tiny_mlvicx(), smooth_images(24, (80, 80)), 2, 3, lr=0.2))
"""
    two = recorded_by_processes(made, tmp_path)
    one = train_and_record(with_lars(tiny_trainer(tiny_mlvicx(), IMAGES, 2, 6, lr=0.2)))
    assert len(one["losses"]) == 8
    # batch norm of few images makes rounding grow, by how much depends on the processor
    losses = [torch.tensor(kept["losses"]) for kept in (two[0], one)]
    torch.testing.assert_close(losses[0][:2], losses[1][:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-3)
    # the true gradient of a bias before a batch norm is 0: of those, only rounding is seen
    assert_same_gradients(two[0]["gradients"], one["gradients"], relative=1e-4, absolute=1e-4)
    # the first step's running statistics
    assert_same_weights(two[0]["first"], one["first"], atol=1e-6)
    assert_same_state(two[0]["state"], two[1]["state"])
    assert_same_change(two[0]["state"], one["state"], one["first"])
