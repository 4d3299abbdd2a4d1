"""Pictures that are written for a radiograph: heatmap, overlay, restored picture, mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.predictions.format import HEATMAPS, MASKS
from afire_monai.predictions.reading import Radiograph, Size, display_size
from afire_monai.predictions.results import OVERLAYS, RESTORED
from afire_monai.predictions.scoring import Answer

MASK_THRESHOLD = 0.5
MAP_SIDE = 256
"""Longest side of heatmaps and restored pictures, in pixels: networks see no more, and writing more costs as much time
as the smaller networks take."""


def pictures_of(
    radiograph: Radiograph, answer: Answer, mask_values: Sequence[int], overlays: bool
) -> dict[str, NDArray]:
    """Make what is to be written of one image, in the radiograph's aspect.

    Args:
        radiograph: with ``display`` if ``overlays``.
        answer: what the models said.
        mask_values: value of each class in the mask.
        overlays: also the heatmap over the radiograph.

    Returns:
        By folder: ``heatmaps`` uint16 and ``restored`` uint8, at most `MAP_SIDE` pixels a side; ``masks`` uint8 at the
        radiograph's own size; ``overlays`` (h, w, 3) uint8 at the size of ``display``.
    """
    pictures: dict[str, NDArray] = {}
    size = display_size(radiograph.shape, MAP_SIDE)
    if answer.heatmap is not None:
        heat = enlarge(answer.heatmap[None], size)[0].clamp(0, 1)
        pictures[HEATMAPS] = (heat * 65535).round().numpy().astype(np.uint16)
        if overlays and radiograph.display is not None:
            large = enlarge(answer.heatmap[None], (radiograph.display.shape[1], radiograph.display.shape[2]))[0]
            pictures[OVERLAYS] = overlay(radiograph.display[0], large.clamp(0, 1))
    if answer.restored is not None:
        pictures[RESTORED] = _bytes(enlarge(answer.restored[None], size)[0])
    if answer.masks is not None:
        pictures[MASKS] = label_mask(answer.masks, mask_values, radiograph.shape)
    return pictures


def enlarge(maps: Tensor, size: Size) -> Tensor:
    """Stretch (C, h, w) to a size; averages over areas where it gets smaller."""
    return F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]


def overlay(picture: Tensor, heat: Tensor) -> NDArray[np.uint8]:
    """Blend a heatmap in red over a grey picture, more strongly where it is higher.

    Args:
        picture: (h, w) in 0…1.
        heat: (h, w) in 0…1.

    Returns:
        (h, w, 3) uint8.
    """
    share = 0.7 * heat
    red = picture * (1 - share) + share
    return _bytes(torch.stack([red, picture * (1 - share), picture * (1 - share)], -1))


def label_mask(probabilities: Tensor, values: Sequence[int], size: Size) -> NDArray[np.uint8]:
    """Turn class probabilities (classes, h, w) into one mask of a size: the likeliest class from 0.5 on, else 0."""
    large = enlarge(probabilities, size)
    highest, place = large.max(0)
    table = torch.tensor(list(values), dtype=torch.uint8)
    return torch.where(highest >= MASK_THRESHOLD, table[place], 0).numpy().astype(np.uint8)


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
