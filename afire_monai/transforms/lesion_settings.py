"""What both forms of the Synthetic Lesion Mask share: settings, the record of one draw, and the geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from afire_monai.errors import AfireError

Polarity = Literal["bright", "dark"]

_DRAWS_PER_IMAGE = 5  # count, polarity, texture from elsewhere, and its row and column
_DRAWS_PER_LESION = 4  # height, width, top, left
_MINIMUM_SIDE = 8  # pixels; below it a lesion of the published range has no inside
GREY_LEVEL = 1.0 / 255.0


@dataclass(frozen=True)
class LesionSettings:
    """Values of the Synthetic Lesion Mask (Liu et al., AAAI 2025), as fractions of the shorter image side.

    The defaults are the published ones: pixels of a 224 × 224 image, or 8-bit grey levels, as fractions.

    Args:
        texture_side: side of the square of the patient's own texture (published: 60 px).
        lesion_count: smallest and largest number of lesions, both included.
        lesion_side: smallest and largest height and width, drawn independently (published: 16 and 128 px).
        peak: weight of the texture in the middle of a lesion, 0…1.
        ceiling: a bright lesion is clipped here (published: 235 of 255). Pixels that are brighter already are kept.
        floor: a dark lesion is clipped here. Pixels that are darker already are kept.
        dark_probability: share of images whose lesions are subtracted (lucency). Not in the paper, off by default.
        elsewhere_probability: share of images whose texture comes from a place drawn uniformly. Off by default.
        edge: exponent of the Gaussian's argument; 1 is published, larger gives a flatter lesion with a harder edge.
        search_side: the place of the texture is searched in the image reduced (by area averaging) so that its longer
            side has this many pixels. The paper searches the full image; this project's reading, since the place of
            a patch of a quarter of the image does not need single pixels.

    Raises:
        AfireError: a value is out of its range; the message names it.
    """

    texture_side: float = 60 / 224
    lesion_count: tuple[int, int] = (1, 4)
    lesion_side: tuple[float, float] = (16 / 224, 128 / 224)
    peak: float = 0.5
    ceiling: float = 235 / 255
    floor: float = 20 / 255
    dark_probability: float = 0.0
    elsewhere_probability: float = 0.0
    edge: float = 1.0
    search_side: int = 56

    def __post_init__(self) -> None:
        for name in ("texture_side", "peak"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        for name in ("ceiling", "floor", "dark_probability", "elsewhere_probability"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "within 0…1")
        _require(self.floor < self.ceiling, "floor", self.floor, f"below ceiling = {self.ceiling}")
        _require(0 < self.edge < math.inf, "edge", self.edge, "above 0 and finite")
        _require(4 <= self.search_side <= 1024, "search_side", self.search_side, "within 4…1024")
        for name in ("lesion_count", "lesion_side"):
            value = getattr(self, name)
            _require(len(value) == 2, name, value, "a pair (smallest, largest)")
            object.__setattr__(self, name, tuple(value))  # lists come from YAML; a frozen value must hash
        low, high = self.lesion_count
        whole = float(low).is_integer() and float(high).is_integer()
        _require(whole and 1 <= low <= high, "lesion_count", self.lesion_count, "whole numbers, 1 ≤ smallest ≤ largest")
        small, large = self.lesion_side
        _require(0 < small <= large <= 1, "lesion_side", self.lesion_side, "0 < smallest ≤ largest ≤ 1")

    @property
    def draws(self) -> int:
        """How many uniform numbers one image takes."""
        return _DRAWS_PER_IMAGE + _DRAWS_PER_LESION * self.lesion_count[1]

    def texture_pixels(self, height: int, width: int) -> int:
        """Side of the texture square, in pixels of an image of (height, width)."""
        return min(max(3, round(self.texture_side * min(height, width))), height, width)

    def lesion_pixels(self, height: int, width: int) -> tuple[int, int]:
        """Smallest and largest side of a lesion, in pixels of an image of (height, width)."""
        side = min(height, width)
        low = max(1, round(self.lesion_side[0] * side))
        return low, max(low, round(self.lesion_side[1] * side))

    def search_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the reduced image in which the place of the texture is searched."""
        scale = min(1.0, self.search_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise AfireError(f"LesionSettings.{name} is {value!r}; expected {expected}.")


def check_size(height: int, width: int, name: str = "image") -> None:
    """Refuse an image too small to hold a lesion.

    Raises:
        AfireError: a side is below 8 pixels.
    """
    if min(height, width) < _MINIMUM_SIDE:
        raise AfireError(f"'{name}' is {height} × {width} pixels; synthetic lesions need at least 8 a side.")


@dataclass(frozen=True)
class LesionRecord:
    """What was drawn for one image: enough to make the same twin again, and plain enough for JSON.

    Attributes:
        image_size: (height, width) in pixels.
        texture_center: (row, column) in pixels; pixel centres are whole numbers.
        texture_radius: radius in pixels of the circle around the image's largest bright region; 0 when the
            texture comes from elsewhere or the image is constant.
        boxes: (top, left, height, width) of each lesion, in pixels.
        polarity: "bright" (added) or "dark" (subtracted).
    """

    image_size: tuple[int, int]
    texture_center: tuple[float, float]
    texture_radius: float
    boxes: tuple[tuple[int, int, int, int], ...]
    polarity: Polarity = "bright"

    @property
    def count(self) -> int:
        """Number of lesions."""
        return len(self.boxes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LesionRecord:
        """Inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            AfireError: a key is missing or a value has the wrong form.
        """
        try:
            height, width = values["image_size"]
            row, column = values["texture_center"]
            boxes = tuple((int(t), int(le), int(h), int(w)) for t, le, h, w in values["boxes"])
            polarity: Polarity = "dark" if values["polarity"] == "dark" else "bright"
            radius = float(values["texture_radius"])
            return cls((int(height), int(width)), (float(row), float(column)), radius, boxes, polarity)
        except (KeyError, TypeError, ValueError) as error:
            keys = "image_size, texture_center, texture_radius, boxes, polarity"
            raise AfireError(f"Not a lesion record ({error!r}); expected the keys {keys}, as to_dict gives.") from error


def lesion_boxes(settings: LesionSettings, uniforms: Any, height: int, width: int) -> tuple[Any, Any, Any, Any]:
    """Lesion boxes from uniform numbers; the same arithmetic for NumPy arrays and tensors.

    Height and width are whole pixels, uniform in the range; the top left corner is uniform among the places where
    the lesion lies inside the image (this project's reading of "random position").

    Args:
        settings: the ranges.
        uniforms: (…, draws) float32 in [0, 1), array or tensor.
        height: image rows.
        width: image columns.

    Returns:
        top, left, height and width, each (…, largest count), whole numbers as float32.
    """
    low, high = settings.lesion_pixels(height, width)
    slots = uniforms[..., _DRAWS_PER_IMAGE:].reshape(*uniforms.shape[:-1], -1, _DRAWS_PER_LESION)
    rows = low + (slots[..., 0] * (high - low + 1)) // 1
    columns = low + (slots[..., 1] * (high - low + 1)) // 1
    top = (slots[..., 2] * (height - rows + 1)) // 1
    left = (slots[..., 3] * (width - columns + 1)) // 1
    return top, left, rows, columns


def lesion_number(settings: LesionSettings, uniforms: Any) -> Any:
    """Number of lesions from uniform numbers (…, draws): (…,) whole numbers as float32."""
    low, high = settings.lesion_count
    return low + (uniforms[..., 0] * (high - low + 1)) // 1
