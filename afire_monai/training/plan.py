"""The training plan: learning rate, weight decay and teacher momentum as functions of how far training is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.methods.base import Method


@dataclass(frozen=True)
class TrainingPlan:
    """Schedules in fractions of training (DINO's shapes, as AFiRe uses them), so that changing epochs keeps the shape.

    Attributes:
        lr: peak learning rate for a global batch of 256; scaled linearly with the batch.
        final_lr: learning rate at the end.
        warmup: fraction of training with a linearly rising learning rate, in 0…1.
        weight_decay: at the start.
        final_weight_decay: at the end; a cosine leads there.
        momentum: of the teacher at the start; a cosine leads to 1.
        clip: largest gradient norm, applied to each parameter tensor by itself; 0 switches it off.
        freeze_last_layer_epochs: epochs during which the head's last layer is not updated.
    """

    lr: float = 5e-4
    final_lr: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    momentum: float = 0.996
    clip: float = 3.0
    freeze_last_layer_epochs: int = 1

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            AfireError: naming the value.
        """
        if not 0 <= self.warmup < 1:
            raise AfireError(
                f"warmup is a fraction of training in 0…1, got {self.warmup}; for epochs write epochs/total"
            )
        if not 0 <= self.momentum <= 1:
            raise AfireError(f"teacher momentum must be in 0…1, got {self.momentum}")
        if min(self.lr, self.final_lr, self.weight_decay, self.final_weight_decay, self.clip) < 0:
            raise AfireError(f"learning rates, weight decays and clip must not be negative, got {self}")

    def at(self, fraction: float, global_batch: int) -> dict[str, float]:
        """Give the values at a point of training.

        Args:
            fraction: how far training is, 0 at the first step, 1 after the last.
            global_batch: images in one optimiser step over all processes.

        Returns:
            ``lr``, ``weight_decay`` and ``momentum``.
        """
        peak = self.lr * global_batch / 256
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

    Args:
        method: the method to train.

    Returns:
        Two groups for an optimiser; ``decay`` in each says which it is.
    """
    named = method.trainable()
    with_decay = [p for name, p in named if p.ndim > 1 and not name.endswith(".bias")]
    without = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    return [
        {"params": with_decay, "decay": True},
        {"params": without, "decay": False, "weight_decay": 0.0},
    ]
