"""The token head: from encoder tokens to cosines with K learned directions."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.errors import AfireError


class TokenHead(nn.Module):
    """Project each patch token to K cosines (AFiRe, arXiv 2504.10972, §Token-wise projection).

    An MLP D → hidden → hidden → bottleneck with GELU, L2 normalisation, then a linear layer without bias whose rows
    have norm one, so that every output is a cosine. The published form has one such layer per grid cell; with
    ``cells=None`` one layer is shared by all cells, as the grid-shifted form needs (this project's reading).

    Args:
        in_dim: encoder width D.
        cells: number of grid cells L with a layer of their own, or None for a shared one.
        out_dim: K, the number of prototype dimensions.
        hidden_dim: width of the MLP.
        bottleneck_dim: width after the MLP.
    """

    def __init__(
        self,
        in_dim: int,
        cells: int | None,
        out_dim: int = 256,
        hidden_dim: int = 1024,
        bottleneck_dim: int = 256,
    ) -> None:
        super().__init__()
        self.cells = cells
        self.out_dim = out_dim
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # only the direction of each row matters; this is the spread of PyTorch's default linear layer
        bound = bottleneck_dim**-0.5
        self.weight = nn.Parameter(torch.empty(cells or 1, out_dim, bottleneck_dim).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:
        """Project patch tokens.

        Args:
            tokens: (B, L, D) patch tokens without the class token.

        Returns:
            (B, L, K) float32 cosines in -1…1.

        Raises:
            AfireError: if L is not the number of cells that the head has layers for.
        """
        if self.cells is not None and tokens.shape[1] != self.cells:
            raise AfireError(f"the head has a layer for each of {self.cells} cells, got {tokens.shape[1]} tokens")
        x = F.normalize(self.mlp(tokens), dim=-1)
        # dividing by the norm of the rows afterwards saves a normalised copy of the largest weight of the network
        row_norm = torch.linalg.vector_norm(self.weight.float(), dim=-1).clamp_min(1e-12)
        if self.cells is None:
            return F.linear(x, self.weight[0]).float() / row_norm[0]
        logits = torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2)).float() / row_norm[:, None]
        return logits.transpose(0, 1)
