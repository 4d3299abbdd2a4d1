"""Random views for self-supervised learning, batched on the device: crop, mirror, expose, blur, solarise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError


def crop_weights(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Return the matrices that cut an interval out of an axis and resample it, with a filter against aliasing.

    Linear interpolation where the interval is enlarged, a triangle as wide as two output pixels where it is reduced:
    what ``torch.nn.functional.interpolate(antialias=True)`` does, here for an interval of its own for each image.

    Args:
        start: (B,) beginning of the interval in pixels, 0 … ``size``; need not be whole.
        length: (B,) its length in pixels, above 0.
        size: pixels of the axis.
        out: pixels of the result.

    Returns:
        (B, out, size); rows sum to 1.
    """
    step = length[:, None] / out
    centre = start[:, None] + (torch.arange(out, device=start.device) + 0.5) * step
    source = torch.arange(size, device=start.device) + 0.5
    weights = (1 - (centre[:, :, None] - source).abs() / step.clamp(min=1)[:, :, None]).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def blur_weights(sigma: Tensor, size: int) -> Tensor:
    """Return the matrices of a Gaussian blur along an axis; nothing is taken from outside the picture.

    Args:
        sigma: (B,) standard deviation in pixels; 0 gives the identity.
        size: pixels of the axis.

    Returns:
        (B, size, size); rows sum to 1.
    """
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (place[:, None] - place) ** 2
    # a deviation this small leaves e^-200 for the next pixel
    weights = torch.exp(-distance / (2 * sigma.clamp(min=0.05) ** 2)[:, None, None])
    return weights / weights.sum(2, keepdim=True)


