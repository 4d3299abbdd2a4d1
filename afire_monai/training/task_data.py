"""The data of a fine-tuning task: items of a data list with their targets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.datalists.file import is_normal, load_datalist, normal_label
from afire_monai.datalists.mask_check import refuse_wrong_masks
from afire_monai.datalists.patients import shared_patients
from afire_monai.datalists.subsets import label_fraction, patient_folds
from afire_monai.datalists.targets import UncertainPolicy, positive_weights, target_matrix
from afire_monai.predictions.format import check_names

logger = logging.getLogger(__name__)

Items = list[dict[str, Any]]

#: positive training images of a label below which `afire probe` did better than fine-tuning (docs/finetune.md)
FEW_POSITIVES = 15


@dataclass(frozen=True)
class TaskData:
    """Items of a task, section by section."""

    labels: list[str]  #: names of labels or classes
    #: items to train on, each with ``place`` (its place in the section; with folds, in the training section followed by
    #: the validation section) and, for labels, ``target``
    training: Items
    validation: Items  #: items for early stopping, calibration and the choice of thresholds
    test: Items  #: items for evaluation; may be empty

    def positive_weights(self) -> list[float]:
        """Negatives over positives of each label among the training items (see :func:`positive_weights`)."""
        return [float(w) for w in positive_weights(_targets(self.training))]


def advise_on_few_labels(data: TaskData) -> str:
    """Log and return the advice to use `afire probe` for labels with few positive images; empty if none has few."""
    counts = (_targets(data.training) == 1).sum(0)
    few = [f"{name} {count}" for name, count in zip(data.labels, counts, strict=True) if count < FEW_POSITIVES]
    if not few:
        return ""
    advice = (
        f"few positive training images: {', '.join(few)}. With so few, `afire probe` on the same list did better than "
        "fine-tuning, and takes as long as reading the images: docs/finetune.md#how-many-labels-what-to-do"
    )
    logger.warning("%s", advice)
    return advice


def _targets(items: Items) -> NDArray[np.float32]:
    return np.array([item["target"] for item in items], dtype=np.float32)


def classification_data(
    datalist: str | Path,
    dataset_dir: str = "",
    labels: Sequence[str] | str = "all",
    uncertain: UncertainPolicy = "ignore",
    fraction: float = 1.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
) -> TaskData:
    """Choose a classifier's training, validation and test images; no patient is in two of them.

    Args:
        datalist: JSON data list.
        dataset_dir: base of relative paths; empty for the list's own folder.
        labels: names to learn; ``all`` for every label of the list but the one for normal.
        uncertain: meaning of -1: ``ignore``, ``zeros`` or ``ones``.
        fraction: share of the training images whose labels are used, above 0 and up to 1; by patient, stratified, and a
            smaller share lies within a larger one.
        folds: 0 for the list's own validation section; k for k-fold cross-validation over its training and validation
            sections together. The test section is the same for all folds.
        fold: fold to validate on, 0…folds − 1.
        seed: seed for fraction and folds.

    Returns:
        Items with at least one known label.

    Raises:
        DataListError: for an unknown label, an empty part, a patient in two parts, or no label that can be learned.
    """
    content = load_datalist(datalist, dataset_dir or None)
    names = label_names(content, labels, datalist)
    try:
        check_names(names)  # before training, not when its predictions are to be written
    except AfireError as error:
        raise DataListError(f"{datalist}: {error}; rename the label, or leave it out with --labels") from error
    parts = {s: _with_targets(content, s, names, uncertain, datalist) for s in ("training", "validation", "test")}
    if folds:
        if not 0 <= fold < folds:
            raise DataListError(f"fold {fold} of {folds}: 0 to {folds - 1} is expected")
        # places of a pool: those of the training section, then those of the validation section
        behind = len(content.get("training") or [])
        pool = parts["training"] + [{**i, "place": i["place"] + behind} for i in parts["validation"]]
        inside, outside = patient_folds(pool, _targets(pool), folds, seed)[fold]
        parts["training"], parts["validation"] = [pool[i] for i in inside], [pool[i] for i in outside]
    for part in ("training", "validation"):
        if not parts[part]:
            raise DataListError(
                f"{datalist}: no {part} image has a known label among {', '.join(names)}; build the list with shares "
                "for training and validation, or give --folds 5"
            )
    if fraction != 1:
        chosen = label_fraction(parts["training"], _targets(parts["training"]), fraction, seed)
        parts["training"] = [parts["training"][i] for i in chosen]
    _refuse_shared_patients(parts, datalist)
    _warn_of_labels(_targets(parts["training"]), names, datalist)
    return TaskData(names, **parts)


def label_names(content: Mapping[str, Any], labels: Sequence[str] | str, where: str | Path) -> list[str]:
    """Return the labels to learn: all but the one for normal, unless some are named or the list has no other."""
    known = content.get("labels") or []
    if not known:
        raise DataListError(f"{where} has no labels: a classifier needs them (`afire datalist from-csv` can add them)")
    if labels == "all":
        return [name for name in known if name != normal_label(dict(content))] or list(known)
    return [labels] if isinstance(labels, str) else [str(name) for name in labels]


def _with_targets(
    content: dict[str, Any], section: str, names: list[str], uncertain: UncertainPolicy, where: str | Path
) -> Items:
    items = [{**item, "place": place} for place, item in enumerate(content.get(section) or [])]
    if not items:
        return []
    try:
        targets = target_matrix(items, content["labels"], uncertain, names)
    except DataListError as error:
        raise DataListError(f"{where}, section {section}: {error}") from error
    known: NDArray[np.bool_] = np.asarray(~np.isnan(targets).all(1))
    if not known.all():
        logger.warning("%s: %d of %d images have no known label and are left out", section, (~known).sum(), len(items))
    return [{**i, "target": t.tolist()} for i, t, k in zip(items, targets, known, strict=True) if k]


def _refuse_shared_patients(parts: Mapping[str, Items], where: str | Path) -> None:
    known = {name: [item for item in items if item.get("group") is not None] for name, items in parts.items()}
    for (one, other), shared in shared_patients(known).items():
        raise DataListError(
            f"{where}: {len(shared)} patients are in both {one} and {other}; build the list again, or run "
            "`afire datalist validate`"
        )


def _warn_of_labels(targets: NDArray[np.float32], names: list[str], where: str | Path) -> None:
    one_sided = [
        n for n, column in zip(names, targets.T, strict=True) if not ((column == 1).any() and (column == 0).any())
    ]
    if len(one_sided) == len(names):
        raise DataListError(
            f"{where}: no label can be learned: among {len(targets)} training images, {', '.join(names)} "
            "have no positive or no negative. Use a larger fraction or other labels"
        )
    if one_sided:
        logger.warning("no positive or no negative training image: %s; their scores will mean nothing", one_sided)


def segmentation_data(
    datalist: str | Path,
    dataset_dir: str = "",
    empty_masks: Literal["normal", "none"] = "normal",
    fraction: float = 1.0,
    seed: int = 0,
    classes: Mapping[str, Sequence[int]] | Sequence[str] = ("mask",),
    ignore: int | None = None,
) -> TaskData:
    """Choose a segmenter's training, validation and test images.

    Args:
        datalist: JSON data list whose items have ``mask``.
        dataset_dir: base of relative paths; empty for the list's own folder.
        empty_masks: ``normal``: an image without mask that is known to be normal has an empty mask, unless a normal
            image of its section has a mask (so not for lungs, which every image has); ``none``: images without mask are
            left out.
        fraction: share of the training images, above 0 and up to 1, by patient.
        seed: seed for the fraction.
        classes: names of the classes; if their mask values are given, all masks are opened and checked.
        ignore: the mask value of pixels to leave out.

    Raises:
        DataListError: for another ``empty_masks``, if training or validation has no mask, a patient is in two parts, a
            mask cannot be used or none has a class.
    """
    if empty_masks not in ("normal", "none"):
        raise DataListError(f"empty_masks is {empty_masks!r}; normal or none is expected")
    content = load_datalist(datalist, dataset_dir or None)
    labels, normal = content.get("labels") or [], normal_label(content)
    parts: dict[str, Items] = {}
    for section in ("training", "validation", "test"):
        items = [{**item, "place": place} for place, item in enumerate(content.get(section) or [])]
        masked = [i for i in items if i.get("mask")]
        if empty_masks == "normal" and masked and not any(is_normal(i, labels, normal) for i in masked):
            masked = [{"mask": "", **i} for i in items if i.get("mask") or is_normal(i, labels, normal)]
        parts[section] = masked
    for section in ("training", "validation"):
        if not parts[section]:
            raise DataListError(f"{datalist}: no {section} image has a mask; build the list with --mask-column")
    if fraction != 1:
        present = np.array([[float(bool(i["mask"]))] for i in parts["training"]], dtype=np.float32)
        parts["training"] = [parts["training"][i] for i in label_fraction(parts["training"], present, fraction, seed)]
    _refuse_shared_patients(parts, datalist)
    if isinstance(classes, Mapping):
        refuse_wrong_masks([item for part in parts.values() for item in part], classes, ignore)
    return TaskData(list(classes), **parts)
