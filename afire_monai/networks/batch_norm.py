"""Batch norm over the images of all processes, on any device (PyTorch's own is for GPUs only)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from afire_monai.core.distributed import sum_over_processes_with_gradient, world_size


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the global batch; for (B, C) and (B, C, H, W).

    In a single process and in evaluation it is PyTorch's. With several, count, sums and sums of squares are added over
    processes in one collective, with gradient; about the running mean, so that little is lost to rounding. Statistics
    are float32 under mixed precision, too. The batch may differ in size between processes.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); the running statistics move in training."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._over_processes(input.float()).to(input.dtype)

    def _over_processes(self, values: Tensor) -> Tensor:
        state: Any = self  # buffers and affine parameters are optional in PyTorch's class, not in this one
        shape = [1, -1, *[1] * (values.ndim - 2)]
        others = [0, *range(2, values.ndim)]
        origin = state.running_mean.clone()
        values = values - origin.view(shape)
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([values.sum(others), values.square().sum(others), count])
        first, second, number = sum_over_processes_with_gradient(sums).split([len(origin), len(origin), 1])
        mean = first / number
        variance = (second / number - mean.square()).clamp(min=0)
        with torch.no_grad():
            state.running_mean.lerp_(mean + origin, state.momentum)
            state.running_var.lerp_(variance * number / (number - 1).clamp(min=1), state.momentum)
            state.num_batches_tracked += 1
        scale = state.weight * torch.rsqrt(variance + self.eps)
        return values * scale.view(shape) + (state.bias - mean * scale).view(shape)


def synced_batch_norm(module: nn.Module) -> nn.Module:
    """Put :class:`SyncedBatchNorm` in place of each batch norm of a module; names and values stay.

    Args:
        module: changed in place.
    """
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            synced_batch_norm(child)
    return module
