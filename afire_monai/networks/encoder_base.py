"""The interface of an encoder for tasks, probes and figures, whatever its architecture."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError


@dataclass(frozen=True)
class FeatureMap:
    """A map that an encoder offers to dense tasks."""

    channels: int  #: number of channels of the map
    stride: int  #: pixels of the picture for each of its cells, along a side


class Encoder(nn.Module, ABC):
    """Images to one token for the whole and one for each cell of a grid.

    Normalisation to the data set's grey-level mean and standard deviation is part of the encoder, so callers always
    give images in 0…1.

    Args:
        image_size: side in pixels, or (height, width); each must be a multiple of ``patch_size``.
        patch_size: side P in pixels of a cell.
        embed_dim: token width D.
        depth: number of residual blocks.
        in_channels: 1 for radiographs; 3 for released weights that were trained on grey images repeated thrice.
        mean: grey-level mean of the training data in 0…1, one value or one per channel.
        std: grey-level standard deviation in 0…1, one value or one per channel.
        check_range: refuse images outside 0…1 (costs a host synchronisation on a GPU; on for exported encoders).

    Raises:
        AfireError: if the image size is not a multiple of the patch size, or a value is out of range.
    """

    mean: Tensor
    std: Tensor
    #: arguments of the class as plain values, for `encoder_from_config`
    config: dict[str, Any]
    #: maps for dense tasks; the k-th serves a resolution of 1/2^(k+1), the last one is as coarse as the tokens
    feature_maps: tuple[FeatureMap, ...]

    def __init__(
        self,
        image_size: int | Sequence[int],
        patch_size: int,
        embed_dim: int,
        depth: int,
        in_channels: int = 1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        check_range: bool = False,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.embed_dim = embed_dim
        self.depth = depth
        self.image_size = (height, width)
        self.grid = self.grid_of(height, width)
        self.check_range = check_range
        means, deviations = self._per_channel(mean, "mean"), self._per_channel(std, "std")
        if min(deviations) <= 0:
            raise AfireError(f"std must be above zero, got {std}")
        self.register_buffer("mean", torch.tensor(means).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(deviations).view(1, -1, 1, 1), persistent=False)
        self.config = {
            "image_size": [height, width],
            "patch_size": patch_size,
            "in_channels": in_channels,
            "mean": means,
            "std": deviations,
        }

    def _per_channel(self, value: float | Sequence[float], name: str) -> list[float]:
        values = [float(value)] * self.in_channels if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(values) != self.in_channels or not all(math.isfinite(v) for v in values):
            raise AfireError(f"{name} must hold one finite value for each of {self.in_channels} channels, got {value}")
        return values

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the token grid (h, w) of an image size; AfireError if the patch size does not divide both sides."""
        p = self.patch_size
        if height < p or width < p or height % p or width % p:
            raise AfireError(
                f"image size {height} x {width} must be a multiple of the patch size {p} on both sides; "
                f"resize or pad to {math.ceil(height / p) * p} x {math.ceil(width / p) * p}"
            )
        return height // p, width // p

    def normalise(self, images: Tensor) -> Tensor:
        """Bring images (B, C, H, W) in 0…1 to zero mean and unit standard deviation of the training data."""
        return (images - self.mean) / self.std

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo :meth:`normalise`."""
        return images * self.std + self.mean

    def checked(self, images: Tensor) -> tuple[int, int]:
        """Return the token grid of images; AfireError for a wrong shape or range."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise AfireError(f"images must be (B, {self.in_channels}, H, W), got {tuple(images.shape)}")
        grid = self.grid_of(images.shape[2], images.shape[3])
        if self.check_range:
            low, high = images.aminmax()
            if not (low >= -1e-3 and high <= 1 + 1e-3):
                raise AfireError(
                    f"images must be in 0…1, got {low.item():.4g}…{high.item():.4g}; "
                    "read them with RadiographReader, or divide by the largest value of their type"
                )
        return grid

    def forward(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Encode images; where a class says nothing else, the token for the whole is the mean of the last map's cells.

        Args:
            images: (B, C, H, W) in 0…1; H and W multiples of the patch size, not necessarily the trained size.
            residual_scale: (B, depth), factor of each block's change: 0 leaves the block out for that image
                (stochastic depth); None for 1.

        Returns:
            (B, 1 + L, D): a token for the whole image, then the L patch tokens in row-major order.

        Raises:
            AfireError: for a wrong shape or, with ``check_range``, values outside 0…1.
        """
        cells = self.pyramid(images, residual_scale)[-1].flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], dim=1)

    @property
    def summary_dim(self) -> int:
        """Width of :meth:`summary`."""
        return 2 * self.embed_dim

    def summary(self, images: Tensor, residual_scale: Tensor | None = None) -> Tensor:
        """Return one vector an image for frozen use, (B, summary_dim); its last D columns are the mean patch token.

        Here class token and mean patch token side by side; encoders whose blocks have one width put those of half their
        depth before them.

        Args:
            images: as for :meth:`forward`.
            residual_scale: as for :meth:`forward`.
        """
        return summary_of([self(images, residual_scale)])

    @abstractmethod
    def pyramid(self, images: Tensor, residual_scale: Tensor | None = None) -> list[Tensor]:
        """Return the maps that :attr:`feature_maps` names, each (B, channels, H / stride, W / stride)."""

    @abstractmethod
    def block_of(self, parameter: str) -> int:
        """Return how deep a parameter lies, for learning rates that fall towards the input.

        Returns:
            0 before the first block, l + 1 in block l, depth + 1 after the last.
        """

    @abstractmethod
    def attribution_layer(self, block: int | None, class_token: bool) -> nn.Module:
        """Return the submodule whose output Grad-CAM weighs: tokens (B, 1 + L, D) or a map (B, D, h, w).

        Args:
            block: number of a block, counted from the end if negative; None for the last suitable place.
            class_token: whether only the token of the whole image goes on from the encoder.

        Raises:
            AfireError: for a block that does not exist.
        """

    def _number_of(self, block: int) -> int:
        if not -self.depth <= block < self.depth:
            raise AfireError(f"block must be in {-self.depth}…{self.depth - 1}, got {block}")
        return block % self.depth


def summary_of(states: Sequence[Tensor]) -> Tensor:
    """Return class token and mean patch token of each of some tokens (B, 1 + L, D), all side by side."""
    return torch.cat([part for tokens in states for part in (tokens[:, 0], tokens[:, 1:].mean(1))], 1)
