"""Heads on the token map: which patch is this, and what did it look like?"""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor


class PatchOrderHead(nn.Linear):
    """Say of each token which of L patches it shows: one linear classifier for all tokens (PEAC, arXiv 2312.00335).

    Args:
        in_dim: encoder width D.
        cells: number of patches L.
    """

    def __init__(self, in_dim: int, cells: int) -> None:
        super().__init__(in_dim, cells)


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
        picture: Tensor = self.shuffle(self.convolution(tokens.transpose(1, 2).unflatten(2, self.grid)))
        return picture
