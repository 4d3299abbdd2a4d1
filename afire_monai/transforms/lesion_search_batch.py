"""The search of `lesion_search` for a batch of tensors: static shapes, no wait for the device, no chance."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DIRECTIONS = 16  # the circle is exact for the region's extreme points in these directions: within 2 % of its radius
_ROUNDS = 6  # of label hooking; radiographs need at most 5, noise at the percolation threshold 6


def otsu_threshold(levels: Tensor) -> Tensor:
    """Otsu's threshold of each image; foreground is what lies above it.

    Args:
        levels: (B, h, w) float32 whole grey levels 0…255.

    Returns:
        (B,) float32 whole grey levels.
    """
    flat = levels.flatten(1).long()
    # counts are whole numbers: their sum does not depend on the order in which a GPU adds them
    counts = flat.new_zeros(flat.shape[0], 256).scatter_add_(1, flat, torch.ones_like(flat))
    share = counts.float() / flat.shape[1]
    values = torch.arange(256, device=levels.device, dtype=torch.float32)
    below = share.cumsum(1)
    moment = (share * values).cumsum(1)
    spread = (moment[:, -1:] * below - moment).square() / (below * (1 - below)).clamp(min=1e-7)
    return spread.argmax(1).float()


def connected_labels(mask: Tensor, diagonal: bool) -> Tensor:
    """Label connected regions.

    A label is the largest index of a cell in its region. Each round takes the neighbours' largest label, hands it to
    the cell that the old label points to, and follows labels to labels: the number of rounds grows with the logarithm
    of a region's length.

    Args:
        mask: (B, h, w) bool, false in the outermost rows and columns.
        diagonal: 8 neighbours instead of 4.

    Returns:
        (B, h·w) int64 index of a cell in row order, 0 outside the mask.
    """
    batch, height, width = mask.shape
    # indices of a reduced grid fit 16 bits, and looking at neighbours is bound by memory
    small = torch.int16 if height * width < 2**15 else torch.int64
    inner = mask[:, 1:-1, 1:-1].to(small)
    labels = torch.arange(height * width, device=mask.device) * mask.flatten(1)
    for _ in range(_ROUNDS):
        seen = _neighbours(labels.to(small).view(batch, height, width), diagonal) * inner
        found = F.pad(seen, (1, 1, 1, 1)).flatten(1).long()
        labels = found.scatter_reduce(1, labels, found, "amax")
        labels = labels.gather(1, labels)
        labels = labels.gather(1, labels)
    return labels


def _neighbours(grid: Tensor, diagonal: bool) -> Tensor:
    """Largest value of each inner cell and its 8 (or 4) neighbours: (B, h, w) to (B, h - 2, w - 2).

    Slices instead of max-pooling, which takes no whole numbers on a GPU and is several times slower on a CPU.
    """
    if diagonal:
        two = torch.maximum(grid[:, 1:], grid[:, :-1])
        rows = torch.maximum(two[:, 1:], two[:, :-1])
        two = torch.maximum(rows[:, :, 1:], rows[:, :, :-1])
        return torch.maximum(two[:, :, 1:], two[:, :, :-1])
    upright = torch.maximum(grid[:, 2:, 1:-1], grid[:, :-2, 1:-1])
    level = torch.maximum(grid[:, 1:-1, 2:], grid[:, 1:-1, :-2])
    return torch.maximum(torch.maximum(upright, level), grid[:, 1:-1, 1:-1])


def largest_region(bright: Tensor) -> Tensor:
    """Cells of the region with the largest outline: 8-connected, its holes counted as its own.

    Args:
        bright: (B, h, w) bool.

    Returns:
        (B, h, w) bool; all false where nothing is bright.
    """
    dark = F.pad(F.pad(~bright, (1, 1, 1, 1), value=True), (1, 1, 1, 1))  # the rim joins all that reaches the border
    labels = connected_labels(dark, diagonal=False).view_as(dark)
    outside = labels[:, 1:-1, 1:-1] == labels[:, -2:-1, -2:-1]
    filled = ~outside
    labels = connected_labels(filled, diagonal=True)
    counts = torch.zeros_like(labels).scatter_add_(1, labels, (labels > 0).long())
    ranked = counts * labels.shape[1] + torch.arange(labels.shape[1], device=labels.device)  # no two are equal
    winner = ranked.argmax(1, keepdim=True)
    return ((labels == winner) & filled.flatten(1)).view_as(filled)[:, 1:-1, 1:-1]


class EnclosingCircle(nn.Module):
    """Centre of the smallest circle around the cells of a region.

    The ends of each row hold every corner of the convex hull. Of these the extreme points in fixed directions are
    taken; the smallest circle's centre is the middle of two of them or the circumcentre of three, so it is the
    candidate whose farthest point is nearest.
    """

    directions: Tensor
    pairs: Tensor
    triples: Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(_DIRECTIONS) * (2 * math.pi / _DIRECTIONS)
        self.register_buffer("directions", torch.stack([angles.sin(), angles.cos()], dim=1), persistent=False)
        for name, size in (("pairs", 2), ("triples", 3)):
            index = torch.tensor(list(itertools.combinations(range(_DIRECTIONS), size))).T.contiguous()
            self.register_buffer(name, index, persistent=False)

    def forward(self, region: Tensor) -> Tensor:
        """Centres (B, 2) float32, row and column in cells, of regions (B, h, w) bool that are not empty."""
        columns = torch.arange(region.shape[2], device=region.device, dtype=torch.float32)
        rows = torch.arange(region.shape[1], device=region.device, dtype=torch.float32)
        first = torch.where(region, columns, math.inf).amin(2)
        last = torch.where(region, columns, -math.inf).amax(2)
        x = torch.cat([first, last], dim=1)
        y = torch.cat([rows, rows]).expand_as(x)
        reach = self.directions[:, :1] * y[:, None] + self.directions[:, 1:] * x[:, None]
        extreme = torch.where(x.isfinite()[:, None], reach, -math.inf).argmax(2)
        points = torch.stack([y.gather(1, extreme), x.gather(1, extreme).nan_to_num(0, 0, 0)], dim=2)
        middles = points[:, self.pairs].mean(1)
        candidates = torch.cat([middles, _circumcenters(points[:, self.triples])], dim=1)
        # |c − p|² = |c|² + (|p|² − 2 c·p): one small matrix product instead of all differences
        reach = torch.baddbmm(points.square().sum(2)[:, None], candidates, points.transpose(1, 2), alpha=-2)
        best = (reach.amax(2) + candidates.square().sum(2)).argmin(1)
        return candidates.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0]


def _circumcenters(corners: Tensor) -> Tensor:
    """Circumcentres (B, T, 2) of triangles (B, 3, T, 2); far away where the corners lie on one line."""
    origin = corners[:, 0]
    one, two = corners[:, 1] - origin, corners[:, 2] - origin
    cross = 2 * (one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0])
    square_one, square_two = one.square().sum(-1), two.square().sum(-1)
    y = two[..., 1] * square_one - one[..., 1] * square_two
    x = one[..., 0] * square_two - two[..., 0] * square_one
    offset = torch.stack([y, x], dim=-1) / torch.where(cross == 0, 1.0, cross)[..., None]
    return torch.where((cross == 0)[..., None], 1e6, origin + offset)
