"""What a normal reference measures of a radiograph: one number a cell or an image for each part and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.predictions.anomaly.detector import AnomalyFeatures
from afire_monai.predictions.anomaly.gaussian import CellGaussian
from afire_monai.predictions.anomaly.neighbours import CellNeighbours

IMAGE_PARTS = ("density", "class_density")
"""Parts that give one number for the whole image, and no map."""
LAYER_PARTS = ("tokens", "neighbours", "density")
"""Parts that judge each layer by itself."""

Fitted: TypeAlias = CellGaussian | CellNeighbours


@dataclass(frozen=True)
class Measure:
    """One way of measuring.

    Attributes:
        part: of the detector.
        block: of the encoder whose tokens are judged; None for the encoder's output, or where tokens play no role.
        weight: of its standardised value among the measures of its kind; those of a part add up to 1.
    """

    part: str
    block: int | None = None
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The part, with ``@block`` for an earlier block."""
        return self.part if self.block is None else f"{self.part}@{self.block}"

    @property
    def of_image(self) -> bool:
        """Whether it is one number for the whole image."""
        return self.part in IMAGE_PARTS

    @property
    def fitted(self) -> bool:
        """Whether it compares vectors with those of normal radiographs."""
        return self.of_image or self.part in LAYER_PARTS

    def vectors(self, features: AnomalyFeatures) -> Tensor:
        """Return what is compared, (B, N, D), or (B, 1, D) for an image.

        Raises:
            AfireError: if the features lack it.
        """
        tokens = features.class_token if self.part == "class_density" else features.tokens
        if self.block is not None:
            tokens = features.layers.get(self.block)
        if tokens is None:
            raise AfireError(f"the features lack what {self.name} compares; ask the detector for this part and layer")
        if self.part == "density":
            return tokens.mean(1, keepdim=True)
        return tokens[:, None] if self.part == "class_density" else tokens

    def values(self, features: AnomalyFeatures, models: Mapping[str, Fitted]) -> Tensor:
        """Return what is measured before it is standardised, (B, N), or (B, 1) for an image.

        Args:
            features: of the detector.
            models: what was fitted to normal radiographs, by the measures' names.
        """
        if not self.fitted:
            return features.cells[self.part]
        return models[self.name].distance(self.vectors(features))


def measures_of(parts: Sequence[str], layers: Sequence[int]) -> tuple[list[Measure], list[Measure]]:
    """List what is measured of cells and of whole images.

    Args:
        parts: of the detector.
        layers: blocks that are judged besides the encoder's output.
    """
    blocks = [None, *layers]
    found = [
        Measure(part, block, 1 / (len(blocks) if part in LAYER_PARTS else 1))
        for part in parts
        for block in (blocks if part in LAYER_PARTS else [None])
    ]
    return [m for m in found if not m.of_image], [m for m in found if m.of_image]
