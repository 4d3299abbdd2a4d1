"""Branching vessels of the chest phantom, grown as random trees and drawn by counting points into pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from afire_monai.phantom.build import Build
from afire_monai.phantom.shapes import Array, Rng, ball


def branching_tree(rng: Rng, start: Array, heading: Array, length: float, levels: int, points: int) -> list[Array]:
    """Grow a tree that forks at every level.

    Args:
        rng: generator.
        start: (N, 2) roots (u, v) of the N trunks.
        heading: (N,) direction of each trunk in radians, 0 to the right, positive down.
        length: length of a trunk in the patient frame; each level is 0.8 times as long.
        levels: how many generations of branches.
        points: points along a branch.

    Returns:
        For each level the (branches · points, 2) points (u, v) along its branches.
    """
    along = np.linspace(0, 1, points, dtype=np.float32)[None, :]
    result = []
    for level in range(levels):
        reach = length * 0.8**level * rng.uniform(0.7, 1.3, (len(start), 1))
        angle = heading[:, None] + rng.normal(0, 0.35, (len(start), 1)) * along
        step = np.stack([np.cos(angle), np.sin(angle)], -1) * (reach / points)[..., None]
        path = start[:, None, :] + np.cumsum(step, axis=1)
        result.append(path.reshape(-1, 2).astype(np.float32))
        fork = rng.uniform(0.15, 0.6, len(start))
        start = np.repeat(path[:, -1], 2, axis=0)
        heading = np.stack([angle[:, -1] - fork, angle[:, -1] + fork * rng.uniform(0.3, 1.0, len(fork))], 1).ravel()
    return result


def splat(points: Array, u: Array, v: Array) -> Array:
    """Count points (N, 2) of the patient frame into the picture's pixels (bilinear); result (H, W)."""
    size = u.shape[0]
    # the frame is a rotated square grid, so its inverse is affine and can be read off three corners
    across = u[0, 1] - u[0, 0], v[0, 1] - v[0, 0]
    down = u[1, 0] - u[0, 0], v[1, 0] - v[0, 0]
    du, dv = points[:, 0] - u[0, 0], points[:, 1] - v[0, 0]
    area = across[0] * down[1] - across[1] * down[0]
    column, row = (du * down[1] - dv * down[0]) / area, (dv * across[0] - du * across[1]) / area
    keep = (column >= 0) & (column < size - 1) & (row >= 0) & (row < size - 1)
    column, row = column[keep], row[keep]
    left, top = column.astype(np.int64), row.astype(np.int64)
    right_share, low_share = column - left, row - top
    flat = top * size + left
    index = np.concatenate([flat, flat + 1, flat + size, flat + size + 1])
    weight = np.concatenate(
        [
            (1 - right_share) * (1 - low_share),
            right_share * (1 - low_share),
            (1 - right_share) * low_share,
            right_share * low_share,
        ]
    )
    return np.bincount(index, weight, size * size).reshape(size, size).astype(np.float32)


def vessels(build: Build, u: Array, v: Array, rng: Rng) -> Array:
    """Attenuation of hila and pulmonary vessels, thinning outwards."""
    size = u.shape[0]
    hilum_v = build.apex + 0.70
    trunks = np.linspace(-1.35, 1.45, 9)
    heading = np.concatenate([trunks, np.pi - trunks]) + rng.normal(0, 0.12, 18)
    root_u = np.repeat([0.15, -0.15], 9)
    start = np.stack([root_u, np.where(root_u > 0, hilum_v - 0.03, hilum_v) + 0.10 * np.sin(heading)], 1)
    points = max(12, size // 16)
    levels = branching_tree(rng, start.astype(np.float32), heading, 0.19, 5, points)
    total = np.zeros_like(u)
    for path, sigma, mass in zip(
        levels, (0.016, 0.010, 0.007, 0.0045, 0.003), (0.62, 0.30, 0.13, 0.065, 0.035), strict=True
    ):
        # mass per point spread over a pixel's area: the sum stays the same at every picture size
        total = total + splat(path, u, v) * (mass * 12 / points * (size / 256))
        total = gaussian_filter(total, sigma * size / 4, truncate=2.0)
    hila = sum(0.19 * ball((u - c) / 0.12, (v - hilum_v - d) / 0.19) ** 2 for c, d in ((0.16, -0.02), (-0.16, 0.02)))
    return total + hila
