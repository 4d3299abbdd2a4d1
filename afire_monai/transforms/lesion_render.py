"""Drawing synthetic lesions: pure functions of images, uniform numbers and anatomy, in batches on any device.

Shapes are static and nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afire_monai.transforms.lesion_settings import FIELD_SIDE, GREY_LEVEL, TEXTURE_SIDE, LesionSettings, side_range

# kept values are at least one grey level; F.threshold keeps values above its threshold
_BELOW_GREY_LEVEL = math.nextafter(GREY_LEVEL, 0)
_WORK_SIDE = 64  # rows and columns in which opacities are drawn; they are smooth
# shares of the kinds of lesions in the lungs; the rest are nodules
_OPACITY, _LAYER = 0.55, 0.2


class Boxes(NamedTuple):
    """Lesions of a batch, each (B, N) whole numbers as float32, and how many of them there are, (B,)."""

    top: Tensor
    left: Tensor
    rows: Tensor
    columns: Tensor
    number: Tensor


def lesion_boxes(settings: LesionSettings, uniforms: Tensor, height: int, width: int) -> Boxes:
    """Turn uniform numbers into the boxes of the published lesions.

    Height and width are whole pixels, uniform in the range; the top left corner is uniform among the places where
    the lesion lies inside the image (this project's reading of "random position").

    Args:
        settings: the ranges.
        uniforms: (B, draws) float32 in [0, 1).
        height: image rows.
        width: image columns.
    """
    low, high = side_range(settings.lesion_side, height, width)
    slots = uniforms[:, settings.box_slice].unflatten(1, (-1, 4))
    rows = low + (slots[..., 0] * (high - low + 1)).floor()
    columns = low + (slots[..., 1] * (high - low + 1)).floor()
    top = (slots[..., 2] * (height - rows + 1)).floor()
    left = (slots[..., 3] * (width - columns + 1)).floor()
    fewest, most = settings.lesion_count
    return Boxes(top, left, rows, columns, fewest + (uniforms[:, 0] * (most - fewest + 1)).floor())


def added_by_lesions(
    settings: LesionSettings, images: Tensor, uniforms: Tensor, centers: Tensor, lungs: Tensor | None
) -> Tensor:
    """Compute the grey levels that lesions add, before clipping.

    Args:
        settings: sizes and options.
        images: (B, H, W) float32 in 0…1.
        uniforms: (B, draws) float32 in [0, 1).
        centers: (B, 2) row and column in pixels that the texture comes from.
        lungs: (B, 1, h, w) in 0…1, over the whole image; needed if ``settings.lung_probability`` is above 0.

    Returns:
        (B, H, W), at least one grey level where there is a lesion, and 0 elsewhere.
    """
    height, width = images.shape[1:]
    boxes = lesion_boxes(settings, uniforms, height, width)
    texture = _texture(settings, images, _texture_place(settings, uniforms, centers, height, width))
    if not settings.lung_probability:
        added = _draw_blobs(settings, texture, boxes, height, width)
    else:
        if lungs is None:
            raise ValueError("lesions in the lungs need a lung map")
        numbers = uniforms[:, settings.lung_slice]
        lungs = F.interpolate(lungs.float(), (_WORK_SIDE, _WORK_SIDE), mode="bilinear", align_corners=False)[:, 0]
        in_lungs = numbers[:, 0] < settings.lung_probability
        field = in_lungs & (numbers[:, 1] < _OPACITY + _LAYER)
        boxes = _move_to_lungs(settings, boxes, uniforms, lungs, in_lungs, (height, width))
        boxes = boxes._replace(number=boxes.number * ~field)
        opacity = _opacities(settings, numbers, lungs) * field[:, None, None]
        added = _draw_blobs(settings, texture, boxes, height, width)
        added = added + F.interpolate(opacity[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    if settings.free_probability:
        added = added * (uniforms[:, -1] >= settings.free_probability)[:, None, None]
    return F.threshold(added, _BELOW_GREY_LEVEL, 0.0)


def add_to_images(settings: LesionSettings, images: Tensor, added: Tensor, uniforms: Tensor) -> Tensor:
    """Add (or subtract, in the share of dark lesions); the clip never moves a pixel against the lesion's direction.

    Args:
        settings: settings with the clip and the share of dark lesions.
        images: (B, C, H, W) float32 in 0…1.
        added: (B, 1, H, W).
        uniforms: (B, draws).
    """
    bright = torch.maximum(images, (images + added).clamp(max=settings.ceiling))
    if settings.dark_probability == 0:
        return bright
    dark = torch.minimum(images, (images - added).clamp(min=settings.floor))
    return torch.where((uniforms[:, 1] < settings.dark_probability)[:, None, None, None], dark, bright)


# the published blobs --------------------------------------------------------------------------------------------------


def _texture_place(settings: LesionSettings, uniforms: Tensor, centers: Tensor, height: int, width: int) -> Tensor:
    """Return texture centres (B, 2) with the share that comes from elsewhere put in."""
    if settings.elsewhere_probability == 0:
        return centers
    anywhere = torch.stack([uniforms[:, 3] * (height - 1), uniforms[:, 4] * (width - 1)], dim=1)
    return torch.where(uniforms[:, 2:3] < settings.elsewhere_probability, anywhere, centers)


def _texture(settings: LesionSettings, images: Tensor, centers: Tensor) -> Tensor:
    """Cut weighted texture (B, t, t) from images (B, H, W), shifted inside where it would cross the border."""
    height, width = images.shape[1:]
    side = settings.texture_pixels(height, width)
    offsets = torch.arange(side, device=images.device)
    corner = (centers - ((side - 1) / 2 - 0.5)).floor().long()
    top, left = corner[:, 0].clamp(0, height - side), corner[:, 1].clamp(0, width - side)
    index = ((top[:, None] + offsets) * width)[:, :, None] + (left[:, None] + offsets)[:, None, :]
    patch = images.flatten(1).gather(1, index.flatten(1)).view(-1, side, side)
    low, high = images.amin((1, 2)), images.amax((1, 2))  # many times faster than aminmax on a CPU
    flat = (high - low < GREY_LEVEL) | (patch.flatten(1).amax(1) < 4 * GREY_LEVEL)
    return torch.where(flat[:, None, None], 0.5, patch) * _bell(side, settings, images.device)


def _bell(side: int, settings: LesionSettings, device: torch.device) -> Tensor:
    """Return an elliptical Gaussian exp(−(r²/0.5)^edge) on a (side, side) square, min-max scaled to 0…peak."""
    axis = (torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2) / (side / 2)
    squared = axis.square()[:, None] + axis.square()[None, :]
    bell = torch.exp(-((squared / 0.5) ** settings.edge))
    low, high = bell.amin(), bell.amax()
    return (bell - low) / (high - low) * settings.peak


def _draw_blobs(settings: LesionSettings, texture: Tensor, boxes: Boxes, height: int, width: int) -> Tensor:
    """Sum (B, H, W) the texture (B, t, t) resized to each box.

    Columns are resized for all lesions by one matrix product. Each output row then is a weighted sum of two of
    these rows per lesion: a product with a sparse matrix, which an embedding bag does without building it.
    """
    batch, side, _ = texture.shape
    count = boxes.top.shape[1]
    slots = torch.arange(count, device=texture.device)
    taps, weights = _bilinear(boxes.left, boxes.columns, width, side)  # (B, N, 2, W)
    across = texture.new_zeros(batch, side, count, width)
    across.scatter_(1, taps.transpose(1, 2), weights.transpose(1, 2))
    stretched = (texture @ across.flatten(2)).view(-1, width)  # row (b · t + i) · N + n
    taps, weights = _bilinear(boxes.top, boxes.rows, height, side)  # (B, N, 2, H)
    live = slots < boxes.number[:, None]
    images = torch.arange(batch, device=texture.device)[:, None, None, None] * side
    table = (images + taps) * count + slots[:, None, None]
    bags = table.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)  # (B · H, 2 · N)
    shares = (weights * live[:, :, None, None]).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)
    return F.embedding_bag(bags, stretched, mode="sum", per_sample_weights=shares).view(batch, height, width)


def _bilinear(start: Tensor, length: Tensor, size: int, side: int) -> tuple[Tensor, Tensor]:
    """Plan the bilinear resize of `side` samples to `length`, placed at `start` of `size` samples.

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


# lesions in the lungs -------------------------------------------------------------------------------------------------


def _move_to_lungs(
    settings: LesionSettings, boxes: Boxes, uniforms: Tensor, lungs: Tensor, in_lungs: Tensor, size: tuple[int, int]
) -> Boxes:
    """Make the boxes of some images nodules whose centres are drawn from the lung map.

    Args:
        settings: settings with the sides.
        boxes: the published ones, which the other images keep.
        uniforms: (B, draws).
        lungs: (B, 64, 64).
        in_lungs: (B,) bool, the images whose lesions lie in the lungs.
        size: height and width of the image.
    """
    height, width = size
    low, high = side_range(settings.nodule_side, height, width)
    slots = uniforms[:, settings.box_slice].unflatten(1, (-1, 4))
    rows = low + (slots[..., 0] * (high - low + 1)).floor()
    columns = (rows * (0.75 + 0.5 * slots[..., 1])).round().clamp(1, width)  # nearly round
    # whole numbers, whose running sum does not depend on the order of adding; a map without lungs gets one everywhere
    mass = (lungs.flatten(1) * 255).round().long() + 1
    running = mass.square().cumsum(1)
    target = (slots[..., 2] * running[:, -1:]).long()
    place = torch.searchsorted(running, target, right=True).clamp(max=running.shape[1] - 1)
    row = (place.div(_WORK_SIDE, rounding_mode="floor") + slots[..., 3]) * (height / _WORK_SIDE)
    column = (place % _WORK_SIDE + slots[..., 3]) * (width / _WORK_SIDE)
    top = (row - rows / 2).round().clamp(min=0).minimum(height - rows)
    left = (column - columns / 2).round().clamp(min=0).minimum(width - columns)
    chosen = [torch.where(in_lungs[:, None], *pair) for pair in zip((top, left, rows, columns), boxes[:4], strict=True)]
    return Boxes(chosen[0], chosen[1], chosen[2], chosen[3], boxes.number)


def _opacities(settings: LesionSettings, numbers: Tensor, lungs: Tensor) -> Tensor:
    """Draw opacities and layers inside the lungs (this project's own).

    An opacity is where a smooth random field exceeds a random level; a layer is the lowest part of each column of the
    lungs. Both are softened, multiplied by the lung map, by a texture and by a random strength; half of them are in
    one lung only.

    Args:
        settings: settings with the strength.
        numbers: (B, 311) uniform: share of lungs, kind, strength, extent, side, one unused, 49 knots, 256 knots.
        lungs: (B, 64, 64) in 0…1.
    """
    batch, side = len(lungs), lungs.shape[1:]
    kind, strength, extent, which = numbers[:, 1:5].T
    field = numbers[:, 6 : 6 + FIELD_SIDE**2].reshape(batch, 1, FIELD_SIDE, FIELD_SIDE)
    field = F.interpolate(field, side, mode="bicubic", align_corners=True)[:, 0]
    inside = lungs > 0.5
    low = torch.where(inside, field, 2.0).amin((1, 2), keepdim=True)
    high = torch.where(inside, field, -2.0).amax((1, 2), keepdim=True)
    level = 0.3 + 0.5 * (1 - extent)
    opacity = _soft_step((field - low) / (high - low).clamp(min=1e-3), level, 0.08)
    # share of each column's lung that lies above a place; by a product, as running sums differ between GPU runs
    rows = torch.ones(side, device=lungs.device).tril()
    above = (rows @ lungs) / lungs.sum(1, keepdim=True).clamp(min=1e-3)
    layer = _soft_step(above, 1 - (0.08 + 0.42 * extent), 0.05)
    drawn = torch.where((kind < _OPACITY)[:, None, None], opacity, layer)
    columns = torch.linspace(-1, 1, side[1], device=lungs.device)
    sign = torch.where(which < 0.25, 1.0, -1.0)[:, None]
    one_sided = torch.where((which < 0.5)[:, None], torch.sigmoid(columns * sign * 20), 1.0)
    grain = numbers[:, 6 + FIELD_SIDE**2 :].reshape(batch, 1, TEXTURE_SIDE, TEXTURE_SIDE)
    grain = F.interpolate(grain, side, mode="bilinear", align_corners=True)[:, 0]
    faint, strong = settings.lung_strength
    weight = (faint + (strong - faint) * strength)[:, None, None]
    return drawn * lungs * one_sided[:, None] * weight * (0.6 + 0.4 * grain)


def _soft_step(values: Tensor, level: Tensor, width: float) -> Tensor:
    """Return a step from 0 to 1 where (B, H, W) passes its image's level (B,), softened over a width."""
    return torch.sigmoid((values - level[:, None, None]) / width)
