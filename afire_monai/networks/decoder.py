"""The anomaly-removal restoration decoder: from tokens of the lesioned twin to the clean image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.blocks import RecomputedBlock, init_transformer, transformer_block
from afire_monai.networks.encoder import sincos_positions
from afire_monai.networks.encoder_base import Encoder


class AnomalyRestorationDecoder(RecomputedBlock, nn.Module):
    """Restore the normal image (AFiRe, arXiv 2504.10972, §Anomaly-removal restoration).

    Tokens of abnormal cells are replaced by learned mask tokens (one per cell, as released), so what a lesion covered
    must be restored from the rest of the picture.

    Args:
        in_dim: encoder width D.
        grid: rows and columns (h, w) of the token grid.
        patch_size: side P of a patch in pixels.
        channels: channels of the restored image.
        dim: width of the decoder.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of each MLP as a multiple of ``dim``.
        layer_norm_eps: ε of the layer norms; released weights need 1e-5.

    Example:
        >>> import torch
        >>> decoder = AnomalyRestorationDecoder(in_dim=48, grid=(4, 4), patch_size=16, dim=32, depth=1, num_heads=4)
        >>> tokens, abnormal = torch.rand(2, 17, 48), torch.zeros(2, 16, dtype=torch.bool)
        >>> decoder(tokens, abnormal).shape
        torch.Size([2, 1, 64, 64])
    """

    positions: Tensor

    def __init__(
        self,
        in_dim: int,
        grid: tuple[int, int],
        patch_size: int = 16,
        channels: int = 1,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if min(dim, depth, num_heads) < 1 or dim % num_heads or dim % 4:
            raise AfireError(
                f"a decoder's width must be a multiple of its heads and of 4, its depth at least 1; got width {dim}, "
                f"{num_heads} heads and depth {depth}: change decoder_dim, decoder_heads or decoder_depth"
            )
        self.grid = (int(grid[0]), int(grid[1]))
        self.config: dict[str, Any] = {
            "in_dim": in_dim,
            "grid": list(self.grid),
            "patch_size": patch_size,
            "channels": channels,
            "dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "layer_norm_eps": layer_norm_eps,
        }
        self.patch_size = patch_size
        self.channels = channels
        self.embedding = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.register_buffer("positions", sincos_positions(self.grid, dim), persistent=False)
        self.blocks = nn.ModuleList(transformer_block(dim, num_heads, mlp_ratio, layer_norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=layer_norm_eps)
        self.image_pred = nn.Linear(dim, patch_size**2 * channels)
        self.apply(init_transformer)
        nn.init.normal_(self.mask_token, std=0.02)

    def refuse_other_grid(self, encoder: Encoder) -> None:
        """Raise AfireError if the encoder's cells are others than those that this decoder draws."""
        if self.grid != encoder.grid or self.patch_size != encoder.patch_size:
            raise AfireError(
                f"decoder grid {self.grid} at patch {self.patch_size} differs from the encoder's {encoder.grid} "
                f"at patch {encoder.patch_size}"
            )

    def forward(self, tokens: Tensor, abnormal: Tensor) -> Tensor:
        """Restore the image behind the tokens.

        Args:
            tokens: (B, 1 + L, D) from the encoder, class token first.
            abnormal: (B, L) bool, cells to be restored from the rest.

        Returns:
            (B, C, H, W) in the encoder's normalised units (see ``ViTEncoder.denormalise``).

        Raises:
            AfireError: if the number of tokens does not fit the decoder's grid.
        """
        return self.pixels(self.features(tokens, abnormal))

    def features(self, tokens: Tensor, abnormal: Tensor) -> Tensor:
        """Return the features that the picture is made from, (B, L, dim); arguments are those of :meth:`forward`."""
        h, w = self.grid
        if tokens.shape[1] != 1 + h * w or abnormal.shape[1] != h * w:
            raise AfireError(
                f"the decoder has a grid of {h} x {w} cells: tokens must be (B, {1 + h * w}, D) and abnormal "
                f"(B, {h * w}), got {tuple(tokens.shape)} and {tuple(abnormal.shape)}"
            )
        x = self.embedding(tokens)
        patches = torch.where(abnormal[..., None], self.mask_token.to(x.dtype), x[:, 1:]) + self.positions.to(x.dtype)
        x = torch.cat([x[:, :1], patches], dim=1)
        for block in self.blocks:
            x = self.call_block(block, x)
        return self.norm(x)[:, 1:]

    def pixels(self, features: Tensor) -> Tensor:
        """Return the picture (B, C, H, W) of features (B, L, dim)."""
        (h, w), p = self.grid, self.patch_size
        pixels = self.image_pred(features)
        pixels = pixels.view(-1, h, w, p, p, self.channels).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(-1, self.channels, h * p, w * p)
