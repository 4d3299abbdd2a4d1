"""Mild augmentation, batched on the device: changes as by a repeated exposure, another tube voltage or detector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError


class RadiographAugment(nn.Module):
    """Rotate, scale, move and re-expose radiographs.

    No mirror image by default: the heart is on the left. Everything is a function of given uniform numbers, so that a
    draw can be repeated. Pixels from outside the picture are black.

    Args:
        rotate: largest angle in degrees, either way.
        scale: largest relative change of size, either way.
        translate: largest shift as a fraction of the side, either way.
        gamma: the exponent is drawn log-uniformly from 1/(1 + gamma) … 1 + gamma.
        contrast: largest relative change of contrast about the picture's mean, either way.
        brightness: largest added grey level, either way.
        flip: probability of a mirror image (left and right).

    Raises:
        AfireError: for a value that is negative, or a probability above 1.

    Example:
        >>> import torch
        >>> images, mask = torch.rand(2, 1, 64, 64), torch.ones(2, 1, 64, 64)
        >>> changed, moved = RadiographAugment()(images, torch.rand(2, 8), mask)
        >>> changed.shape, moved.shape
        (torch.Size([2, 1, 64, 64]), torch.Size([2, 1, 64, 64]))
    """

    draws = 8

    def __init__(
        self,
        rotate: float = 10.0,
        scale: float = 0.1,
        translate: float = 0.05,
        gamma: float = 0.2,
        contrast: float = 0.2,
        brightness: float = 0.05,
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        if min(rotate, scale, translate, gamma, contrast, brightness, flip) < 0 or flip > 1 or scale >= 1:
            raise AfireError(
                "augmentation values must not be negative, scale must be below 1 and flip at most 1; got "
                f"rotate {rotate}, scale {scale}, translate {translate}, gamma {gamma}, contrast {contrast}, "
                f"brightness {brightness}, flip {flip}"
            )
        self.rotate, self.scale, self.translate = rotate, scale, translate
        self.flip = flip
        self.exposure = ExposureChange(gamma, contrast, brightness)

    def forward(self, images: Tensor, uniforms: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return changed images in 0…1, and masks changed in the same way (None if there was none).

        Args:
            images: (B, C, H, W) in 0…1.
            uniforms: (B, 8) in 0…1.
            mask: (B, K, H, W) of any values, NaN included; moved with nearest-neighbour sampling. New pixels are 0.
        """
        grid = F.affine_grid(self._matrices(uniforms, images), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, align_corners=False).clamp(0, 1)
        if mask is not None:
            mask = F.grid_sample(mask, grid, mode="nearest", align_corners=False)
        return self.exposure(moved, uniforms[:, 4:7]), mask

    def _matrices(self, uniforms: Tensor, images: Tensor) -> Tensor:
        """Return (B, 2, 3): where each output pixel comes from, in coordinates of -1…1."""
        signed = uniforms * 2 - 1
        angle = signed[:, 0] * math.radians(self.rotate)
        size = 1 + signed[:, 1] * self.scale
        mirror = torch.where(uniforms[:, 7] < self.flip, -1.0, 1.0)
        aspect = images.shape[2] / images.shape[3]  # a rotation must be one in pixels, not in -1…1
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = torch.stack([cos * mirror, -sin * aspect, signed[:, 2] * 2 * self.translate], dim=1)
        columns = torch.stack([sin / aspect * mirror, cos, signed[:, 3] * 2 * self.translate], dim=1)
        return torch.stack([rows, columns], dim=1).to(images.dtype)


class ExposureChange(nn.Module):
    """Change gamma, contrast, brightness and sharpness, a pure function of given uniform numbers.

    Args:
        gamma: the exponent is drawn log-uniformly from 1/(1 + gamma) … 1 + gamma.
        contrast: largest relative change of contrast about the picture's mean, either way.
        brightness: largest added grey level, either way.
        blur: largest standard deviation in pixels of a Gaussian blur, drawn uniformly from 0; it comes first.

    Raises:
        AfireError: for a value that is negative.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(ExposureChange()(images, torch.full((2, 3), 0.5)), images, atol=1e-6)
        True
    """

    def __init__(self, gamma: float = 0.4, contrast: float = 0.3, brightness: float = 0.08, blur: float = 0.0) -> None:
        super().__init__()
        if min(gamma, contrast, brightness, blur) < 0:
            raise AfireError(
                f"changes of exposure must not be negative, got gamma {gamma}, contrast {contrast}, "
                f"brightness {brightness}, blur {blur}"
            )
        self.gamma, self.contrast, self.brightness, self.blur = gamma, contrast, brightness, blur
        #: uniform numbers that one image needs
        self.draws = 4 if blur else 3

    def forward(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Change images.

        Args:
            images: (B, C, H, W) in 0…1.
            uniforms: (B, draws) in 0…1; 0.5 changes nothing, 0 as the fourth does not blur.
        """
        if self.blur:
            images = self._blurred(images, uniforms[:, 3] * self.blur)
        gamma, contrast, brightness = (uniforms[:, :3] * 2 - 1)[:, :, None, None, None].unbind(1)
        images = images.clamp(min=1e-4) ** torch.exp(gamma * math.log1p(self.gamma))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + contrast * self.contrast)
        return (images + brightness * self.brightness).clamp(0, 1)

    def _blurred(self, images: Tensor, deviations: Tensor) -> Tensor:
        """Blur each image by its own Gaussian, cut off at 4 of the largest deviations; edges are reflected."""
        radius = min(math.ceil(4 * self.blur), *(side - 1 for side in images.shape[2:]))
        steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        kernels = torch.softmax(-(steps**2) / (2 * deviations[:, None].clamp_min(1e-3) ** 2), 1)
        batch, channels = images.shape[:2]
        kernels = kernels.repeat_interleave(channels, 0)[:, None, :, None]
        flat = F.pad(images.flatten(0, 1)[None], (0, 0, radius, radius), mode="reflect")
        flat = F.conv2d(flat, kernels, groups=batch * channels)
        flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="reflect"), kernels.mT, groups=batch * channels)
        return flat[0].unflatten(0, (batch, channels))
