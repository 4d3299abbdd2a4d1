"""What tests of training share: runs that are cut off, and what one and two processes came to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from ignite.engine import Events

from afire_monai.core.distributed import sum_over_processes, world_size
from afire_monai.training.trainer import PretrainTrainer

State = dict[str, torch.Tensor]
TESTS = Path(__file__).resolve().parent
#: of processes that a test starts: its helpers, and the package beside it rather than one that is installed
PYTHONPATH = os.pathsep.join([str(TESTS), str(TESTS.parent)])


def run_or_stop(
    trainer: PretrainTrainer, folder: Path, resume: bool | str = False, stop_after: int | None = None
) -> PretrainTrainer:
    """Take up a run if it should, and train to the end, or until an iteration that interrupts it."""
    if stop_after is not None:

        @trainer.on(Events.ITERATION_COMPLETED(once=stop_after))
        def stop() -> None:
            raise KeyboardInterrupt

    trainer.resume(folder, resume)
    if stop_after is None:
        trainer.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    return trainer


def assert_same_state(a: State, b: State) -> None:
    """Equal to the bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def train_and_record(trainer: PretrainTrainer) -> dict[str, Any]:
    """Train; give each step's losses over all processes, the first update's gradients and state, and the last state."""
    kept: dict[str, Any] = {"losses": [], "gradients": {}, "first": {}}
    update = trainer._update

    def keep_first(momentum: float) -> None:
        if not kept["gradients"]:
            parameters = trainer.method.student.named_parameters()
            kept["gradients"] = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
            kept["first"] = {name: value.clone() for name, value in trainer.method.state_dict().items()}
        update(momentum)

    def keep_losses(engine: PretrainTrainer) -> None:
        total = torch.stack([engine.state.output[name].detach() for name in sorted(engine.state.output)])
        kept["losses"].append((sum_over_processes(total) / world_size()).tolist())

    trainer._update = keep_first  # type: ignore[method-assign]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep_losses)
    trainer.run()
    kept["state"] = trainer.method.state_dict()
    return kept


JOB = """
import sys
import torch
import torch.distributed as dist
from afire_monai.core.distributed import join_group
from afire_monai.training.startup import stop_processes
from training_runs import train_and_record

torch.set_num_threads(1)
join_group("gloo")
{made}
kept = train_and_record(trainer)
everybody = [None] * dist.get_world_size()
dist.all_gather_object(everybody, kept)
if dist.get_rank() == 0:
    torch.save(everybody, sys.argv[1])
stop_processes()
"""


def run_script(script: str, folder: Path, *words: str, processes: int = 2) -> None:
    """Run a script in several processes of one thread each."""
    (folder / "job.py").write_text(script)
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    warm.run([*torchrun, folder / "job.py", *words], folder / "job.txt")


def recorded_by_processes(made: str, folder: Path, processes: int = 2) -> list[dict[str, Any]]:
    """Return what each process recorded of a training.

    Args:
        made: lines of Python that make ``trainer``.
        folder: for the script and its result.
        processes: how many.
    """
    run_script(JOB.format(made=made), folder, str(folder / "kept.pt"), processes=processes)
    kept: list[dict[str, Any]] = torch.load(folder / "kept.pt", weights_only=True)
    return kept


def assert_same_gradients(a: State, b: State, relative: float = 1e-5, absolute: float = 1e-7) -> None:
    """Equal relative to each whole tensor: single elements are differences of larger sums, rounded in another order."""
    assert a.keys() == b.keys()
    for name, gradient in b.items():
        difference = torch.linalg.vector_norm(a[name] - gradient)
        assert difference <= relative * torch.linalg.vector_norm(gradient) + absolute, name


def assert_same_weights(a: State, b: State, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    """Equal but for rounding."""
    for name, value in b.items():
        other = a[name]
        if name.endswith("qkv.bias"):
            # a bias of all keys cancels in the softmax: its gradient is rounding noise, which AdamW scales up
            keys = slice(len(value) // 3, 2 * len(value) // 3)
            value, other = value.clone(), other.clone()
            value[keys] = other[keys] = 0
        torch.testing.assert_close(other, value, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_change(a: State, b: State, before: State, relative: float = 0.01, absolute: float = 1e-6) -> None:
    """Equal but for a small share of what training changed, in the norm of each tensor."""
    for name, value in b.items():
        if value.is_floating_point():
            difference, change = (torch.linalg.vector_norm(value - other[name]) for other in (a, before))
            assert difference <= relative * change + absolute, name
        else:
            assert torch.equal(a[name], value), name
