"""LARS: gradient descent whose step in each layer is a fixed share of the layer's size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from afire_monai.core.errors import AfireError


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017, arXiv 1708.03888), written from its algorithm 1.

    For each tensor w with gradient g: λ = η ‖w‖ / (‖g‖ + β ‖w‖), v ← m v + lr · λ · (g + β w), w ← w − v.
    Groups whose ``decay`` is false (biases and norms, as ``parameter_groups`` sorts them) take plain
    steps with momentum: λ = 1, and the trainer sets their β to 0. So does a tensor whose norm, or whose
    gradient's, is 0.

    Args:
        params: parameters or groups; ``decay`` in a group (true where absent) says whether it is adapted, and
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

        Returns:
            What ``closure`` gives.
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
