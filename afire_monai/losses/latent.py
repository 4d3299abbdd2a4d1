"""Losses on the encoder's own tokens: restoring the teacher's for the normal image, and spreading images out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.distributed import gather_with_gradient, rank, share_of_mean
from afire_monai.core.errors import AfireError


def latent_restoration_loss(predicted: Tensor, teacher: Tensor, matched: Tensor) -> Tensor:
    """Compare tokens that were predicted for lesioned cells with the teacher's for the normal image.

    The smooth L1 distance to the teacher's tokens, each brought to mean 0 and deviation 1 (I-JEPA, Assran et al., CVPR
    2023, arXiv 2301.08243, §3); hidden cells are AFiRe's lesioned ones (this project's reading).

    Args:
        predicted: (B, L, D).
        teacher: (B, L, D) tokens without gradient, of the cells that are predicted; any value if not matched.
        matched: (B, L) bool, lesioned cells that the teacher sees.

    Returns:
        Scalar, the mean over tokens and D; averaged over processes, it is that of the global batch. 0 without a match.

    Raises:
        AfireError: for shapes that do not fit one another.
    """
    if predicted.shape != teacher.shape or matched.shape != predicted.shape[:2]:
        raise AfireError(
            f"predicted {tuple(predicted.shape)}, teacher {tuple(teacher.shape)} and matched {tuple(matched.shape)} "
            "do not fit one another"
        )
    target = F.layer_norm(teacher.float(), teacher.shape[-1:])
    distance = F.smooth_l1_loss(predicted.float(), target, reduction="none").mean(-1)
    return share_of_mean((distance * matched).sum(), matched.sum().float())


def koleo_loss(tokens: Tensor) -> Tensor:
    """Push each image's token away from its nearest one: −mean log of the distance, of tokens of unit length.

    The estimator of Kozachenko and Leonenko of the entropy (Sablayrolles et al., ICLR 2019, arXiv 1806.03198; DINOv2,
    arXiv 2304.07193, §4). Neighbours are looked for in the global batch, in DINOv2 in each process's.

    Args:
        tokens: (B, D), with the same B in each process.

    Returns:
        Scalar; averaged over processes, it is that of the global batch. 0 for a single image.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        own = F.normalize(tokens.float(), dim=1)
        everyone = gather_with_gradient(own)
        if len(everyone) < 2:
            return own.sum() * 0
        similarity = own.detach() @ everyone.detach().T
        places = torch.arange(len(own), device=own.device)
        similarity[places, places + rank() * len(own)] = -2  # below every cosine: not one's own neighbour
        distance = torch.linalg.vector_norm(own - everyone[similarity.argmax(1)], dim=1)
        return -(distance + 1e-8).log().mean()  # finite for equal images
