"""What fine-tuning a network with targets needs of the trainer: the same as pre-training, plus targets."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.methods.base import Method
from afire_monai.networks import Encoder
from afire_monai.networks.classifier import ViTClassifier
from afire_monai.networks.segmenter import ViTSegmenter
from afire_monai.transforms import RadiographAugment

TaskNetwork = ViTClassifier | ViTSegmenter


class Task(Method):
    """A supervised task as a :class:`Method`, so that trainer, checkpoints, resuming and processes are the same.

    Args:
        network: what is trained; its ``encoder`` may come from any pre-training.
        augment: changes training images (and masks); None for none.
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
        # encoders that were loaded from a file look at the range of their input, which costs a wait for the device
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
        """What is validated and exported: the average of the weights if one is kept, else the weights."""
        return self.teacher if self.average else self.student

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the task wants."""
        return self.export_encoder.image_size

    @property
    def export_encoder(self) -> Encoder:
        """The encoder as fine-tuned."""
        encoder: Encoder = self.network.encoder
        return encoder

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
        """Refuse: a task cannot be trained on images alone.

        Args:
            images: unused.
            uniforms: unused.
            first_epoch: unused.

        Raises:
            AfireError: always.
        """
        raise AfireError(f"{type(self).__name__} needs targets: give the data set extras=('target',) or ('mask',)")

    def health(self, images: Tensor, uniforms: Tensor) -> dict[str, float]:
        """Give nothing: a task is judged on its validation set (:class:`ValidationMonitor`)."""
        return {}

    def panels(self, images: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Give the images and their augmented form, each (B, 1, H, W) in 0…1."""
        changed, _, _ = self.prepare(images, uniforms, None)
        return {"image": images.mean(1, keepdim=True), "augmented": changed.mean(1, keepdim=True)}

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the average of the weights, if one is kept."""
        if self.average:
            super().update_teacher(momentum)

    def train(self, mode: bool = True) -> Task:
        """Set training mode for what is trained."""
        super().train(mode)
        if self.frozen_encoder:
            self.student.get_submodule("encoder").eval()
        return self

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Give the exported network's logits of images (B, C, H, W) in 0…1, without gradient."""

    @abstractmethod
    def figures(self, logits: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
        """Score validation logits; ``validation_score`` among the figures decides which weights are kept.

        Args:
            logits: of the whole validation set.
            batch: the data set's tensors, stacked.
        """


def task_parameter_groups(task: Task, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Sort a task's parameters by weight decay and by depth.

    Args:
        task: what is trained.
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
        level = depth + 1  # what lies behind the encoder
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
