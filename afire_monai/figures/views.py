"""Images of a data list, seen by an encoder, by the same encoder before training, and as raw pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.core.errors import DataListError
from afire_monai.datalists.patients import patient_of
from afire_monai.evaluation.probes import raw_pixels
from afire_monai.methods.grid_shift import GridShift
from afire_monai.networks import Encoder, encoder_from_config
from afire_monai.predictions.reading import LeftOut, ahead, read_radiograph

BATCH = 32  # images at a time
OURS, RANDOM, PIXELS = "your encoder", "random encoder", "raw pixels"


@dataclass(frozen=True)
class View:
    """One way to see the images."""

    name: str  #: in words
    images: NDArray[np.float32]  #: (n, F) features of whole images
    tokens: Tensor  #: (n, L, D) of whole images at the encoder's size
    first: Tensor  #: (n, L, D) tokens of the canvas' top left crop
    second: Tensor  #: (n, L, D) tokens of its bottom right crop


@dataclass
class Sample:
    """Images that were read, one a patient."""

    items: list[dict[str, Any]]  #: of the data list
    images: Tensor  #: (n, C, H, W) in 0…1 at the encoder's size
    canvas: Tensor  #: (n, C, Hc, Wc) in 0…1, larger by some cells in each direction
    left_out: list[str] = field(default_factory=list)  #: reasons why files could not be used, without names


def choose_items(items: Sequence[Mapping[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    """Draw images at random, at most one a patient and at most ``most``; those with a mask come first for each patient.

    Raises DataListError for fewer than two patients.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    chosen: dict[str, dict[str, Any]] = {}
    for index in sorted(order, key=lambda i: not items[i].get("mask")):
        item = dict(items[int(index)])
        chosen.setdefault(patient_of(item), item)
    if len(chosen) < 2:
        raise DataListError(f"images of {len(chosen)} patients are there; at least 2 are needed to compare patients")
    names = list(chosen)
    drawn = np.random.default_rng(seed + 1).permutation(len(names))[:most]
    return [chosen[names[i]] for i in drawn]


def read_sample(
    items: Sequence[dict[str, Any]], encoder: Encoder, shift: GridShift, options: Mapping[str, Any]
) -> Sample:
    """Read images at the encoder's size and at the canvas' size, with the reader options that their list keeps.

    Raises DataListError if fewer than two can be used (the reasons are given without names).
    """
    sizes = (encoder.image_size, shift.canvas_size)

    def read(index: int) -> Any:
        return read_radiograph(index, items[index]["image"], sizes, options=options)

    kept, small, large, left_out = [], [], [], []
    for result in ahead(read, range(len(items)), min(4, os.cpu_count() or 1), 8):
        if isinstance(result, LeftOut):
            left_out.append(f"image {result.index}: {result.reason}")
            continue
        kept.append(items[result.index])
        small.append(result.images[sizes[0]])
        large.append(result.images[sizes[1]])
    if len(kept) < 2:
        raise DataListError(f"{len(kept)} of {len(items)} images can be used: {'; '.join(left_out[:3])}")
    channels = encoder.in_channels
    return Sample(
        kept, torch.stack(small).expand(-1, channels, -1, -1), torch.stack(large).expand(-1, channels, -1, -1), left_out
    )


def views_of(sample: Sample, encoder: Encoder, shift: GridShift, seed: int) -> list[View]:
    """See the sample through the encoder, through one of the same architecture with random weights, and as pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = encoder_from_config(encoder.config).eval()
    sees: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (OURS, lambda images: patch_tokens(encoder, images)),
        (RANDOM, lambda images: patch_tokens(untrained, images)),
        (PIXELS, lambda images: pixel_tokens(images, encoder.patch_size)),
    ]
    views = []
    for name, see in sees:
        tokens = see(sample.images)
        whole = raw_pixels(sample.images[:, :1]) if name == PIXELS else tokens.mean(1).numpy()
        first, second = (see(crop) for crop in corner_crops(sample.canvas, shift))
        views.append(View(name, whole, tokens, first, second))
    return views


def corner_crops(canvas: Tensor, shift: GridShift) -> tuple[Tensor, Tensor]:
    """Return the top left and the bottom right crop of canvases (n, C, Hc, Wc)."""
    (h, w), p = shift.grid, shift.patch_size
    return canvas[:, :, : h * p, : w * p], canvas[:, :, -h * p :, -w * p :]


def corner_cells(shift: GridShift) -> tuple[Tensor, Tensor]:
    """Return the canvas cells (L,) that the tokens of the two crops show."""
    corners = torch.tensor([[0, 0], [shift.shift, shift.shift]])
    first, second = shift.cells(corners)
    return first, second


@torch.no_grad()
def patch_tokens(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the patch tokens (n, L, D) float32 on the CPU of images (n, C, H, W) in 0…1."""
    return torch.cat([encoder(part)[:, 1:].float().cpu() for part in images.split(BATCH)])


def pixel_tokens(images: Tensor, patch_size: int) -> Tensor:
    """Return the pixels of each patch (n, L, P²) of images (n, C, H, W); of equal channels the first."""
    return F.unfold(images[:, :1], patch_size, stride=patch_size).transpose(1, 2)
