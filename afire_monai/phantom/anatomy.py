"""Anatomy of the chest phantom: line integrals of tissue along the beam, in a patient frame.

Shapes are closed forms chosen for this project, not fitted to any data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

Array: TypeAlias = NDArray[np.floating[Any]]
Rng: TypeAlias = np.random.Generator

_TABLE = 4096
_SPAN = 1.6  # half range of the tables below, wider than any pixel of a rotated picture
TABLE_AXIS: Array = np.linspace(-_SPAN, _SPAN, _TABLE, dtype=np.float32)


def look_up(table: Array, coordinate: Array) -> Array:
    """Evaluate a function of one coordinate on the picture from its table over `TABLE_AXIS`.

    A gather is about ten times faster than powers and exponentials per pixel; a step is a tenth of a pixel at 256.

    Args:
        table: (4096,) values over `TABLE_AXIS`.
        coordinate: any shape, values outside the axis take its end values.
    """
    index = ((coordinate + _SPAN) * ((_TABLE - 1) / (2 * _SPAN)) + 0.5).astype(np.int32)
    return table[np.clip(index, 0, _TABLE - 1)]


def dome(x: Array) -> Array:
    """Half chord of a unit sphere, √(1 − x²) inside and 0 outside; same shape as `x`."""
    return _root(1 - x * x)


def ball(x: Array, y: Array) -> Array:
    """Half chord of a unit sphere, √(1 − x² − y²) inside and 0 outside; same shape as `x` and `y`."""
    squared = x * x
    squared += y * y
    return _root(1 - squared)


def ramp(x: Array) -> Array:
    """Smooth step from 0 at x ≤ 0 to 1 at x ≥ 1; same shape as `x`."""
    t = np.clip(x, 0, 1)
    result = -2 * t
    result += 3
    result *= t
    result *= t
    return result


def _root(x: Array) -> Array:
    """√x, 0 where x is negative, in place."""
    np.maximum(x, 0, out=x)
    return np.sqrt(x, out=x)


def window(u: Array, v: Array, side: float, lowest: float) -> tuple[slice, slice]:
    """Rows and columns that hold all pixels with |u| ≤ `side` and v ≤ `lowest`, for a turn of a few degrees."""
    columns = np.nonzero((np.abs(u[0]) <= side) | (np.abs(u[-1]) <= side))[0]
    rows = np.nonzero((v[:, 0] <= lowest) | (v[:, -1] <= lowest))[0]
    return slice(0, rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def blur(image: Array, width: float) -> Array:
    """Gaussian blur of a picture (H, W) by `width` pixels; wide ones as three running means, which is nearly the same.

    No matrix product is used: a threaded one is many times slower than this if every core already has a process.
    """
    if width < 3:
        return gaussian_filter(image, width, truncate=2.5, mode="nearest")
    box = round((4 * width**2 + 1) ** 0.5)
    for _ in range(3):
        image = uniform_filter(image, box, mode="nearest")
    return image


@dataclass(frozen=True)
class Build:
    """One patient's proportions in the patient frame; every field is drawn from the seed."""

    cage: float  # half width of the rib cage at its widest
    wall: float  # soft tissue outside the cage
    apex: float  # v of the lung tips
    base: float  # v of the right diaphragm's dome
    left_drop: float  # distance by which the left dome is lower
    heart: float  # scale of the heart
    turn: float  # sideways shift of the heart in a turned patient
    spacing: float  # distance from rib to rib along the spine
    tilt: float  # descent of a rib from back to front
    bone: float  # bone density
    vessels: float  # prominence of the vessels
    trunk: float  # depth of the torso
    breast: float  # thickness of breast tissue, 0 if none
    bubble: float  # radius of the gastric bubble, 0 if none
    arm_gap: float  # v where air shows between arm and chest

    @classmethod
    def draw(cls, rng: Rng) -> Build:
        """Draw a build from a generator."""
        habitus = rng.uniform(-1, 1)
        apex = rng.uniform(-0.80, -0.70)
        base = rng.uniform(0.36, 0.54) - 0.05 * habitus
        return cls(
            cage=rng.uniform(0.63, 0.71) + 0.03 * habitus,
            wall=0.12 + 0.05 * habitus + rng.uniform(0, 0.04),
            apex=apex,
            base=base,
            left_drop=rng.uniform(0.02, 0.08),
            heart=rng.uniform(0.88, 1.12),
            turn=rng.uniform(-0.03, 0.03),
            spacing=(base - apex) / rng.uniform(8.6, 9.8),
            tilt=rng.uniform(0.40, 0.56),
            bone=rng.uniform(0.8, 1.25),
            vessels=rng.uniform(0.7, 1.3),
            trunk=1.0 + 0.12 * habitus,
            breast=rng.uniform(0.08, 0.2) if rng.random() < 0.4 else 0.0,
            bubble=rng.uniform(0.05, 0.12) if rng.random() < 0.5 else 0.0,
            arm_gap=rng.uniform(-0.15, 0.15),
        )


