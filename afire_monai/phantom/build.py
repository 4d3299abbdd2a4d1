"""Proportions of one phantom patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afire_monai.phantom.shapes import TABLE_AXIS, Array, Rng


@dataclass(frozen=True)
class Build:
    """One patient's proportions in the patient frame; every field is drawn from the seed."""

    cage: float  # half width of the rib cage at its widest
    wall: float  # soft tissue outside the cage
    apex: float  # v of the lung tips
    base: float  # v of the right diaphragm's dome
    left_drop: float  # how much lower the left dome is
    heart: float  # scale of the heart
    turn: float  # how far the heart is thrown sideways by a turned patient
    spacing: float  # from rib to rib along the spine
    tilt: float  # how far a rib descends from back to front
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
