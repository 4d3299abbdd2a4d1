"""Segmentation: an encoder and a UNETR-like decoder in two dimensions, of MONAI's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor

from afire_monai.errors import AfireError
from afire_monai.networks.encoder import ViTEncoder


class ViTSegmenter(nn.Module):
    """Outline structures in a radiograph, each class by itself (classes may overlap).

    The decoder is UNETR's (Hatamizadeh et al., WACV 2022) with as many levels as the patch size has powers of two:
    tokens from evenly spaced depths of the encoder join at each resolution, the picture itself at the finest.

    Args:
        encoder: the encoder, pre-trained or not; its patch size must be a power of two of at least 4.
        classes: names of the classes, each once.
        width: channels at the finest level; each coarser level has twice as many.

    Raises:
        AfireError: for no class, a class named twice, or a patch size that does not fit.
    """

    def __init__(self, encoder: ViTEncoder, classes: Sequence[str], width: int = 16) -> None:
        super().__init__()
        levels = encoder.patch_size.bit_length() - 1
        if encoder.patch_size != 2**levels or levels < 2:
            raise AfireError(f"segmentation needs a patch size of 4, 8, 16 or 32, the encoder has {encoder.patch_size}")
        if not classes or len(set(classes)) != len(classes):
            raise AfireError(f"a segmenter needs classes, each named once; got {list(classes)}")
        depth = len(encoder.blocks)
        self.encoder = encoder
        self.classes = list(classes)
        self.width = width
        # token depths for levels 1 (fine) … levels - 1 (coarse); the last block's tokens enter at the bottom
        self.taps = [max(1, round(depth * level / levels)) for level in range(1, levels)]
        common: dict[str, Any] = {"spatial_dims": 2, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.stem = UnetrBasicBlock(in_channels=encoder.in_channels, out_channels=width, stride=1, **common)
        self.skips = nn.ModuleList(
            UnetrPrUpBlock(
                in_channels=encoder.embed_dim, out_channels=width * 2**level, num_layer=levels - level - 1, stride=1,
                upsample_kernel_size=2, conv_block=True, **common,
            )
            for level in range(1, levels)
        )  # fmt: skip
        below = [encoder.embed_dim if level == levels else width * 2**level for level in range(1, levels + 1)]
        self.ups = nn.ModuleList(
            UnetrUpBlock(in_channels=below[level], out_channels=width * 2**level, upsample_kernel_size=2, **common)
            for level in range(levels)
        )
        self.out = UnetOutBlock(spatial_dims=2, in_channels=width, out_channels=len(classes))

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs, as plain values."""
        return {"encoder": self.encoder.config, "classes": self.classes, "width": self.width}

    @classmethod
    def from_config(cls, config: dict[str, Any], **encoder_overrides: Any) -> ViTSegmenter:
        """Build an untrained segmenter from :attr:`config`.

        Args:
            config: as :attr:`config` gives it.
            encoder_overrides: arguments of :class:`ViTEncoder` to change.
        """
        encoder = ViTEncoder(**{**config["encoder"], **encoder_overrides})
        return cls(encoder, config["classes"], config["width"])

    def forward(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Give logits (B, classes, H, W).

        Args:
            images: (B, C, H, W) in 0…1.
            residual_scale: (B, depth), see :meth:`ViTEncoder.hidden_states`.
        """
        grid = self.encoder.grid_of(images.shape[2], images.shape[3])
        states = self.encoder.hidden_states(images, residual_scale)
        maps = [self._as_map(states[tap], grid) for tap in self.taps]
        x = self._as_map(self.encoder.norm(states[-1]), grid)
        for level in reversed(range(1, len(self.ups))):
            x = self.ups[level](x, self.skips[level - 1](maps[level - 1]))
        return self.out(self.ups[0](x, self.stem(self.encoder.normalise(images))))

    @staticmethod
    def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()

    def probabilities(self, images: Tensor) -> Tensor:
        """Give probabilities (B, classes, H, W) in 0…1 of images (B, C, H, W) in 0…1."""
        return self(images).float().sigmoid()
