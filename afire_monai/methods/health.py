"""Health of any pre-training run: does the encoder still tell images apart, and what is wrong in words."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def feature_std_ratio(tokens: Tensor) -> float:
    """Compare the spread of features over images with that of healthy features.

    Args:
        tokens: (B, L, D) features, B at least 2.

    Returns:
        Standard deviation over the images of L2-normalised tokens of one cell, averaged over cells and dimensions,
        times √D: 1 for features spread evenly on the sphere, 0 when all images look alike.
    """
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    return (unit.std(0).mean() * tokens.shape[-1] ** 0.5).item()


def effective_rank(features: Tensor) -> float:
    """Give the effective rank of features (B, D): the exponential of the entropy of their singular values.

    Between 1 and min(B − 1, D), after centring (Roy and Vetterli, EUSIPCO 2007).
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp().item()


def rank_auroc(positive: Tensor, negative: Tensor) -> float:
    """Give the area under the ROC curve of two sets of scores (1-D), 0.5 where one is empty; ties count half."""
    if len(positive) == 0 or len(negative) == 0:
        return 0.5
    scores = torch.cat([positive, negative]).double()
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    # summed as whole numbers: a GPU adds up floating-point ones in no fixed order
    ranks = (counts.cumsum(0) - (counts - 1).double() / 2)[inverse]
    n, m = len(positive), len(negative)
    return ((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)).item()


def feature_health(encoder: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, float]:
    """Measure collapse on images that training does not see.

    Args:
        encoder: images (B, C, H, W) to tokens (B, 1 + L, D), the first a class token, which is left aside.
        images: (B, C, H, W) in 0…1, B at least 2.

    Returns:
        ``feature_std_ratio`` and ``effective_rank`` (of the mean patch token).
    """
    tokens = encoder(images)[:, 1:].float()
    return {"feature_std_ratio": feature_std_ratio(tokens), "effective_rank": effective_rank(tokens.mean(1))}


def health_warnings(figures: dict[str, float]) -> list[str]:
    """Say in plain words what is wrong, if anything, with a method's figures; absent ones are passed over."""
    warnings = []
    if figures.get("feature_std_ratio", 1.0) < 0.05 or figures.get("effective_rank", 2.0) < 2:
        warnings.append(
            f"COLLAPSE: the encoder gives nearly the same features for every image (spread "
            f"{figures['feature_std_ratio']:.3f} of a healthy 1, effective rank {figures['effective_rank']:.1f}). "
            "Try a lower learning rate, a longer warm-up, a larger batch, or a larger restoration weight."
        )
    if figures.get("prototype_usage", 1.0) < 0.1:
        warnings.append(
            f"COLLAPSE: the prototypes use only {figures['prototype_usage']:.0%} of the dimensions that they could. "
            "Try a lower learning rate or a higher prototype momentum."
        )
    return warnings


def shortcut_in_words(figures: dict[str, float]) -> str | None:
    """Say in plain words whether AFiRe's structure term needs the image; None for figures of other methods."""
    if "position_gap" not in figures:
        return None
    gap, real = figures["position_gap"], figures["structure_real"]
    if gap < 0.05 * max(abs(real), 1e-6) and gap < 0.05:
        return (
            f"Position shortcut: the structure loss is as low without the anatomy (gap {gap:+.3f}), so the contrastive "
            "task teaches the encoder nothing about content. Expected for shift 0; set shift above 0 to avoid it."
        )
    return f"Position shortcut: none; without the anatomy the structure loss is higher by {gap:.3f} (real {real:.3f})."
