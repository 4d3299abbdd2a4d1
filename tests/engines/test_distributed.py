"""Two processes of batch n train as one process of batch 2n: weights, gradients, prototypes and losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer

JOB = """
import sys
import torch
import torch.distributed as dist
from ignite.engine import Events
from afire_monai.engines.startup import stop_processes
from helpers import smooth_images, tiny_afire, tiny_trainer

torch.set_num_threads(1)
dist.init_process_group("gloo")
shift, batch, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
trainer = tiny_trainer(tiny_afire(shift=shift), smooth_images(24, (32 + 8 * shift,) * 2), 2, batch)
gradients, losses = {}, []


@trainer.on(Events.ITERATION_COMPLETED)
def keep(engine):
    total = engine.state.output["loss"].clone()
    dist.all_reduce(total)
    losses.append(total.item() / dist.get_world_size())


update = trainer._update


def first_gradients(momentum):
    if not gradients:
        gradients.update({n: p.grad.clone() for n, p in trainer.method.student.named_parameters()})
    update(momentum)


trainer._update = first_gradients
trainer.run()
if dist.get_rank() == 0:
    torch.save({"state": trainer.method.state_dict(), "gradients": gradients, "losses": losses}, out)
stop_processes()
"""


def run_processes(count: int, shift: int, batch: int, folder: Path) -> dict:
    script = folder / "job.py"
    script.write_text(JOB)
    out = folder / f"{count}.pt"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    subprocess.run([*command, str(script), str(shift), str(batch), str(out)], env=environment, check=True, timeout=240)
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 2])
def test_two_processes_equal_one_of_twice_the_batch(tmp_path, shift):
    two = run_processes(2, shift, 3, tmp_path)
    gradients: dict[str, torch.Tensor] = {}
    losses: list[float] = []
    trainer = tiny_trainer(tiny_afire(shift=shift), smooth_images(24, (32 + 8 * shift,) * 2), 2, 6)
    update = trainer._update

    def first_gradients(momentum: float) -> None:
        if not gradients:
            gradients.update({n: p.grad.clone() for n, p in trainer.method.student.named_parameters()})  # type: ignore[union-attr]
        update(momentum)

    from ignite.engine import Events

    trainer._update = first_gradients  # type: ignore[method-assign]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
    trainer.run()
    assert len(losses) == 8
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(losses), atol=1e-5, rtol=1e-5)
    assert gradients.keys() == two["gradients"].keys()
    for name, gradient in gradients.items():
        # relative to the whole tensor: single elements are differences of larger sums, rounded in another order
        difference = torch.linalg.vector_norm(two["gradients"][name] - gradient)
        assert difference <= 1e-5 * torch.linalg.vector_norm(gradient) + 1e-7, name
    for name, value in trainer.method.state_dict().items():
        other = two["state"][name]
        if name.endswith("qkv.bias"):
            # a bias of all keys cancels in the softmax: its gradient is rounding noise, which AdamW scales up
            keys = slice(len(value) // 3, 2 * len(value) // 3)
            value[keys] = other[keys] = 0
        torch.testing.assert_close(other, value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
