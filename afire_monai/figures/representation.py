"""Measure how similar tokens and images of like content are, without training anything."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from afire_monai.core.errors import AfireError

CHUNK = 2**25
"""Similarities held at a time (128 MiB of float32)."""
MOST_POINTS = 3000
"""Points of a silhouette; more are sampled at random, because the cost grows with their square."""


@dataclass(frozen=True)
class CellRetrieval:
    """Results of `cell_retrieval` for each of n images, of whose L tokens L' are queries."""

    found: NDArray[np.float64]  #: (n,) share of tokens whose nearest token in another patient shows the same cell
    nearby: NDArray[np.float64]  #: (n,) share whose nearest token shows the same cell or one that touches it
    same_place: NDArray[np.float64]  #: (n,) share whose nearest token is at the same place of the picture
    #: (n,) mean distance, in cells, of the nearest token of each other patient from the right cell
    distance: NDArray[np.float64]
    chance_found: float  #: share that random answers would get right
    chance_nearby: float  #: share that would be nearby
    chance_distance: float  #: mean distance of random answers


def centred_unit(features: Tensor) -> Tensor:
    """Subtract the mean over all but the last dimension and scale vectors to length 1, so that products are cosines.

    Args:
        features: (…, D) real.

    Returns:
        (…, D) float32; a vector that equals the mean stays zero.
    """
    flat = features.float().flatten(0, -2)
    return torch.nn.functional.normalize(features.float() - flat.mean(0), dim=-1)


def cell_retrieval(
    queries: Tensor, gallery: Tensor, patients: ArrayLike, query_cells: Tensor, gallery_cells: Tensor, columns: int
) -> CellRetrieval:
    """Find each token's most similar token in other patients, and check whether it shows the same anatomy.

    Similarity is the cosine after centring both sides. Tokens of the image's own patient do not count as answers. Only
    cells that the gallery shows are asked for. If queries and gallery are crops of the same canvas at other offsets,
    the same anatomy is at different places of the two, and a network that only knows places cannot answer.

    Args:
        queries: (n, L, D) tokens.
        gallery: (n, M, D) tokens of the same images, perhaps of other crops.
        patients: (n,) patient of each image.
        query_cells: (L,) cell of the canvas that each query token shows.
        gallery_cells: (M,) the same for the gallery.
        columns: number of columns of the canvas, to measure distances.

    Raises:
        AfireError: for fewer than two patients, no cell in common, or shapes that do not fit.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2 or len(patient) != len(queries) or len(queries) != len(gallery):
        raise AfireError(f"retrieval needs tokens of at least 2 patients; got {len(queries)} images of {len(names)}")
    asked = torch.isin(query_cells, gallery_cells)
    if not asked.any() or len(query_cells) != queries.shape[1] or len(gallery_cells) != gallery.shape[1]:
        raise AfireError("retrieval needs cells for all tokens, and some that queries and gallery have in common")
    places = torch.nonzero(asked)[:, 0]
    wanted = query_cells[asked]
    apart = _distances(wanted, gallery_cells, columns)
    q, g = centred_unit(queries)[:, asked], centred_unit(gallery)
    n, tokens = len(q), g.shape[1]
    owner = torch.from_numpy(patient).to(q.device)
    others = g.flatten(0, 1).T
    step = max(1, CHUNK // (q.shape[1] * n * tokens))
    found, near, same, distance = [], [], [], []
    row = torch.arange(len(wanted), device=q.device)[None, :, None]
    for start in range(0, n, step):
        part = q[start : start + step]
        similarity = (part.flatten(0, 1) @ others).view(len(part), len(wanted), n, tokens)
        own = owner[start : start + step, None] == owner[None]
        similarity.masked_fill_(own[:, None, :, None], -torch.inf)
        best, at = similarity.max(-1)
        nearest = at.gather(2, best.argmax(-1, keepdim=True))[..., 0]
        found.append((gallery_cells[nearest] == wanted).double().mean(1))
        near.append((apart[row[..., 0], nearest] < 1.5).double().mean(1))
        same.append((nearest == places).double().mean(1))
        each = apart[row, at] * ~own[:, None]
        distance.append((each.sum((1, 2)) / (~own).sum(1) / len(wanted)).double())
    chance = (gallery_cells[None] == wanted[:, None]).double().mean()
    return CellRetrieval(
        torch.cat(found).cpu().numpy(),
        torch.cat(near).cpu().numpy(),
        torch.cat(same).cpu().numpy(),
        torch.cat(distance).cpu().numpy(),
        float(chance),
        float((apart < 1.5).double().mean()),
        float(apart.mean()),
    )


def distance_ratio(features: ArrayLike, labels: ArrayLike) -> float | None:
    """Mean cosine distance (1 - cosine, centred) within groups, divided by that between groups: below 1 is cohesion.

    All pairs count without being listed: sums of vectors give the sums of their products.

    Features are (n, D), labels (n,).

    Returns:
        The ratio; None with one group, or if no group has two members.
    """
    x = centred_unit(torch.as_tensor(np.asarray(features))).double()
    group = torch.from_numpy(np.unique(np.asarray(labels), return_inverse=True)[1])
    count = torch.bincount(group).double()
    sums = torch.zeros(len(count), x.shape[1], dtype=torch.float64).index_add_(0, group, x)
    within_pairs = (count * (count - 1)).sum()
    between_pairs = count.sum() ** 2 - (count**2).sum()
    if within_pairs == 0 or between_pairs == 0:
        return None
    squares = (sums**2).sum()
    within = 1 - (squares - (x**2).sum()) / within_pairs
    between = 1 - ((sums.sum(0) ** 2).sum() - squares) / between_pairs
    return float(within / between) if between > 0 else None


def silhouette(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> float | None:
    """Mean silhouette (Rousseeuw 1987) with cosine distance after centring: -1…1, above 0 where groups hold together.

    Features are (n, D), labels (n,).

    Returns:
        The mean; None unless there are 2 to n - 1 groups.
    """
    x = centred_unit(torch.as_tensor(np.asarray(features))).numpy()
    groups = np.asarray(labels)
    if len(x) > MOST_POINTS:
        drawn = np.random.default_rng(seed).choice(len(x), MOST_POINTS, replace=False)
        x, groups = x[drawn], groups[drawn]
    if not 2 <= len(np.unique(groups)) < len(groups):
        return None
    return float(silhouette_score(x, groups, metric="cosine"))


def _distances(wanted: Tensor, cells: Tensor, columns: int) -> Tensor:
    """Distance in cells, (L', M)."""
    at = torch.stack([wanted // columns, wanted % columns], 1).float()
    to = torch.stack([cells // columns, cells % columns], 1).float()
    return torch.cdist(at, to)


MOST_CLUSTERS = 12
"""All unions of clusters are tried, so their number doubles with each cluster."""
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
        seed: seed of the start.

    Returns:
        (n, H, W) cluster of each pixel, numbered by size, the largest first.

    Raises:
        AfireError: for another number of clusters, or fewer tokens than clusters.
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
