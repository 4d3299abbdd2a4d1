"""The restoration loss: how well the decoder removes lesions."""

from __future__ import annotations

from torch import Tensor, nn

from afire_monai.core.distributed import sum_over_processes, world_size
from afire_monai.core.errors import AfireError


class RestorationLoss(nn.Module):
    """Weighted mean squared error between restored and clean image (AFiRe, arXiv 2504.10972, §Restoration).

    The paper "particularly focuses on" abnormal cells, the release weights all cells alike: hence the weight. The mean
    is weighted, Σ w e / Σ w over the cells of all processes, so the value stays a mean squared error.

    Args:
        abnormal_weight: weight of abnormal cells; the others have 1. With a weight of 1 it is the released loss.

    Raises:
        AfireError: if the weight is not above zero.

    Example:
        >>> import torch
        >>> restored, target = torch.zeros(1, 1, 2, 4), torch.tensor([[[[1.0, 1, 3, 3]] * 2]])
        >>> abnormal = torch.tensor([[False, True]])
        >>> loss = RestorationLoss(abnormal_weight=3)
        >>> loss(restored, target, abnormal, grid=(1, 2)).item()  # (1 · 1² + 3 · 3²) / (1 + 3)
        7.0
    """

    def __init__(self, abnormal_weight: float = 1.0) -> None:
        super().__init__()
        if abnormal_weight <= 0:
            raise AfireError(f"abnormal_weight must be above 0, got {abnormal_weight}")
        self.abnormal_weight = abnormal_weight

    def forward(self, restored: Tensor, target: Tensor, abnormal: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the loss, a scalar; averaged over processes it is the loss of the global batch.

        Args:
            restored: (B, C, H, W) in the encoder's normalised units.
            target: (B, C, H, W), the clean image in the same units.
            abnormal: (B, L) bool.
            grid: rows and columns (h, w) of cells, L = h·w.

        Raises:
            AfireError: for shapes that do not fit one another.
        """
        h, w = grid
        batch, _, height, width = restored.shape
        if restored.shape != target.shape or abnormal.shape != (batch, h * w) or height % h or width % w:
            raise AfireError(
                f"restored {tuple(restored.shape)}, target {tuple(target.shape)}, abnormal {tuple(abnormal.shape)} "
                f"and grid {h} x {w} do not fit one another"
            )
        error = (restored.float() - target.float()).square().mean(1)
        per_cell = error.view(batch, h, height // h, w, width // w).mean((2, 4)).reshape(batch, h * w)
        weight = 1 + (self.abnormal_weight - 1) * abnormal.float()
        return (per_cell * weight).sum() * world_size() / sum_over_processes(weight.sum())
