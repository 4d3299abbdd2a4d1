"""Multi-label classification with missing and uncertain labels."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.losses import MaskedBCELoss
from afire_monai.networks.classifier import ViTClassifier
from afire_monai.training.task_base import Task


class Classification(Task):
    """Fine-tune or probe a classifier.

    Args:
        network: the classifier.
        loss: over the labels that are known.
        options: see :class:`Task`.
    """

    def __init__(self, network: ViTClassifier, loss: MaskedBCELoss | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        self.loss = loss if loss is not None else MaskedBCELoss()
        self.loss_weights = {"classification": 1.0}

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the cross-entropy of one step.

        Args:
            batch: ``image`` (B, C, H, W) in 0…1 and ``target`` (B, labels), NaN where not known.
            uniforms: (B, draws).
            first_epoch: unused.
        """
        images, _, scale = self.prepare(batch["image"], uniforms, None)
        logits: Any = self.student_forward(*((images,) if scale is None else (images, scale)))
        return {"classification": self.loss(logits, batch["target"])}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Give logits (B, labels) of images (B, C, H, W) in 0…1."""
        self.eval()
        logits: Tensor = self.network(images)
        return logits

    def figures(self, logits: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Give the loss, the AUROC of each label that has both classes, and their mean, which is the score.

        Where no label has both classes, minus the loss is the score.

        Args:
            logits: (n, labels).
            batch: ``target`` (n, labels).
        """
        total, known = self.loss.sums(logits, batch["target"])  # process 0 alone comes here
        loss = (total / known.clamp(min=1)).item()
        values = {}
        for place, label in enumerate(self.network.labels):
            target = batch["target"][:, place]
            there = ~target.isnan()
            truth = target[there].cpu().numpy()
            if truth.min(initial=1) < truth.max(initial=0):
                scores = logits[there, place].float().cpu().numpy()
                values[f"validation_auroc/{label}"] = float(roc_auc_score(truth, scores))
        score = sum(values.values()) / len(values) if values else -loss
        macro = {"validation_macro_auroc": score} if values else {}
        return {**values, **macro, "validation_loss": loss, "validation_score": score}
