"""Co-segmentation without labels: clusters of tokens over many images, and how well some of them make up an organ."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.figures.representation import centred_unit

MOST_CLUSTERS = 12
"""All unions of clusters are tried, so their number doubles with each."""
MOST_TOKENS = 20_000


def cluster_tokens(
    tokens: Tensor, grid: tuple[int, int], size: tuple[int, int], clusters: int, seed: int = 0
) -> NDArray[np.int64]:
    """Cluster the tokens of all images together by k-means, and draw the clusters at the size of the pictures.

    Tokens are centred and scaled to length 1 first. A pixel belongs to the cluster whose centre fits best, after fits
    (cosines with the centres, less half the centre's squared length) have been interpolated between cells.

    Args:
        tokens: (n, L, D).
        grid: rows and columns, L = rows · columns.
        size: height and width of the pictures.
        clusters: k, from 2 to 12.
        seed: of the start.

    Returns:
        (n, H, W) cluster of each pixel, numbered by size, the largest first.

    Raises:
        AfireError: another number of clusters, or fewer tokens than clusters.
    """
    x = centred_unit(tokens)
    flat = x.flatten(0, 1)
    if not 2 <= clusters <= min(MOST_CLUSTERS, len(flat)):
        raise AfireError(f"clusters is {clusters}; from 2 to {MOST_CLUSTERS}, and no more than tokens, are expected")
    drawn = np.random.default_rng(seed).permutation(len(flat))[:MOST_TOKENS]
    fitted = KMeans(clusters, n_init=4, random_state=seed).fit(flat[drawn].numpy())
    centres = torch.from_numpy(fitted.cluster_centers_).to(flat)
    order = torch.bincount((flat @ centres.T - (centres**2).sum(1) / 2).argmax(1), minlength=clusters).argsort(
        descending=True, stable=True
    )
    centres = centres[order]
    fits = (x @ centres.T - (centres**2).sum(1) / 2).transpose(1, 2).unflatten(2, grid)
    return torch.cat(
        [F.interpolate(part, size, mode="bilinear", align_corners=False).argmax(1) for part in fits.split(16)]
    ).numpy()


def dice(prediction: NDArray[np.bool_], masks: NDArray[np.float32]) -> NDArray[np.float64]:
    """Dice of each image.

    Args:
        prediction: (n, H, W).
        masks: (n, H, W) 1, 0, or NaN for pixels to leave out.

    Returns:
        (n,); 1 where both are empty.
    """
    known = ~np.isnan(masks)
    inside = masks == 1
    both = (prediction & inside).sum((1, 2))
    total = (prediction & known).sum((1, 2)) + inside.sum((1, 2))
    return np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1))


def best_union(segments: NDArray[np.int64], masks: NDArray[np.float32], clusters: int) -> list[int]:
    """Choose the clusters that together have the best mean Dice; every union is tried.

    Args:
        segments: (n, H, W) cluster of each pixel.
        masks: (n, H, W) 1, 0, or NaN for pixels to leave out.
        clusters: k.
    """
    known, inside = ~np.isnan(masks), masks == 1
    member = segments[..., None] == np.arange(clusters)
    overlap = (member & inside[..., None]).sum((1, 2))
    sizes = (member & known[..., None]).sum((1, 2))
    unions = np.array([u for u in product((0, 1), repeat=clusters) if any(u)])
    total = sizes @ unions.T + inside.sum((1, 2))[:, None]
    scores = (2 * (overlap @ unions.T) / np.maximum(total, 1)).mean(0)
    return [int(c) for c in np.flatnonzero(unions[int(np.argmax(scores))])]


def by_cells(masks: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw masks (n, H, W) from how much of each cell they fill, interpolated as clusters are."""
    known = torch.from_numpy(np.nan_to_num(masks))[:, None]
    filled = F.interpolate(F.adaptive_avg_pool2d(known, grid), masks.shape[1:], mode="bilinear", align_corners=False)
    return (filled[:, 0] > 0.5).numpy()


def mean_mask(masks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels (H, W) that most masks (n, H, W) hold: the answer of someone who never looks at the picture."""
    known = ~np.isnan(masks)
    return np.nansum(masks, axis=0) > 0.5 * np.maximum(known.sum(0), 1)
