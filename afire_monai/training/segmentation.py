"""Segmentation of structures that may be absent from most images."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from afire_monai.losses import MaskedDiceCELoss
from afire_monai.networks.segmenter import ViTSegmenter
from afire_monai.training.task_base import Task

logger = logging.getLogger(__name__)


def image_dice(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Give Dice at probability 0.5 of each image and class, (n, classes): 1 where mask and prediction are both empty.

    Args:
        logits: (n, classes, H, W).
        mask: likewise, NaN for pixels to ignore.

    Returns:
        Dice, and whether the mask has any pixel of the class.
    """
    known, truth = ~mask.isnan(), mask.nan_to_num() > 0
    marked = (logits > 0) & known
    total = marked.sum((2, 3)) + truth.sum((2, 3))
    dice = torch.where(total > 0, 2 * (marked & truth).sum((2, 3)) / total.clamp(min=1), 1.0)
    return dice, truth.sum((2, 3)) > 0


class Segmentation(Task):
    """Fine-tune a segmenter.

    Args:
        network: the segmenter.
        loss: Dice and cross-entropy over the pixels that are known.
        options: see :class:`Task`.
    """

    def __init__(self, network: ViTSegmenter, loss: MaskedDiceCELoss | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        self.loss = loss if loss is not None else MaskedDiceCELoss()
        self._warned = False
        self.loss_weights = {"dice": self.loss.dice_weight, "cross_entropy": self.loss.ce_weight}

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute both terms of one step.

        Args:
            batch: ``image`` (B, C, H, W) in 0…1 and ``mask`` (B, classes, H, W), NaN for pixels to ignore.
            uniforms: (B, draws).
            first_epoch: unused.
        """
        images, mask, scale = self.prepare(batch["image"], uniforms, batch["mask"])
        logits: Any = self.student_forward(*((images,) if scale is None else (images, scale)))
        assert mask is not None
        return self.loss(logits, mask)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Give logits (B, classes, H, W) of images (B, C, H, W) in 0…1."""
        self.eval()
        logits: Tensor = self.network(images)
        return logits

    def _warn_of_empty_classes(self, positive: Tensor) -> None:
        empty = [name for name, some in zip(self.network.classes, positive.any(0).tolist(), strict=True) if not some]
        if empty and not self._warned:
            self._warned = True
            logger.warning(
                "no validation mask has a pixel of %s: Dice says nothing of it. Do --classes name the values that are "
                "in the mask files, and can the masks be read?",
                ", ".join(empty),
            )

    def figures(self, logits: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Give Dice at probability 0.5, for all images (1 where mask and prediction are both empty) and for positives.

        The score is the mean over classes of the Dice over positive images; over all images if none is positive.

        Args:
            logits: (n, classes, H, W).
            batch: ``mask`` (n, classes, H, W), NaN for pixels to ignore.
        """
        dice, positive = image_dice(logits, batch["mask"])
        self._warn_of_empty_classes(positive)
        figures, scores = {}, []
        for place, name in enumerate(self.network.classes):
            figures[f"validation_dice/{name}"] = dice[:, place].mean().item()
            if positive[:, place].any():
                figures[f"validation_dice_positive/{name}"] = dice[positive[:, place], place].mean().item()
            scores.append(figures.get(f"validation_dice_positive/{name}", figures[f"validation_dice/{name}"]))
        return {**figures, "validation_score": sum(scores) / len(scores)}
