"""The parts of the representation figures: each measures one thing, draws it, and adds both to the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.datalists.file import normal_label
from afire_monai.datalists.patients import patient_of
from afire_monai.datalists.targets import target_matrix
from afire_monai.evaluation.bootstrap import mean_interval
from afire_monai.evaluation.overlap import dice
from afire_monai.figures import pictures
from afire_monai.figures import representation as numbers
from afire_monai.figures.page import CEILING, MEAN_MASK
from afire_monai.figures.pictures import build_atlas
from afire_monai.figures.representation import MOST_CLUSTERS, best_union, by_cells, cluster_tokens, mean_mask
from afire_monai.figures.views import Sample, View, corner_cells, corner_crops
from afire_monai.methods.grid_shift import GridShift
from afire_monai.models.folder import weights_in
from afire_monai.predictions.anomaly.detector import load_detector
from afire_monai.radiographs.masks import MaskReading

ASKED = ((0.35, 0.3), (0.45, 0.62), (0.68, 0.3))
"""Cells of the correspondence picture, row and column in 0…1 of the canvas: upper lung, heart, lower lung."""
MASKS_NEEDED = 8
DRAWN = ("correspondence", "segments", "tsne_cells", "tsne_landmarks", "tsne_disease", "atlas")
"""Names of all pictures."""
TSNE_TOKENS = 1500
SHOWN = 7


@dataclass(frozen=True)
class Settings:
    """Options of a study of an encoder.

    They are the options of ``afire figures``. Raises AfireError for fewer than two images, or an impossible number of
    clusters.
    """

    section: str = "test"
    label: str | None = None
    images: int = 150
    clusters: int = 8
    shift: int | None = None
    mask_ignore: int | None = 127
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible options before anything is computed."""
        if self.images < 2:
            raise AfireError(f"images is {self.images}; at least 2 are needed to compare patients")
        if not 2 <= self.clusters <= MOST_CLUSTERS:
            raise AfireError(f"clusters is {self.clusters}; from 2 to {MOST_CLUSTERS} are expected")


@dataclass
class Study:
    """Inputs of the parts of a study, and their results."""

    sample: Sample
    views: Sequence[View]
    shift: GridShift
    settings: Settings
    content: Mapping[str, Any]
    numbers: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.sample.images.shape[2], self.sample.images.shape[3]


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return t-SNE coordinates (n, 2) of features (n, D) (van der Maaten and Hinton 2008), after PCA to 50."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    start = "pca" if reduced.shape[1] >= 2 else "random"
    tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init=start, random_state=seed)
    return np.asarray(tsne.fit_transform(reduced), dtype=np.float32)


def add_cells(study: Study) -> None:
    """Silhouette, distance ratio and retrieval of tokens by cell, and the t-SNE of tokens."""
    patients = [patient_of(item) for item in study.sample.items]
    shift, seed = study.shift, study.settings.seed
    count = math.prod(shift.grid)
    every = torch.arange(count)
    first, second = corner_cells(shift)
    cells = np.tile(np.arange(count), len(patients))
    drawn = np.random.default_rng(seed).permutation(len(cells))[:TSNE_TOKENS]
    maps, table = {}, {}
    for view in study.views:
        flat = view.tokens.flatten(0, 1).numpy()
        aligned = numbers.cell_retrieval(view.tokens, view.tokens, patients, every, every, shift.grid[1])
        moved = numbers.cell_retrieval(view.first, view.second, patients, first, second, shift.canvas_grid[1])
        table[view.name] = {
            "silhouette": numbers.silhouette(flat, cells, seed=seed),
            "distance_ratio": numbers.distance_ratio(flat, cells),
            "aligned": _retrieval(aligned, seed),
            "moved": _retrieval(moved, seed),
        }
        maps[view.name] = embed(flat[drawn], seed)
    study.numbers["cells"] = table
    study.drawn["tsne_cells"] = pictures.draw_cells(maps, cells[drawn], shift.grid)


