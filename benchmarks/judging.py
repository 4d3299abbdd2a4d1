"""What benchmarks share: pictures of data lists read once, and scores of frozen encoders without fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afire_monai.datalists.file import abnormality, load_datalist, normal_label, normal_of, reader_options
from afire_monai.datalists.patients import patient_of, shared_patients
from afire_monai.evaluation.cases import lesion_case
from afire_monai.evaluation.localisation import LesionCase, Localisation, image_figures, summarise
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe, raw_pixels
from afire_monai.predictions.anomaly.build_reference import MIN_NORMALS, build_reference
from afire_monai.predictions.anomaly.detector import AnomalyDetector, enlarge_cells, heat_of
from afire_monai.predictions.anomaly.reference import NormalReference
from afire_monai.predictions.reading import LeftOut, Size, ahead, read_radiograph

Items = Sequence[dict[str, Any]]
Arrays = dict[str, np.ndarray]
SCORED = ("validation", "test")
HEAT_SIZE = (64, 64)
PIXELS = (128, 128)
"""Size of the pictures whose own grey levels are judged."""


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


def pictures(
    items: Items, sizes: Iterable[Size], options: Mapping[str, Any] | None = None, workers: int = 2
) -> dict[Size, Tensor]:
    """Decode each image once, with a list's own `reader_options`; ends the program for one that cannot be read.

    Returns:
        For each size (n, 1, height, width) float16 in 0…1.
    """
    wanted = sorted(set(sizes))
    read = functools.partial(_read, items, wanted, options)
    pixels = {size: torch.empty(len(items), 1, *size, dtype=torch.float16) for size in wanted}
    for result in ahead(read, range(len(items)), workers, 32):
        if isinstance(result, LeftOut):
            raise SystemExit(f"image {result.index} cannot be used: {result.reason}; clean the list with `afire check`")
        for size in wanted:
            pixels[size][result.index] = result.images[size]
    return pixels


def _read(items: Items, sizes: list[Size], options: Mapping[str, Any] | None, index: int) -> Any:
    return read_radiograph(index, str(items[index]["image"]), sizes, options=options)


def known_items(content: Any, items: Items, words: str) -> Items:
    """Return the items that have a finding or are known to be normal; prints how many are left out."""
    kept = [item for item in items if not np.isnan(abnormality(item, content["labels"], normal_label(content)))]
    if len(kept) < len(items):
        print(f"{words}: {len(items) - len(kept)} of {len(items)} images are neither known to be normal nor abnormal")
    return kept


def cases_of(content: Any, items: Items, sizes: Iterable[Size]) -> Cases:
    """Read items of a data list that are known to be normal or abnormal: pictures, truth, patients, boxes."""
    groups = groups_of(items)
    found = {k: lesion_case(item, f"image {k}", groups[k]) for k, item in enumerate(items)}
    abnormal = np.array([int(abnormality(item, content["labels"], normal_label(content))) for item in items])
    read = pictures(items, sizes, reader_options(content))
    return Cases(read, abnormal, groups, {k: c for k, c in found.items() if c is not None})


def refuse_shared(sections: Mapping[str, Items], path: str | Path) -> None:
    """End the program if a patient is in two sections."""
    if shared := shared_patients(sections):
        (one, other), patients = next(iter(shared.items()))
        raise SystemExit(
            f"{path}: a patient is in two sections ({len(patients)} in {one} and {other}); build it again with "
            "`afire datalist`"
        )


def read_population(
    datalist: str | Path,
    sizes: Iterable[Size],
    pretraining: Sequence[str | Path] = (),
    needed: Sequence[str] = ("training",),
) -> Population:
    """Read a data list whose training section fits, and whose others are scored.

    Args:
        datalist: with labels; patients apart.
        sizes: of the pictures.
        pretraining: data lists that encoders were pre-trained on. Normals whose image or patient is in them are left
            out of the reference, if at least 20 others remain.
        needed: sections without which the program ends; a training section that is not there is empty.
    """
    content, sizes = load_datalist(datalist), [*sizes]
    given = {name: content[name] for name in ("training", *SCORED) if content.get(name)}
    refuse_shared(given, datalist)
    items = {name: known_items(content, some, f"{datalist}, {name}") for name, some in given.items()}
    if missing := [name for name in needed if not items.get(name)]:
        raise SystemExit(
            f"{datalist}: section {missing[0]} is missing or has no image that is known to be normal or not"
        )
    seen = set().union(*(_images_and_patients(load_datalist(path).get("training", [])) for path in pretraining))
    for name in SCORED:
        if known := sum(bool(_images_and_patients([item]) & seen) for item in items.get(name, [])):
            print(f"{datalist}, {name}: pre-training saw {known} of these images or their patients")
    sections = {name: cases_of(content, some, sizes) for name, some in items.items()}
    training = sections.pop("training", Cases({}, np.zeros(0, int), np.zeros(0, str), {}))
    normals = np.flatnonzero(training.abnormal == 0).tolist()
    others = [k for k in normals if not _images_and_patients([items["training"][k]]) & seen]
    unseen = len(others) >= MIN_NORMALS if pretraining else None
    return Population(training, training.normals(others if unseen else normals), sections, unseen)


def reference_and_test(datalist: str | Path, sizes: Iterable[Size]) -> tuple[Cases, Cases]:
    """Read the normal training images of a data list, and its test images."""
    content, sizes = load_datalist(datalist), [*sizes]
    refuse_shared({name: content.get(name, []) for name in ("training", "test")}, datalist)
    test = known_items(content, content["test"], f"{datalist}, test")
    return cases_of(content, normal_of(content, "training"), sizes), cases_of(content, test, sizes)


def named(option: str, pairs: Sequence[str], kind: str | None = "datalist.json") -> dict[str, str]:
    """Read NAME=PATH, or NAME=VALUE if there is no kind; ends the program for a name given twice or an absent path.

    A kind with a colon, such as ``datalist.json:label``, wants something behind the path's colon.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        lacking = ":" in (kind or "") and not path.partition(":")[2]
        if not name or not equals or "/" in name or name in found or lacking:
            raise SystemExit(
                f"{option} {pair}: NAME={kind or 'VALUE'} is expected, no / in the name and each name once"
            )
        if kind and not Path(path.partition(":")[0]).exists():
            raise SystemExit(f"{option} {pair}: no such file {path.partition(':')[0]}; NAME={kind} is expected")
        found[name] = path
    return found


