"""A vision transformer for weights of other projects: learned or rotary positions, registers, gated MLPs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.networks.blocks import FusedSelfAttention, init_transformer
from afire_monai.networks.encoder import ViTEncoder

#: cosines and sines, each (T, d) or (B, 1, T, d), of T tokens and d channels a head
Rotation = tuple[Tensor, Tensor]


def resample_positions(table: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Stretch learned positions to another grid: bicubic, with antialiasing where it shrinks.

    Args:
        table: (h·w, D), row by row.
        grid: its rows and columns (h, w).
        target: rows and columns of the result.
    """
    if grid == target:
        return table
    picture = table.T.unflatten(1, grid)[None].float()
    stretched = F.interpolate(picture, target, mode="bicubic", align_corners=False, antialias=True)
    return stretched[0].flatten(1).T.to(table.dtype)


def rotation_of(grid: tuple[int, int], head_dim: int, base: float, cells: int) -> Rotation:
    """Return cosines and sines, each (h·w, head_dim), of rotary positions on a grid.

    A quarter of the angles counts rows and a quarter columns; the second half repeats the first.

    Args:
        grid: rows and columns (h, w).
        head_dim: channels of a head, a multiple of 4.
        base: base of the geometric frequencies.
        cells: 0 for coordinates -1…1 between the picture's edges, times 2π (DINOv3); n for 0…n, stretched to the grid
            (EVA-02).
    """
    frequency = base ** (-torch.arange(head_dim // 4, dtype=torch.float64) * 4 / head_dim)
    axes = []
    for size in grid:
        place = torch.arange(size, dtype=torch.float64)
        coordinate = place * cells / size if cells else 2 * math.pi * (2 * (place + 0.5) / size - 1)
        axes.append(coordinate[:, None] * frequency)
    h, w = grid
    angles = torch.cat([axes[0][:, None].expand(h, w, -1), axes[1][None].expand(h, w, -1)], -1).flatten(0, 1)
    angles = torch.cat([angles, angles], -1)
    return angles.cos().float(), angles.sin().float()


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    cosine, sine = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class RotaryAttention(FusedSelfAttention):
    """Self-attention whose queries and keys are turned by their positions, perhaps with a norm before the projection.

    Args:
        dim: token width D.
        num_heads: attention heads.
        norm_eps: ε of a layer norm before the output projection (EVA-02); None for no norm.
    """

    def __init__(self, dim: int, num_heads: int, norm_eps: float | None) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, use_flash_attention=True)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)

    def heads(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, T, d), of tokens (B, T, D)."""
        query, key, value = super().heads(x)
        return (query, key, value) if rotation is None else (_rotate(query, rotation), _rotate(key, rotation), value)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:  # type: ignore[override]
        """Attend: (B, T, D) to (B, T, D)."""
        mixed = F.scaled_dot_product_attention(*self.heads(x, rotation), scale=self.scale)
        return self.out_proj(self.norm(mixed.transpose(1, 2).flatten(2)))


class AdaptedMLP(nn.Module):
    """Two layers with GELU, or gated by SiLU (SwiGLU: the first half of the hidden channels gates the second).

    Args:
        dim: token width D.
        hidden: width of the hidden layer, after gating.
        gated: SwiGLU.
        norm_eps: ε of a layer norm of the hidden layer (EVA-02); None for no norm.
    """

    def __init__(self, dim: int, hidden: int, gated: bool, norm_eps: float | None) -> None:
        super().__init__()
        self.gated = gated
        self.linear1 = nn.Linear(dim, hidden * (2 if gated else 1))
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = self.linear1(x)
        if self.gated:
            gate, value = x.chunk(2, -1)
            x = F.silu(gate) * value
        else:
            x = F.gelu(x)
        return self.linear2(self.norm(x))


class AdaptedBlock(nn.Module):
    """A pre-norm block whose two changes may each be scaled by a learned factor a channel (LayerScale)."""

    def __init__(self, dim: int, attention: RotaryAttention, mlp: AdaptedMLP, eps: float, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.scale1 = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(dim)) if layer_scale else None

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        change = self.attn(self.norm1(x), rotation)
        x = x + (change if self.scale1 is None else change * self.scale1)
        change = self.mlp(self.norm2(x))
        return x + (change if self.scale2 is None else change * self.scale2)


class AdaptedViTEncoder(ViTEncoder):
    """Vision transformer for the weights of DINO, DINOv2, DINOv3, timm and EVA-02 (`afire_monai.models.foreign`).

    The position of the class token is part of ``cls_token``.

    Args:
        hidden: hidden width of the MLPs.
        learned_positions: a table of positions for ``position_grid``, stretched to other grids; else none are added.
        rope_base: base of rotary positions; None for none.
        rope_cells: see :func:`rotation_of`.
        gated: SwiGLU in place of GELU.
        layer_scale: a learned factor for each channel of a block's changes.
        attention_norm: layer norm before the attention's output projection.
        mlp_norm: layer norm of the MLP's hidden layer.
        options: arguments of :class:`ViTEncoder`.
    """

    def __init__(
        self,
        *,
        hidden: int,
        learned_positions: bool = True,
        rope_base: float | None = None,
        rope_cells: int = 0,
        gated: bool = False,
        layer_scale: bool = False,
        attention_norm: bool = False,
        mlp_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rope_base, self.rope_cells, self.learned_positions = rope_base, rope_cells, learned_positions
        del self.config["mlp_ratio"]
        self.config |= {
            "kind": "adapted_vit",
            "hidden": hidden,
            "learned_positions": learned_positions,
            "rope_base": rope_base,
            "rope_cells": rope_cells,
            "gated": gated,
            "layer_scale": layer_scale,
            "attention_norm": attention_norm,
            "mlp_norm": mlp_norm,
        }
        dim, heads, eps = self.embed_dim, self.config["num_heads"], self.config["layer_norm_eps"]
        self.head_dim = dim // heads
        self.blocks = nn.ModuleList(
            AdaptedBlock(
                dim,
                RotaryAttention(dim, heads, eps if attention_norm else None),
                AdaptedMLP(dim, hidden, gated, eps if mlp_norm else None),
                eps,
                layer_scale,
            )
            for _ in range(self.depth)
        )
        self.blocks.apply(init_transformer)
        cells = self.position_grid[0] * self.position_grid[1]
        del self._buffers["positions"]
        if learned_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(cells, dim))

    def block_arguments(self, grid: tuple[int, int], visible: Tensor | None) -> tuple[Any, ...]:
        """Return the rotation."""
        return (self._rotation(grid, visible),)

    def positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Return the learned positions (h·w, D) stretched to a grid; (1, D) zeros where there are none."""
        if not self.learned_positions:
            return self.cls_token.new_zeros(1, self.embed_dim)
        return resample_positions(self.positions, self.position_grid, grid)

    def _rotation(self, grid: tuple[int, int], visible: Tensor | None) -> Rotation | None:
        """Return the rotation of all tokens; registers and the class token are not turned."""
        if self.rope_base is None:
            return None
        name = f"rotation_{grid[0]}x{grid[1]}"
        kept = self._buffers.get(name)
        if kept is None:
            kept = torch.stack(rotation_of(grid, self.head_dim, self.rope_base, self.rope_cells)).to(self.cls_token)
            if not torch.compiler.is_compiling():
                self.register_buffer(name, kept, persistent=False)
        cosine, sine = kept if visible is None else kept[:, visible][:, :, None]
        still = 1 if self.registers is None else 1 + self.registers.shape[1]
        return F.pad(cosine, (0, 0, still, 0), value=1.0), F.pad(sine, (0, 0, still, 0))

    def block_of(self, parameter: str) -> int:
        """Return how deep a parameter lies (see :meth:`Encoder.block_of`)."""
        return 0 if parameter == "positions" else super().block_of(parameter)
