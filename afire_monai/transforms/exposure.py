"""Changes of exposure: what another tube voltage, detector or display curve does to the same chest."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai.core.errors import AfireError


class ExposureChange(nn.Module):
    """Change gamma, contrast and brightness, a pure function of given uniform numbers.

    Args:
        gamma: the exponent is drawn log-uniformly from 1/(1 + gamma) … 1 + gamma.
        contrast: largest relative change of contrast about the picture's mean, either way.
        brightness: largest added grey level, either way.

    Raises:
        AfireError: for a value that is negative.
    """

    #: uniform numbers that one image needs
    draws = 3

    def __init__(self, gamma: float = 0.4, contrast: float = 0.3, brightness: float = 0.08) -> None:
        super().__init__()
        if min(gamma, contrast, brightness) < 0:
            raise AfireError(
                f"changes of exposure must not be negative, got gamma {gamma}, contrast {contrast}, "
                f"brightness {brightness}"
            )
        self.gamma, self.contrast, self.brightness = gamma, contrast, brightness

    def forward(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Change images.

        Args:
            images: (B, C, H, W) in 0…1.
            uniforms: (B, 3) in 0…1; 0.5 changes nothing.

        Returns:
            (B, C, H, W) in 0…1.
        """
        gamma, contrast, brightness = (uniforms * 2 - 1)[:, :, None, None, None].unbind(1)
        images = images.clamp(min=1e-4) ** torch.exp(gamma * math.log1p(self.gamma))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + contrast * self.contrast)
        return (images + brightness * self.brightness).clamp(0, 1)
