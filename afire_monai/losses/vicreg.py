"""Variance, invariance and covariance of two views' embeddings (VICReg), over the images of all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from afire_monai.core.distributed import gather_with_gradient
from afire_monai.core.errors import AfireError


class VICRegTerms(NamedTuple):
    """The three terms, unweighted; each is that of the global batch in every process."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


class VICRegLoss(nn.Module):
    """VICReg (Bardes et al., ICLR 2022, arXiv 2105.04906), as MLVICX uses it at two levels.

    - invariance: mean squared difference of the two views' embeddings;
    - variance: mean over dimensions of max(0, target − √(variance + ε)), averaged over the two views (as in the
      authors' code; the paper's formula adds them);
    - covariance: squared off-diagonal elements of the covariance matrix over D, added for the two views.

    Variances and covariances divide by N − 1. Sums of squared covariances are taken from the N x N matrix of inner
    products where that is the smaller one: ‖ZᵀZ‖² = ‖ZZᵀ‖². Always float32.

    Args:
        target: standard deviation below which a dimension is pushed apart.
        eps: ε, keeps the root's gradient finite.

    Raises:
        AfireError: for a value that is not above 0.

    Example:
        >>> import torch
        >>> same = torch.ones(8, 3)
        >>> terms = VICRegLoss()(same, same)  # views that agree because all is equal: the variance term sees it
        >>> [round(term.item(), 2) for term in terms]
        [0.0, 0.99, 0.0]
    """

    def __init__(self, target: float = 1.0, eps: float = 1e-4) -> None:
        super().__init__()
        if min(target, eps) <= 0:
            raise AfireError(f"target and eps must be above 0, got {target} and {eps}")
        self.target = target
        self.eps = eps

    def forward(self, first: Tensor, second: Tensor) -> VICRegTerms:
        """Compute the terms.

        Args:
            first: (B, D) embeddings of one view.
            second: (B, D) embeddings of the other view, of the same images row by row; B is the same in each process.

        Raises:
            AfireError: for other shapes, or fewer than two images over all processes.
        """
        if first.ndim != 2 or first.shape != second.shape:
            raise AfireError(f"expected two equal (B, D), got {tuple(first.shape)} and {tuple(second.shape)}")
        with torch.autocast(first.device.type, enabled=False):
            a, b = gather_with_gradient(torch.cat([first, second], dim=1).float()).chunk(2, dim=1)
            if len(a) < 2:
                raise AfireError("variances over images need a batch of at least 2 images over all processes")
            invariance = (a - b).square().mean()
            spread_a, covariance_a = self._moments(a)
            spread_b, covariance_b = self._moments(b)
            return VICRegTerms(invariance, (spread_a + spread_b) / 2, covariance_a + covariance_b)

    def _moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        count, dim = z.shape
        z = z - z.mean(0)
        variance = z.square().sum(0) / (count - 1)
        hinge = (self.target - (variance + self.eps).sqrt()).relu().mean()
        product = z @ z.T if count < dim else z.T @ z
        squares = (product / (count - 1)).square().sum() - variance.square().sum()
        return hinge, squares / dim
