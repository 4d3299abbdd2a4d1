"""Checks of a model folder before a network is built: numbers, and sizes that agree with the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from afire_monai.core.errors import CheckpointError

_SIDES = ("image_size", "position_grid", "grid")
LONGEST_SIDE, MOST_CELLS = 8192, 2**18
"""Of a picture in pixels, and of a grid of tokens: the sides of pictures are in no tensor."""


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights by name of which a number is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds numbers that are not finite, so no prediction would mean anything. Copy the "
                "file again from where it was made, or train again from an earlier checkpoint"
            )


def refuse_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse sizes of a network that its weights cannot have, before memory is asked for."""
    most = max([64, len(tensors), *(side for tensor in tensors.values() for side in tensor.shape)])
    total = sum(tensor.numel() for tensor in tensors.values())
    for key, seen, limit in _sizes("", config, most, total):
        if not 0 <= seen <= limit:  # also if it is not a number
            raise CheckpointError(
                f"{path.with_suffix('.json')}: {key} {seen} does not fit the weights beside it, which bear at most "
                f"{limit}. Copy both files again from where they were made"
            )


def _sizes(key: str, value: Any, most: int, total: int) -> Iterator[tuple[str, float, float]]:
    """Yield each number of a description, with its name and the most that it may be."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _sizes(str(name), inner, most, total)
        yield from _products(value, most, total)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _sizes(key, inner, most, total)
    elif key in _SIDES and isinstance(value, (int, float)):
        yield key, value, LONGEST_SIDE
    elif isinstance(value, int):
        yield key, value, most
    elif isinstance(value, float):
        yield key, abs(value), 1e9


def _products(part: Mapping[str, Any], most: int, total: int) -> Iterator[tuple[str, float, float]]:
    size, patch, width = part.get("image_size"), part.get("patch_size"), part.get("embed_dim")
    if isinstance(patch, int) and patch > 0 and isinstance(size, (int, list)) and size:
        sides = size if isinstance(size, list) else [size, size]
        yield "image_size / patch_size, squared,", math.prod(sides) / patch**2, MOST_CELLS
    if isinstance(width, int):
        ratio, depth = part.get("mlp_ratio", 0), part.get("depth", 0)
        yield "embed_dim × mlp_ratio", width * ratio, most
        yield "depth × embed_dim²", depth * width**2, total  # a block has more weights than that
