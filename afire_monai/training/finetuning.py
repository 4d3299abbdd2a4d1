"""Functions of the fine-tuning configs: prepare a run, and save a calibrated model and its predictions at the end."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from afire_monai import __version__
from afire_monai.core.distributed import rank, world_size
from afire_monai.core.files import write_text
from afire_monai.datalists.patients import patient_of
from afire_monai.evaluation.bootstrap import mean_interval
from afire_monai.evaluation.probes import fit_logistic
from afire_monai.loading.dataset import RadiographDataset, grey_levels, image_statistics, reader_facts
from afire_monai.models.folder import export_task
from afire_monai.models.initial import origin_of
from afire_monai.predictions.format import Predictions, save_predictions
from afire_monai.training.calibration import (
    CalibrationMethod,
    ThresholdRule,
    calibrate,
    calibration_words,
    choose_thresholds,
    own_test_words,
)
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.startup import reading
from afire_monai.training.task_data import TaskData
from afire_monai.training.tasks import Classification, Task, image_dice
from afire_monai.training.tracking import log_results
from afire_monai.training.validation import predict_dataset
from afire_monai.training.worth import STRENGTH

if TYPE_CHECKING:
    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)
HEAD_IMAGES = 4096
"""Most training images to which a head is fitted before training."""
_FEW = 5  # number of images with or without a finding below which its AUROC means little
_NEXT = "next: afire predict FOLDER --model %s --out results"


def statistics_of(data: TaskData, datalist: str | Path) -> Callable[[], tuple[float, float]]:
    """Return a function that measures grey-level mean and deviation of a task's training images when called.

    The images are read as their data list says, as in the training.
    """

    def measure() -> tuple[float, float]:
        return image_statistics(RadiographDataset(data.training, reading((64, 64), datalist=Path(datalist))))

    return measure


def usable_batch(batch_size: int, dataset: RadiographDataset) -> int:
    """Return the batch size, or less if there are too few images for one batch (1 % of the labels of a small list)."""
    share = len(dataset) // world_size()
    if share < batch_size:
        logger.warning("%d training images: batch_size %d becomes %d", len(dataset), batch_size, max(share, 1))
    return max(1, min(batch_size, share))


@torch.no_grad()
def fit_head_first(trainer: PretrainTrainer, dataset: RadiographDataset, wanted: bool = True) -> None:
    """Fit a classifier's head to the features of the encoder as it is, so that training starts from a linear probe.

    A head with random weights would change the encoder before it knows what to look for (Kumar et al., ICLR 2022). The
    regression is that of `afire probe`, on at most 4096 training images, with the weights that the loss gives to
    positives (``balance``). A resumed training has a head already.

    Args:
        trainer: of a `Classification`, before its run.
        dataset: training images with ``target``.
        wanted: False does nothing.
    """
    if not wanted or trainer.state.iteration:
        return
    task: Any = trainer.method
    network: Any = task.student.eval()
    images = len(dataset)
    places = np.random.default_rng(0).permutation(images)[:HEAD_IMAGES].tolist()
    features, targets = [], []
    for batch in DataLoader(Subset(dataset, places), trainer.batch_size):
        features.append(network.features(grey_levels(batch["image"].to(trainer.state.device))).float().cpu())
        targets.append(batch["target"])
    columns = torch.cat(features)
    deviation = columns.double().std(0, correction=0).clamp_min(1e-6)
    head = network.head.cpu()
    target, mean, weight = torch.cat(targets).numpy(), columns.double().mean(0), task.loss.weight
    fit_logistic(head, columns, target, mean, deviation, STRENGTH, None if weight is None else weight.tolist())
    head.to(trainer.state.device)
    if task.average:
        task.teacher.head.load_state_dict(head.state_dict())


def test_dataset(data: TaskData, transform: Callable[[Any], Any], extra: str) -> RadiographDataset | None:
    """Return the test images with their ``target`` or ``mask``, or None if the list has none."""
    return RadiographDataset(data.test, transform, cache=True, extras=(extra,)) if data.test else None


def facts(init: str, fraction: float, folds: int, fold: int, seed: int) -> dict[str, Any]:
    """Return where a model comes from, in plain values: the encoder's own description, the data used, the seed."""
    cross = {"folds": folds, "fold": fold} if folds else {}
    return {"encoder": origin_of(init), "version": __version__, "fraction": fraction, "seed": seed, **cross}


def _load_best(trainer: PretrainTrainer, checkpoint_dir: str | Path) -> Task:
    task = trainer.method
    assert isinstance(task, Task)
    best = Path(checkpoint_dir) / "best.pt"
    if best.is_file():
        task.load_state_dict(load_checkpoint(best)["method"])
    return task


