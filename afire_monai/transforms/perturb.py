"""Changes of appearance that a network learns to undo, batched on the device (Models Genesis, as PEAC uses it)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError

# points at which an intensity curve is computed; it is straight between them
CURVE_POINTS = 256
_WORD = 0xFFFFFFFF


def whole_numbers(uniforms: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Turn uniform numbers in 0…1 into int64 whole numbers from ``low`` to ``high``, both included."""
    span = high - low
    return low + (uniforms * (span + 1)).long().clamp_max(span)


def hashed_uniforms(keys: Tensor, count: int) -> Tensor:
    """Return many independent-looking numbers for each image from two, the same on every device.

    A perturbation needs a number a pixel; drawing those on the CPU for the global batch would take longer than a step.

    Args:
        keys: (B, 2) uniform numbers in 0…1.
        count: numbers an image.

    Returns:
        (B, count) float32 in 0…1, 1 excluded: a hash of key and place, with 24 bits.
    """
    first, second = (keys * 2**24).long().unbind(1)  # a power of two, so float32 is exact
    place = torch.arange(count, device=keys.device)
    mixed = _mix(_mix(place)[None] ^ (first + 1)[:, None])
    mixed = _mix((mixed + (second + 1)[:, None] * 256) & _WORD)
    return (mixed >> 8).float() / 2**24


def _mix(words: Tensor) -> Tensor:
    """Scramble 32-bit words held in int64: two rounds of xor-shift and multiplication, which cannot overflow."""
    for _ in range(2):
        words = ((words ^ (words >> 16)) * 0x45D9F3B) & _WORD
    return words ^ (words >> 16)


def shuffle_windows(images: Tensor, uniforms: Tensor, windows: int, largest: float) -> Tensor:
    """Shuffle the pixels within random windows; where windows overlap, the last one counts.

    Each window takes its pixels from the original image, as released.

    Args:
        images: (B, C, H, W).
        uniforms: (B, 4 · windows + 2) in 0…1.
        windows: number of windows.
        largest: largest side of a window, as a fraction of the image's; at least one pixel.

    Returns:
        (B, C, H, W); all channels are shuffled alike.
    """
    batch, channels, height, width = images.shape
    tallest, widest = max(1, int(height * largest)), max(1, int(width * largest))
    place, keys = uniforms.tensor_split([4 * windows], dim=1)
    place = place.reshape(batch, windows, 4)
    rows, columns = whole_numbers(place[..., 0], 1, tallest), whole_numbers(place[..., 1], 1, widest)
    top = whole_numbers(place[..., 2], 0, height - rows)
    left = whole_numbers(place[..., 3], 0, width - columns)
    slots = torch.arange(tallest * widest, device=images.device)
    inside = slots < (rows * columns)[..., None]
    # sorting random keys permutes the slots of a window among themselves: slots outside it have the highest keys
    random = hashed_uniforms(keys, windows * len(slots)).view(batch, windows, -1).masked_fill(~inside, 2.0)
    order = random.argsort(stable=True, dim=-1)

    def pixels(slot: Tensor) -> Tensor:
        row = top[..., None] + slot // columns[..., None]
        return row * width + left[..., None] + slot % columns[..., None]

    number = torch.arange(1, windows * len(slots) + 1, device=images.device).expand(batch, -1)
    # slots outside a window write to a pixel after the last one
    target = torch.where(inside, pixels(slots), height * width).flatten(1)
    latest = torch.zeros(batch, height * width + 1, dtype=torch.long, device=images.device)
    latest = latest.scatter_reduce(1, target, number, "amax")[:, :-1]
    moved = pixels(order).flatten(1).gather(1, (latest - 1).clamp_min(0))
    source = torch.where(latest > 0, moved, torch.arange(height * width, device=images.device))
    return images.flatten(2).gather(2, source[:, None].expand(-1, channels, -1)).view_as(images)


