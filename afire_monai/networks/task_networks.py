"""Networks of the fine-tuning tasks: a multi-label classifier with calibration, and a UNETR-like segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.build import encoder_from_config
from afire_monai.networks.encoder_base import Encoder, FeatureMap

ClassifierPooling = Literal["mean", "class", "class_mean", "summary"]


class NormalDistance(nn.Module):
    """How unlike normal radiographs a pooled vector is: log of Mahalanobis' distance, standardised by normal ones.

    Args:
        dim: D of the vectors.
    """

    center: Tensor
    whitening: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.register_buffer("scale", torch.tensor([0.0, 1.0]))  # mean and deviation of normal radiographs

    def forward(self, vectors: Tensor) -> Tensor:
        """Return (B, 1) for vectors (B, D); 0 on average for normal radiographs, with a deviation of 1."""
        distance = torch.linalg.vector_norm((vectors - self.center) @ self.whitening, dim=1, keepdim=True)
        return (distance.clamp_min(1e-6).log() - self.scale[0]) / self.scale[1]


class ViTClassifier(nn.Module):
    """Score each label of a radiograph.

    Args:
        encoder: the encoder, pre-trained or not.
        labels: names of the C labels, each once.
        pooling: ``mean`` of the patch tokens (default: AFiRe does not train the class token), ``class``, or both side
            by side, ``class_mean``; ``summary``, those of half the depth as well (`Encoder.summary`).
        normality: also give the head the distance of the mean patch token from normal radiographs (`NormalDistance`).

    Raises:
        AfireError: for no label, a label named twice, or an unknown pooling.

    Example:
        >>> import torch
        >>> from afire_monai.networks.encoder import ViTEncoder
        >>> encoder = ViTEncoder(image_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3)
        >>> ViTClassifier(encoder, labels=["Effusion", "Nodule"])(torch.rand(2, 1, 64, 64)).shape  # logits
        torch.Size([2, 2])
    """

    calibration_scale: Tensor
    calibration_bias: Tensor

    def __init__(
        self, encoder: Encoder, labels: Sequence[str], pooling: ClassifierPooling = "mean", normality: bool = False
    ) -> None:
        super().__init__()
        if not labels or len(set(labels)) != len(labels):
            raise AfireError(f"a classifier needs labels, each named once; got {list(labels)}")
        if pooling not in get_args(ClassifierPooling):
            raise AfireError(f"pooling must be {', '.join(get_args(ClassifierPooling))}, got {pooling!r}")
        self.encoder = encoder
        self.labels = list(labels)
        self.pooling = pooling
        self.normality = NormalDistance(encoder.embed_dim) if normality else None
        widths = {"class_mean": 2 * encoder.embed_dim, "summary": encoder.summary_dim}
        self.head = nn.Linear(widths.get(pooling, encoder.embed_dim) + normality, len(labels))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        # probabilities are sigmoid(scale · logit + bias); set by calibrate, identity until then
        self.register_buffer("calibration_scale", torch.ones(len(labels)))
        self.register_buffer("calibration_bias", torch.zeros(len(labels)))

    @property
    def config(self) -> dict[str, Any]:
        """The ``config`` that :meth:`from_config` takes, as plain values."""
        return {
            "encoder": self.encoder.config,
            "labels": self.labels,
            "pooling": self.pooling,
            "normality": self.normality is not None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], **encoder_overrides: Any) -> ViTClassifier:
        """Build an untrained classifier from :attr:`config`.

        Args:
            config: result of :attr:`config`.
            encoder_overrides: arguments of the encoder's class to change.
        """
        encoder = encoder_from_config(config["encoder"], **encoder_overrides)
        return cls(encoder, config["labels"], config["pooling"], config["normality"])

    def features(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Return the head's input for images (B, C, H, W) in 0…1: pooled tokens, (B, D), for ``class_mean`` (B, 2 D).

        With ``normality`` there is one more column, the distance from normal radiographs.
        """
        if self.pooling == "summary":
            return self.with_normality(self.encoder.summary(images, residual_scale))
        tokens = self.encoder(images, residual_scale)
        first, mean = tokens[:, 0], tokens[:, 1:].mean(1)
        pooled = {"mean": mean, "class": first, "class_mean": torch.cat([first, mean], 1)}[self.pooling]
        return self.with_normality(pooled, mean)

    def with_normality(self, pooled: Tensor, mean: Tensor | None = None) -> Tensor:
        """Return pooled tokens (B, …) and, with ``normality``, the distance from normal radiographs beside them.

        Args:
            pooled: result of the pooling.
            mean: mean patch tokens (B, D); the last D columns of ``pooled`` unless given.
        """
        if self.normality is None:
            return pooled
        mean = pooled[:, -self.encoder.embed_dim :] if mean is None else mean
        return torch.cat([pooled, self.normality(mean)], 1)

    def forward(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Return logits (B, labels), not calibrated.

        Args:
            images: (B, C, H, W) in 0…1.
            residual_scale: (B, depth), see :meth:`Encoder.forward`.
        """
        return self.head(self.features(images, residual_scale))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Turn logits (…, labels) into calibrated probabilities in 0…1."""
        return torch.sigmoid(logits.float() * self.calibration_scale + self.calibration_bias)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return calibrated probabilities (B, labels) in 0…1 of images (B, C, H, W) in 0…1."""
        return self.calibrated(self(images))


class ViTSegmenter(nn.Module):
    """Outline structures in a radiograph, each class by itself (classes may overlap).

    The decoder is UNETR's (Hatamizadeh et al., WACV 2022) with as many levels as the patch size has powers of two:
    the encoder's feature maps join at each resolution (of a transformer tokens from evenly spaced depths, of a ResNet
    its pyramid), the picture itself at the finest. A map that is coarser than its level is enlarged by transposed
    convolutions, as in UNETR.

    Args:
        encoder: the encoder, pre-trained or not; its patch size must be a power of two of at least 4.
        classes: names of the classes, each once.
        width: channels at the finest level; each coarser level has twice as many.

    Raises:
        AfireError: for no class, a class named twice, or a patch size that does not fit.

    Example:
        >>> import torch
        >>> from afire_monai.networks.encoder import ViTEncoder
        >>> encoder = ViTEncoder(image_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3)
        >>> ViTSegmenter(encoder, classes=["lung"], width=4)(torch.rand(2, 1, 64, 64)).shape  # logits
        torch.Size([2, 1, 64, 64])
    """

    def __init__(self, encoder: Encoder, classes: Sequence[str], width: int = 16) -> None:
        super().__init__()
        levels = encoder.patch_size.bit_length() - 1
        if encoder.patch_size != 2**levels or levels < 2:
            raise AfireError(f"segmentation needs a patch size of 4, 8, 16 or 32, the encoder has {encoder.patch_size}")
        if not classes or len(set(classes)) != len(classes):
            raise AfireError(f"a segmenter needs classes, each named once; got {list(classes)}")
        self.encoder = encoder
        self.classes = list(classes)
        self.width = width
        common: dict[str, Any] = {"spatial_dims": 2, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.stem = UnetrBasicBlock(in_channels=encoder.in_channels, out_channels=width, stride=1, **common)
        # the maps join at levels 1 (fine) … levels - 1 (coarse); the last one enters at the bottom
        self.skips = nn.ModuleList(
            _skip(feature_map, level, width * 2**level, common)
            for level, feature_map in enumerate(encoder.feature_maps[:-1], start=1)
        )
        below = [width * 2**level for level in range(1, levels)] + [encoder.feature_maps[-1].channels]
        self.ups = nn.ModuleList(
            UnetrUpBlock(in_channels=below[level], out_channels=width * 2**level, upsample_kernel_size=2, **common)
            for level in range(levels)
        )
        self.out = UnetOutBlock(spatial_dims=2, in_channels=width, out_channels=len(classes))

    @property
    def config(self) -> dict[str, Any]:
        """The ``config`` that :meth:`from_config` takes, as plain values."""
        return {"encoder": self.encoder.config, "classes": self.classes, "width": self.width}

    @classmethod
    def from_config(cls, config: dict[str, Any], **encoder_overrides: Any) -> ViTSegmenter:
        """Build an untrained segmenter from :attr:`config`."""
        encoder = encoder_from_config(config["encoder"], **encoder_overrides)
        return cls(encoder, config["classes"], config["width"])

    def forward(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Return logits (B, classes, H, W).

        Args:
            images: (B, C, H, W) in 0…1.
            residual_scale: (B, depth), see :meth:`Encoder.forward`.
        """
        *maps, x = self.encoder.pyramid(images, residual_scale)
        for level in reversed(range(1, len(self.ups))):
            x = self.ups[level](x, self.skips[level - 1](maps[level - 1]))
        return self.out(self.ups[0](x, self.stem(self.encoder.normalise(images))))

    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities (B, classes, H, W) in 0…1 of images (B, C, H, W) in 0…1."""
        return self(images).float().sigmoid()


def _skip(feature_map: FeatureMap, level: int, channels: int, common: dict[str, Any]) -> nn.Module:
    """Bring a map of an encoder to ``channels`` at 1 / 2^level of the picture's size."""
    doublings = feature_map.stride.bit_length() - 1 - level
    if doublings == 0:
        return UnetrBasicBlock(in_channels=feature_map.channels, out_channels=channels, stride=1, **common)
    return UnetrPrUpBlock(
        in_channels=feature_map.channels, out_channels=channels, num_layer=doublings - 1, stride=1,
        upsample_kernel_size=2, conv_block=True, **common,
    )  # fmt: skip