def _retrieval(result: numbers.CellRetrieval, seed: int) -> dict[str, Any]:
    return {
        "same_cell": {**interval_of(result.found, seed), "chance": result.chance_found},
        "nearby": {**interval_of(result.nearby, seed), "chance": result.chance_nearby},
        "same_place": interval_of(result.same_place, seed),
        "distance": {**interval_of(result.distance, seed), "chance": result.chance_distance},
    }


def interval_of(values: ArrayLike | Tensor, seed: int) -> dict[str, float]:
    """Return the mean over patients, (n,) one value each, with a percentile bootstrap 95 % interval."""
    values = np.asarray(values, dtype=np.float64)
    return mean_interval(values, np.arange(len(values)), repeats=1000, seed=seed)._asdict()


def add_disease(study: Study) -> None:
    """Silhouette and distance ratio of images by a label, and their t-SNE."""
    labels, seed = list(study.content.get("labels", [])), study.settings.seed
    if not labels:
        study.notes.append("The data list has no labels: no figure by disease.")
        return
    targets = target_matrix(study.sample.items, labels)
    label = study.settings.label
    if label is None:
        findings = [name for name in labels if name != normal_label(dict(study.content))] or labels
        fewest = np.minimum((targets == 1).sum(0), (targets == 0).sum(0))
        label = max(findings, key=lambda name: fewest[labels.index(name)])
    values = targets[:, labels.index(label)]
    known = ~np.isnan(values)
    present, absent = int((values == 1).sum()), int((values == 0).sum())
    if not present or not absent:
        study.notes.append(f"The images are not both with and without {label}: no figure by disease.")
        return
    table = {
        view.name: {
            "silhouette": numbers.silhouette(view.images[known], values[known], seed=seed),
            "distance_ratio": numbers.distance_ratio(view.images[known], values[known]),
        }
        for view in study.views
    }
    study.numbers["disease"] = {"label": label, "present": present, "absent": absent, "views": table}
    maps = {view.name: embed(view.images, seed) for view in study.views}
    study.drawn["tsne_disease"] = pictures.draw_disease(maps, values, label)


def add_correspondence(study: Study) -> None:
    """Best match of some cells of one patient in four others, whose pictures are moved."""
    shift, sample, view = study.shift, study.sample, study.views[0]
    first_cells, second_cells = corner_cells(shift)
    p, columns = shift.patch_size, shift.grid[1]
    others = list(range(1, min(5, len(sample.items))))
    crops = corner_crops(sample.canvas[:, :1], shift)
    queries, gallery = numbers.centred_unit(view.first), numbers.centred_unit(view.second)

    def box(index: int) -> tuple[float, float, float]:
        row, column = divmod(index, columns)
        return column * p - 0.5, row * p - 0.5, float(p)

    rows, cells = [], []
    for place in ASKED:
        cell = _cell_at(place, shift, first_cells, second_cells)
        asked, right = (int((side == cell).nonzero()[0, 0]) for side in (first_cells, second_cells))
        similarity = (gallery[others] @ queries[0, asked]).unflatten(1, shift.grid)
        found = similarity.flatten(1).argmax(1).tolist()
        off = float(np.mean([math.dist(divmod(f, columns), divmod(right, columns)) for f in found]))
        boxes, rights = [box(f) for f in found], [box(right)] * len(others)
        likeness = similarity.clamp(0, 1).numpy()
        rows.append(pictures.Correspondence(box(asked), boxes, rights, likeness, off))
        cells.append(list(divmod(cell, shift.canvas_grid[1])))
    study.numbers["correspondence"] = {"asked": cells, "distance_in_shown": [row.distance for row in rows]}
    study.drawn["correspondence"] = pictures.draw_correspondence(
        crops[0][0, 0].numpy(), crops[1][others, 0].numpy(), rows
    )


