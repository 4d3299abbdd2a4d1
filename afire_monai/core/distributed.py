"""Join other processes, sum over them and wait for them; all of these do nothing in a single process."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from afire_monai.core.errors import AfireError

START = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# timeout of waits for a process that works alone; the usual group gives up after minutes
PATIENCE = timedelta(days=7)
T = TypeVar("T")
_patient: list[dist.ProcessGroup] = []


def join_group(backend: str, timeout: timedelta | None = None) -> None:
    """Join the process group that ``torchrun`` describes in the environment; also after ``torchrun`` restarted it.

    ``torchrun`` keeps one store for the addresses of all its processes through every restart (PyTorch 2.13), so a
    restarted process may read the address of a lost one and wait for it for ever, or be refused. Here every start has
    keys of its own, told apart by the number of restarts. Several nodes count their restarts apart; they need a new
    store at every start, which ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` gives.

    Args:
        backend: ``nccl`` or ``gloo``.
        timeout: timeout of the group's collectives; None for PyTorch's default.

    Raises:
        AfireError: if a variable that ``torchrun`` sets is missing, or several nodes may restart with one store.
    """
    missing = [name for name in START if name not in os.environ]
    if missing:
        raise AfireError(f"{', '.join(missing)} not set in the environment; start several processes by torchrun")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    nodes, restarts = (int(os.environ.get(key, "0")) for key in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if nodes > 1 and restarts > 0:
        raise AfireError(
            f"torchrun --max-restarts {restarts} on {nodes} nodes would let restarted processes wait for lost ones: "
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, with --rdzv_backend c10d"
        )
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # the store's own timeout is short: wait for a late process as long as PyTorch's own start does
    wait = timeout or dist.default_pg_timeout
    store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=wait)
    start = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    own, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, timeout=timeout, store=start, rank=own, world_size=world)


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _patient_group() -> dist.ProcessGroup:
    """Return a group of all processes on the CPU, made by all at once when first asked for."""
    if not _patient:
        _patient.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    return _patient[0]


def wait_for_all() -> None:
    """Wait until every process has come this far, however long one of them works alone."""
    if world_size() > 1:
        dist.barrier(group=_patient_group())


def from_first(value: T) -> T:
    """Return process 0's value in every process, however long they have to wait for it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_patient_group())
    return values[0]


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in at least one process: the same answer in each, without a wait for a GPU."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([float(flag)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(flags.item())


def leave_group() -> None:
    """Leave the process group, once all processes have come this far."""
    if dist.is_initialized():
        wait_for_all()
        _patient.clear()
        dist.destroy_process_group()


@torch.no_grad()
def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient; the same tensor in a single process."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def share_of_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return this process's share of a mean over all processes: averaged over processes, it is the mean.

    Args:
        total: sum in this process, with gradient.
        count: number of values, or sum of weights, in this process; below 1 over all, it counts as 1.
    """
    return total * world_size() / sum_over_processes(count).clamp(min=1)


@torch.no_grad()
def max_over_processes(tensor: Tensor) -> Tensor:
    """Return the element-wise maximum of a tensor over all processes, without gradient."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


class _SumWithGradient(torch.autograd.Function):
    """Sum over processes whose backward sums the gradients over processes as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def sum_over_processes_with_gradient(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; each process gets the gradient of all processes' uses of it."""
    if world_size() == 1:
        return tensor
    return _SumWithGradient.apply(tensor)


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Return the rows (b, …) of all processes, (processes · b, …) in their order, the same size in each.

    Each process gets for its rows the gradient of all processes' uses of them.
    """
    count, own = world_size(), rank()
    if count == 1:
        return tensor
    padded = [torch.zeros_like(tensor)] * own + [tensor] + [torch.zeros_like(tensor)] * (count - own - 1)
    return sum_over_processes_with_gradient(torch.cat(padded))
