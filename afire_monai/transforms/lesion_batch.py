"""Synthetic Lesion Mask for a whole batch of tensors, on CPU or GPU, inside the training step."""

from __future__ import annotations

import math

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

from afire_monai.errors import AfireError
from afire_monai.transforms.lesion_search_batch import EnclosingCircle, largest_region, otsu_threshold
from afire_monai.transforms.lesion_settings import (
    GREY_LEVEL,
    LesionSettings,
    check_size,
    lesion_boxes,
    lesion_number,
)

# what is kept is at least one grey level; F.threshold keeps what is more than its threshold
_BELOW_GREY_LEVEL = math.nextafter(GREY_LEVEL, 0)


class SyntheticLesionMaskBatch(nn.Module):
    """Abnormal twins of a batch of normal images (Liu et al., AAAI 2025, Synthetic Lesion Mask).

    Same recipe and same distribution as `SyntheticLesionMask`. Everything random comes in as `uniforms`, so the
    caller decides how images are seeded and spread over processes. Shapes are static and nothing waits for the
    device. Values are not checked here (that would wait for the device): images must be finite and within 0…1.

    Args:
        settings: sizes and options; the published ones by default.
    """

    def __init__(self, settings: LesionSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or LesionSettings()
        self.draws = self.settings.draws
        self.circle = EnclosingCircle()

    @torch.no_grad()
    def forward(self, images: Tensor, uniforms: Tensor, centers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Make the twins.

        Args:
            images: (B, C, H, W) in 0…1, C equal channels.
            uniforms: (B, draws) float32, uniform in [0, 1).
            centers: (B, 2) from `texture_centers`, to save the search; searched if not given.

        Returns:
            Twins (B, C, H, W) of the images' type, and masks (B, 1, H, W) float32, 1 where lesion was added.

        Raises:
            AfireError: a shape does not fit.
        """
        self._check(images, uniforms)
        plain = images.as_tensor() if isinstance(images, MetaTensor) else images
        with torch.autocast(plain.device.type, enabled=False):
            uniforms = uniforms.to(device=plain.device, dtype=torch.float32, non_blocking=True)
            pictures = plain.float()
            if centers is None:
                centers = self.texture_centers(plain)
            blob = self._blob(pictures[:, 0], self._place(centers, uniforms, plain.shape[2], plain.shape[3]))
            added = self._render(blob, uniforms, plain.shape[2], plain.shape[3]).unsqueeze(1)
            twin = self._add(pictures, added, uniforms)
        return twin.to(plain.dtype), added.sign()

    @torch.no_grad()
    def texture_centers(self, images: Tensor) -> Tensor:
        """Centre of the smallest circle around the largest bright region (Otsu) of each image.

        Args:
            images: (B, C, H, W) in 0…1; the first channel is used.

        Returns:
            (B, 2) float32 row and column in pixels; the image centre for a constant image.
        """
        plain = images.as_tensor() if isinstance(images, MetaTensor) else images
        height, width = plain.shape[2:]
        rows, columns = self.settings.search_grid(height, width)
        with torch.autocast(plain.device.type, enabled=False):
            small = F.adaptive_avg_pool2d(plain[:, :1].float(), (rows, columns))[:, 0]
            levels = (small * 255).round().clamp(0, 255)
            bright = levels > otsu_threshold(levels)[:, None, None]
            found = bright.flatten(1).any(1)
            center = self.circle(largest_region(bright))
            row = torch.where(found, (center[:, 0] + 0.5) * (height / rows) - 0.5, (height - 1) / 2)
            column = torch.where(found, (center[:, 1] + 0.5) * (width / columns) - 0.5, (width - 1) / 2)
            return torch.stack([row, column], dim=1)

    def _check(self, images: Tensor, uniforms: Tensor) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise AfireError(f"images are {tuple(images.shape)} {images.dtype}; expected (B, C, H, W) floats in 0…1.")
        if uniforms.shape != (images.shape[0], self.draws):
            expected = (images.shape[0], self.draws)
            raise AfireError(f"uniforms are {tuple(uniforms.shape)}; expected (B, draws) = {expected}.")
        check_size(images.shape[2], images.shape[3], "images")

    def _place(self, centers: Tensor, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Texture centres (B, 2) with the share that comes from elsewhere put in."""
        if self.settings.elsewhere_probability == 0:
            return centers
        anywhere = torch.stack([uniforms[:, 3] * (height - 1), uniforms[:, 4] * (width - 1)], dim=1)
        return torch.where(uniforms[:, 2:3] < self.settings.elsewhere_probability, anywhere, centers)

    def _blob(self, pictures: Tensor, centers: Tensor) -> Tensor:
        """Weighted texture (B, t, t) cut from pictures (B, H, W)."""
        height, width = pictures.shape[1:]
        side = self.settings.texture_pixels(height, width)
        offsets = torch.arange(side, device=pictures.device)
        corner = (centers - ((side - 1) / 2 - 0.5)).floor().long()
        top, left = corner[:, 0].clamp(0, height - side), corner[:, 1].clamp(0, width - side)
        index = ((top[:, None] + offsets) * width)[:, :, None] + (left[:, None] + offsets)[:, None, :]
        patch = pictures.flatten(1).gather(1, index.flatten(1)).view(-1, side, side)
        low, high = pictures.amin((1, 2)), pictures.amax((1, 2))  # many times faster than aminmax on a CPU
        flat = (high - low < GREY_LEVEL) | (patch.flatten(1).amax(1) < 4 * GREY_LEVEL)
        return torch.where(flat[:, None, None], 0.5, patch) * _weights(side, self.settings, pictures.device)

    def _render(self, blob: Tensor, uniforms: Tensor, height: int, width: int) -> Tensor:
        """Sum (B, H, W) of the blobs (B, t, t) resized to their boxes.

        Columns are resized for all lesions by one matrix product. Each output row then is a weighted sum of two of
        these rows per lesion: a product with a sparse matrix, which an embedding bag does without building it.
        """
        batch, side, _ = blob.shape
        top, left, rows, columns = lesion_boxes(self.settings, uniforms, height, width)
        slots = torch.arange(top.shape[1], device=blob.device)
        taps, weights = _bilinear(left, columns, width, side)  # (B, N, 2, W)
        across = blob.new_zeros(batch, side, top.shape[1], width)
        across.scatter_(1, taps.transpose(1, 2), weights.transpose(1, 2))
        stretched = (blob @ across.flatten(2)).view(-1, width)  # row (b · t + i) · N + n
        taps, weights = _bilinear(top, rows, height, side)  # (B, N, 2, H)
        live = slots < lesion_number(self.settings, uniforms)[:, None]
        images = torch.arange(batch, device=blob.device)[:, None, None, None] * side
        table = (images + taps) * top.shape[1] + slots[:, None, None]
        bags = table.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)  # (B · H, 2 · N)
        shares = (weights * live[:, :, None, None]).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
        added = F.embedding_bag(bags, stretched, mode="sum", per_sample_weights=shares).view(batch, height, width)
        return F.threshold(added, _BELOW_GREY_LEVEL, 0.0)

    def _add(self, pictures: Tensor, added: Tensor, uniforms: Tensor) -> Tensor:
        """Add or subtract (B, 1, H, W); the clip never moves a pixel against the lesion's direction."""
        options = self.settings
        bright = torch.maximum(pictures, (pictures + added).clamp(max=options.ceiling))
        if options.dark_probability == 0:
            return bright
        dark = torch.minimum(pictures, (pictures - added).clamp(min=options.floor))
        return torch.where((uniforms[:, 1] < options.dark_probability)[:, None, None, None], dark, bright)


def _weights(side: int, settings: LesionSettings, device: torch.device | None = None) -> Tensor:
    """Elliptical Gaussian exp(−(r²/0.5)^edge) on a (side, side) square, min-max scaled to 0…peak."""
    axis = (torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2) / (side / 2)
    squared = axis.square()[:, None] + axis.square()[None, :]
    bell = torch.exp(-((squared / 0.5) ** settings.edge))
    low, high = bell.aminmax()
    return (bell - low) / (high - low) * settings.peak


def _bilinear(start: Tensor, length: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear resize of `side` samples to `length`, placed at `start` of `size` samples.

    Pixel areas are aligned (half-pixel centres) and the border value is repeated, as in most image libraries.

    Args:
        start: (B, N) first sample.
        length: (B, N) number of samples, at least 1.
        size: number of output samples.
        side: number of input samples, at least 2.

    Returns:
        The two input samples that each output sample takes, (B, N, 2, size) int64, and their weights, which are zero
        outside start…start + length.
    """
    position = torch.arange(size, device=start.device, dtype=torch.float32) - start[:, :, None]
    inside = (position >= 0) & (position < length[:, :, None])
    source = ((position + 0.5) * (side / length[:, :, None]) - 0.5).clamp(0, side - 1)
    lower = source.floor().clamp(max=side - 2)
    share = source - lower
    weights = torch.stack([1 - share, share], dim=2) * inside[:, :, None]
    return torch.stack([lower, lower + 1], dim=2).long(), weights