def part_of(share: str) -> tuple[int, int]:
    """Read PART/PARTS, counted from 0; ends the program for what cannot be meant."""
    part, _, parts = share.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise SystemExit(f"--share {share}: PART/PARTS is expected, with parts counted from 0")
    return int(part), int(parts)


def _images_and_patients(items: Items) -> set[str]:
    return {str(Path(item["image"]).resolve()) for item in items} | {*groups_of(items)}


def probe_scores(encoder: Any, population: Population, seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """Fit probes to frozen features of the training images, or without an encoder to 32 x 32 pixels of their own.

    Returns:
        By section and probe the scores (n,): k-NN and logistic regression, on the class token and the mean patch token
        side by side, and on the mean alone; none if the training images are all normal or all abnormal.
    """
    if len(set(population.training.abnormal)) < 2:
        return {}
    sections = {"training": population.training, **population.scored}
    if encoder is None:
        features = {name: raw_pixels(cases.pictures[PIXELS].float()) for name, cases in sections.items()}
    else:
        features = {
            name: extract_features(encoder, cases.pictures[encoder.image_size], "class_mean")
            for name, cases in sections.items()
        }
    train = population.training
    scores: dict[tuple[str, str], np.ndarray] = {}
    for words, first in (("class and mean", 0), ("mean", encoder.embed_dim if encoder else 0)):
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
                picture = heat_of(enlarge_cells(torch.stack(cells).mean(0), reference.canvas, HEAT_SIZE))
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
