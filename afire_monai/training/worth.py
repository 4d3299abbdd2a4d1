"""Find out whether the pre-training paid off: compare encoders on the labels of validation patients.

A logistic regression on frozen features predicts each label, out of fold: an image is judged by a model that saw other
patients of the section. Each encoder gets the same images, folds and strength. The choice of the probe and of its
strength is this project's reading; no label takes part in pre-training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import write_text
from afire_monai.core.precision import best_device
from afire_monai.datalists.file import load_datalist, reader_options
from afire_monai.datalists.patients import patient_of
from afire_monai.datalists.targets import target_matrix
from afire_monai.evaluation.bootstrap import Interval, auroc, patient_weights, percentile_interval, weighted_curve
from afire_monai.models.folder import load_encoder
from afire_monai.models.shipped import DEFAULT
from afire_monai.networks import encoder_from_config
from afire_monai.predictions.features import Embedding, FeatureReader
from afire_monai.training.task_data import label_names

WORTH_FILE = "worth.json"
"""File in a run's folder: the comparison, for the run's page."""
MIN_EACH = 10
"""Least number of images with a label and of images without it to compare encoders by it; of patients, half as many."""
FOLDS = 5
SECTIONS = ("validation", "test", "training")
STRENGTH = 0.003
"""C of the logistic regression, as in ``afire probe``, on features of deviation 1."""
OWN, FRESH, PIXELS = "this encoder", "fresh weights", "raw pixels"

Floats = NDArray[np.float64]
Predict = Callable[[NDArray, NDArray, NDArray], Floats]


@dataclass(frozen=True)
class Labelled:
    """Images of a section with labels by which encoders can be compared."""

    items: list[dict[str, Any]]  #: items of the data list
    labels: list[str]  #: names of the labels
    targets: NDArray[np.float32]  #: (n, labels) 1, 0 or NaN where it is not known
    patients: NDArray[np.str_]  #: (n,) of each image
    reader: dict[str, Any]  #: options of the reader

    def only(self, places: Sequence[int]) -> Labelled:
        """Return some of the images, with those of the labels that encoders can be compared by on them."""
        kept = np.array(places, dtype=int)
        targets, patients = self.targets[kept], self.patients[kept]
        enough = np.array([_enough(column, patients) for column in targets.T], dtype=bool)
        items, labels = [self.items[place] for place in kept], np.array(self.labels)[enough].tolist()
        return Labelled(items, labels, targets[:, enough], patients, self.reader)


def _enough(column: NDArray, patients: NDArray) -> bool:
    sides = (column == 0, column == 1)
    return all(side.sum() >= MIN_EACH and len(np.unique(patients[side])) >= MIN_EACH // 2 for side in sides)


def labelled_images(
    datalist: str | Path, dataset_dir: str = "", section: str = "validation", most: int = 400, seed: int = 0
) -> Labelled | str:
    """Choose images of a section that encoders can be compared on; return the images, or why there are none, in words.

    Args:
        datalist: the data list; uncertain labels count as not known.
        dataset_dir: base of relative paths; empty for the list's own folder.
        section: section whose patients serve for judging.
        most: largest number of images; if there are more, patients are drawn one after the other until this number is
            reached (of the last one perhaps not all).
        seed: seed of that draw.
    """
    content = load_datalist(datalist, dataset_dir or None)
    items = content.get(section) or []
    if not content.get("labels"):
        return "the data list has no labels"
    names = label_names(content, "all", datalist)
    patients = np.array([patient_of(item) for item in items])
    targets = target_matrix(items, content["labels"], "ignore", names)
    known = np.flatnonzero(~np.isnan(targets).all(1)).tolist()
    turn = {name: place for place, name in enumerate(np.random.default_rng(seed).permutation(np.unique(patients)))}
    known = sorted(known, key=lambda place: turn[patients[place]])[:most]
    chosen = Labelled(items, names, targets, patients, reader_options(content)).only(known)
    if not chosen.labels:
        return (
            f"among {len(known)} images of section {section}, no label has {MIN_EACH} images of {MIN_EACH // 2} "
            "patients with it and as many without it"
        )
    return chosen


@dataclass(frozen=True)
class CrossFitted:
    """Scores of images by models that were fitted to other patients."""

    scores: Floats  #: (n, labels); NaN where the label is not known, or could not be learned
    folds: NDArray[np.intp]  #: (n, labels) fold in which each image was judged


def out_of_fold(features: NDArray, images: Labelled, predict: Predict, seed: int = 0) -> CrossFitted:
    """Score each image by a model that was fitted to other patients.

    Features are (n, D).
    """
    scored = CrossFitted(np.full(images.targets.shape, np.nan), np.zeros(images.targets.shape, dtype=np.intp))
    for number, column in enumerate(images.targets.T):
        there = np.flatnonzero(~np.isnan(column))
        truth, groups = column[there].astype(int), images.patients[there]
        splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(truth, truth, groups)
        for fold, (train, test) in enumerate((there[a], there[b]) for a, b in splits):
            if len(np.unique(column[train])) == 2:
                scored.scores[test, number] = predict(features[train], column[train].astype(int), features[test])
                scored.folds[test, number] = fold
    return scored


def mean_auroc(images: Labelled, scored: CrossFitted, repeats: int = 0) -> Floats:
    """Return the mean over labels of the AUROC, (1 + repeats,): of the sample, then of draws of patients.

    Images are compared only within their fold, and folds count by their pairs: scores of different folds depend on the
    number of positives that were left for learning, which draws a pooled AUROC below chance if labels are rare.
    """
    return np.asarray(np.mean([_auroc(images, scored, label, repeats) for label in range(len(images.labels))], axis=0))


def _auroc(images: Labelled, scored: CrossFitted, label: int, repeats: int) -> Floats:
    scores, positive = scored.scores[:, label], images.targets[:, label] == 1
    draws = []
    for weights in patient_weights(images.patients, repeats, seed=0):
        above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in range(FOLDS):
            here = np.flatnonzero((scored.folds[:, label] == fold) & ~np.isnan(scores))
            if len(here):
                some, truth = weights[:, here], positive[here]
                count = (some * truth).sum(1) * (some * ~truth).sum(1)
                above += np.nan_to_num(auroc(weighted_curve(scores[here], truth, some))) * count
                pairs += count
        with np.errstate(invalid="ignore"):
            draws.append(above / pairs)
    return np.concatenate(draws)


def _linear(train: NDArray, truth: NDArray, test: NDArray) -> Floats:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    return np.asarray(model.fit(train, truth).decision_function(test), dtype=np.float64)


@dataclass(frozen=True)
class Comparison:
    """How well each encoder predicts the labels.

    ``gains`` are those of the judged encoder, the first, over each of the others, paired on the same patients.
    """

    section: str
    images: int
    patients: int
    labels: dict[str, int]
    figures: dict[str, Interval]
    gains: dict[str, Interval]
    left_out: int = 0

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Read the file of :meth:`write`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        for name in ("figures", "gains"):
            content[name] = {key: Interval(*value) for key, value in content[name].items()}
        return cls(**content)

    @property
    def shipped(self) -> str | None:
        """Name of the model that comes with the package, if it took part."""
        return next((name for name in self.gains if name not in (FRESH, PIXELS)), None)

    def sentence(self) -> str:
        """Return the encoder's worth on these labels in one line."""
        floor = max((FRESH, PIXELS), key=lambda name: self.figures[name].value)
        gain = self.gains[floor]
        verdict = "Worth it" if gain.low > 0 else "Not worth it" if gain.high < 0 else "Not shown to be worth it"
        return (
            f"{verdict}: on your labels ({', '.join(self.labels)}; {self.images} {self.section} images of "
            f"{self.patients} patients) a linear probe reaches AUROC {self.figures[OWN]} with this encoder; that is "
            f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) against {floor}."
        )

    @property
    def _continued(self) -> str:
        return f"`afire pretrain LIST --init {self.shipped} --out OUT`"

    def advice(self) -> str:
        """Return advice for the next step."""
        gained = all(self.gains[name].low > 0 for name in (FRESH, PIXELS))
        over = self.gains[self.shipped] if self.shipped else None
        if over is not None and over.high < 0:
            return (
                f"{self.shipped}, which comes with the package, is better on your labels: use it frozen (`afire probe "
                f"LIST --out OUT`), or continue its training with your radiographs ({self._continued})."
            )
        if gained and (over is None or over.low > 0):
            return (
                "Use this encoder: `afire probe LIST --model RUN/models --out OUT` with few labels, "
                "`afire finetune LIST --init RUN/models --out OUT` with many (docs/finetune.md)."
            )
        if over is not None and gained:
            return (
                f"This encoder and {self.shipped}, which comes with the package, are level on your labels: try "
                f"both, or continue its training with your radiographs ({self._continued})."
            )
        return (
            f"Train for longer or on more radiographs (`afire pretrain LIST --init {DEFAULT} --out OUT` continues from "
            "the encoder that comes with the package), or label more validation patients."
        )


