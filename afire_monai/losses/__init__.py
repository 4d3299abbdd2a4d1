"""Losses: pure tensors in, scalars out."""

from afire_monai.losses.masked import MaskedBCELoss, MaskedDiceCELoss
from afire_monai.losses.masked_patches import MaskedPatchLoss
from afire_monai.losses.restoration import RestorationLoss
from afire_monai.losses.self_distillation import SelfDistillationLoss
from afire_monai.losses.token_contrastive import TokenContrastiveLoss, TokenContrastiveTerms, own_cell_accuracy
from afire_monai.losses.token_match import TokenMatchLoss
from afire_monai.losses.vicreg import VICRegLoss, VICRegTerms

__all__ = [
    "MaskedBCELoss",
    "MaskedDiceCELoss",
    "MaskedPatchLoss",
    "RestorationLoss",
    "SelfDistillationLoss",
    "TokenContrastiveLoss",
    "TokenContrastiveTerms",
    "TokenMatchLoss",
    "VICRegLoss",
    "VICRegTerms",
    "own_cell_accuracy",
]
