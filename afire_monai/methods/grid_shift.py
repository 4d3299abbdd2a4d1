"""Crops of a canvas at whole-cell offsets, which make a token recognise its anatomy instead of its position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.prototypes import match_cells


class GridShift(nn.Module):
    """Crop a canvas at offsets of a whole number of cells (this project's form).

    Patches stay intact and nothing is resampled, so the map from crop cells to canvas (anatomical) cells is exact.

    Args:
        grid: rows and columns (h, w) of the crop, in cells.
        patch_size: side P of a cell in pixels.
        shift: s; the canvas has h + s by w + s cells. 0 crops nothing.

    Example:
        >>> shift = GridShift(grid=(4, 4), patch_size=16, shift=2)
        >>> shift.canvas_grid, shift.canvas_size
        ((6, 6), (96, 96))
    """

    def __init__(self, grid: tuple[int, int], patch_size: int, shift: int) -> None:
        super().__init__()
        if shift < 0:
            raise AfireError(f"shift must be at least 0 cells, got {shift}")
        self.grid = grid
        self.patch_size = patch_size
        self.shift = shift
        # row and column, for student and teacher
        self.draws = 4 if shift else 0

    @property
    def canvas_grid(self) -> tuple[int, int]:
        """Rows and columns of the canvas, in cells."""
        return self.grid[0] + self.shift, self.grid[1] + self.shift

    @property
    def canvas_cells(self) -> int:
        """Number of cells of the canvas."""
        return self.canvas_grid[0] * self.canvas_grid[1]

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.canvas_grid[0] * self.patch_size, self.canvas_grid[1] * self.patch_size

    def offsets(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Turn (B, 4) uniform numbers in 0…1 into student and teacher offsets, each (B, 2) int64 cells in 0…s."""
        whole = (uniforms * (self.shift + 1)).long().clamp(0, self.shift)
        return whole[:, :2], whole[:, 2:]

    def cells(self, offsets: Tensor) -> Tensor:
        """Return the canvas cell that each token of a crop shows.

        Args:
            offsets: (B, 2) row and column in cells.

        Returns:
            (B, L) int64, index into the canvas grid in row-major order.
        """
        return match_cells(offsets, self.grid, self.canvas_grid)[0]

    def crop(self, canvas: Tensor, offsets: Tensor) -> Tensor:
        """Cut each image's crop.

        Args:
            canvas: (B, C, Hc, Wc).
            offsets: (B, 2) row and column in cells.
        """
        h, w, p = *self.grid, self.patch_size
        rows = offsets[:, :1] * p + torch.arange(h * p, device=canvas.device)
        columns = offsets[:, 1:] * p + torch.arange(w * p, device=canvas.device)
        batch, channels = canvas.shape[:2]
        strip = canvas.gather(2, rows[:, None, :, None].expand(batch, channels, h * p, canvas.shape[3]))
        return strip.gather(3, columns[:, None, None, :].expand(batch, channels, h * p, w * p))
