"""Figures of what an encoder's tokens and features hold together: pictures, numbers, and one page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.data.datalist_file import datalist_hash, load_datalist, normal_label, read_raw
from afire_monai.data.targets import target_matrix
from afire_monai.errors import AfireError, CheckpointError, DataListError
from afire_monai.evaluation import representation as numbers
from afire_monai.evaluation import representation_pictures as pictures
from afire_monai.evaluation.representation_atlas import build_atlas
from afire_monai.evaluation.representation_page import page_text
from afire_monai.evaluation.representation_segments import best_union, cluster_tokens, dice, mean_mask
from afire_monai.evaluation.representation_views import (
    Sample,
    View,
    choose_items,
    corner_cells,
    corner_crops,
    read_sample,
    views_of,
)  # fmt: skip
from afire_monai.export import load_encoder
from afire_monai.export.encoder import load_module_files
from afire_monai.inference.anomaly import load_detector
from afire_monai.methods.grid_shift import GridShift
from afire_monai.networks import ViTEncoder
from afire_monai.tasks.data import MaskReading

ASKED = ((0.35, 0.3), (0.45, 0.62), (0.68, 0.3))
"""Cells of the correspondence picture, row and column in 0…1 of the canvas: upper lung, heart, lower lung."""
MASKS_NEEDED = 8
TSNE_TOKENS = 1500
SHOWN = 7


@dataclass(frozen=True)
class Settings:
    """What can be chosen; see `draw_figures`."""

    section: str = "test"
    label: str | None = None
    images: int = 150
    clusters: int = 6
    shift: int | None = None
    mask_ignore: int | None = 127
    seed: int = 0


@dataclass
class Figures:
    """What came out: numbers for the JSON, PNGs by name, and remarks on what is missing."""

    numbers: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def draw_figures(
    encoder: str | Path, datalist: str | Path, out: str | Path, settings: Settings | None = None
) -> tuple[Path, dict[str, Any]]:
    """Draw all figures that the model and the list have material for.

    Written are ``*.png``, ``figures.json`` and ``figures.html``, which needs nothing else. They name no file and no
    patient, but show radiographs.

    Args:
        encoder: model folder with ``encoder.safetensors`` (and perhaps ``detector.safetensors``), or an encoder file.
        datalist: JSON list with the images.
        out: folder to write into.
        settings: ``section`` of the list; ``label`` to colour images by (None for the one that divides them most
            evenly); ``images`` at most, one a patient; ``clusters`` of the co-segmentation; ``shift`` of the canvas in
            cells (None for what the model was trained with, else a quarter of the grid); ``mask_ignore``, the mask
            value of pixels to leave out; ``seed`` of everything random.

    Returns:
        The page, and the numbers of ``figures.json``.

    Raises:
        AfireError: settings that cannot be, no such label, or no images of two patients.
    """
    s = settings or Settings()
    if s.images < 2:
        raise AfireError(f"images is {s.images}; at least 2 are needed to compare patients")
    network = load_encoder(encoder)
    shift = GridShift(network.grid, network.patch_size, _shift(encoder, network, s.shift))
    content = load_datalist(datalist)
    items = choose_items(load_datalist(datalist, section=s.section), s.images, s.seed)
    sample = read_sample(items, network, shift)
    views = views_of(sample, network, shift, s.seed)
    made = Figures(notes=[f"{len(sample.left_out)} files cannot be used"] if sample.left_out else [])
    made.numbers = {
        "format": "afire figures 1",
        "images": len(sample.items),
        "section": s.section,
        "datalist": {"name": content.get("name", ""), "sha256": datalist_hash(read_raw(Path(datalist)))},
        "model": _model_facts(encoder),
        "grid": list(network.grid),
        "canvas_shift": shift.shift,
        "seed": s.seed,
    }
    _cohesion(views, sample, network.grid, shift, s, made)
    _disease(views, sample, content, s, made)
    _correspondence(views, sample, shift, s, made)
    _segments(views, sample, network, s, made)
    _atlas(encoder, shift, sample, made)
    return _write(Path(out), made), made.numbers


def _shift(folder: str | Path, encoder: ViTEncoder, asked: int | None) -> int:
    smallest = min(encoder.grid)
    trained = load_module_files(folder)[1].get("shift") if asked is None else asked
    shift = int(trained) if trained else max(1, smallest // 4) if asked is None else int(trained or 0)
    if not 1 <= shift < smallest:
        raise AfireError(f"shift is {shift}; a whole number of cells from 1 to {smallest - 1} is expected")
    return shift


def _model_facts(folder: str | Path) -> dict[str, Any]:
    description = load_module_files(folder)[1]
    return {key: description[key] for key in ("method_name", "epochs", "shift", "data_sha256") if key in description}


def _patients(sample: Sample) -> list[str]:
    return [str(item.get("group", item["image"])) for item in sample.items]


def _cohesion(
    views: Sequence[View], sample: Sample, grid: tuple[int, int], shift: GridShift, s: Settings, made: Figures
) -> None:
    """Silhouette, distance ratio and retrieval of tokens by cell, and the t-SNE of tokens."""
    patients, count = _patients(sample), math.prod(grid)
    every = torch.arange(count)
    first, second = corner_cells(shift)
    cells = np.tile(np.arange(count), len(patients))
    drawn = np.random.default_rng(s.seed).permutation(len(cells))[:TSNE_TOKENS]
    maps, table = {}, {}
    for view in views:
        flat = view.tokens.flatten(0, 1).numpy()
        same = numbers.cell_retrieval(view.tokens, view.tokens, patients, every, every, grid[1])
        moved = numbers.cell_retrieval(view.first, view.second, patients, first, second, shift.canvas_grid[1])
        table[view.name] = {
            "silhouette": numbers.silhouette(flat, cells, seed=s.seed),
            "distance_ratio": numbers.distance_ratio(flat, cells),
            "aligned": _retrieval(same, s.seed),
            "moved": _retrieval(moved, s.seed),
        }
        maps[view.name] = embed(flat[drawn], s.seed)
    made.numbers["cells"] = table
    made.drawn["tsne_cells"] = pictures.draw_cells(maps, cells[drawn], grid)


def _retrieval(result: numbers.CellRetrieval, seed: int) -> dict[str, Any]:
    def interval(values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(("value", "low", "high"), numbers.mean_interval(values, seed=seed), strict=True))

    return {
        "same_cell": {**interval(result.found), "chance": result.chance_found},
        "nearby": {**interval(result.nearby), "chance": result.chance_nearby},
        "same_place": interval(result.same_place),
        "distance": {**interval(result.distance), "chance": result.chance_distance},
    }


def embed(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Give t-SNE coordinates (n, 2) of features (n, D) (van der Maaten and Hinton 2008), after PCA to 50."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(50, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init="random" if reduced.shape[1] < 2 else "pca", random_state=seed)
                      .fit_transform(reduced), dtype=np.float32)  # fmt: skip


def _disease(views: Sequence[View], sample: Sample, content: Mapping[str, Any], s: Settings, made: Figures) -> None:
    """Silhouette and distance ratio of images by a label, and their t-SNE."""
    labels = list(content.get("labels", []))
    if not labels:
        if s.label is not None:
            raise DataListError(f"the data list has no labels, so images cannot be coloured by {s.label!r}")
        made.notes.append("The data list has no labels: no figure by disease.")
        return
    names = [label for label in labels if label != normal_label(dict(content))] or labels
    if s.label is None:
        fewest = [min((target_matrix(sample.items, labels, select=[n]) == v).sum() for v in (0, 1)) for n in names]
        label = names[int(np.argmax(fewest))]
    else:
        label = s.label
    values = target_matrix(sample.items, labels, select=[label])[:, 0]
    known = ~np.isnan(values)
    if not {0.0, 1.0} <= set(values[known].tolist()):
        made.notes.append(f"The images are not both with and without {label}: no figure by disease.")
        return
    table = {
        view.name: {
            "silhouette": numbers.silhouette(view.images[known], values[known], seed=s.seed),
            "distance_ratio": numbers.distance_ratio(view.images[known], values[known]),
        }
        for view in views
    }
    made.numbers["disease"] = {
        "label": label,
        "present": int((values == 1).sum()),
        "absent": int((values == 0).sum()),
        "views": table,
    }
    maps = {view.name: embed(view.images, s.seed) for view in views}
    made.drawn["tsne_disease"] = pictures.draw_disease(maps, values, label)


def _correspondence(views: Sequence[View], sample: Sample, shift: GridShift, s: Settings, made: Figures) -> None:
    """Best match of some cells of one patient in four others, whose pictures are moved."""
    first_cells, second_cells = corner_cells(shift)
    columns, p = shift.canvas_grid[1], shift.patch_size
    others = list(range(1, min(5, len(sample.items))))
    crops = corner_crops(sample.canvas[:, :1], shift)
    queries, gallery = numbers.centred_unit(views[0].first), numbers.centred_unit(views[0].second)
    rows = []
    for place in ASKED:
        cell = _cell_at(place, shift, first_cells, second_cells)
        asked = int((first_cells == cell).nonzero()[0, 0])
        right = int((second_cells == cell).nonzero()[0, 0])
        similarity = (gallery[others] @ queries[0, asked]).unflatten(1, shift.grid)
        found = similarity.flatten(1).argmax(1).tolist()
        apart = [math.dist(divmod(f, shift.grid[1]), divmod(right, shift.grid[1])) for f in found]

        def box(index: int) -> tuple[float, float, float]:
            row, column = divmod(index, shift.grid[1])
            return column * p - 0.5, row * p - 0.5, float(p)

        rows.append(
            pictures.Correspondence(
                box(asked), [box(f) for f in found], [box(right)] * len(others),
                similarity.clamp(0, 1).numpy(), float(np.mean(apart)),
            )
        )  # fmt: skip
    made.numbers["correspondence"] = {
        "asked": [[*divmod(_cell_at(place, shift, first_cells, second_cells), columns)] for place in ASKED],
        "distance_in_shown": [row.distance for row in rows],
    }
    made.drawn["correspondence"] = pictures.draw_correspondence(
        crops[0][0, 0].numpy(), crops[1][others, 0].numpy(), rows
    )


def _cell_at(place: tuple[float, float], shift: GridShift, first: Tensor, second: Tensor) -> int:
    """Give the canvas cell nearest to a place (row, column in 0…1) among those that both crops show."""
    common = first[torch.isin(first, second)]
    h, w = shift.canvas_grid
    at = torch.stack([(common // w + 0.5) / h, (common % w + 0.5) / w], 1)
    return int(common[(at - torch.tensor(place)).square().sum(1).argmin()])


def _segments(views: Sequence[View], sample: Sample, encoder: ViTEncoder, s: Settings, made: Figures) -> None:
    """Clusters of tokens as organs, and their Dice where there are masks."""
    size = encoder.image_size
    segments = {view.name: cluster_tokens(view.tokens, encoder.grid, size, s.clusters, s.seed) for view in views}
    masked = [i for i, item in enumerate(sample.items) if item.get("mask")]
    shown = masked[:SHOWN] if len(masked) >= MASKS_NEEDED else list(range(min(SHOWN, len(sample.items))))
    outlines = None
    if len(masked) >= MASKS_NEEDED:
        reading = MaskReading(dict, size, {"mask": []}, s.mask_ignore)
        masks = np.stack([reading.read_mask(sample.items[i]["mask"])[0].numpy() for i in masked])
        choosing = np.random.default_rng(s.seed).permutation(len(masked)) < len(masked) // 2
        scores: dict[str, Any] = {}
        for name, clusters in segments.items():
            union = best_union(clusters[masked][choosing], masks[choosing], s.clusters)
            values = dice(np.isin(clusters[masked][~choosing], union), masks[~choosing])
            scores[name] = dict(zip(("value", "low", "high"), numbers.mean_interval(values, seed=s.seed), strict=True))
        blind = np.broadcast_to(mean_mask(masks[choosing]), masks[~choosing].shape)
        values = dice(blind, masks[~choosing])
        scores["mean mask"] = dict(
            zip(("value", "low", "high"), numbers.mean_interval(values, seed=s.seed), strict=True)
        )
        chosen, judged = int(choosing.sum()), int((~choosing).sum())
        made.numbers["segmentation"] = {
            "clusters": s.clusters,
            "chosen_on": chosen,
            "judged_on": judged,
            "dice": scores,
        }
        outlines = masks[: len(shown)]
    else:
        made.notes.append(f"{len(masked)} of the images have a mask; Dice needs {MASKS_NEEDED}.")
    made.drawn["segments"] = pictures.draw_segments(
        sample.images[shown, 0].numpy(), {name: clusters[shown] for name, clusters in segments.items()}, outlines
    )


def _atlas(folder: str | Path, shift: GridShift, sample: Sample, made: Figures) -> None:
    """What the prototypes stand for, if the model folder holds them."""
    detector = None
    if Path(folder).is_dir() and (Path(folder) / "detector.safetensors").is_file():
        try:
            detector = load_detector(folder)
        except CheckpointError as error:
            made.notes.append(f"No prototype atlas: {error}")
            return
    if detector is None or detector.head is None or detector.canvas.shift != shift.shift:
        why = "the model folder holds no prototypes" if detector is None or detector.head is None else "another shift"
        made.notes.append(f"No prototype atlas: {why}.")
        return
    atlas = build_atlas(detector, sample.canvas)
    made.numbers["atlas"] = {
        "own_cell": atlas.found,
        "dimensions_used": len(np.unique(atlas.strongest)),
        "strongest_dimension": atlas.strongest.tolist(),
    }
    mean = sample.canvas[:, 0].mean(0).numpy()
    made.drawn["atlas"] = pictures.draw_atlas(mean, atlas.strongest, atlas.mosaic, atlas.share)


def _write(out: Path, made: Figures) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**made.numbers, "notes": made.notes}, indent=1, ensure_ascii=False) + "\n"
    files = {f"{name}.png": data for name, data in made.drawn.items()}
    files |= {"figures.json": text.encode(), "figures.html": page_text(made.numbers, made.drawn, made.notes).encode()}
    for name, data in files.items():
        part = out / f".{name}.part"
        part.write_bytes(data)
        os.replace(part, out / name)
    return out / "figures.html"