def cage_table(build: Build) -> Array:
    """Half width of the rib cage's inside at each height, (4096,); 0 above the lung tips."""
    t = np.clip((TABLE_AXIS - build.apex) / 1.25, 0, 1)
    return (build.cage * (1 - (1 - t) ** 2.4) ** 0.43).astype(np.float32)


def _rib_profile(offset: Array, half: float) -> Array:
    """Path through a bony tube with a dense shell, by distance from its axis."""
    x = offset / half
    return dome(x) - 0.42 * dome(x / 0.74)


def ribs(build: Build, v: Array, side: Array, reach: Array) -> Array:
    """Ribs as tilted ellipses around the cage: one phase field gives all posterior arcs, another all anterior ones."""
    outer = np.minimum(reach * 0.975, 1)
    q = dome(outer)
    tilt = build.tilt * (0.55 + 0.45 * ramp((v - build.apex) * 1.1))
    slope = np.minimum(0.5 * tilt * outer / np.maximum(q * build.cage, 0.05), 1.3)
    narrow = build.spacing / np.sqrt(1 + slope * slope)
    total = np.zeros_like(v)
    for front, half, weight in ((-1, 0.034, 0.085), (1, 0.038, 0.060)):
        phase = (v - 0.5 * tilt * (1 + front * q) - build.apex - 0.02) / build.spacing
        index = np.round(phase)
        arc = _rib_profile(np.abs(phase - index) * narrow, half) * ((index >= 0) & (index <= 10))
        if front > 0:
            arc = arc * ramp((outer - 0.42) * 4) * ramp((build.base + 0.25 - v) * 4)
        total += weight * arc * (1 + 0.7 * slope)
    return total * ((reach * 0.975 < 1) & (side > 0.07))


def spine(build: Build, u: Array, v: Array) -> Array:
    """Vertebral column: bodies with dense end plates, discs, pedicles and spinous processes."""
    pitch = build.spacing * 1.02
    phase = (v - build.apex) / pitch
    offset = (phase - np.round(phase)) * 2  # -1…1 inside one vertebra and its disc
    solid = ramp((0.86 - np.abs(offset)) * 7)
    plate = np.maximum(1 - np.abs(np.abs(offset) - 0.74) * 9, 0)
    body = dome(np.clip(u / 0.092, -1, 1)) * (0.07 + 0.05 * solid + 0.04 * plate)
    pedicle = np.maximum(1 - np.hypot((np.abs(u) - 0.055) / 0.022, (offset + 0.25) / 0.34), 0)
    process = np.maximum(1 - np.hypot(u / 0.018, (offset - 0.45) / 0.5), 0)
    return body + 0.05 * pedicle + 0.06 * process


