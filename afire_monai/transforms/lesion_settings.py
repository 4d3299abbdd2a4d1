"""Settings of the Synthetic Lesion Mask, and the meaning of its uniform numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from afire_monai.core.errors import AfireError

GREY_LEVEL = 1.0 / 255.0
FIELD_SIDE = 7  # knots of the smooth random field that an opacity follows
TEXTURE_SIDE = 16  # knots of the texture inside an opacity
_MINIMUM_SIDE = 8  # pixels; below it a lesion of the published range has no inside


@dataclass(frozen=True)
class LesionSettings:
    """Values of the Synthetic Lesion Mask (Liu et al., AAAI 2025), as fractions of the shorter image side.

    The defaults are the published ones: pixels of a 224 × 224 image, or 8-bit grey levels, as fractions. Everything
    after ``edge`` is this project's, and off by default.

    Args:
        texture_side: side of the square of the patient's own texture (published: 60 px).
        lesion_count: smallest and largest number of lesions, both included.
        lesion_side: smallest and largest height and width, drawn independently (published: 16 and 128 px).
        peak: weight of the texture in the middle of a lesion, 0…1.
        ceiling: a bright lesion is clipped here (published: 235 of 255). Pixels that are brighter already are kept.
        floor: a dark lesion is clipped here. Pixels that are darker already are kept.
        edge: exponent of the Gaussian's argument; 1 is published, larger gives a flatter lesion with a harder edge.
        dark_probability: share of images whose lesions are subtracted (lucency).
        elsewhere_probability: share of images whose texture comes from a place drawn uniformly.
        lung_probability: share of images whose lesions are placed by the lungs: opacities that follow a smooth random
            field inside them, layers at their base, and nodules centred in them.
        lung_strength: least and largest grey level, 0…1, that an opacity or a layer adds.
        nodule_side: smallest and largest side of a nodule.
        free_probability: share of images that get no lesion at all.

    Raises:
        AfireError: if a value is out of its range; the message names it.
    """

    texture_side: float = 60 / 224
    lesion_count: tuple[int, int] = (1, 4)
    lesion_side: tuple[float, float] = (16 / 224, 128 / 224)
    peak: float = 0.5
    ceiling: float = 235 / 255
    floor: float = 20 / 255
    edge: float = 1.0
    dark_probability: float = 0.0
    elsewhere_probability: float = 0.0
    lung_probability: float = 0.0
    lung_strength: tuple[float, float] = (0.08, 0.48)
    nodule_side: tuple[float, float] = (0.05, 0.25)
    free_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("texture_side", "peak"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        shares = ("dark_probability", "elsewhere_probability", "lung_probability", "free_probability")
        for name in ("ceiling", "floor", *shares):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "within 0…1")
        _require(self.floor < self.ceiling, "floor", self.floor, f"below ceiling = {self.ceiling}")
        _require(0 < self.edge < math.inf, "edge", self.edge, "above 0 and finite")
        for name in ("lesion_count", "lesion_side", "lung_strength", "nodule_side"):
            value = getattr(self, name)
            _require(len(value) == 2, name, value, "a pair (smallest, largest)")
            object.__setattr__(self, name, tuple(value))  # YAML gives lists; a frozen value must be hashable
        low, high = self.lesion_count
        whole = float(low).is_integer() and float(high).is_integer()
        _require(whole and 1 <= low <= high, "lesion_count", self.lesion_count, "whole numbers, 1 ≤ smallest ≤ largest")
        object.__setattr__(self, "lesion_count", (int(low), int(high)))  # 4.0 is one, too
        for name in ("lesion_side", "lung_strength", "nodule_side"):
            small, large = getattr(self, name)
            _require(0 < small <= large <= 1, name, (small, large), "0 < smallest ≤ largest ≤ 1")

    @property
    def draws(self) -> int:
        """Return how many uniform numbers one image takes."""
        return self.lung_slice.stop + (1 if self.free_probability else 0)

    # meaning of the uniform numbers, in this order: the number of lesions, their polarity, whether the texture comes
    # from elsewhere, its row and column; the height, width, top and left of each lesion; the numbers for the lungs;
    # and last, whether there is a lesion at all

    @property
    def box_slice(self) -> slice:
        """Return the place of the four numbers of each lesion."""
        return slice(5, 5 + 4 * self.lesion_count[1])

    @property
    def lung_slice(self) -> slice:
        """Return the place of the numbers of lesions in the lungs; empty if there are none."""
        start = self.box_slice.stop
        return slice(start, start + (6 + FIELD_SIDE**2 + TEXTURE_SIDE**2 if self.lung_probability else 0))

    def texture_pixels(self, height: int, width: int) -> int:
        """Return the side of the texture square, in pixels of an image of (height, width)."""
        return min(max(3, round(self.texture_side * min(height, width))), height, width)


def side_range(sides: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Return the smallest and largest side in pixels of an image of (height, width)."""
    side = min(height, width)
    low = max(1, round(sides[0] * side))
    return low, max(low, round(sides[1] * side))


def check_size(height: int, width: int, name: str = "image") -> None:
    """Refuse an image too small to hold a lesion."""
    if min(height, width) < _MINIMUM_SIDE:
        raise AfireError(f"'{name}' is {height} × {width} pixels; synthetic lesions need at least 8 a side.")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise AfireError(f"LesionSettings.{name} is {value!r}; expected {expected}.")
