"""Measures of an anomaly detector, standardised by normal radiographs and combined into a map and a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "top", "max"]


class Combined(NamedTuple):
    """Standardised measures of a batch, and their sums."""

    #: (B, R, N) standard deviations above the normal mean of that cell (for `places`, of all cells), for each measure
    cells: Tensor
    #: (B, N) their weighted mean, in its own standard deviations; None without a measure that has a weight
    heat: Tensor | None
    #: (B, N) the map: `heat`, or the measure that is only drawn; None without either
    drawn: Tensor | None
    #: (B, I) standard deviations above the normal mean, for each measure of images
    images: Tensor
    #: (B,)
    score: Tensor


class Combination(nn.Module):
    """Standardise measures by normal radiographs, and combine them into a map and a score.

    Measures of cells are standardised in each cell; their weighted mean, standardised again in each cell, is the map.
    The map is pooled into a number, which is the score unless there are measures of whole images. Then this number and
    those measures are standardised, and their weighted mean is the score; the map counts as often as there are parts
    in it. A measure of cells with weight 0 is not part of this: it is the map that people see. It has one mean for all
    cells, because a distance to the normals of a cell is already relative to that cell.

    Args:
        cell_weights: (R,) of the measures of cells; at most one is 0.
        image_weights: (I,) of the measures of images.
        pooling: ``mean`` of all cells, of the ``top`` 5 %, or ``max``.
        mean: (R, N) of the measures of cells in normal radiographs.
        std: (R, N).
        combined_std: (N,) of the weighted mean; empty without measures of cells.
        image_mean: (M + I,) of the pooled map, if there is one, and of the measures of images.
        image_std: (M + I,).

    Raises:
        ValueError: if shapes do not fit.
    """

    mean: Tensor
    std: Tensor
    combined_std: Tensor
    image_mean: Tensor
    image_std: Tensor
    cell_weights: Tensor
    image_weights: Tensor

    def __init__(
        self,
        cell_weights: Sequence[float],
        image_weights: Sequence[float],
        pooling: str,
        mean: Tensor,
        std: Tensor,
        combined_std: Tensor,
        image_mean: Tensor,
        image_std: Tensor,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        of_cells, of_images = torch.tensor(cell_weights), torch.tensor(image_weights)
        self.counts = any(cell_weights)
        self.only_drawn = [*cell_weights].index(0) if 0 in cell_weights else None
        columns = torch.cat([of_cells.sum()[None], of_images]) if self.counts else of_images
        self.register_buffer("cell_weights", of_cells / of_cells.sum().clamp_min(1e-6), persistent=False)
        self.register_buffer("image_weights", columns / columns.sum(), persistent=False)
        of_measures, of_columns = (len(of_cells), *combined_std.shape), tuple(columns.shape)
        values = {
            "mean": mean,
            "std": std,
            "combined_std": combined_std,
            "image_mean": image_mean,
            "image_std": image_std,
        }
        for name, value in values.items():
            expected = of_columns if name.startswith("image") else of_measures[name == "combined_std" :]
            if value.shape != expected:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, {expected} is expected")
            self.register_buffer(name, value.float())

    @classmethod
    def fit(
        cls, cell_weights: Sequence[float], image_weights: Sequence[float], pooling: str, cells: Tensor, images: Tensor
    ) -> tuple[Combination, Tensor]:
        """Standardise by these normal radiographs; return the combination, and the normal radiographs' scores (n,).

        Arguments are as for :class:`Combination`; measures are (n, R, N) of cells and (n, I) of images.
        """
        none = torch.zeros(images.shape[1] + any(cell_weights))
        ones = torch.ones(cells.shape[2])
        mean, std = cells.mean(0), _spread(cells)
        for row in (k for k, weight in enumerate(cell_weights) if weight == 0):
            mean[row] = mean[row].mean()
        combination = cls(cell_weights, image_weights, pooling, mean, std, ones, none, none + 1)
        heat = combination.combine(cells, images).heat
        if heat is not None:
            combination.combined_std = _spread(heat[:, None])[0]
        values = combination._columns(combination.combine(cells, images).heat, images)
        combination.image_mean, combination.image_std = values.mean(0), values.std(0).clamp_min(1e-6)
        return combination, combination.combine(cells, images).score

    def combine(self, cells: Tensor, images: Tensor) -> Combined:
        """Standardise and add up.

        Measures are (B, R, N) of cells and (B, I) of images.
        """
        standard = (cells - self.mean) / self.std
        heat = torch.einsum("brn,r->bn", standard, self.cell_weights) / self.combined_std if self.counts else None
        drawn = heat if self.only_drawn is None else standard[:, self.only_drawn]
        values = self._columns(heat, images)
        standard_values = (values - self.image_mean) / self.image_std
        # a map without measures of images is only pooled: its own unit is the same for all references
        score = standard_values @ self.image_weights if images.shape[1] else values[:, 0]
        return Combined(standard, heat, drawn, standard_values[:, values.shape[1] - images.shape[1] :], score)

    def _columns(self, heat: Tensor | None, images: Tensor) -> Tensor:
        return images if heat is None else torch.cat([pool(heat, self.pooling)[:, None], images], 1)


def pool(cells: Tensor, pooling: str) -> Tensor:
    """Pool cells (B, N) into scores (B,): ``mean``, mean of the ``top`` 5 %, or ``max``."""
    if pooling == "mean":
        return cells.mean(1)
    return cells.topk(1 if pooling == "max" else max(1, round(0.05 * cells.shape[1])), 1).values.mean(1)


def _spread(cells: Tensor) -> Tensor:
    """Return standard deviations (R, N) of radiographs (n, R, N), not 0 where all are alike, such as black borders."""
    if not cells.numel():
        return cells[0]
    std = cells.std(0)
    return std.clamp_min(1e-6).maximum(0.1 * std.median(dim=1, keepdim=True).values)
