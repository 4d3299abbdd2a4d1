"""Losses of the fine-tuning tasks that ignore unknown values: unlabelled findings, pixels marked "ignore"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.distributed import share_of_mean
from afire_monai.core.errors import AfireError


class MaskedBCELoss(nn.Module):
    """Binary cross-entropy over the labels that are known.

    Args:
        positive_weight: (C,) weight of a positive of each label, for class imbalance; a negative has 1. None for 1.
        smoothing: targets are moved from 0 and 1 by half of this, 0…1.

    Raises:
        AfireError: for a weight that is not above zero, or a smoothing outside 0…1.

    Example:
        >>> import torch
        >>> target = torch.tensor([[1.0, float("nan")]])  # the second label is not known
        >>> round(MaskedBCELoss()(torch.zeros(1, 2), target).item(), 4)  # log 2
        0.6931
    """

    weight: Tensor | None

    def __init__(self, positive_weight: Sequence[float] | Tensor | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        weight = None if positive_weight is None else torch.as_tensor(positive_weight, dtype=torch.float32)
        if weight is not None and not (weight > 0).all():
            raise AfireError(f"positive weights must be above 0, got {weight.tolist()}")
        if not 0 <= smoothing < 1:
            raise AfireError(f"label smoothing must be in 0…1, got {smoothing}")
        self.register_buffer("weight", weight, persistent=False)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the mean over known labels.

        Args:
            logits: (B, C).
            target: (B, C), 1, 0, or NaN if not known.

        Returns:
            Scalar; averaged over processes it is the loss of the global batch. Zero, with zero gradient, if nothing is
            known.

        Raises:
            AfireError: for shapes that differ.
        """
        if logits.shape != target.shape:
            raise AfireError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must have one shape")
        return share_of_mean(*self.sums(logits, target))

    def sums(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return sum and number of the known labels' losses in this process alone, on the device of ``logits``."""
        known = ~target.isnan()
        value = target.nan_to_num() * (1 - self.smoothing) + self.smoothing / 2
        weight = None if self.weight is None else self.weight.to(logits.device)
        loss = F.binary_cross_entropy_with_logits(logits.float(), value, pos_weight=weight, reduction="none")
        return (loss * known).sum(), known.sum().float()


class MaskedDiceCELoss(nn.Module):
    """Dice loss plus binary cross-entropy, each class by itself, over the pixels that are known.

    The Dice term is a mean over the (image, class) pairs whose mask is not empty: an empty mask has no overlap to
    improve, and the cross-entropy, which runs over all images, already punishes what is marked in it.

    Args:
        dice_weight: weight of the Dice term.
        ce_weight: weight of the cross-entropy.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 1, 4, 4)
        >>> target[..., :2] = 1
        >>> terms = MaskedDiceCELoss()(torch.where(target > 0, 20.0, -20.0), target)  # a sure and right answer
        >>> {name: round(term.item(), 3) for name, term in terms.items()}
        {'dice': 0.0, 'cross_entropy': 0.0}
    """

    def __init__(self, dice_weight: float = 1.0, ce_weight: float = 1.0) -> None:
        super().__init__()
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compute both terms.

        Args:
            logits: (B, C, H, W).
            target: (B, C, H, W), 1 inside, 0 outside, NaN for pixels to ignore.

        Returns:
            ``dice`` and ``cross_entropy``, unweighted scalars; averaged over processes they are the global batch's.

        Raises:
            AfireError: for shapes that differ.
        """
        if logits.shape != target.shape:
            raise AfireError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must have one shape")
        known, value, logits = ~target.isnan(), target.nan_to_num(), logits.float()
        ce = F.binary_cross_entropy_with_logits(logits, value, reduction="none") * known
        probability = logits.sigmoid() * known
        overlap, total = (probability * value).sum((2, 3)), (probability + value).sum((2, 3))
        present = value.sum((2, 3)) > 0
        dice = (1 - 2 * overlap / total.clamp(min=1e-6)) * present
        return {
            "dice": share_of_mean(dice.sum(), present.sum().float()),
            "cross_entropy": share_of_mean(ce.sum(), known.sum().float()),
        }
