"""A PEAC of a few thousand parameters that several tests train."""

from __future__ import annotations

import torch

from afire_monai.methods.peac import PEAC, OverlappingViews
from afire_monai.networks import ViTEncoder
from afire_monai.transforms.perturb import AppearancePerturbation


def tiny_peac(keep: float = 0.5, seed: int = 0, shift: int = 1, **options: object) -> PEAC:
    """A PEAC on a 4 x 4 grid of 8 px cells; with shift 1 its canvas has 48 px a side."""
    torch.manual_seed(seed)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2)
    views = OverlappingViews(encoder.grid, 8, shift, AppearancePerturbation(), keep)
    settings = {"projector_dim": 24, "global_weight": 300.0, **options}
    return PEAC(encoder, views, **settings)  # type: ignore[arg-type]
