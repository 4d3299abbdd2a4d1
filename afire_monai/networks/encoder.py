"""The vision-transformer encoder that every method trains and every task uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.blocks import RecomputedBlock, init_transformer, transformer_block
from afire_monai.networks.encoder_base import Encoder, FeatureMap, summary_of
from afire_monai.networks.stem import build_stem, init_stem


def sincos_positions(grid: tuple[int, int], dim: int, reference: tuple[int, int] | None = None) -> Tensor:
    """Return fixed two-dimensional sine-cosine positions for a grid of patch tokens.

    Half of the channels encode the column, half the row, each as sines then cosines of geometrically spaced
    frequencies (the layout of MAE, which AFiRe's release uses). For a grid other than ``reference`` the coordinates are
    stretched to span the same image, so the same anatomy keeps the same position at another resolution; as the
    functions are analytic this is exact, not a resampling.

    Args:
        grid: rows and columns of patch tokens (h, w).
        dim: token width D; must be a multiple of 4.
        reference: the grid that the encoder was trained on; defaults to ``grid``.

    Returns:
        (h·w, D) float32, row-major over the grid.

    Raises:
        AfireError: if ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise AfireError(f"token width must be a multiple of 4 for sine-cosine positions, got {dim}")
    reference = reference or grid
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    axes = []
    for size, reference_size in zip(grid, reference, strict=True):
        coordinate = (torch.arange(size, dtype=torch.float64) + 0.5) * reference_size / size - 0.5
        angle = coordinate[:, None] * frequency
        axes.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    rows, columns = axes
    h, w = grid
    position = torch.cat([columns[None].expand(h, w, -1), rows[:, None].expand(h, w, -1)], dim=-1)
    return position.reshape(h * w, dim).float()


class ViTEncoder(RecomputedBlock, Encoder):
    """Vision transformer with a class token and fixed sine-cosine positions (AFiRe, arXiv 2504.10972, §Implementation).

    Built on MONAI's ``TransformerBlock``.

    Args:
        image_size: side in pixels, or (height, width); each must be a multiple of ``patch_size``.
        patch_size: side P of a patch in pixels.
        embed_dim: token width D.
        depth: number of transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of each MLP as a multiple of D.
        layer_norm_eps: ε of the layer norms.
        position_grid: rows and columns of the token grid whose cells positions count; None for the grid of
            ``image_size``. An encoder whose training continues at another size keeps the grid that it was
            trained on.
        stem: ``patches``, as published, or ``convolutions`` (see :func:`~afire_monai.networks.stem.build_stem`).
        registers: tokens before the class token that take part and are not returned (Darcet et al., ICLR 2024, arXiv
            2309.16588); 0 as published.
        options: as for :class:`Encoder`.

    Raises:
        AfireError: if the image size is not a multiple of the patch size, or a value is out of range.

    Example:
        >>> import torch
        >>> encoder = ViTEncoder(image_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3)
        >>> encoder(torch.rand(2, 1, 64, 64)).shape  # class token first, then the 4 x 4 cells row by row
        torch.Size([2, 17, 48])
    """

    positions: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
        position_grid: Sequence[int] | None = None,
        stem: str = "patches",
        registers: int = 0,
        **options: Any,
    ) -> None:
        if min(embed_dim, depth, num_heads) < 1 or embed_dim % num_heads or mlp_ratio <= 0 or registers < 0:
            raise AfireError(
                "a transformer's width must be a multiple of its heads, its depth at least 1, its mlp_ratio above 0 "
                f"and its registers not negative; got {embed_dim}, {num_heads}, {depth}, {mlp_ratio} and {registers}"
            )
        super().__init__(image_size, patch_size, embed_dim, depth, **options)
        rows, columns = position_grid or self.grid
        self.position_grid = (int(rows), int(columns))
        self.config |= {
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "layer_norm_eps": layer_norm_eps,
            "position_grid": list(self.position_grid),
            "stem": stem,
            "registers": registers,
        }
        levels = max(1, patch_size.bit_length() - 1)
        self.feature_maps = (FeatureMap(embed_dim, patch_size),) * levels
        # block after which each of these maps but the last is taken, evenly spaced
        self.taps = [max(1, round(depth * level / levels)) for level in range(1, levels)]
        self.register_buffer("positions", sincos_positions(self.grid, embed_dim, self.position_grid), persistent=False)

        self.patch_embed = build_stem(stem, self.in_channels, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList(
            transformer_block(embed_dim, num_heads, mlp_ratio, layer_norm_eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=layer_norm_eps)
        self.apply(init_transformer)
        init_stem(self.patch_embed)
        nn.init.normal_(self.cls_token, std=0.02)
        self.registers = nn.Parameter(0.02 * torch.randn(1, registers, embed_dim)) if registers else None

    def forward(self, images: Tensor, residual_scale: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Return (B, 1 + L, D): the class token, then the patch tokens row by row, or those of ``visible``.

        Arguments are those of :meth:`hidden_states`.
        """
        return self.norm(self.hidden_states(images, residual_scale, visible)[-1])

    def hidden_states(
        self, images: Tensor, residual_scale: Tensor | None = None, visible: Tensor | None = None
    ) -> list[Tensor]:
        """Return the tokens (B, 1 + L, D) before the first block and after each of them, before the last layer norm.

        Args:
            images: (B, C, H, W) in 0…1.
            residual_scale: (B, depth), factor of each block's change of the tokens: 0 leaves the block out for that
                image (stochastic depth); None for 1.
            visible: (B, V) int64, places of the patch tokens to encode, in this order; the others are left out, at no
                cost (masked autoencoding); None for all.

        Raises:
            AfireError: for a wrong shape or, with ``check_range``, values outside 0…1.
        """
        grid = self.checked(images)
        tokens = self.patch_embed(self.normalise(images)).flatten(2).transpose(1, 2)
        tokens = tokens + self.positions_of(grid)
        if visible is not None:
            tokens = tokens.gather(1, visible[..., None].expand(-1, -1, self.embed_dim))
        batch, patches = tokens.shape[:2]
        tokens = torch.cat([*(token.expand(batch, -1, -1) for token in self.first_tokens()), tokens], dim=1)
        rest = self.block_arguments(grid, visible)
        states = [tokens]
        for place, block in enumerate(self.blocks):
            after = self.call_block(block, tokens, *rest)
            if residual_scale is not None:
                after = torch.lerp(tokens, after, residual_scale[:, place, None, None].to(after.dtype))
            tokens = after
            states.append(tokens)
        return [state[:, -patches - 1 :] for state in states] if len(self.first_tokens()) > 1 else states

    def first_tokens(self) -> list[Tensor]:
        """Return the tokens before the patch tokens, (1, n, D) each; the class token is the last of them."""
        return [self.cls_token] if self.registers is None else [self.registers, self.cls_token]

    def block_arguments(self, grid: tuple[int, int], visible: Tensor | None) -> tuple[Any, ...]:
        """Return the arguments of a block besides tokens."""
        return ()

    def positions_of(self, grid: tuple[int, int]) -> Tensor:
        """Return the positions (h·w, D) of a grid, computed once and kept on the encoder's device.

        Those of another grid than the encoder's own become a buffer that is not saved, so that they move with the
        encoder and are copied with it. While a graph is being captured nothing can be kept: ask for a grid once before
        compiling.

        Args:
            grid: rows and columns of patch tokens (h, w).
        """
        name = "positions" if grid == self.grid else f"positions_{grid[0]}x{grid[1]}"
        kept = self._buffers.get(name)
        if kept is None:
            kept = sincos_positions(grid, self.embed_dim, self.position_grid).to(self.positions)
            if not torch.compiler.is_compiling():
                self.register_buffer(name, kept, persistent=False)
        return kept

    def pyramid(self, images: Tensor, residual_scale: Tensor | None = None) -> list[Tensor]:
        """Return tokens of evenly spaced depths as maps (B, D, h, w), the last after the last layer norm."""
        states = self.hidden_states(images, residual_scale)
        grid = self.grid_of(images.shape[2], images.shape[3])
        tokens = [*(states[tap] for tap in self.taps), self.norm(states[-1])]
        return [t[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous() for t in tokens]

    @property
    def summary_dim(self) -> int:
        """Width of :meth:`summary`."""
        return 4 * self.embed_dim

    def summary(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Return class and mean patch token after half of the blocks and after all, (B, 4 D), normalised.

        The last blocks give up some of what those in the middle know for the pre-training's own task; a classifier on
        frozen features gains by both (docs/finetune.md; this project's reading).
        """
        states = self.hidden_states(images, residual_scale)
        return summary_of([self.norm(states[self.depth // 2]), self.norm(states[-1])])

    def block_of(self, parameter: str) -> int:
        """Return how deep a parameter lies (see :meth:`Encoder.block_of`)."""
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        return 0 if parameter.startswith(("patch_embed", "cls_token", "registers")) else self.depth + 1

    def attribution_layer(self, block: int | None, class_token: bool) -> nn.Module:
        """Return a block, or the last layer norm; if only the class token goes on, the last block but one.

        Raises AfireError for a block that does not exist, or a class token of a single block.
        """
        if block is not None:
            return self.blocks[self._number_of(block)]
        if not class_token:
            return self.norm
        if self.depth == 1:
            raise AfireError("Grad-CAM of a class token needs an encoder of at least 2 blocks, got 1")
        return self.blocks[self.depth - 2]