class ViewAugment(nn.Module):
    """Make one random view of each radiograph, a pure function of given uniform numbers.

    In this order: a crop of random area and shape, resampled to one size (see :func:`crop_weights`); a mirror image;
    brightness, then contrast; Gaussian blur; solarisation. As in BYOL and VICReg without colour, except: a crop that
    does not fit is cut to the picture's side rather than drawn again, crops need not begin on a whole pixel, and the
    order of brightness and contrast is fixed (this project's choices, so that a view needs a fixed count of numbers).
    Cropping, mirroring and blurring are matrices of their own for each image, applied as batched products.

    Args:
        output_size: side of the view in pixels, or (height, width).
        scale: least and largest share of the picture's area.
        ratio: least and largest width over height; drawn log-uniformly.
        flip: probability of a mirror image (left and right); it puts the heart on the right.
        jitter: probability that brightness and contrast change.
        brightness: grey levels are multiplied by 1 ± up to this.
        contrast: distances to the picture's mean are multiplied by 1 ± up to this.
        blur: probability of a blur.
        sigma: least and largest standard deviation of the blur, in pixels of the view.
        solarise: probability that grey levels of ``threshold`` and above are inverted, x → 1 − x. On radiographs,
            bright is dense: bone and mediastinum turn dark, lungs stay.
        threshold: threshold of the solarisation, 0…1.

    Raises:
        AfireError: for a range that is empty or outside its bounds, or a probability outside 0…1.

    Example:
        >>> import torch
        >>> ViewAugment(output_size=32)(torch.rand(2, 1, 64, 64), torch.rand(2, 11)).shape
        torch.Size([2, 1, 32, 32])
    """

    #: uniform numbers that one image needs
    draws = 11

    def __init__(
        self,
        output_size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        blur: float = 0.5,
        sigma: Sequence[float] = (0.1, 2.0),
        solarise: float = 0.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        height, width = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if min(height, width) < 1:
            raise AfireError(f"output_size must be at least 1 pixel, got {output_size}")
        for name, pair, top in (("scale", scale, 1.0), ("ratio", ratio, math.inf), ("sigma", sigma, math.inf)):
            least, most = pair if isinstance(pair, Sequence) and len(pair) == 2 else (0, 0)
            if not (0 < least <= most <= top and math.isfinite(most)):
                raise AfireError(f"{name} must be two ascending values above 0, at most {top}; got {pair}")
        shares = {"flip": flip, "jitter": jitter, "blur": blur, "solarise": solarise, "threshold": threshold}
        for name, value in {**shares, "brightness": brightness, "contrast": contrast}.items():
            if not 0 <= value <= 1:
                raise AfireError(f"{name} must be in 0…1, got {value}")
        self.output_size = (height, width)
        self.scale, self.ratio, self.sigma = tuple(scale), tuple(ratio), tuple(sigma)
        self.flip, self.jitter, self.brightness, self.contrast = flip, jitter, brightness, contrast
        self.blur, self.solarise, self.threshold = blur, solarise, threshold

    def boxes(self, uniforms: Tensor, size: tuple[int, int]) -> Tensor:
        """Return which part of the picture a view shows.

        Args:
            uniforms: (B, 11) in 0…1.
            size: height and width of the pictures in pixels.

        Returns:
            (B, 4): top, left, height, width in pixels, inside the picture.
        """
        u = uniforms[:, :4].T
        area = (self.scale[0] + u[0] * (self.scale[1] - self.scale[0])) * size[0] * size[1]
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = torch.exp(low + u[1] * (high - low))
        height, width = (area / ratio).sqrt().clamp(max=size[0]), (area * ratio).sqrt().clamp(max=size[1])
        return torch.stack([u[2] * (size[0] - height), u[3] * (size[1] - width), height, width], dim=1)

    @torch.no_grad()
    def forward(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Return the views, (B, C, height, width) float32 in 0…1.

        Args:
            images: (B, C, H, W) in 0…1.
            uniforms: (B, 11) in 0…1; a row decides all of its image's view.

        Raises:
            AfireError: for a wrong shape of either.
        """
        if images.ndim != 4 or uniforms.shape != (len(images), self.draws):
            raise AfireError(
                f"expected images (B, C, H, W) and uniforms (B, {self.draws}), got {tuple(images.shape)} and "
                f"{tuple(uniforms.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            views = self._crop(images.float(), uniforms)
            views = self._expose(views, uniforms)
            views = self._blur(views, uniforms)
            inverted = (uniforms[:, 10] < self.solarise)[:, None, None, None] & (views >= self.threshold)
            return torch.where(inverted, 1 - views, views)

    def _crop(self, images: Tensor, uniforms: Tensor) -> Tensor:
        h, w = images.shape[2:]
        top, left, height, width = self.boxes(uniforms, (h, w)).unbind(1)
        rows = crop_weights(top, height, h, self.output_size[0])[:, None]
        columns = crop_weights(left, width, w, self.output_size[1])[:, None]
        mirrored = (uniforms[:, 4] < self.flip)[:, None, None, None]
        columns = torch.where(mirrored, columns.flip(2), columns)
        return (rows @ images @ columns.mT).clamp(0, 1)

    def _expose(self, views: Tensor, uniforms: Tensor) -> Tensor:
        if not self.jitter:
            return views
        signed = (uniforms * 2 - 1)[:, :, None, None, None]
        changed = (views * (1 + signed[:, 6] * self.brightness)).clamp(0, 1)
        mean = changed.mean((1, 2, 3), keepdim=True)
        changed = (mean + (changed - mean) * (1 + signed[:, 7] * self.contrast)).clamp(0, 1)
        return torch.where((uniforms[:, 5] < self.jitter)[:, None, None, None], changed, views)

    def _blur(self, views: Tensor, uniforms: Tensor) -> Tensor:
        if not self.blur:
            return views
        sigma = self.sigma[0] + uniforms[:, 9] * (self.sigma[1] - self.sigma[0])
        rows = blur_weights(sigma, self.output_size[0])[:, None]
        columns = blur_weights(sigma, self.output_size[1])[:, None]
        blurred = (rows @ views @ columns.mT).clamp(0, 1)
        return torch.where((uniforms[:, 8] < self.blur)[:, None, None, None], blurred, views)


class RandomViews(nn.Module):
    """Make several views of each image, each from its own share of the uniform numbers.

    Args:
        views: makers of the views; at least one.

    Raises:
        AfireError: for no view.
    """

    def __init__(self, views: Sequence[ViewAugment]) -> None:
        super().__init__()
        if not views:
            raise AfireError("at least one view is needed")
        self.views = nn.ModuleList(views)
        #: height and width in pixels of each view
        self.sizes = [view.output_size for view in views]
        #: uniform numbers that one image needs
        self.draws = sum(view.draws for view in views)

    def forward(self, images: Tensor, uniforms: Tensor) -> list[Tensor]:
        """Return the views (B, C, height, width) of images (B, C, H, W) in 0…1, from uniforms (B, draws) in 0…1."""
        shares = uniforms.split([view.draws for view in self.views], dim=1)
        return [view(images, share) for view, share in zip(self.views, shares, strict=True)]
