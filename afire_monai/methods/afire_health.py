"""Health of an AFiRe run: collapse, prototypes, and whether the contrastive task needs the image at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afire_monai.losses import own_cell_accuracy
from afire_monai.losses.token_contrastive import cell_indices, similarities
from afire_monai.methods.health import feature_health, rank_auroc

if TYPE_CHECKING:
    from afire_monai.methods.afire import AFiRe


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
    batch, channels, height, width = images.shape
    h, w, p = height // patch_size, width // patch_size, patch_size
    noise = torch.randn(images.shape, generator=generator).to(images)
    order = torch.rand(batch, h * w, generator=generator).argsort(1).to(images.device)
    patches = images.reshape(batch, channels, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)
    patches = patches.gather(1, order[..., None].expand_as(patches)).view(batch, h, w, channels, p, p)
    return {
        "blank": images.mean().expand_as(images),
        "noise": (images.mean() + noise * images.std()).clamp(0, 1),
        "shuffled": patches.permute(0, 3, 1, 4, 2, 5).reshape(images.shape),
    }


@torch.no_grad()
def measure_health(method: AFiRe, images: Tensor, uniforms: Tensor) -> dict[str, float]:
    """Measure collapse and the position shortcut on normal images that training does not see.

    Args:
        method: the method in training.
        images: (B, C, Hc, Wc) in 0…1.
        uniforms: (B, draws) in 0…1.

    Returns:
        ``feature_std_ratio``, ``effective_rank`` (teacher, pooled tokens), ``prototype_entropy`` (mean row entropy of
        the assignment over log K), ``prototype_usage`` (share of distinct strongest dimensions among min(N, K)),
        ``structure_{real,blank,noise,shuffled}`` (this run's structure loss, all tokens), ``own_cell_{…}``
        (accuracy), ``position_gap`` (least structure loss of the content-free inputs minus that of real images; near
        zero: the task is solved from positions alone), ``validation_restoration`` (mean squared error in normalised
        units), ``lesion_token_auroc`` (similarity to the own prototype telling lesioned from normal tokens).
    """
    v = method.views(images, uniforms)
    clean, cells = v.clean, v.cells
    assignment = method.prototypes.assignment()
    figures = {
        **feature_health(method.export_encoder, clean),
        "prototype_entropy": (
            torch.special.entr(assignment).sum(1).mean() / torch.tensor(assignment.shape[1]).log()
        ).item(),
        "prototype_usage": len(assignment.argmax(1).unique()) / min(assignment.shape),
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


def _student_logits(method: AFiRe, images: Tensor) -> Tensor:
    """Give the student's token logits (B, L, K) without the decoder."""
    logits: Tensor = method.student.head(method.student.encoder(images)[:, 1:])
    return logits
