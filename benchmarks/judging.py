"""What benchmarks share: pictures of data lists read once, and scores of frozen encoders without fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afire_monai.datalists.file import is_normal, load_datalist
from afire_monai.datalists.patients import patient_of
from afire_monai.evaluation.cases import lesion_case
from afire_monai.evaluation.localisation import LesionCase, Localisation, image_figures, summarise
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe
from afire_monai.predictions.anomaly.build_reference import MIN_NORMALS, build_reference
from afire_monai.predictions.anomaly.detector import AnomalyDetector, enlarge_cells, heat_of
from afire_monai.predictions.anomaly.reference import NormalReference
from afire_monai.predictions.reading import LeftOut, Size, ahead, read_radiograph

Items = Sequence[dict[str, Any]]
Arrays = dict[str, np.ndarray]
SCORED = ("validation", "test")
HEAT_SIZE = (64, 64)


@dataclass
class Cases:
    """Images of a data list.

    Attributes:
        pictures: by size (n, 1, height, width) float16 in 0…1.
        abnormal: (n,) 1 or 0.
        groups: (n,) patient.
        lesions: by place those whose lesions have boxes.
    """

    pictures: dict[Size, Tensor]
    abnormal: np.ndarray
    groups: np.ndarray
    lesions: dict[int, LesionCase]

    def normals(self, places: Sequence[int]) -> Cases:
        """Return the images at these places, which have no lesions."""
        pictures = {size: images[list(places)] for size, images in self.pictures.items()}
        return Cases(pictures, self.abnormal[list(places)], self.groups[list(places)], {})


@dataclass
class Population:
    """A data list as the benchmarks use it.

    Attributes:
        training: what probes are fitted to.
        normals: what anomalies are measured against.
        scored: by section.
        unseen: whether pre-training did not see the normals; None where that is not known.
    """

    training: Cases
    normals: Cases
    scored: dict[str, Cases]
    unseen: bool | None


def groups_of(items: Items) -> np.ndarray:
    """Return the patient of each item (n,); without one each image counts as a patient."""
    return np.array([patient_of(item) for item in items])


def pictures(items: Items, sizes: Iterable[Size], workers: int = 2) -> dict[Size, Tensor]:
    """Decode each image once; ends the program for one that cannot be read.

    Returns:
        For each size (n, 1, height, width) float16 in 0…1.
    """
    wanted = sorted(set(sizes))
    read = functools.partial(_read, items, wanted)
    pixels = {size: torch.empty(len(items), 1, *size, dtype=torch.float16) for size in wanted}
    for result in ahead(read, range(len(items)), workers, 32):
        if isinstance(result, LeftOut):
            raise SystemExit(f"image {result.index} cannot be used: {result.reason}; clean the list with `afire check`")
        for size in wanted:
            pixels[size][result.index] = result.images[size]
    return pixels


def _read(items: Items, sizes: list[Size], index: int) -> Any:
    return read_radiograph(index, str(items[index]["image"]), sizes)


def cases_of(items: Items, labels: Sequence[str], sizes: Iterable[Size]) -> Cases:
    """Read items of a data list with these labels: pictures, truth, patients, boxes."""
    groups = groups_of(items)
    found = {k: lesion_case(item, f"image {k}", groups[k]) for k, item in enumerate(items)}
    abnormal = np.array([int(not is_normal(item, list(labels))) for item in items])
    return Cases(pictures(items, sizes), abnormal, groups, {k: c for k, c in found.items() if c is not None})


def read_population(datalist: str | Path, sizes: Iterable[Size], pretraining: Sequence[str | Path] = ()) -> Population:
    """Read a data list with a training section and at least one of those that are scored.

    Args:
        datalist: with labels; patients apart.
        sizes: of the pictures.
        pretraining: data lists that encoders were pre-trained on. Normals whose image or patient is in them are left
            out of the reference, if at least 20 others remain.
    """
    content = load_datalist(datalist)
    labels, sizes = content["labels"], [*sizes]
    sections = {name: cases_of(content[name], labels, sizes) for name in ("training", *SCORED) if content.get(name)}
    patients = [set(cases.groups) for cases in sections.values()]
    if sum(map(len, patients)) > len(set().union(*patients)):
        raise SystemExit(f"{datalist}: a patient is in two sections; build it again with `afire datalist`")
    training = sections.pop("training")
    seen = set().union(*(_images_and_patients(load_datalist(path)["training"]) for path in pretraining))
    normals = np.flatnonzero(training.abnormal == 0).tolist()
    others = [k for k in normals if not _images_and_patients([content["training"][k]]) & seen]
    unseen = len(others) >= MIN_NORMALS if pretraining else None
    return Population(training, training.normals(others if unseen else normals), sections, unseen)


def reference_and_test(datalist: str | Path, sizes: Iterable[Size]) -> tuple[Cases, Cases]:
    """Read the normal training images of a data list, and its test images."""
    content = load_datalist(datalist)
    labels, sizes = content["labels"], [*sizes]
    normals = [item for item in content["training"] if is_normal(item, labels)]
    return cases_of(normals, labels, sizes), cases_of(content["test"], labels, sizes)


def _images_and_patients(items: Items) -> set[str]:
    return {str(Path(item["image"]).resolve()) for item in items} | {*groups_of(items)}


def probe_scores(encoder: Any, population: Population, seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """Fit probes to frozen features of the training images.

    Returns:
        By section and probe the scores (n,): k-NN and logistic regression, on the class token and the mean patch token
        side by side, and on the mean alone.
    """
    sections = {"training": population.training, **population.scored}
    features = {
        name: extract_features(encoder, cases.pictures[encoder.image_size], "class_mean")
        for name, cases in sections.items()
    }
    train = population.training
    scores: dict[tuple[str, str], np.ndarray] = {}
    for words, first in (("class and mean", 0), ("mean", encoder.embed_dim)):
        known, *unknown = (some[:, first:] for some in features.values())
        ends = np.cumsum([len(some) for some in unknown])[:-1]
        together = np.concatenate(unknown)
        found = {
            "k-NN": knn_probe(known, train.abnormal, together),
            "linear": linear_probe(known, train.abnormal, together, train.groups, seed),
        }
        for probe, values in found.items():
            for section, some in zip(population.scored, np.split(values, ends), strict=True):
                scores[section, f"{probe}, {words}"] = some
    return scores


def reference_of(detector: AnomalyDetector, normals: Cases, parts: Sequence[str], **options: Any) -> NormalReference:
    """Build the reference of a detector, on its device; options are those of `build_reference`."""
    device = detector.encoder.mean.device
    batches = (some.to(device, torch.float32) for some in normals.pictures[detector.canvas_size].split(32))
    return build_reference(detector, batches, list(normals.groups), parts, **options).to(device)


@torch.no_grad()
def anomaly_scores(detector: AnomalyDetector, reference: NormalReference, cases: Cases) -> tuple[Arrays, Arrays]:
    """Score images by how unlike the normal ones they are; no label is used.

    Returns:
        Scores (n,) and heatmaps (n, 64, 64) in 0…1, by each part alone and by their calibrated ``sum``.
    """
    scores: dict[str, list[Tensor]] = {}
    heat: dict[str, list[Tensor]] = {}
    for some in cases.pictures[detector.canvas_size].split(32):
        images = some.to(detector.encoder.mean.device, torch.float32)
        found = reference.judge(detector.features(images, reference.parts, layers=reference.layers), HEAT_SIZE)
        for name, values in {**found.parts, "sum": found.score}.items():
            scores.setdefault(name, []).append(values.cpu())
        for name in reference.parts:
            if cells := [found.cells[m.name] for m in reference.of_cells if m.part == name and m.weight]:
                picture = enlarge_cells(heat_of(torch.stack(cells).mean(0)), reference.canvas, HEAT_SIZE)
                heat.setdefault(name, []).append(picture.cpu())
        if found.heat is not None:
            heat.setdefault("sum", []).append(found.heat.cpu())
    return ({k: torch.cat(v).numpy() for k, v in scores.items()}, {k: torch.cat(v).numpy() for k, v in heat.items()})


def interval(draws: np.ndarray, sign: str = "") -> str:
    """Write value and 95 % interval."""
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return f"{draws[0]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def localisation(heat: np.ndarray, lesions: dict[int, LesionCase], repeats: int = 2000) -> Localisation:
    """Compare heatmaps (n, h, w) with the boxes of the pictures that have some."""
    figures = [image_figures(heat[k], case.lesion(), case.boxes) for k, case in lesions.items()]
    return summarise(figures, list(lesions.values()), repeats)