def permute_patches(images: Tensor, order: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rearrange whole patches.

    Args:
        images: (B, C, H, W).
        order: (B, L) int64; place k of the result shows patch ``order[k]``; ``order.argsort(1)`` undoes it.
        grid: rows and columns (h, w) of patches, which divide the image's sides.
    """
    batch, channels, height, width = images.shape
    h, w = grid
    patches = images.reshape(batch, channels, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    patches = patches.gather(1, order[:, :, None, None, None].expand_as(patches)).unflatten(1, grid)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def bend_intensities(images: Tensor, uniforms: Tensor, falling: float) -> Tensor:
    """Send grey levels through a random cubic Bézier curve from (0, 0) to (1, 1), or mirrored, from (0, 1) to (1, 0).

    With both inner control points in the unit square such a curve is monotone, so no grey levels are confused.

    Args:
        images: (B, C, H, W) in 0…1.
        uniforms: (B, 5) in 0…1: both inner control points, and whether the curve falls.
        falling: probability of a falling curve, which inverts the picture.
    """
    t = torch.linspace(0, 1, CURVE_POINTS, device=images.device)
    early, late = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2
    x = uniforms[:, 0:1] * early + uniforms[:, 2:3] * late + t**3
    y = uniforms[:, 1:2] * early + uniforms[:, 3:4] * late + t**3
    y = torch.where(uniforms[:, 4:5] < falling, y.flip(1), y)
    grey = images.flatten(1).contiguous()
    right = torch.searchsorted(x, grey).clamp(1, CURVE_POINTS - 1)
    x0, x1, y0, y1 = (v.gather(1, at) for v in (x, y) for at in (right - 1, right))
    share = ((grey - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
    return torch.lerp(y0, y1, share).view_as(images)


def paint_noise(images: Tensor, uniforms: Tensor, outside: float) -> Tensor:
    """Paint noise over blocks (in-painting), or over everything but blocks (out-painting).

    Blocks as released: up to five, each after the first (in-painting: and the first) with probability 0.95 if the one
    before is there; sides of 1/6 … 1/3 of the image's for in-painting, 3/7 … 4/7 for out-painting; three pixels from
    the border.

    Args:
        images: (B, C, H, W) in 0…1.
        uniforms: (B, 28) in 0…1.
        outside: probability of out-painting.

    Returns:
        (B, C, H, W) in 0…1, the noise uniform, independent for each pixel, and equal in all channels.
    """
    height, width = images.shape[2:]
    out = uniforms[:, :1] < outside
    blocks = uniforms[:, 1:26].view(-1, 5, 5)
    there = blocks[..., 0] < 0.95
    there = torch.cat([there[:, :1] | out, there[:, 1:]], dim=1).cumprod(1).bool()

    def along(axis: int, side: int) -> Tensor:
        low = torch.where(out, side - 4 * side // 7, max(1, side // 6))
        high = torch.where(out, side - 3 * side // 7, max(1, side // 3))
        length = whole_numbers(blocks[..., 1 + axis], low, high)
        start = whole_numbers(blocks[..., 3 + axis], 3, (side - length - 3).clamp_min(3)).minimum(side - length)
        place = torch.arange(side, device=images.device)
        return (place >= start[..., None]) & (place < (start + length)[..., None])

    block = along(0, height)[..., :, None] & along(1, width)[..., None, :] & there[..., None, None]
    noisy = (block.any(1) ^ out[:, :, None])[:, None]
    noise = hashed_uniforms(uniforms[:, 26:28], height * width).view(-1, 1, height, width)
    return torch.where(noisy, noise.to(images.dtype), images)


class AppearancePerturbation(nn.Module):
    """Shuffle pixels locally, bend intensities, paint noise: what PEAC's appearance branch restores (arXiv 2312.00335).

    Everything is a function of given uniform numbers, so a draw can be repeated.

    Args:
        windows: number of windows of local pixel shuffling; 40 as released.
        largest_window: largest side of a window as a fraction of the image's; a tenth as released.
        curve_probability: probability of an intensity curve; 0.9 as released.
        falling: share of curves that fall and so invert the picture; 0.5 as released.
        paint_probability: probability of in- or out-painting; 0.9 as released.
        outside: share of out-painting; 0.8 as released.

    Raises:
        AfireError: for a value that is out of its range.
    """

    def __init__(
        self,
        windows: int = 40,
        largest_window: float = 0.1,
        curve_probability: float = 0.9,
        falling: float = 0.5,
        paint_probability: float = 0.9,
        outside: float = 0.8,
    ) -> None:
        super().__init__()
        chances = (curve_probability, falling, paint_probability, outside)
        if windows < 0 or not 0 < largest_window <= 1 or min(chances) < 0 or max(chances) > 1:
            raise AfireError(
                "windows must not be negative, largest_window must be above 0 and at most 1, probabilities must be in "
                f"0…1; got windows {windows}, largest_window {largest_window}, curve_probability {curve_probability}, "
                f"falling {falling}, paint_probability {paint_probability}, outside {outside}"
            )
        self.windows, self.largest_window = windows, largest_window
        self.curve_probability, self.falling = curve_probability, falling
        self.paint_probability, self.outside = paint_probability, outside
        self.sizes = [4 * windows + 2, 1, 5, 1, 28]
        self.draws = sum(self.sizes)

    @torch.no_grad()
    def forward(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Perturb images."""
        with torch.autocast(images.device.type, enabled=False):
            window, curve, points, paint, blocks = uniforms.float().split(self.sizes, dim=1)
            images = images.float()
            if self.windows:
                images = shuffle_windows(images, window, self.windows, self.largest_window)
            bent = bend_intensities(images, points, self.falling)
            images = torch.where(curve[:, :, None, None] < self.curve_probability, bent, images)
            painted = paint_noise(images, blocks, self.outside)
            return torch.where(paint[:, :, None, None] < self.paint_probability, painted, images)
