"""Findings of the chest phantom: each turns a scene's attenuation into the abnormal one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from afire_monai.phantom.anatomy import Scene
from afire_monai.phantom.build import cage_table
from afire_monai.phantom.shapes import TABLE_AXIS, Array, Rng, blur, look_up, ramp
from afire_monai.phantom.vessels import branching_tree, splat


def _place(scene: Scene, rng: Rng, margin: float) -> tuple[float, float]:
    """A point (u, v) well inside a lung: where much lung is crossed and, by `margin`, away from the wall."""
    inside = (scene.lungs > 0) & (scene.reach < 1 - margin) & (scene.lung_depth > 0.5)
    rows, columns = np.nonzero(inside)
    pick = int(rng.integers(len(rows)))
    return float(scene.u[rows[pick], columns[pick]]), float(scene.v[rows[pick], columns[pick]])


def add_nodule(scene: Scene, rng: Rng) -> Array:
    """One soft sphere in a lung: attenuation (H, W) with it."""
    radius = rng.uniform(0.045, 0.10)
    u0, v0 = _place(scene, rng, 0.15)
    angle = np.arctan2(scene.v - v0, scene.u - u0)
    bend = 1 + 0.06 * np.sin(2 * angle + rng.uniform(0, 6.28)) + 0.04 * np.sin(5 * angle + rng.uniform(0, 6.28))
    distance = np.hypot(scene.u - u0, scene.v - v0) / (radius * bend)
    bump = np.sqrt(np.maximum(1 - distance * distance, 0)) * ramp((1 - distance) * 2.5)
    return scene.attenuation + (rng.uniform(1.6, 2.2) * (0.06 + radius)) * bump


def add_consolidation(scene: Scene, rng: Rng) -> Array:
    """Fluffy filling of airspace in one region, with bronchi left lucent: attenuation (H, W) with it."""
    size = scene.u.shape[0]
    u0, v0 = _place(scene, rng, 0.2)
    wide, high = rng.uniform(0.15, 0.26), rng.uniform(0.14, 0.26)
    same_side = scene.lungs == (1 if u0 < 0 else 2)
    distance = np.hypot((scene.u - u0) / wide, (scene.v - v0) / high)
    noise = sum(
        blur(rng.standard_normal((size, size), dtype=np.float32), size * s) * (size * s) for s in (0.008, 0.02, 0.045)
    )
    fill = ramp(1.25 - distance + 0.22 * noise) * same_side
    fill = gaussian_filter(fill.astype(np.float32), size * 0.006) * (scene.lung_depth > 0)
    hilum = np.array([[0.12 * np.sign(u0), scene.build.apex + 0.72]], dtype=np.float32)
    towards = np.arctan2(v0 - hilum[0, 1], u0 - hilum[0, 0])
    start = np.repeat(hilum, 4, axis=0)
    path = np.concatenate(branching_tree(rng, start, towards + np.linspace(-0.5, 0.5, 4), 0.17, 4, max(16, size // 10)))
    bronchi = np.minimum(gaussian_filter(splat(path, scene.u, scene.v), size * 0.005) * 1.6, 1)
    density = rng.uniform(0.45, 0.7)
    return scene.attenuation + fill * (density * scene.lung_depth * (1 - 0.45 * bronchi) - 0.7 * scene.vessels)


def add_effusion(scene: Scene, rng: Rng) -> Array:
    """Fluid at the base of one lung with a meniscus that climbs the wall: attenuation (H, W) with it."""
    right = rng.random() < 0.5
    build = scene.build
    dome_level = build.base + (0.0 if right else build.left_drop)
    level = dome_level - rng.uniform(-0.06, 0.30)
    climb = rng.uniform(0.14, 0.24)
    reach = np.clip(scene.reach, 0, 1)
    surface = level - climb * reach**5 + 0.10 * (1 - reach)
    depth = scene.v - surface
    fluid = 0.9 * ramp(depth * 9 + 0.25) * (scene.u < 0 if right else scene.u > 0)
    return scene.attenuation + fluid * (0.86 * scene.lung_depth - 0.8 * scene.vessels)


def add_pneumothorax(scene: Scene, rng: Rng) -> Array:
    """Air between lung and chest wall, widest at the tip, bounded by a pleural line: attenuation (H, W) with it."""
    side = 1 if rng.random() < 0.5 else 2
    build = scene.build
    gap, drop = rng.uniform(0.06, 0.16), rng.uniform(0.10, 0.22)
    end = build.apex + rng.uniform(0.7, 1.1)
    taper = np.sqrt(ramp((end - TABLE_AXIS) * 1.6))
    # the collapsed lung's outline: the cage's, lowered by `drop` and drawn in by `gap`, back at the wall below
    lowered = np.interp(TABLE_AXIS - drop * taper, TABLE_AXIS, cage_table(build))
    outline = look_up((lowered - gap * taper).astype(np.float32), scene.v)
    distance = np.abs(scene.u) - outline
    active = look_up((taper > 0.02).astype(np.float32), scene.v) * (scene.lungs == side)
    pocket = ramp(distance * 60) * active
    line = np.maximum(1 - np.abs(distance) / 0.011, 0) * active
    collapsed = scene.attenuation + 0.055 * line
    return collapsed - pocket * (0.9 * scene.vessels + 0.14 * scene.lung_depth)


FINDINGS: dict[str, Callable[[Scene, Rng], Array]] = {
    "nodule": add_nodule,
    "consolidation": add_consolidation,
    "effusion": add_effusion,
    "pneumothorax": add_pneumothorax,
}
