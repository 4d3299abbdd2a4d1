"""Losses: pure tensors in, scalars out."""

from afire_monai.losses.masked import MaskedBCELoss, MaskedDiceCELoss
from afire_monai.losses.masked_patches import MaskedPatchLoss
from afire_monai.losses.restoration import RestorationLoss
from afire_monai.losses.self_distillation import SelfDistillationLoss
from afire_monai.losses.token_contrastive import TokenContrastiveLoss, TokenContrastiveTerms, own_cell_accuracy

__all__ = [
    "MaskedBCELoss",
    "MaskedDiceCELoss",
    "MaskedPatchLoss",
    "RestorationLoss",
    "SelfDistillationLoss",
    "TokenContrastiveLoss",
    "TokenContrastiveTerms",
    "own_cell_accuracy",
]