def _trained(trainer: PretrainTrainer, about: dict[str, Any] | None) -> dict[str, Any]:
    facts = {"epochs": trainer.state.epoch, "best_epoch": trainer.best_epoch}
    return {**facts, **reader_facts(trainer.data_loader.dataset), **(about or {})}


def _places(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([item["place"] for item in items], dtype=np.int64)


def finish_classification(
    trainer: PretrainTrainer,
    datasets: dict[str, RadiographDataset | None],
    output_dir: str | Path,
    data_hash: str,
    calibration: CalibrationMethod = "temperature",
    threshold_rule: ThresholdRule = "youden",
    about: dict[str, Any] | None = None,
) -> None:
    """Calibrate the best weights on the validation set, export them, and write predictions; process 0 only.

    Args:
        trainer: the trainer, at the end of training.
        datasets: ``validation`` and ``test`` (None if the list has no test images), each with ``target``.
        output_dir: gets ``models/classifier.safetensors``, ``predictions/validation`` and ``predictions/test``.
        data_hash: SHA-256 of the data list.
        calibration: method for calibrating probabilities.
        threshold_rule: rule for choosing thresholds.
        about: plain values to keep with the model: origin of the encoder, fraction, fold, seed.
    """
    if rank():
        return
    output, device = Path(output_dir), trainer.state.device
    task: Any = _load_best(trainer, output / "checkpoints")
    answers = {}
    for section, dataset in datasets.items():
        if dataset is not None:
            logits, batch = predict_dataset(task, dataset, 64, device)
            items = [dataset.items[index] for index in batch["index"].tolist()]
            answers[section] = Answers(_places(items), logits, batch["target"], list(map(patient_of, items)))
    trained = _trained(trainer, about)
    leave_classifier(task.to("cpu"), answers, output, data_hash, calibration, threshold_rule, trained)
    found = {section: task.figures(some.logits, {"target": some.target}) for section, some in answers.items()}
    aurocs = {f"final/{s}_macro_auroc": some.get("validation_macro_auroc") for s, some in found.items()}
    models = [output / "models" / f"classifier.{kind}" for kind in ("json", "safetensors")]
    log_results(trainer, {name: value for name, value in aurocs.items() if value is not None}, models)
    for line in score_lines(task, answers):
        logger.info(line)
    logger.info(_NEXT, shlex.quote(str(output / "models")))


@dataclass(frozen=True)
class Answers:
    """A classifier's results for a section of a data list."""

    places: np.ndarray  #: (n,) of the images in the section
    logits: Tensor  #: (n, labels)
    target: Tensor  #: (n, labels), NaN where not known
    patients: Sequence[str] = ()  #: (n,) of the images


def score_lines(task: Classification, answers: dict[str, Answers]) -> list[str]:
    """Return in a line each the AUROC of a section and a label, marked where fewer than 5 images are on one side."""
    lines = []
    for section, some in answers.items():
        figures = task.figures(some.logits, {"target": some.target})
        for place, label in enumerate(task.network.labels):
            value, target = figures.get(f"validation_auroc/{label}"), some.target[:, place]
            counts = int((target == 1).sum()), int((target == 0).sum())
            words = "not judged" if value is None else f"AUROC {value:.3f}"
            few = f"; fewer than {_FEW}, take it lightly" if value is not None and min(counts) < _FEW else ""
            lines.append(f"{section}: {label}: {words} ({counts[0]} with, {counts[1]} without{few})")
        if len(task.network.labels) > 1 and "validation_macro_auroc" in figures:
            lines.append(f"{section}: mean AUROC {figures['validation_macro_auroc']:.3f}")
    return lines


def rests_on(labels: Sequence[str], answers: dict[str, Answers], calibration: CalibrationMethod) -> dict[str, str]:
    """Return for each label the basis of its probability in words: calibration, and the AUROC in the test section."""
    words = [[text] for text in calibration_words(answers["validation"].target.numpy(), calibration)]
    test = answers.get("test")
    if test is not None and len(test.patients):
        for text, more in zip(
            words, own_test_words(test.target.numpy(), test.logits.numpy(), test.patients), strict=True
        ):
            text.append(more)
    return {label: "; ".join(text) for label, text in zip(labels, words, strict=True)}


def leave_classifier(
    task: Classification,
    answers: dict[str, Answers],
    output_dir: str | Path,
    data_hash: str,
    calibration: CalibrationMethod,
    threshold_rule: ThresholdRule,
    about: dict[str, Any],
    frozen: Path | None = None,
) -> dict[str, float]:
    """Calibrate a classifier, export it and write its predictions.

    The ``answers`` of ``validation`` decide calibration and thresholds; ``frozen`` is as for `export_task`.

    Returns:
        Figures of the validation section (see `Classification.figures`).
    """
    output, network, decides = Path(output_dir), task.network, answers["validation"]
    calibrate(network, decides.logits, decides.target, calibration)
    probabilities = {section: network.calibrated(some.logits).detach().numpy() for section, some in answers.items()}
    cuts = choose_thresholds(probabilities["validation"], decides.target.numpy(), threshold_rule)
    thresholds = dict(zip(network.labels, cuts, strict=True))
    figures = task.figures(decides.logits, {"target": decides.target})
    model = {
        "thresholds": thresholds,
        "threshold_rule": threshold_rule,
        "calibration": calibration,
        "rests_on": rests_on(network.labels, answers, calibration),
        "validation": {k: round(v, 5) for k, v in figures.items()},
        "data_sha256": data_hash,
        **about,
    }
    export_task(network, output / "models", frozen, **model)
    for section, scores in probabilities.items():
        columns = {label: scores[:, place].astype(np.float64) for place, label in enumerate(network.labels)}
        pooled = section == "validation" and about.get("folds")
        origin = {
            "section": "training+validation" if pooled else section,
            "datalist_sha256": data_hash,
            "thresholds": thresholds,
            "model": about,
        }
        save_predictions(Predictions(answers[section].places, columns, facts=origin), output / "predictions" / section)
    logger.info("classifier and predictions written to %s", output.name)
    return figures


def _dice_by_patient(
    items: Sequence[Mapping[str, Any]], classes: Sequence[str], logits: Tensor, mask: Tensor
) -> dict[str, dict[str, Any]]:
    """Return 95 % intervals over patients of a section's mean Dice, and the Dice of each image."""
    owners = np.array([patient_of(item) for item in items])
    dice, positive = (values.numpy() for values in image_dice(logits, mask))
    columns = {f"dice/{name}": dice[:, place].astype(np.float64) for place, name in enumerate(classes)}
    some = {
        f"dice_positive/{name}": np.where(positive[:, place], dice[:, place], np.nan)
        for place, name in enumerate(classes)
        if positive[:, place].any()
    }
    # a single patient has no interval
    bounds = {key: mean_interval(values, owners)[1:] for key, values in (columns | some).items()}
    return {
        "intervals": {key: list(found) for key, found in bounds.items() if not np.isnan(found).any()},
        "images": {"place": _places(items).tolist(), **{key: values.tolist() for key, values in columns.items()}},
    }


def finish_segmentation(
    trainer: PretrainTrainer,
    datasets: dict[str, RadiographDataset | None],
    output_dir: str | Path,
    data_hash: str,
    about: dict[str, Any] | None = None,
) -> None:
    """Export the best weights and write figures of validation and test set; process 0 only.

    Args:
        trainer: the trainer, at the end of training.
        datasets: ``validation`` and ``test`` (None if the list has no test masks), each with ``mask``.
        output_dir: gets ``models/segmenter.safetensors``, ``segmentation.json`` (Dice at the model's resolution, with
            95 % intervals over patients, and of each image by its place in the section) and ``predictions/SECTION``
            with masks at that resolution (255 where the first class is more likely than not).
        data_hash: SHA-256 of the data list.
        about: plain values to keep with the model.
    """
    if rank():
        return
    output, device = Path(output_dir), trainer.state.device
    task: Any = _load_best(trainer, output / "checkpoints")
    result: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for section, dataset in datasets.items():
        if dataset is None:
            continue
        logits, batch = predict_dataset(task, dataset, 16, device)
        figures[section] = {k.removeprefix("validation_"): v for k, v in task.figures(logits, batch).items()}
        items = [dataset.items[index] for index in batch["index"].tolist()]
        result[section] = {**figures[section], **_dice_by_patient(items, task.network.classes, logits, batch["mask"])}
        origin = {"section": section, "datalist_sha256": data_hash, "model": about or {}}
        masks = [(plane > 0).numpy().astype(np.uint8) * 255 for plane in logits[:, 0]]
        save_predictions(Predictions(_places(items), {}, facts=origin), output / "predictions" / section, masks=masks)
    model = {
        "mask_values": dict.fromkeys(task.network.classes, 255),
        "validation": figures["validation"],
        "data_sha256": data_hash,
        **_trained(trainer, about),
    }
    export_task(task.network.to("cpu"), output / "models", **model)
    task.to(device)
    write_text(output / "segmentation.json", json.dumps(result, indent=1) + "\n")
    for section, found in figures.items():
        words = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())
        logger.info("%s: %s", section, words)
    models = [output / "models" / f"segmenter.{kind}" for kind in ("json", "safetensors")]
    named = {f"final/{section}_{name}": value for section, some in figures.items() for name, value in some.items()}
    log_results(trainer, named, [output / "segmentation.json", *models])
    logger.info("segmenter written")
    logger.info(_NEXT, shlex.quote(str(output / "models")))
