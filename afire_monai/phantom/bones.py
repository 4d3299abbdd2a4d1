"""Bones of the chest phantom: ribs, spine and shoulder girdle, as attenuation in units of one torso depth of tissue."""

from __future__ import annotations

import numpy as np

from afire_monai.phantom.build import Build
from afire_monai.phantom.shapes import TABLE_AXIS, Array, ball, dome, look_up, ramp


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
