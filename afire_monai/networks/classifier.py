"""Multi-label classifier: an encoder, pooled tokens, one linear layer, and the calibration of its probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.networks.build import encoder_from_config
from afire_monai.networks.encoder_base import Encoder

ClassifierPooling = Literal["mean", "class"]


class ViTClassifier(nn.Module):
    """Score each label of a radiograph.

    Args:
        encoder: the encoder, pre-trained or not.
        labels: names of the C labels, each once.
        pooling: ``mean`` of the patch tokens (default: AFiRe does not train the class token), or ``class``.

    Raises:
        AfireError: for no label, a label named twice, or an unknown pooling.
    """

    calibration_scale: Tensor
    calibration_bias: Tensor

    def __init__(self, encoder: Encoder, labels: Sequence[str], pooling: ClassifierPooling = "mean") -> None:
        super().__init__()
        if not labels or len(set(labels)) != len(labels):
            raise AfireError(f"a classifier needs labels, each named once; got {list(labels)}")
        if pooling not in ("mean", "class"):
            raise AfireError(f"pooling must be mean or class, got {pooling!r}")
        self.encoder = encoder
        self.labels = list(labels)
        self.pooling = pooling
        self.head = nn.Linear(encoder.embed_dim, len(labels))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        # probabilities are sigmoid(scale · logit + bias); set by calibrate, identity until then
        self.register_buffer("calibration_scale", torch.ones(len(labels)))
        self.register_buffer("calibration_bias", torch.zeros(len(labels)))

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs, as plain values."""
        return {"encoder": self.encoder.config, "labels": self.labels, "pooling": self.pooling}

    @classmethod
    def from_config(cls, config: dict[str, Any], **encoder_overrides: Any) -> ViTClassifier:
        """Build an untrained classifier from :attr:`config`.

        Args:
            config: as :attr:`config` gives it.
            encoder_overrides: arguments of the encoder's class to change.
        """
        encoder = encoder_from_config(config["encoder"], **encoder_overrides)
        return cls(encoder, config["labels"], config["pooling"])

    def features(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Give the pooled tokens (B, D) of images (B, C, H, W) in 0…1."""
        tokens = self.encoder(images, residual_scale)
        return tokens[:, 0] if self.pooling == "class" else tokens[:, 1:].mean(1)

    def forward(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Give logits (B, labels), not calibrated.

        Args:
            images: (B, C, H, W) in 0…1.
            residual_scale: (B, depth), see :meth:`Encoder.forward`.
        """
        return self.head(self.features(images, residual_scale))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Turn logits (…, labels) into calibrated probabilities in 0…1."""
        return torch.sigmoid(logits.float() * self.calibration_scale + self.calibration_bias)

    def probabilities(self, images: Tensor) -> Tensor:
        """Give calibrated probabilities (B, labels) in 0…1 of images (B, C, H, W) in 0…1."""
        return self.calibrated(self(images))
