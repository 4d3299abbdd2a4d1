"""The fine-tuning tasks, classification and segmentation, with the interface that the trainer needs."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.overlap import dice
from afire_monai.losses import MaskedBCELoss, MaskedDiceCELoss
from afire_monai.methods.base import Method
from afire_monai.networks import Encoder
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter
from afire_monai.transforms import RadiographAugment

logger = logging.getLogger(__name__)
TaskNetwork = ViTClassifier | ViTSegmenter


class Task(Method):
    """A supervised task as a :class:`Method`, so that trainer, checkpoints, resuming and processes are the same.

    Args:
        network: network to train; its ``encoder`` may come from any pre-training.
        augment: change of training images (and masks); None for none.
        drop_path: probability that a block is left out for an image, rising linearly from 0 at the first block to this
            at the last (stochastic depth, Huang et al., ECCV 2016).
        average: keep a moving average of the weights and use it for validation and export; its momentum is the plan's.
        frozen_encoder: train everything but the encoder (a linear probe, for a classifier).

    Raises:
        AfireError: for a drop_path outside 0…1.
    """

    student: nn.Module
    teacher: nn.Module

    def __init__(
        self,
        network: TaskNetwork,
        augment: RadiographAugment | None = None,
        drop_path: float = 0.0,
        average: bool = False,
        frozen_encoder: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise AfireError(f"drop_path must be in 0…1, got {drop_path}")
        # encoders that were loaded from a file check the range of their input, which makes them wait for the device
        network.encoder.check_range = False
        network.encoder.requires_grad_(not frozen_encoder)
        self.student = network
        self.average = average
        self.teacher = copy.deepcopy(network).requires_grad_(False) if average else nn.Module()
        self.augment = augment
        depth = network.encoder.depth
        self.drop_path = drop_path if not frozen_encoder else 0.0
        self.register_buffer("drop_rates", torch.linspace(0, self.drop_path, depth), persistent=False)
        self.depth = depth if self.drop_path else 0
        self.draws = (augment.draws if augment is not None else 0) + self.depth
        self.frozen_encoder = frozen_encoder

    @property
    def network(self) -> Any:
        """The network to validate and export: the average of the weights if one is kept, else the trained one."""
        return self.teacher if self.average else self.student

    @property
    def export_encoder(self) -> Encoder:
        """The encoder as fine-tuned."""
        return self.network.encoder

    def prepare(self, images: Tensor, uniforms: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Any]:
        """Augment a batch and draw which blocks are left out.

        Args:
            images: (B, C, H, W) in 0…1.
            uniforms: (B, draws) in 0…1.
            mask: (B, K, H, W) or None.

        Returns:
            Images, mask, and the blocks' residual scale (B, depth) or None.
        """
        split = uniforms.shape[1] - self.depth
        if self.augment is not None:
            images, mask = self.augment(images, uniforms[:, :split], mask)
        if not self.depth:
            return images, mask, None
        rates: Any = self.drop_rates
        return images, mask, (uniforms[:, split:] >= rates) / (1 - rates)

    def losses(self, images: Tensor, uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Refuse: a task cannot be trained on images alone."""
        raise AfireError(f"{type(self).__name__} needs targets: give the data set extras=('target',) or ('mask',)")

    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Return nothing: a task is judged on its validation set (:class:`ValidationMonitor`)."""
        return {}

    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Return the images and their augmented form, each (B, 1, H, W) in 0…1."""
        changed, _, _ = self.prepare(images, uniforms, None)
        return {"image": images.mean(1, keepdim=True), "augmented": changed.mean(1, keepdim=True)}

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the average of the weights, if one is kept."""
        if self.average:
            super().update_teacher(momentum)

    def train(self, mode: bool = True) -> Task:
        """Set training mode for the trained parts."""
        super().train(mode)
        if self.frozen_encoder:
            self.student.get_submodule("encoder").eval()
        return self

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return the exported network's logits, (B, labels) or (B, classes, H, W), of images (B, C, H, W) in 0…1."""
        self.eval()
        return self.network(images)

    @abstractmethod
    def figures(self, logits: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Score validation logits; ``validation_score`` among the figures decides which weights are kept."""


def task_parameter_groups(task: Task, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Sort a task's parameters by weight decay and by depth.

    Args:
        task: task to train.
        layer_decay: the learning rate of block l of d is multiplied by ``layer_decay`` to the power d − l, that of the
            patch embedding by its power d + 1 (layer-wise decay, as for BEiT and MAE); the rest keeps the full rate.

    Returns:
        Groups for an optimiser with ``decay`` and ``lr_scale``, as the trainer reads them.

    Raises:
        AfireError: for a decay that is not in 0…1, or a task without anything to train.
    """
    if not 0 < layer_decay <= 1:
        raise AfireError(f"layer_decay must be above 0 and at most 1, got {layer_decay}")
    encoder = task.export_encoder
    depth = encoder.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in task.trainable():
        level = depth + 1  # parameters after the encoder
        if name.startswith("encoder."):
            level = encoder.block_of(name.removeprefix("encoder."))
        decay = parameter.ndim > 1 and not name.endswith((".bias", "cls_token"))
        key = (level, decay)
        if key not in groups:
            scale = layer_decay ** (depth + 1 - level)
            groups[key] = {"params": [], "decay": decay, "lr_scale": scale, "weight_decay": 0.0}
        groups[key]["params"].append(parameter)
    if not groups:
        raise AfireError("nothing is left to train: every parameter is frozen")
    return [groups[key] for key in sorted(groups)]


class Classification(Task):
    """Fine-tune or probe a classifier."""

    def __init__(self, network: ViTClassifier, loss: MaskedBCELoss | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        self.loss = loss if loss is not None else MaskedBCELoss()
        self.loss_weights = {"classification": 1.0}

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute the cross-entropy of one step.

        ``image`` is (B, C, H, W) in 0…1, ``target`` (B, labels), NaN where not known.
        """
        images, _, scale = self.prepare(batch["image"], uniforms, None)
        logits: Any = self.student_forward(*((images,) if scale is None else (images, scale)))
        return {"classification": self.loss(logits, batch["target"])}

    def figures(self, logits: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Return the loss, the AUROC of each label that has both classes, and their mean, which is the score.

        If no label has both classes, the score is minus the loss.

        Logits and ``target`` are (n, labels).
        """
        total, known = self.loss.sums(logits, batch["target"])  # only process 0 gets here
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


def image_dice(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return Dice at probability 0.5 of each image and class, (n, classes): 1 where mask and prediction are both empty.

    Args:
        logits: (n, classes, H, W).
        mask: likewise, NaN for pixels to ignore.

    Returns:
        Dice, and whether the mask has any pixel of the class.
    """
    return dice(logits > 0, mask).float(), (mask > 0).any(-1).any(-1)


class Segmentation(Task):
    """Fine-tune a segmenter."""

    def __init__(self, network: ViTSegmenter, loss: MaskedDiceCELoss | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        self.loss = loss if loss is not None else MaskedDiceCELoss()
        self._warned = False
        self.loss_weights = {"dice": self.loss.dice_weight, "cross_entropy": self.loss.ce_weight}

    def batch_losses(self, batch: dict[str, Tensor], uniforms: Tensor, first_epoch: bool) -> dict[str, Tensor]:
        """Compute both terms of one step.

        ``image`` is (B, C, H, W) in 0…1, ``mask`` (B, classes, H, W), NaN for pixels to ignore.
        """
        images, mask, scale = self.prepare(batch["image"], uniforms, batch["mask"])
        logits: Any = self.student_forward(*((images,) if scale is None else (images, scale)))
        assert mask is not None
        return self.loss(logits, mask)

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
        """Return Dice at probability 0.5, for all images (1 if mask and prediction are both empty) and for positives.

        The score is the mean over classes of the Dice over positive images; over all images if none is positive.

        Logits and ``mask`` are (n, classes, H, W), NaN for pixels to ignore.
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