def compare_encoders(
    datalist: str | Path,
    model: str | Path | None = None,
    section: str = "validation",
    dataset_dir: str = "",
    images: int = 400,
    seed: int = 0,
    batch_size: int = 16,
    workers: int = 2,
    progress: bool = False,
) -> Comparison:
    """Compare an encoder with its own fresh weights, raw pixels and the encoder that ships, on a list's labels.

    Args:
        datalist: data list with labels on its validation patients.
        model: folder with the encoder to judge; or the name of one that comes with the package; the first
            of those unless given.
        section: section whose patients serve for judging: validation, test, or training (whose normal images
            pre-training may have seen).
        dataset_dir: base of relative paths; empty for the list's own folder.
        images: largest number of images, taken patient by patient.
        seed: seed of the fresh weights, the choice of patients and the folds.
        batch_size: radiographs computed at once.
        workers: threads that read.
        progress: show a bar with the time left.

    Raises:
        AfireError: for an unknown section or too few images.
        DataListError: if the list does not have enough labels, or too few images can be used.
        CheckpointError: if the model cannot be read.
    """
    if section not in SECTIONS:
        raise AfireError(f"--section is {section!r}; one of {', '.join(SECTIONS)} is expected")
    if images < 2 * MIN_EACH:
        raise AfireError(f"--images is {images}; at least {2 * MIN_EACH} are needed, {MIN_EACH} of each kind")
    chosen = labelled_images(datalist, dataset_dir, section, images, seed)
    if isinstance(chosen, str):
        raise DataListError(f"{datalist}: encoders cannot be compared on it: {chosen}")
    own = load_encoder(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = encoder_from_config(own.config)
    encoders = {OWN: own, FRESH: fresh} | ({} if model in (None, DEFAULT) else {DEFAULT: load_encoder()})
    embeddings = {name: Embedding.of_encoder(encoder.to(best_device())) for name, encoder in encoders.items()}
    embeddings[PIXELS] = Embedding.of_pixels()
    reader = FeatureReader(embeddings, batch_size, workers, progress, chosen.reader)
    features = reader.features(chosen.items, section)
    used = chosen.only(list(features[OWN]))
    if not used.labels:
        raise DataListError(f"{datalist}: too few {section} images can be used; `afire check` says why")
    draws = {name: _draws(used, torch.stack([*some.values()]).numpy(), seed) for name, some in features.items()}
    return Comparison(
        section,
        len(used.items),
        len(np.unique(used.patients)),
        dict(zip(used.labels, (used.targets == 1).sum(0).tolist(), strict=True)),
        {name: percentile_interval(some) for name, some in draws.items()},
        {name: percentile_interval(draws[OWN] - some) for name, some in draws.items() if name != OWN},
        len(chosen.items) - len(used.items),
    )


def _draws(images: Labelled, features: NDArray, seed: int) -> Floats:
    return mean_auroc(images, out_of_fold(features, images, _linear, seed), repeats=1000)


def figures_table(comparison: Comparison) -> list[list[str]]:
    """Return a row for each encoder: name, AUROC, and the judged encoder's gain over it."""
    return [[name, str(value), _signed(comparison.gains.get(name))] for name, value in comparison.figures.items()]


def _signed(gain: Interval | None) -> str:
    return "" if gain is None else f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def worth_lines(comparison: Comparison) -> str:
    """Return sentence, table and advice for a terminal."""
    rows = [f"{name:<16} {value}   {gain}" for name, value, gain in figures_table(comparison)]
    return "\n".join([comparison.sentence(), *rows, comparison.advice()])
