"""Heads that pre-training puts on an encoder: token heads, projections, and those of PEAC and MLVICX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.encoder_base import Encoder


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

    Example:
        >>> import torch
        >>> cosines = TokenHead(in_dim=48, cells=None, out_dim=32)(torch.rand(2, 16, 48))
        >>> cosines.shape, bool(cosines.abs().max() <= 1)
        (torch.Size([2, 16, 32]), True)
    """

    def __init__(
        self, in_dim: int, cells: int | None, out_dim: int = 256, hidden_dim: int = 1024, bottleneck_dim: int = 256
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

    @property
    def config(self) -> dict[str, int | None]:
        """The arguments that build a head of the same shape."""
        hidden, in_dim = self.state_dict()["mlp.0.weight"].shape
        widths = {"out_dim": self.out_dim, "hidden_dim": hidden, "bottleneck_dim": self.weight.shape[-1]}
        return {"in_dim": in_dim, "cells": self.cells, **widths}

    def forward(self, tokens: Tensor) -> Tensor:
        """Project patch tokens; return (B, L, K) float32 cosines in -1…1.

        Args:
            tokens: (B, L, D) patch tokens without the class token.

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


class PatchAppearanceHead(nn.Module):
    """Draw a picture from the token map: a 1 x 1 convolution to P²·C and a pixel shuffle (PEAC, arXiv 2312.00335).

    Args:
        in_dim: encoder width D.
        grid: rows and columns (h, w) of the token map.
        patch_size: side P of a cell in pixels.
        channels: C of the picture.
    """

    def __init__(self, in_dim: int, grid: tuple[int, int], patch_size: int, channels: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.convolution = nn.Conv2d(in_dim, patch_size**2 * channels, kernel_size=1)
        self.shuffle = nn.PixelShuffle(patch_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn patch tokens (B, L, D) into pictures (B, C, H, W) in the encoder's normalised units."""
        return self.shuffle(self.convolution(tokens.transpose(1, 2).unflatten(2, self.grid)))


class ProjectionMLP(nn.Module):
    """Linear layers with a norm and ReLU after each but the last.

    PEAC projects tokens with three layers and layer norm, MLVICX pooled features with three layers and batch norm.

    Args:
        in_dim: width of the input.
        hidden_dim: width of the hidden layers.
        out_dim: width of the output.
        layers: number of linear layers, at least 1.
        norm: a function that makes a module for a width.
        last_bias: whether the last linear layer has a bias.

    Raises:
        AfireError: for a width or number of layers below 1.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 3,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, out_dim, layers) < 1:
            raise AfireError(
                "projector_dim, predictor_dim, dense_dim, projector_layers: a projector needs widths and layers of at "
                f"least 1, got {in_dim}, {hidden_dim}, {out_dim} and {layers}"
            )
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
        return self.layers(features)


def resize_then_pool(size: int, between: int, cells: int) -> Tensor:
    """Return the matrix of a bilinear resize of an axis to ``between`` pixels, then of averages over ``cells`` parts.

    Args:
        size: pixels of the axis.
        between: pixels after the resize, as ``torch.nn.functional.interpolate(mode="bilinear")`` does it.
        cells: parts; must divide ``between``.

    Returns:
        (cells, size) float64; rows sum to 1.
    """
    unit = torch.eye(size, dtype=torch.float64)[None, None]
    resized = F.interpolate(unit, (between, size), mode="bilinear", align_corners=False)[0, 0]
    return resized.unflatten(0, (cells, -1)).mean(1)


class DenseBranch(nn.Module):
    """Sum of all levels' maps at one size, as a vector of a few cells (MLVICX, arXiv 2403.11504).

    Written out: a 1 x 1 convolution to ``width`` channels for each map, a bilinear resize to ``side`` x ``side``, the
    sum, an average pooling to ``cells`` x ``cells``. All of these are linear, and the convolutions act on channels
    where the rest acts on places: so resize and pooling, composed into one small matrix for each axis, come first, and
    the convolutions see ``cells`` x ``cells`` places only. The result is the same, for a small part of the cost. They
    have no bias, which the batch norm of the projector behind would take away.

    Args:
        encoder: encoder whose :attr:`~Encoder.feature_maps` are used; it is not kept.
        width: channels.
        side: side in pixels to which maps are resized.
        cells: cells along a side after pooling; must divide ``side``.

    Raises:
        AfireError: if ``cells`` does not divide ``side``, or a number is below 1.
    """

    def __init__(self, encoder: Encoder, width: int = 512, side: int = 64, cells: int = 4) -> None:
        super().__init__()
        if width < 1 or cells < 1 or side < cells or side % cells:
            raise AfireError(
                f"dense_side must be a multiple of dense_cells, dense_dim at least 1; got {side}, {cells} and {width}"
            )
        self.out_dim = width * cells**2
        self.convolutions = nn.ModuleList(
            nn.Conv2d(m.channels, width, kernel_size=1, bias=False) for m in encoder.feature_maps
        )
        for axis, pixels in enumerate(encoder.image_size):
            for level, feature_map in enumerate(encoder.feature_maps):
                matrix = resize_then_pool(pixels // feature_map.stride, side, cells)
                self.register_buffer(f"pool_{level}_{axis}", matrix.float(), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool, convolve and add the encoder's maps (B, c, h, w); return (B, width · cells²)."""
        total = torch.zeros((), device=maps[0].device)
        for level, (feature_map, convolution) in enumerate(zip(maps, self.convolutions, strict=True)):
            rows, columns = self.get_buffer(f"pool_{level}_0"), self.get_buffer(f"pool_{level}_1")
            total = total + convolution(rows @ feature_map @ columns.T)
        return total.flatten(1)
