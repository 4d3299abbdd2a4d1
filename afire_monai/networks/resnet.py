"""MONAI's two-dimensional ResNet with the context bottlenecks of MLVICX, as an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.blocks import synced_batch_norm
from afire_monai.networks.encoder_base import Encoder, FeatureMap

WIDTHS = (64, 128, 256, 512)
STRIDE = 32


class ContextBottleneck(nn.Module):
    """Re-weigh a map by channel, then by place (MLVICX, arXiv 2403.11504; as CBAM, Woo et al., ECCV 2018).

    Channels: an MLP (hidden layer of half the width) shared by the average-pooled and the max-pooled map, added and
    squashed to 0…1. Places: a 7 x 7 convolution over the mean and the maximum of all channels, squashed likewise.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(channels, channels // 2, bias=False), nn.ReLU(), nn.Linear(channels // 2, channels, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Re-weigh (B, C, H, W)."""
        pooled = self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))
        x = x * pooled.sigmoid()[:, :, None, None]
        planes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.spatial(planes).sigmoid()


class ResNetEncoder(Encoder):
    """ResNet with a context bottleneck after the stem and after each stage.

    Built on MONAI's ``ResNet`` of basic blocks, with strides and shortcuts as in the paper of ResNet (a first
    convolution of stride 2; 1 x 1 convolutions where a shortcut changes width: MONAI's parameter-free ones pass no
    gradient). The stem's bottleneck comes before the max-pooling (this project's reading), so the five maps have
    strides 2, 4, 8, 16 and 32. Batch norm takes its statistics over all processes.

    The token for the whole image is the mean of the last map, the patch tokens are its cells.

    Args:
        image_size: side in pixels, or (height, width); multiples of 32.
        patch_size: the total stride, 32.
        blocks: number of basic blocks of each of the four stages; (2, 2, 2, 2) is ResNet-18.
        context: with context bottlenecks (MLVICX); false for a plain ResNet.
        options: as for :class:`Encoder`.

    Raises:
        AfireError: for another patch size, an image size that is not a multiple of it, or a
            number of stages in ``blocks`` other than four.

    Example:
        >>> import torch
        >>> ResNetEncoder(image_size=64, blocks=(1, 1, 1, 1))(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 5, 512])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        patch_size: int = STRIDE,
        blocks: Sequence[int] = (2, 2, 2, 2),
        context: bool = True,
        **options: Any,
    ) -> None:
        if patch_size != STRIDE:
            raise AfireError(f"a ResNet sees cells of {STRIDE} pixels: set patch_size to {STRIDE}, not {patch_size}")
        if len(blocks) != 4 or min(blocks) < 1:
            raise AfireError(f"blocks must name a number for each of four stages, got {list(blocks)}")
        super().__init__(image_size, patch_size, WIDTHS[-1], sum(blocks), **options)
        self.config |= {"kind": "resnet", "blocks": list(blocks), "context": context}
        channels = (WIDTHS[0], *WIDTHS)
        self.feature_maps = tuple(FeatureMap(c, 2 << place) for place, c in enumerate(channels))
        resnet = ResNet(
            block="basic",
            layers=list(blocks),
            block_inplanes=list(WIDTHS),
            spatial_dims=2,
            n_input_channels=self.in_channels,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        synced_batch_norm(resnet)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, nn.ReLU())
        self.pool = resnet.maxpool
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4])
        self.contexts = nn.ModuleList(ContextBottleneck(c) if context else nn.Identity() for c in channels)
        # number of the first block of each stage, and one past the last
        self._first = [sum(blocks[:stage]) for stage in range(5)]

    def pyramid(self, images: Tensor, residual_scale: Tensor | None = None) -> list[Tensor]:
        """Return the re-weighed maps after the stem and each stage: strides 2, 4, 8, 16 and 32."""
        self.checked(images)
        x = self.contexts[0](self.stem(self.normalise(images)))
        maps = [x]
        x = self.pool(x)
        for number, stage in enumerate(self.stages):
            if residual_scale is None:
                x = stage(x)
            else:
                first, end = self._first[number : number + 2]
                x = _scaled_stage(stage, x, residual_scale[:, first:end])
            x = self.contexts[number + 1](x)
            maps.append(x)
        return maps

    def block_of(self, parameter: str) -> int:
        """Return how deep a parameter lies (:meth:`Encoder.block_of`); a bottleneck counts with the block before it."""
        part, *rest = parameter.split(".")
        if part == "stages":
            return self._first[int(rest[0])] + int(rest[1]) + 1
        return self._first[int(rest[0])] if part == "contexts" else 0

    def attribution_layer(self, block: int | None, class_token: bool) -> nn.Module:
        """Return a basic block, or the module whose output is the last map, from which all tokens are made.

        Raises AfireError for a block that does not exist.
        """
        if block is None:
            return self.contexts[-1]
        number = self._number_of(block)
        stage = sum(number >= first for first in self._first[1:4])
        stages: Any = self.stages
        return stages[stage][number - self._first[stage]]


def _scaled_stage(stage: nn.Module, x: Tensor, scale: Tensor) -> Tensor:
    """Run a stage with each block's change multiplied by a factor (B, blocks) for each image."""
    blocks: Any = stage
    for block, factor in zip(blocks, scale.T, strict=True):
        shortcut = x if block.downsample is None else block.downsample(x)
        change = block.bn2(block.conv2(block.act(block.bn1(block.conv1(x)))))
        x = block.act(shortcut + change * factor.view(-1, 1, 1, 1).to(change.dtype))
    return x
