"""Anatomy of the chest phantom: line integrals of tissue along the beam, in a patient frame.

Shapes are closed forms chosen for this project, not fitted to any data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afire_monai.phantom.bones import ribs, shoulder_girdle, spine
from afire_monai.phantom.build import Build, cage_table
from afire_monai.phantom.shapes import TABLE_AXIS, Array, Rng, ball, dome, look_up, ramp, window
from afire_monai.phantom.vessels import vessels


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
    """Draw a patient and integrate its tissues along the beam.

    Args:
        size: side of the square picture in pixels.
        rng: generator that decides everything about the patient and its position.

    Returns:
        The scene, with maps of (size, size).
    """
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
