"""The projection MLP that methods compare images or tokens in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn as nn
from torch import Tensor

from afire_monai.core.errors import AfireError

#: norms by name; any other is given as a function of the width
PROJECTION_NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class ProjectionMLP(nn.Module):
    """Linear layers with a norm and ReLU after each but the last.

    PEAC projects tokens with three layers and layer norm, MLVICX pooled features with three layers and batch norm.

    Args:
        in_dim: width of what comes in.
        hidden_dim: width of the layers between.
        out_dim: width of what comes out.
        layers: number of linear layers, at least 1.
        norm: ``layer``, ``batch`` (over the first dimension, so for (B, D) inputs only), or a function that makes a
            module for a width.
        last_bias: whether the last linear layer has a bias.

    Raises:
        AfireError: for an unknown norm, or a width or number of layers below 1.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 3,
        norm: str | Callable[[int], nn.Module] = "layer",
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, out_dim, layers) < 1:
            raise AfireError(
                "projector_dim, predictor_dim, dense_dim, projector_layers: a projector needs widths and layers of at "
                f"least 1, got {in_dim}, {hidden_dim}, {out_dim} and {layers}"
            )
        if isinstance(norm, str):
            if norm not in PROJECTION_NORMS:
                raise AfireError(f"norm must be one of {', '.join(PROJECTION_NORMS)} or a function, got {norm!r}")
            norm = PROJECTION_NORMS[norm]
        widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
        parts: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            last = place == layers - 1
            parts.append(nn.Linear(before, after, bias=last_bias or not last))
            if not last:
                parts += [norm(after), nn.ReLU()]
        self.layers = nn.Sequential(*parts)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (…, in_dim) to (…, out_dim); with batch norm (B, in_dim) to (B, out_dim)."""
        projected: Tensor = self.layers(features)
        return projected
