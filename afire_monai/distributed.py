"""Sums over processes that are no-ops in a single process, and one that carries gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Give the number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Give this process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def sum_over_processes(tensor: Tensor) -> Tensor:
    """Give the sum of a tensor over all processes, without gradient; the same tensor in a single process."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def max_over_processes(tensor: Tensor) -> Tensor:
    """Give the element-wise maximum of a tensor over all processes, without gradient."""
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
    """Give the sum of a tensor over all processes; each process gets the gradient of all processes' uses of it."""
    if world_size() == 1:
        return tensor
    summed: Tensor = _SumWithGradient.apply(tensor)
    return summed


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Give the rows (b, …) of all processes, (processes · b, …) in their order, the same size in each.

    Each process gets for its rows the gradient of all processes' uses of them.
    """
    count, own = world_size(), rank()
    if count == 1:
        return tensor
    padded = [torch.zeros_like(tensor)] * own + [tensor] + [torch.zeros_like(tensor)] * (count - own - 1)
    return sum_over_processes_with_gradient(torch.cat(padded))