def shoulder_girdle(build: Build, side: Array, v: Array) -> Array:
    """Clavicles, scapulae and the heads of the arms."""
    x = np.clip(TABLE_AXIS, 0, 2)
    curve = build.apex + 0.24 - 0.17 * ramp((x - 0.05) * 1.5) + 0.025 * np.sin((x - 0.08) * 7.5)
    half = 0.034 + 0.018 * np.exp(-(((x - 0.08) / 0.06) ** 2))
    offset = np.abs(v - look_up(curve.astype(np.float32), side)) / look_up(half.astype(np.float32), side)
    clavicle = _rib_profile(offset, 1.0) * ramp((side - 0.055) * 40) * ramp((0.82 - side) * 20)
    edge = build.cage + 0.02
    blade = np.minimum(
        ramp((side - edge + 0.10 - 0.22 * (v + 0.1)) * 14),
        np.minimum(ramp((edge + 0.33 - side - 0.75 * (v + 0.55)) * 10), ramp((v - build.apex - 0.16) * 9)),
    )
    rim = blade * (1 - blade) * 2
    head = ball((side - 0.97) / 0.125, (v - build.apex - 0.16) / 0.135)
    shaft = _rib_profile(side - 1.06 - 0.05 * v, 0.075) * ramp((v - build.apex - 0.18) * 6)
    return 0.19 * clavicle + 0.05 * blade + 0.05 * rim + 0.16 * np.maximum(head, shaft)


def branching_tree(rng: Rng, start: Array, heading: Array, length: float, levels: int, points: int) -> list[Array]:
    """Grow a tree that forks at every level.

    Args:
        rng: generator.
        start: (N, 2) roots (u, v) of the N trunks.
        heading: (N,) direction of each trunk in radians, 0 to the right, positive down.
        length: length of a trunk in the patient frame; each level is 0.8 times as long.
        levels: number of generations of branches.
        points: number of points along a branch.

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


@dataclass(frozen=True)
class Scene:
    """A patient in the beam. All maps are (H, W)."""

    build: Build
    u: Array
    v: Array
    reach: Array  # |u| as a share of the cage's half width at that height, 1 at the inner chest wall
    lung_depth: Array  # path through aerated lung
    vessels: Array  # attenuation of the vessels alone
    attenuation: Array  # everything
    lungs: NDArray[np.uint8]  # 0 outside, 1 right lung (left half of the picture), 2 left lung


def patient_frame(size: int, rng: Rng) -> tuple[Array, Array]:
    """Coordinates (u, v) of each pixel, both (size, size), under a small random rotation, shift and scale."""
    angle, scale = np.deg2rad(rng.uniform(-3, 3)), rng.uniform(1.0, 1.16)
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (axis[None, :] - shift_x) / scale, (axis[:, None] - shift_y) / scale
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)


def build_scene(size: int, rng: Rng) -> Scene:
    """Draw a patient and integrate its tissues along the beam."""
    u, v = patient_frame(size, rng)
    build = Build.draw(rng)
    side = np.abs(u)
    reach = side / np.maximum(look_up(cage_table(build), v), 1e-3)
    central = _mediastinum(build, u, v)
    squared = reach * reach
    chest = 0.86 * dome(squared) * ramp((v - build.apex) * 8)
    above = _above_diaphragm(build, u, v)
    lung = np.maximum(chest - central, 0) * above
    tree = build.vessels * vessels(build, u, v, rng) * np.minimum(lung * 3, 1)
    soft = (
        build.trunk * _body(build, u, v, side)
        - 0.86 * lung
        + _abdomen(build, u, v) * (1 - above) * ramp((1.02 - reach) * 9)
    )
    tube = window(u, v, 0.25, build.apex + 0.8)
    soft[tube] -= _airways(build, u[tube], v[tube])
    bone = ribs(build, v, side, reach) + shoulder_girdle(build, side, v)
    column = window(u, v, 0.1, 2)
    bone[column] += spine(build, u[column], v[column])
    attenuation = np.maximum(soft, 0) + build.bone * bone + tree
    lungs = np.where(lung > 0.3, np.where(u < 0, 1, 2), 0).astype(np.uint8)
    return Scene(build, u, v, reach, lung, tree, attenuation.astype(np.float32), lungs)


def _body(build: Build, u: Array, v: Array, side: Array) -> Array:
    """Soft tissue of torso, shoulders, arms and neck, before the lungs are hollowed out."""
    height = np.clip((TABLE_AXIS + 0.9) / 0.9, 0, 1)
    half = build.cage + build.wall - 0.1 * (1 - height) + 0.04 * np.clip(TABLE_AXIS - 0.4, 0, 1)
    across = side / look_up(half.astype(np.float32), v)
    torso = dome(across * across * across) * look_up((0.72 + 0.28 * ramp(height * 1.3)).astype(np.float32), v)
    # the trapezius line: high at the neck, level over the shoulders
    top = build.apex - 0.06 - 0.30 * np.exp(-((np.clip(TABLE_AXIS - 0.1, 0, 2) / 0.22) ** 2)) + 0.10 * TABLE_AXIS**4
    below_top = v - look_up(top.astype(np.float32), side)
    over = np.sqrt(np.clip(below_top * 4, 0, 1))
    neck = 0.72 * dome(u / 0.27) * ramp((-0.5 - v) * 4)
    armpit = build.arm_gap + 0.05 - 0.9 * (side - build.cage - build.wall)
    shoulder = 0.74 * dome(side / 1.35) * ramp((armpit - v) * 3.5 + 0.3)
    arm = 0.55 * dome((side - 1.04 - 0.06 * v) / 0.19) * ramp((v + 0.75) * 2)
    breast = build.breast * dome((side - 0.40) / 0.30) * dome((v - build.base + 0.12) / 0.26)
    return np.maximum(np.maximum(np.maximum(torso, shoulder), arm) * over, neck) + breast


def _above_diaphragm(build: Build, u: Array, v: Array) -> Array:
    """Share of the lung's path above the diaphragm: 1 over the domes, a fading rest behind them."""
    centre, width = 0.35, build.cage - 0.28
    fall = 0.20 * (1 - dome(np.clip((np.abs(TABLE_AXIS) - centre) / (width * 1.06), -0.8, 1)))
    level = build.base + fall + build.left_drop * ramp(0.5 + TABLE_AXIS * 5)
    depth = v - look_up(level.astype(np.float32), u)
    return 0.90 * ramp(0.5 - depth * 50) + 0.10 * ramp(1 - depth * 5)


