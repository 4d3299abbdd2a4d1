"""A Gaussian for each cell's tokens: a mean of its own, one covariance for all cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

RIDGE = 0.01


class CellGaussian(nn.Module):
    """Distances of tokens to the normal tokens of their cell.

    One covariance is shared by all cells (this project's reading of PaDiM, Defard et al., ICPR 2021, which has one for
    each place): it needs hundreds of times fewer radiographs and did as well.

    Args:
        mean: (N, D).
        whitening: (D, D) W with W Wᵀ the inverse of the covariance.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def distance(self, tokens: Tensor) -> Tensor:
        """Give Mahalanobis' distance (B, N) of tokens (B, N, D) to the mean of their cell."""
        return torch.linalg.vector_norm((tokens - self.mean) @ self.whitening, dim=-1)


@dataclass
class Moments:
    """Sums over radiographs, from which Gaussians with and without some of them are fitted.

    Attributes:
        count: number of radiographs.
        first: (N, D) float64, sum of tokens.
        second: (D, D) float64, sum of outer products over radiographs and cells.
    """

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Moments:
        """Sum tokens (n, N, D), a few radiographs at a time as float64."""
        first = torch.zeros(tokens.shape[1:], dtype=torch.float64)
        second = torch.zeros(tokens.shape[2], tokens.shape[2], dtype=torch.float64)
        for some in tokens.split(64):
            flat = some.double().flatten(0, 1)
            first += some.double().sum(0)
            second += flat.T @ flat
        return cls(len(tokens), first, second)

    @classmethod
    def sum(cls, parts: Sequence[Moments]) -> Moments:
        """Add up."""
        return cls(
            sum(p.count for p in parts),
            torch.stack([p.first for p in parts]).sum(0),
            torch.stack([p.second for p in parts]).sum(0),
        )

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.first - other.first, self.second - other.second)

    def fit(self) -> CellGaussian:
        """Fit the Gaussian; a hundredth of the mean variance is added to each direction, so that none vanishes."""
        mean = self.first / self.count
        covariance = (self.second - self.count * mean.T @ mean) / (max(self.count - 1, 1) * len(mean))
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64))
        whitening = torch.linalg.inv(factor).T.contiguous()
        return CellGaussian(mean.float(), whitening.float())
