"""Health of a pre-training run: collapse, prototypes, and whether the contrastive task needs the image at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from afire_monai.losses import own_cell_accuracy
from afire_monai.losses.token_contrastive import cell_indices, similarities
from afire_monai.transforms.perturb import permute_patches


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
    """Return the effective rank of features (B, D): the exponential of the entropy of their singular values.

    Between 1 and min(B − 1, D), after centring (Roy and Vetterli, EUSIPCO 2007); NaN if a feature is not finite.
    """
    if not features.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp_min(1e-12)
    return torch.special.entr(share).sum().exp().item()


def rank_auroc(positive: Tensor, negative: Tensor) -> float:
    """Return the area under the ROC curve of two sets of scores (1-D): 0.5 if one is empty, NaN if a score is."""
    from sklearn.metrics import roc_auc_score  # slow to import, and only needed in training

    if len(positive) == 0 or len(negative) == 0:
        return 0.5
    scores = torch.cat([positive, negative]).double().cpu()
    if not scores.isfinite().all():
        return float("nan")
    return float(roc_auc_score([1] * len(positive) + [0] * len(negative), scores.numpy()))


def feature_health(encoder: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, float]:
    """Measure collapse on images that training does not see.

    Args:
        encoder: function from images (B, C, H, W) to tokens (B, 1 + L, D); the first, a class token, is ignored.
        images: (B, C, H, W) in 0…1, B at least 2.

    Returns:
        ``feature_std_ratio`` and ``effective_rank`` (of the mean patch token).
    """
    tokens = encoder(images)[:, 1:].float()
    return {"feature_std_ratio": feature_std_ratio(tokens), "effective_rank": effective_rank(tokens.mean(1))}


def health_warnings(figures: dict[str, float]) -> list[str]:
    """Report problems that a method's figures show, in plain words; absent figures are passed over."""
    warnings = []
    healthy = figures.get("feature_std_ratio", 1.0) >= 0.05 and figures.get("effective_rank", 2.0) >= 2
    if not healthy:  # also if they are NaN
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
    """Return in plain words whether AFiRe's structure term needs the image; None for figures of other methods."""
    if "position_gap" not in figures:
        return None
    gap, real = figures["position_gap"], figures["structure_real"]
    if gap < 0.05 * max(abs(real), 1e-6) and gap < 0.05:
        return (
            f"Position shortcut: the structure loss is as low without the anatomy (gap {gap:+.3f}), so the contrastive "
            "task teaches the encoder nothing about content. Expected for shift 0; set shift above 0 to avoid it."
        )
    return f"Position shortcut: none; without the anatomy the structure loss is higher by {gap:.3f} (real {real:.3f})."


def content_free_inputs(images: Tensor, patch_size: int) -> dict[str, Tensor]:
    """Make inputs that hold the grid but not the anatomy.

    Args:
        images: (B, C, H, W) in 0…1.
        patch_size: side P of a cell in pixels.

    Returns:
        ``blank`` (grey at the batch's mean), ``noise`` (the batch's mean and spread, independent pixels) and
        ``shuffled`` (each image's own patches in random order), each like ``images``. The same for the same shape.
    """
    generator = torch.Generator().manual_seed(0)
    batch, _, height, width = images.shape
    h, w = height // patch_size, width // patch_size
    noise = torch.randn(images.shape, generator=generator).to(images)
    order = torch.rand(batch, h * w, generator=generator).argsort(1).to(images.device)
    return {
        "blank": images.mean().expand_as(images),
        "noise": (images.mean() + noise * images.std()).clamp(0, 1),
        "shuffled": permute_patches(images, order, (h, w)),
    }


@torch.no_grad()
def measure_health(method: Any, images: Tensor, uniforms: Tensor) -> dict[str, float]:
    """Measure collapse and the position shortcut on normal images that training does not see.

    The method is an `AFiRe`; images and uniform numbers are as for :meth:`Method.losses`.

    Returns:
        ``feature_std_ratio``, ``effective_rank`` (teacher, pooled tokens), ``prototype_entropy`` (mean row entropy of
        the assignment over log K), ``prototype_usage`` (share of distinct strongest dimensions among min(N, K)),
        ``structure_{real,blank,noise,shuffled}`` (this run's structure loss, all tokens), ``own_cell_{…}``
        (accuracy), ``position_gap`` (least structure loss of the content-free inputs minus that of real images; near
        zero: the task is solved from positions alone), ``validation_restoration`` (the run's restoration loss, in
        normalised units), ``lesion_token_auroc`` (of the similarity to the own prototype, for lesioned against normal
        tokens).
    """
    v = method.views(images, uniforms)
    clean, cells = v.clean, v.cells
    assignment = method.prototypes.assignment()
    rows = assignment.flatten(0, -2)
    figures = {
        **feature_health(method.export_encoder, clean),
        "prototype_entropy": (torch.special.entr(rows).sum(1).mean() / torch.tensor(rows.shape[1]).log()).item(),
        "prototype_usage": len(rows.argmax(1).unique()) / min(rows.shape),
    }
    temperature = method.token_loss.student_temperature
    for name, inputs in {"real": clean, **content_free_inputs(clean, method.grid_shift.patch_size)}.items():
        logits = _student_logits(method, inputs)
        none_abnormal = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
        structure = method.token_loss(logits, assignment, none_abnormal, cells).structure
        figures[f"structure_{name}"] = structure.item()
        figures[f"own_cell_{name}"] = own_cell_accuracy(logits, assignment, temperature, cells).item()
    free = min(figures[f"structure_{name}"] for name in ("blank", "noise", "shuffled"))
    figures["position_gap"] = free - figures["structure_real"]
    logits, restored, *_ = method.student(v.twin, v.abnormal)
    target = method.export_encoder.normalise(clean)
    restoration = method.restoration_loss(restored, target, v.abnormal, method.grid_shift.grid)
    figures["validation_restoration"] = restoration.item()
    index = cell_indices(logits.shape[0], logits.shape[1], logits.device) if cells is None else cells
    cross, log_partition = similarities(logits, assignment, temperature)
    own = cross.gather(-1, index[..., None])[..., 0] - log_partition
    figures["lesion_token_auroc"] = rank_auroc(own[~v.abnormal & ~v.ambiguous], own[v.abnormal])
    return figures


def _student_logits(method: Any, images: Tensor) -> Tensor:
    """Return the student's token logits (B, L, K) without the decoder."""
    return method.student.head(method.student.encoder(images)[:, 1:])