def _abdomen(build: Build, u: Array, v: Array) -> Array:
    """Extra tissue under the diaphragm: the liver on the right, a gastric bubble on the left at times."""
    extra = 0.12 + 0.10 * ramp(0.6 - u * 1.5)
    if build.bubble:
        top = build.base + build.left_drop + 0.06 + 0.6 * build.bubble
        extra = extra - 0.42 * ball((u - 0.30) / (1.7 * build.bubble), (v - top) / build.bubble)
    return extra


def _mediastinum(build: Build, u: Array, v: Array) -> Array:
    """Path through heart and great vessels; the heart's long axis points down to the patient's left."""
    k = build.heart
    du, dv = u - build.turn - 0.135 * k, v - (build.base - 0.155 * k)
    cos, sin = 0.85, 0.53
    along, across = (cos * du + sin * dv) / (0.365 * k), (cos * dv - sin * du) / (0.27 * k)
    heart = 1.05 * ball(along, across)
    atrium = 0.80 * ball((u - build.turn + 0.04) / (0.15 * k), (v - build.base + 0.14) / 0.33)
    rise = np.clip(TABLE_AXIS - build.apex, 0, 2)
    half = 0.135 + 0.07 * np.exp(-rise / 0.06) + 0.05 * np.clip(rise - 0.5, 0, 1)
    column = 1.10 * dome((u - 0.005) / look_up(half.astype(np.float32), v))
    arch_v = build.apex + 0.46
    knob = 0.9 * ball((u - 0.085) / 0.105, (v - arch_v) / 0.105)
    trunk = 0.75 * ball((u - 0.095) / 0.12, (v - arch_v - 0.23) / 0.14)
    aorta = 0.45 * dome((u - 0.075 + 0.05 * (v - arch_v)) / 0.075) * ramp((v - arch_v) * 8)
    return np.maximum.reduce([heart, atrium, column, knob, trunk, aorta])


def _airways(build: Build, u: Array, v: Array) -> Array:
    """Air in the trachea and the main bronchi (a lucency, to be taken off)."""
    fork = build.apex + 0.58
    trachea = dome((u + 0.01) / 0.042) * ramp((fork - v) * 12) * ramp((v + 1.15) * 4)
    fall = v - fork
    right = dome((u + 0.01 + 0.75 * fall) / 0.036)
    left = dome((u - 0.9 * fall) / 0.036)
    bronchi = np.maximum(right, left) * ramp(fall * 20 + 0.8) * ramp((0.17 - fall) * 8)
    return 0.17 * np.maximum(trachea, bronchi)
