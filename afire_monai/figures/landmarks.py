"""Find lung landmarks in masks, and measure whether tokens of the same landmark in different patients are similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import label, regionprops
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.figures import pictures
from afire_monai.figures import representation as numbers
from afire_monai.figures.study import MASKS_NEEDED, Study, embed, interval_of
from afire_monai.methods.grid_shift import GridShift
from afire_monai.radiographs.masks import MaskReading

LANDMARKS = (
    "apex", "outer wall", "side of the hilum", "outer angle of the base", "inner angle of the base",
)  # fmt: skip
"""Landmarks of each lung; the lung on the picture's left comes first."""
NAMES = tuple(f"{side}: {name}" for side in ("left of the picture", "right of the picture") for name in LANDMARKS)
SMALLEST_LUNG = 0.02
"""Share of the picture that each of two regions must have to be taken for lungs."""


def lung_landmarks(mask: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """Find ten points of both lungs in a mask of the lungs.

    The two largest regions are the lungs if they stand side by side. The landmarks of each are the middle of the top
    row (apex); in the row of the centroid the outermost pixel (outer wall) and the innermost (side of the hilum); and
    the pixels farthest down and out, and down and in (angles of the base: costophrenic and cardiophrenic, as far as the
    mask goes).

    Args:
        mask: (H, W), 1 in the lungs; anything else is not lung.

    Returns:
        (10, 2) row and column in the order of `NAMES`; None if the mask does not show two lungs.
    """
    regions = sorted(regionprops(label(mask == 1)), key=lambda region: -region.area)[:2]
    if len(regions) < 2 or regions[1].area < SMALLEST_LUNG * mask.size:
        return None
    left, right = sorted(regions, key=lambda region: region.centroid[1])
    apart = right.centroid[1] - left.centroid[1]
    if apart < 0.1 * mask.shape[1] or abs(right.centroid[0] - left.centroid[0]) > apart:
        return None
    return np.concatenate([_of_lung(left, outwards=-1), _of_lung(right, outwards=1)])


def _of_lung(region: object, outwards: int) -> NDArray[np.int64]:
    pixels = region.coords  # type: ignore[attr-defined]  # (n, 2) of scikit-image's region
    rows, out = pixels[:, 0], pixels[:, 1] * outwards
    top = pixels[rows == rows.min()]
    # a region can have a gap in the row of its centroid, but not in all rows around it
    level = pixels[np.abs(rows - rows.mean()) == np.abs(rows - rows.mean()).min()]
    level = level[np.argsort(level[:, 1] * outwards)]
    return np.stack(
        [top[len(top) // 2], level[-1], level[0], pixels[(rows + out).argmax()], pixels[(rows - out).argmax()]]
    )


@dataclass(frozen=True)
class LandmarkTokens:
    """Tokens that show landmarks."""

    tokens: Tensor  #: (m, D)
    landmark: NDArray[np.int64]  #: (m,) index into `NAMES`
    image: NDArray[np.int64]  #: (m,) index of the image
    crop: NDArray[np.int64]  #: (m,) which of the two crops of the canvas the image was shown as


def landmark_tokens(
    crops: tuple[Tensor, Tensor], points: Sequence[NDArray[np.int64] | None], shift: GridShift, seed: int
) -> LandmarkTokens:
    """Take the tokens of the cells that hold landmarks.

    Each image is shown as its top left or its bottom right crop, by the seed, so that a landmark is at different places
    in different pictures. Landmarks outside of the crop are left out.

    Args:
        crops: tokens (n, L, D) of the top left and of the bottom right crop.
        points: for each image the landmarks in pixels of the canvas, or None.
        shift: crops of the canvas.
        seed: seed for the choice of crops.

    Raises:
        AfireError: if fewer than two images have landmarks.
    """
    usable = [(index, found) for index, found in enumerate(points) if found is not None]
    if len(usable) < 2:
        raise AfireError(f"landmarks of at least 2 images are needed, {len(usable)} have some")
    chosen = np.zeros(len(points), dtype=np.int64)
    chosen[[index for index, _ in usable]] = np.random.default_rng(seed).permutation(len(usable)) % 2
    taken, landmark, image = [], [], []
    (h, w), p = shift.grid, shift.patch_size
    for index, found in usable:
        row, column = (found // p - chosen[index] * shift.shift).T
        inside = np.flatnonzero((row >= 0) & (row < h) & (column >= 0) & (column < w))
        taken.append(crops[chosen[index]][index, torch.from_numpy(row[inside] * w + column[inside])])
        landmark.append(inside)
        image.append(np.full(len(inside), index))
    images = np.concatenate(image)
    return LandmarkTokens(torch.cat(taken), np.concatenate(landmark), images, chosen[images])


def landmark_retrieval(found: LandmarkTokens) -> tuple[NDArray[np.float64], float]:
    """Ask for each token: does the most like landmark token of the images shown as the other crop show its landmark?

    Returns:
        Share of right answers for each image that has any landmark (one image a patient), and the share that random
        answers would get right.

    Raises:
        AfireError: if landmarks are seen in only one of the two crops.
    """
    if len(np.unique(found.crop)) < 2:
        raise AfireError("landmarks are seen in one of the two crops only; more images are needed")
    unit = numbers.centred_unit(found.tokens)
    other = found.crop[:, None] != found.crop[None]
    same = found.landmark[:, None] == found.landmark[None]
    nearest = (unit @ unit.T).masked_fill(~torch.from_numpy(other), -torch.inf).argmax(1).numpy()
    right = found.landmark[nearest] == found.landmark
    each = np.array([right[found.image == image].mean() for image in np.unique(found.image)])
    return each, float(((same & other).sum(1) / other.sum(1)).mean())


def add_landmarks(study: Study) -> None:
    """Retrieval, silhouette, distance ratio and t-SNE of tokens by landmark, if enough masks show two lungs."""
    masked = [i for i, item in enumerate(study.sample.items) if item.get("mask")]
    reading = MaskReading(dict, study.shift.canvas_size, {"mask": []}, study.settings.mask_ignore)
    points: list[NDArray[np.int64] | None] = [None] * len(study.sample.items)
    for i in masked:
        points[i] = lung_landmarks(reading.read_mask(study.sample.items[i]["mask"])[0].numpy())
    usable = sum(found is not None for found in points)
    if usable < MASKS_NEEDED:
        study.notes.append(f"Masks of {usable} images show two lungs; landmarks need {MASKS_NEEDED}.")
        return
    seed, table, maps = study.settings.seed, {}, {}
    for view in study.views:
        found = landmark_tokens((view.first, view.second), points, study.shift, seed)
        each, chance = landmark_retrieval(found)
        score = interval_of(each, seed)
        features = found.tokens.numpy()
        table[view.name] = {
            "found": {**score, "chance": chance},
            "silhouette": numbers.silhouette(features, found.landmark, seed=seed),
            "distance_ratio": numbers.distance_ratio(features, found.landmark),
        }
        maps[view.name] = embed(features, seed)
    study.numbers["landmarks"] = {"names": list(NAMES), "images": usable, "views": table}
    study.drawn["tsne_landmarks"] = pictures.draw_landmarks(maps, found.landmark, NAMES)