def _cell_at(place: tuple[float, float], shift: GridShift, first: Tensor, second: Tensor) -> int:
    """Return the canvas cell nearest to a place (row, column in 0…1) among those that both crops show."""
    common = first[torch.isin(first, second)]
    h, w = shift.canvas_grid
    at = torch.stack([(common // w + 0.5) / h, (common % w + 0.5) / w], 1)
    return int(common[(at - torch.tensor(place)).square().sum(1).argmin()])


def add_segments(study: Study) -> None:
    """Clusters of tokens as organs, and their Dice where there are masks."""
    s, sample, grid = study.settings, study.sample, study.shift.grid
    segments = {v.name: cluster_tokens(v.tokens, grid, study.size, s.clusters, s.seed) for v in study.views}
    masked = [i for i, item in enumerate(sample.items) if item.get("mask")]
    shown, outlines = list(range(min(SHOWN, len(sample.items)))), None
    if len(masked) >= MASKS_NEEDED:
        reading = MaskReading(dict, study.size, {"mask": []}, s.mask_ignore)
        masks = np.stack([reading.read_mask(sample.items[i]["mask"])[0].numpy() for i in masked])
        study.numbers["segmentation"] = _judge({n: c[masked] for n, c in segments.items()}, masks, grid, s)
        shown, outlines = masked[:SHOWN], masks[:SHOWN]
    else:
        study.notes.append(f"{len(masked)} of the images have a mask; Dice needs {MASKS_NEEDED}.")
    study.drawn["segments"] = pictures.draw_segments(
        sample.images[shown, 0].numpy(), {name: clusters[shown] for name, clusters in segments.items()}, outlines
    )


def _judge(
    segments: Mapping[str, NDArray[np.int64]], masks: NDArray[np.float32], grid: tuple[int, int], s: Settings
) -> dict[str, Any]:
    """Dice on one half of the images of the union of clusters that was best on the other half."""
    choosing = np.random.default_rng(s.seed).permutation(len(masks)) < len(masks) // 2
    scores = {}
    for name, clusters in segments.items():
        union = best_union(clusters[choosing], masks[choosing], s.clusters)
        scores[name] = interval_of(dice(np.isin(clusters[~choosing], union), masks[~choosing]), s.seed)
    scores[MEAN_MASK] = interval_of(dice(mean_mask(masks[choosing]), masks[~choosing]), s.seed)
    scores[CEILING] = interval_of(dice(by_cells(masks[~choosing], grid), masks[~choosing]), s.seed)
    return {
        "clusters": s.clusters,
        "chosen_on": int(choosing.sum()),
        "judged_on": int((~choosing).sum()),
        "dice": scores,
    }


def add_atlas(study: Study, folder: Path) -> None:
    """Add the atlas of prototypes, if the model folder holds them."""
    if not folder.is_dir() or not weights_in(folder, "detector").is_file():
        study.notes.append("No prototype atlas: the model folder holds no detector.safetensors.")
        return
    try:
        detector = load_detector(folder)
    except CheckpointError as error:
        study.notes.append(f"No prototype atlas: {str(error).replace(str(folder), 'the model folder')}")
        return
    by_size = {tuple(c.shape[2:]): c for c in (study.sample.images, study.sample.canvas)}
    canvas = by_size.get(detector.canvas_size)
    if detector.head is None or canvas is None:
        reason = "no token head" if detector.head is None else "the canvas has another size than in training"
        study.notes.append(f"No prototype atlas: {reason}.")
        return
    atlas = build_atlas(detector, canvas)
    study.numbers["atlas"] = {
        "own_cell": atlas.found,
        "dimensions_used": len(np.unique(atlas.strongest)),
        "strongest_dimension": atlas.strongest.tolist(),
    }
    mean = canvas[:, 0].mean(0).numpy()
    study.drawn["atlas"] = pictures.draw_atlas(mean, atlas.strongest, atlas.mosaic, atlas.share)
