"""The training plan: learning rate, weight decay and teacher momentum as functions of how far training is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from afire_monai.core.errors import AfireError
from afire_monai.methods.base import Method


@dataclass(frozen=True)
class TrainingPlan:
    """Schedules in fractions of training, so that changing epochs keeps the shape (DINO's, as AFiRe uses them)."""

    lr: float = 5e-4  #: peak learning rate for a global batch of 256; scaled linearly with the batch
    final_lr: float = 1e-6  #: learning rate at the end
    warmup: float = 0.1  #: fraction of training with a linearly rising learning rate, in 0…1
    weight_decay: float = 0.04  #: weight decay at the start
    final_weight_decay: float = 0.4  #: weight decay at the end, reached along a cosine
    momentum: float = 0.996  #: teacher momentum at the start; it reaches 1 along a cosine
    clip: float = 3.0  #: largest gradient norm, applied to each parameter tensor separately; 0 switches it off
    least_batch: int = 1  #: global batch below which the learning rate is not scaled down further
    freeze_last_layer_epochs: int = 1  #: epochs during which the head's last layer is not updated

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 <= self.warmup < 1:
            raise AfireError(
                f"warmup is a fraction of training in 0…1, got {self.warmup}; for epochs write epochs/total"
            )
        if not 0 <= self.momentum <= 1:
            raise AfireError(f"teacher momentum must be in 0…1, got {self.momentum}")
        if min(self.lr, self.final_lr, self.weight_decay, self.final_weight_decay, self.clip) < 0:
            raise AfireError(f"learning rates, weight decays and clip must not be negative, got {self}")

    def at(self, fraction: float, global_batch: int) -> dict[str, float]:
        """Return the values at a point of training.

        Args:
            fraction: fraction of training that is done: 0 at the first step, 1 after the last.
            global_batch: images in one optimiser step over all processes.

        Returns:
            ``lr``, ``weight_decay`` and ``momentum``.
        """
        peak = self.lr * max(global_batch, self.least_batch) / 256
        if fraction < self.warmup:
            lr = peak * fraction / self.warmup
        else:
            lr = _cosine(peak, self.final_lr, (fraction - self.warmup) / (1 - self.warmup))
        return {
            "lr": lr,
            "weight_decay": _cosine(self.weight_decay, self.final_weight_decay, fraction),
            "momentum": _cosine(self.momentum, 1.0, fraction),
        }


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))


def parameter_groups(method: Method) -> list[dict[str, Any]]:
    """Sort the student's parameters into those with and those without weight decay.

    Biases, layer norms and other one-dimensional tensors get none (DINO's rule, which the release follows).

    Returns:
        Two groups for an optimiser; ``decay`` in each says whether it has weight decay.
    """
    named = method.trainable()
    with_decay = [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]
    without = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    return [{"params": with_decay, "decay": True}, {"params": without, "decay": False, "weight_decay": 0.0}]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017, arXiv 1708.03888), written from its algorithm 1.

    For each tensor w with gradient g: λ = η ‖w‖ / (‖g‖ + β ‖w‖), v ← m v + lr · λ · (g + β w), w ← w − v.
    Groups whose ``decay`` is false (biases and norms, as ``parameter_groups`` sorts them) take plain
    steps with momentum: λ = 1, and the trainer sets their β to 0. So does a tensor whose norm, or whose
    gradient's, is 0.

    Args:
        params: parameters or groups; ``decay`` in a group (true if absent) says whether it is adapted, and
            ``trust`` overrides η.
        lr: learning rate γ.
        momentum: m.
        weight_decay: β.
        trust: η.

    Raises:
        AfireError: for a negative value, or a momentum of 1 or more.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.2,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 0.001,
    ) -> None:
        if min(lr, momentum, weight_decay, trust) < 0 or momentum >= 1:
            raise AfireError(
                f"LARS needs values that are not negative and a momentum below 1; got lr {lr}, momentum {momentum}, "
                f"weight_decay {weight_decay}, trust {trust}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters that have a gradient; no wait for the device.

        Args:
            closure: computes the loss again, with gradient; usually None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        decay = group["weight_decay"]
        steps = torch._foreach_add(gradients, parameters, alpha=decay)
        if group.get("decay", True):
            sizes, slopes = torch._foreach_norm(parameters), torch._foreach_norm(gradients)
            rates = []
            for size, slope in zip(sizes, slopes, strict=True):
                known = (size > 0) & (slope > 0)
                rate = group["trust"] * size / torch.where(known, slope + decay * size, 1.0)
                rates.append(torch.where(known, rate, 1.0) * group["lr"])
            torch._foreach_mul_(steps, rates)
        else:
            torch._foreach_mul_(steps, group["lr"])
        velocities = []
        for parameter in parameters:
            state = self.state[parameter]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(parameter)
            velocities.append(state["velocity"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_sub_(parameters, velocities)
