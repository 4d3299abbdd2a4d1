"""A classifier from few labels: logistic regression on frozen features and on the distance from normal radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afire_monai.core.errors import DataListError
from afire_monai.core.precision import best_device, set_precision
from afire_monai.datalists.file import datalist_hash, is_normal, load_datalist, normal_label, read_raw, reader_options
from afire_monai.datalists.patients import patient_of
from afire_monai.datalists.targets import UncertainPolicy
from afire_monai.evaluation.probes import fit_logistic
from afire_monai.models.folder import load_encoder, model_files
from afire_monai.models.shipped import model_folder
from afire_monai.networks.task_networks import NormalDistance, ViTClassifier
from afire_monai.predictions.anomaly.build_reference import MIN_NORMALS
from afire_monai.predictions.anomaly.normals import fit_images
from afire_monai.predictions.features import Embedding, FeatureReader
from afire_monai.training.calibration import CalibrationMethod, ThresholdRule
from afire_monai.training.finetuning import Answers, facts, leave_classifier, score_lines
from afire_monai.training.task_data import classification_data
from afire_monai.training.tasks import Classification
from afire_monai.training.worth import STRENGTH

TRUST = 10.0
"""Scale of the distance from normal radiographs among those features: its weight is penalised a hundredth as much."""


@dataclass
class Probe:
    """A classifier that was fitted.

    ``left_out`` holds reasons by place for each section, ``scores`` holds a line for each section and label.
    """

    labelled: int
    normals: int
    figures: dict[str, float]
    left_out: dict[str, dict[int, str]]
    scores: list[str]


def fit_probe(
    datalist: str | Path,
    out: str | Path,
    model: str | Path | None = None,
    labels: Sequence[str] | str = "all",
    uncertain: UncertainPolicy = "ignore",
    fraction: float = 1.0,
    seed: int = 0,
    calibration: CalibrationMethod = "temperature",
    threshold_rule: ThresholdRule = "youden",
    batch_size: int = 16,
    workers: int = 2,
    progress: bool = False,
) -> Probe:
    """Fit a classifier to the labels of a data list without training the encoder.

    Features are the encoder's summary, standardised over the training section (labels are not needed for that), and the
    logarithm of the mean token's Mahalanobis distance to normal radiographs. The encoder was pre-trained to measure
    this distance; it stands in for labels if there are few. Images of the training section that are known to be normal
    serve as normal radiographs, each judged without its own patient; with fewer than 20, or of one patient alone, the
    distance is left out. Strength and trust are fixed (chosen on validation images, docs/finetune.md), so that five
    labelled images suffice.

    Args:
        datalist: data list with labels, with images for training and validation.
        out: folder to write into; gets ``models/`` and ``predictions/``, as fine-tuning writes them.
        model: folder with the encoder, or the name of one that comes with the package; the first of those unless
            given.
        labels: names to learn, with commas between them on a command line; ``all`` for every label but the one for
            normal.
        uncertain: meaning of -1: ignore, zeros or ones.
        fraction: share of the training images whose labels are used; all of the normal ones still count as normal.
        seed: seed for choosing that share.
        calibration: method for calibrating probabilities on the validation images: temperature, platt or none.
        threshold_rule: rule for choosing thresholds: youden or specificity95.
        batch_size: radiographs computed at once.
        workers: threads that read.
        progress: show bars with the time left.

    Raises:
        DataListError: for a list that cannot be used, or a label with only one known class.
        CheckpointError: if the model cannot be read.
    """
    set_precision("float32")
    folder = model_folder(model)
    folder = folder if folder.is_dir() else folder.parent
    data = classification_data(datalist, labels=labels, uncertain=uncertain, fraction=fraction, seed=seed)
    content = load_datalist(datalist)
    encoder = load_encoder(folder)
    task = Classification(ViTClassifier(encoder, data.labels, "summary", normality=True).eval())
    network = task.network
    options, embedding = reader_options(content), Embedding.of_encoder(encoder.to(best_device()))
    reader = FeatureReader({"": embedding}, batch_size, workers, progress, options)
    training = content["training"]
    features = reader.features(training, "training")[""]
    normal = normal_label(content)
    known = [place for place in features if is_normal(training[place], content["labels"], normal)]
    patients = [patient_of(training[place]) for place in known]
    if len(known) < MIN_NORMALS or len(set(patients)) < 2:
        known, patients = [], []
    distance = fit_distance(network.normality, features, known, patients)
    chosen = [item for item in data.training if item["place"] in features]
    unusable = f"{datalist}: no labelled %s image can be used; `afire check` says why"
    if not chosen:
        raise DataListError(unusable % "training")
    fit_head(network, features, distance, chosen, f"{datalist}, section training")
    given = {"validation": data.validation, "test": data.test}
    answers = {section: _answers(network, reader, items, section) for section, items in given.items()}
    encoder.to("cpu")
    if not len(answers["validation"].places):
        raise DataListError(unusable % "validation")
    answers = {section: found for section, found in answers.items() if len(found.places)}
    probe = {"strength": STRENGTH, "trust": TRUST, "normals": len(known), "labelled": len(chosen)}
    about = {**facts(str(folder), fraction, 0, 0, seed), "probe": probe, **({"reader": options} if options else {})}
    sha256 = datalist_hash(read_raw(Path(datalist)))
    frozen = model_files([folder])["encoder"]
    figures = leave_classifier(task, answers, out, sha256, calibration, threshold_rule, about, frozen)
    return Probe(len(chosen), len(known), figures, reader.left_out, score_lines(task, answers))


def fit_distance(
    normality: NormalDistance, features: dict[int, Tensor], known: Sequence[int], patients: Sequence[str]
) -> dict[int, float]:
    """Fit the distance from normal radiographs; return it for each image, of a normal one without its own patient."""
    if not known:
        normality.whitening.zero_()
        return dict.fromkeys(features, 0.0)
    dim = len(normality.center)
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    means = torch.stack([features[place][-dim:] for place in known])
    gaussian, crossed = fit_images(means[:, None], torch.tensor([numbers[patient] for patient in patients]))
    logs = crossed[:, 0].log()
    normality.center.copy_(gaussian.mean[0])
    normality.whitening.copy_(gaussian.whitening)
    normality.scale.copy_(torch.stack([logs.mean(), logs.std().clamp_min(1e-6)]))
    every = normality(torch.stack([some[-dim:] for some in features.values()]))[:, 0].tolist()
    own = ((logs - normality.scale[0]) / normality.scale[1]).tolist()
    return {**dict(zip(features, every, strict=True)), **dict(zip(known, own, strict=True))}


def fit_head(
    network: ViTClassifier,
    features: dict[int, Tensor],
    distance: dict[int, float],
    chosen: Sequence[dict[str, Any]],
    where: str,
    strength: float = STRENGTH,
    trust: float = TRUST,
) -> None:
    """Fit a logistic regression for each label, and write it into the head for features as the encoder gives them."""
    every = torch.stack([*features.values()]).double()
    deviation = every.std(0, correction=0).clamp_min(1e-6)
    places = [item["place"] for item in chosen]
    unlike = torch.tensor([distance[place] for place in places], dtype=torch.float64)
    columns = torch.cat([torch.stack([features[place] for place in places]), unlike[:, None]], 1)
    target = np.array([item["target"] for item in chosen])
    mean = torch.cat([every.mean(0), torch.zeros(1)])
    alike = fit_logistic(
        network.head, columns, target, mean, torch.cat([deviation, torch.tensor([1 / trust])]), strength
    )
    if alike:
        known = (~np.isnan(target[:, alike[0]])).sum()
        raise DataListError(
            f"{where}: the {known} images whose label {network.labels[alike[0]]!r} is known all have the same value; "
            "label images of both kinds, or leave it out with --labels"
        )


@torch.no_grad()
def logits_of(network: Any, features: Tensor) -> Tensor:
    """Return the classifier's logits (n, labels) for features (n, width) that were computed already."""
    return network.head(network.with_normality(features))


def _answers(network: Any, reader: FeatureReader, items: Sequence[dict[str, Any]], section: str) -> Answers:
    found = reader.features(items, section)[""]
    rows = [items[index] for index in found]
    features = torch.stack([*found.values()]) if found else torch.empty(0, network.head.in_features - 1)
    target = torch.tensor([row["target"] for row in rows])
    places = np.array([row["place"] for row in rows], dtype=np.int64)
    return Answers(places, logits_of(network, features), target, list(map(patient_of, rows)))
