"""What the fine-tuning configs call: before a run, and at its end to leave a calibrated model and its predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from afire_monai import __version__
from afire_monai.core.distributed import rank, world_size
from afire_monai.core.files import write_text
from afire_monai.evaluation.bootstrap import mean_interval
from afire_monai.loading.dataset import RadiographDataset, image_statistics
from afire_monai.models.encoder import load_module_files
from afire_monai.models.task_models import export_task
from afire_monai.predictions.format import Predictions, save_predictions
from afire_monai.training.calibration import CalibrationMethod, ThresholdRule, calibrate, choose_thresholds
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.segmentation import image_dice
from afire_monai.training.startup import reading
from afire_monai.training.task_base import Task
from afire_monai.training.task_data import TaskData
from afire_monai.training.validation import predict_dataset

if TYPE_CHECKING:
    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)


__all__ = [
    "facts",
    "finish_classification",
    "finish_segmentation",
    "statistics_of",
    "test_dataset",
    "usable_batch",
]


def statistics_of(data: TaskData) -> Callable[[], tuple[float, float]]:
    """Give what measures grey-level mean and deviation of a task's training images, when it is asked to."""

    def measure() -> tuple[float, float]:
        return image_statistics(RadiographDataset(data.training, reading((64, 64))))

    return measure


def usable_batch(batch_size: int, dataset: RadiographDataset) -> int:
    """Give the batch size, or less where there are too few images for one batch (1 % of the labels of a small list)."""
    share = len(dataset) // world_size()
    if share < batch_size:
        logger.warning("%d training images: batch_size %d becomes %d", len(dataset), batch_size, max(share, 1))
    return max(1, min(batch_size, share))


def test_dataset(data: TaskData, transform: Callable[[Any], Any], extra: str) -> RadiographDataset | None:
    """Give the test images with their ``target`` or ``mask``, or None if the list has none."""
    return RadiographDataset(data.test, transform, cache=True, extras=(extra,)) if data.test else None


def facts(init: str, fraction: float, folds: int, fold: int, seed: int) -> dict[str, Any]:
    """Say where a model comes from, in plain values: the encoder's own description, the data used, the seed.

    Args:
        init: a model folder, or ``random``.
        fraction: share of the labels.
        folds: of a cross-validation, or 0.
        fold: which one validated.
        seed: of the run.
    """
    origin: dict[str, Any] = {"encoder": "random"}
    if init != "random":
        _, description = load_module_files(init)
        origin = {"encoder": {k: v for k, v in description.items() if k in ("method_name", "epochs", "data_sha256")}}
    cross = {"folds": folds, "fold": fold} if folds else {}
    return {**origin, "version": __version__, "fraction": fraction, "seed": seed, **cross}


def _load_best(trainer: PretrainTrainer, checkpoint_dir: str | Path) -> Task:
    task = trainer.method
    assert isinstance(task, Task)
    best = Path(checkpoint_dir) / "best.pt"
    if best.is_file():
        task.load_state_dict(load_checkpoint(best)["method"])
    return task


def _places(dataset: RadiographDataset) -> np.ndarray:
    return np.array([item["place"] for item in dataset.items], dtype=np.int64)


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
        trainer: at the end of training.
        datasets: ``validation`` and ``test`` (None if the list has no test images), each with ``target``.
        output_dir: gets ``models/classifier.safetensors``, ``predictions/validation`` and ``predictions/test``.
        data_hash: SHA-256 of the data list.
        calibration: how probabilities are calibrated.
        threshold_rule: how thresholds are chosen.
        about: plain values to keep with the model: where the encoder came from, fraction, fold, seed.
    """
    if rank():
        return
    output, device = Path(output_dir), trainer.state.device
    task: Any = _load_best(trainer, output / "checkpoints")
    network = task.network
    validation = datasets["validation"]
    assert validation is not None
    logits, batch = predict_dataset(task, validation, 64, device)
    calibrate(network, logits, batch["target"], calibration)
    network.to("cpu")
    probabilities = network.calibrated(logits).detach().numpy()
    cuts = choose_thresholds(probabilities, batch["target"].numpy(), threshold_rule)
    thresholds = dict(zip(network.labels, cuts, strict=True))
    figures = task.to("cpu").figures(logits, {"target": batch["target"]})
    model = {
        "thresholds": thresholds,
        "threshold_rule": threshold_rule,
        "calibration": calibration,
        "validation": {k: round(v, 5) for k, v in figures.items()},
        "epochs": trainer.state.epoch,
        "best_epoch": trainer.best_epoch,
        "data_sha256": data_hash,
        **(about or {}),
    }
    export_task(network, output / "models", **model)
    task.to(device)
    for section, dataset in datasets.items():
        if dataset is None:
            continue
        if section != "validation":
            logits, _ = predict_dataset(task, dataset, 64, device)
        scores = network.to("cpu").calibrated(logits.cpu()).detach().numpy().astype(np.float64)
        network.to(device)
        columns = {label: scores[:, place] for place, label in enumerate(network.labels)}
        pooled = section == "validation" and (about or {}).get("folds")
        told = {
            "section": "training+validation" if pooled else section,
            "datalist_sha256": data_hash,
            "thresholds": thresholds,
            "model": about or {},
        }
        save_predictions(Predictions(_places(dataset), columns, facts=told), output / "predictions" / section)
    logger.info("classifier and predictions written to %s", output.name)


def _dice_by_patient(
    dataset: RadiographDataset, classes: Sequence[str], logits: Tensor, mask: Tensor
) -> dict[str, dict[str, Any]]:
    """Give 95 % intervals over patients of a section's mean Dice, and the Dice of each image."""
    owners = np.array([str(item.get("group", item["image"])) for item in dataset.items])
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
        "images": {"place": _places(dataset).tolist(), **{key: values.tolist() for key, values in columns.items()}},
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
        trainer: at the end of training.
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
        result[section] = {**figures[section], **_dice_by_patient(dataset, task.network.classes, logits, batch["mask"])}
        told = {"section": section, "datalist_sha256": data_hash, "model": about or {}}
        masks = [(plane > 0).numpy().astype(np.uint8) * 255 for plane in logits[:, 0]]
        save_predictions(Predictions(_places(dataset), {}, facts=told), output / "predictions" / section, masks=masks)
    model = {
        "mask_values": dict.fromkeys(task.network.classes, 255),
        "validation": figures["validation"],
        "epochs": trainer.state.epoch,
        "best_epoch": trainer.best_epoch,
        "data_sha256": data_hash,
        **(about or {}),
    }
    export_task(task.network.to("cpu"), output / "models", **model)
    task.to(device)
    write_text(output / "segmentation.json", json.dumps(result, indent=1) + "\n")
    logger.info("segmenter written; %s", json.dumps(figures.get("test", figures["validation"])))
