"""A small MLVICX that several tests train."""

from __future__ import annotations

import torch

from afire_monai.methods import MLVICX, MLVICXNetwork
from afire_monai.networks import DenseBranch, ResNetEncoder
from afire_monai.training.plan import LARS, parameter_groups
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.transforms import RandomViews, ViewAugment


def tiny_mlvicx(seed: int = 0, **options: object) -> MLVICX:
    """A block a stage, views of 64 px from a canvas of 80."""
    torch.manual_seed(seed)
    encoder = ResNetEncoder(64, blocks=(1, 1, 1, 1), mean=0.4, std=0.3)
    student = MLVICXNetwork(encoder, DenseBranch(encoder, width=8, side=16, cells=2), projector_dim=16)
    views = RandomViews([ViewAugment(64, scale=(0.3, 1), blur=1.0), ViewAugment(64, scale=(0.3, 1), solarise=0.3)])
    return MLVICX(student, views, (80, 80), **options)  # type: ignore[arg-type]


def with_lars(trainer: PretrainTrainer) -> PretrainTrainer:
    """Put LARS in place of the trainer's optimiser."""
    trainer.optimizer = LARS(parameter_groups(trainer.method))
    return trainer
