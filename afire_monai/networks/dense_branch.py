"""MLVICX's dense branch: the maps of all levels, brought to one width and size, added, and pooled to a few cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.networks.encoder_base import Encoder


def resize_then_pool(size: int, between: int, cells: int) -> Tensor:
    """Give the matrix of a bilinear resize of an axis to ``between`` pixels, then of averages over ``cells`` parts.

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
        encoder: whose :attr:`~Encoder.feature_maps` are used; not kept.
        width: channels.
        side: pixels that maps are resized to.
        cells: a side, after pooling; must divide ``side``.

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
        """Pool, convolve and add the encoder's maps (B, c, h, w); give (B, width · cells²)."""
        total = torch.zeros((), device=maps[0].device)
        for level, (feature_map, convolution) in enumerate(zip(maps, self.convolutions, strict=True)):
            rows, columns = self.get_buffer(f"pool_{level}_0"), self.get_buffer(f"pool_{level}_1")
            total = total + convolution(rows @ feature_map @ columns.T)
        return total.flatten(1)
