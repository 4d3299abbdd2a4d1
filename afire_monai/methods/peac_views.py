"""Two overlapping crops of one radiograph whose cells match exactly; the first perturbed, or its patches permuted."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.methods.grid_shift import GridShift
from afire_monai.transforms.perturb import AppearancePerturbation


class PEACViews(NamedTuple):
    """What student and teacher see in one step; images (B, C, H, W) in 0…1, cells in row-major order."""

    #: view 1 as the networks see it: perturbed in appearance, or with its patches permuted
    first: Tensor
    #: view 2, always plain
    second: Tensor
    #: view 1 before either change: what is to be restored
    clean: Tensor
    #: (B, L) int64, the patch of view 1 that each place of ``first`` shows; 0…L-1 where the order is kept
    order: Tensor
    #: (B,) bool, whether view 1 keeps its order (and so is perturbed)
    kept: Tensor
    #: (B, L) int64, the cell of view 2 that shows the same place of the body as each cell of ``clean``
    match: Tensor
    #: (B, L) bool, whether there is such a cell; ``match`` holds an arbitrary cell where there is none
    matched: Tensor


def permute_patches(images: Tensor, order: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange whole patches.

    Args:
        images: (B, C, H, W).
        order: (B, L) int64; place k of the result shows patch ``order[k]``; ``order.argsort(1)`` undoes it.
        grid: rows and columns (h, w) of patches, which divide the image's sides.

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = images.shape
    h, w = grid
    patches = images.reshape(batch, channels, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches.gather(1, order[:, :, None, None, None].expand_as(patches)).unflatten(1, grid)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def match_cells(first: Tensor, second: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find for each cell of one crop the cell of another crop that shows the same place.

    Args:
        first: (B, 2) row and column of the first crop, in cells.
        second: (B, 2) row and column of the second.
        grid: rows and columns (h, w) of both.

    Returns:
        Cell of the second crop (B, L) int64, and whether it is inside (B, L) bool; where it is not, the cell is 0.
    """
    h, w = grid
    away = first - second
    rows = away[:, :1] + torch.arange(h, device=first.device)
    columns = away[:, 1:] + torch.arange(w, device=first.device)
    inside = (((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]).flatten(1)
    cell = (rows[:, :, None] * w + columns[:, None, :]).flatten(1)
    return torch.where(inside, cell, 0), inside


class OverlappingViews(nn.Module):
    """Make PEAC's two views (arXiv 2312.00335): crops of a canvas on one cell grid at independent cell offsets.

    The canvas is one cell larger each way than crop and shift; the grid starts at a random whole pixel in that cell, as
    released. Nothing is resampled, so cells of the overlap hold equal pixels. The overlap has at least (h − s)(w − s)
    cells.

    Args:
        grid: rows and columns (h, w) of a view, in cells.
        patch_size: side P of a cell in pixels.
        shift: s, the largest offset of a view in cells; the paper has 4 for 14 x 14 cells.
        perturbation: of view 1 where its order is kept.
        keep_probability: that view 1 keeps its order; 0.5 in the paper.

    Raises:
        AfireError: for a shift that leaves no overlap, or a probability outside 0…1.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch_size: int,
        shift: int,
        perturbation: AppearancePerturbation,
        keep_probability: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= shift < min(grid):
            raise AfireError(
                f"shift must be from 0 to {min(grid) - 1} cells, so that two views of {grid[0]} x {grid[1]} cells "
                f"always overlap; got {shift}"
            )
        if not 0 <= keep_probability <= 1:
            raise AfireError(f"keep_probability must be in 0…1, got {keep_probability}")
        self.grid, self.patch_size, self.shift = grid, patch_size, shift
        self.cell_shift = GridShift(grid, patch_size, shift)
        # the same crops counted in pixels: a cell of one pixel, for offsets that are no whole number of cells
        self.pixel_shift = GridShift((grid[0] * patch_size, grid[1] * patch_size), 1, (shift + 1) * patch_size)
        self.perturbation = perturbation
        self.keep_probability = keep_probability
        self.sizes = [2, 4, 1, grid[0] * grid[1], perturbation.draws]
        self.draws = sum(self.sizes)

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return self.pixel_shift.canvas_size

    def coins(self, uniforms: Tensor, keep: bool) -> Tensor:
        """Give uniforms (B, draws) with which every first view keeps its order, or none does."""
        coins = uniforms.clone()
        # beyond 0…1, so that the extreme probabilities cannot overrule it
        coins[:, self.sizes[0] + self.sizes[1]] = -1.0 if keep else 2.0
        return coins

    def forward(self, images: Tensor, uniforms: Tensor) -> PEACViews:
        """Make the views.

        Args:
            images: (B, C, Hc, Wc) in 0…1.
            uniforms: (B, draws) in 0…1.

        Raises:
            AfireError: if the images have another size than the canvas.
        """
        if tuple(images.shape[2:]) != self.canvas_size:
            raise AfireError(
                f"images must be {self.canvas_size[0]} x {self.canvas_size[1]} pixels (view, shift and one cell), "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
        start, cells, coin, keys, changes = uniforms.split(self.sizes, dim=1)
        start = (start * self.patch_size).long().clamp_max(self.patch_size - 1)
        first_cell, second_cell = self.cell_shift.offsets(cells)
        clean = self.pixel_shift.crop(images, start + first_cell * self.patch_size)
        second = self.pixel_shift.crop(images, start + second_cell * self.patch_size)
        kept = coin[:, 0] < self.keep_probability
        order = torch.where(
            kept[:, None], torch.arange(keys.shape[1], device=keys.device), keys.argsort(stable=True, dim=1)
        )
        perturbed = self.perturbation(clean, changes).to(clean.dtype)
        shown = torch.where(kept[:, None, None, None], perturbed, clean)
        match, matched = match_cells(first_cell, second_cell, self.grid)
        return PEACViews(permute_patches(shown, order, self.grid), second, clean, order, kept, match, matched)
