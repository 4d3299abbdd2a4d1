"""Whether a new model is better than the one in use, label by label, on patients that neither was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError

MIN_PATIENTS = {"classification": 20, "segmentation": 5}
"""Held-back patients needed to judge a label or class: with a known value, or with the class in the mask."""
MIN_EACH = 5
"""Minimum number of these patients with a label's finding, and of those without it."""
TOLERATED = 0.02
"""A judged label may be lower by this much AUROC or Dice if another one is better."""
BETTER, WORSE, ALIKE, TOO_FEW = "better", "worse", "not told apart", "too few"


@dataclass(frozen=True)
class Outcome:
    """A model's results for the n images held back.

    Attributes:
        score: score as in training.
        values: (n, C) logits, or Dice of each class.
        target: (n, C) 1, 0 or NaN if not known; for masks, whether they have the class.
        groups: (n,) patient of each image.
    """

    score: float
    values: NDArray[np.float64]
    target: NDArray[np.float64]
    groups: NDArray[Any]


def outcome(task: str, classes: Mapping[str, int], model: Path, datalist: Path) -> Outcome:
    """Ask a model about the images held back.

    Args:
        task: ``segmentation`` or ``classification``.
        classes: classes or labels, with the value of each in label maps.
        model: weights file.
        datalist: data list of the training.

    Raises:
        AfireError: if the model has other classes or labels.
    """
    from afire_monai.datalists.patients import patient_of
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.models.folder import load_classifier, load_segmenter
    from afire_monai.radiographs.masks import MaskReading
    from afire_monai.training.startup import reading
    from afire_monai.training.task_data import classification_data, segmentation_data
    from afire_monai.training.tasks import Classification, Segmentation, Task, image_dice
    from afire_monai.training.validation import predict_dataset

    asked: Task
    if task == "segmentation":
        segmenter, _ = load_segmenter(model)
        _refuse_other_names(list(classes), segmenter.classes)
        size = segmenter.encoder.image_size
        items = segmentation_data(datalist, classes=tuple(classes)).validation
        transform: Any = MaskReading(
            reading(size, datalist=datalist), size, {name: [value] for name, value in classes.items()}
        )
        asked, extra = Segmentation(segmenter), "mask"
    else:
        classifier, _ = load_classifier(model)
        _refuse_other_names(list(classes), classifier.labels)
        items = classification_data(datalist, labels=tuple(classes)).validation
        transform = reading(classifier.encoder.image_size, datalist=datalist)
        asked, extra = Classification(classifier), "target"
    dataset = RadiographDataset(items, transform, extras=(extra,))
    logits, batch = predict_dataset(asked, dataset, 16)
    score = asked.figures(logits, batch)["validation_score"]
    values, target = image_dice(logits, batch["mask"]) if task == "segmentation" else (logits, batch["target"])
    groups = np.array([patient_of(dataset.items[index]) for index in batch["index"].tolist()])
    return Outcome(score, values.double().numpy(), target.double().numpy(), groups)


def compare(task: str, names: Sequence[str], before: Outcome, after: Outcome) -> dict[str, dict[str, Any]]:
    """Judge each label by a paired 95 % bootstrap interval over patients, of AUROC or of Dice where there is the class.

    Returns:
        For each label ``verdict`` (better, worse, not told apart, too few), ``with`` and ``without`` (numbers of
        patients) and ``difference`` (new minus old, with the bounds of its interval; None if there are too few).
    """
    from afire_monai.evaluation.bootstrap import bootstrap_auroc_difference, mean_interval

    found = {}
    for place, name in enumerate(names):
        counts = patients_of(after, place)
        entry: dict[str, Any] = {"verdict": TOO_FEW, "with": counts[0], "without": counts[1], "difference": None}
        if enough(task, after, place):
            new, old, truth = after.values[:, place], before.values[:, place], after.target[:, place]
            known = truth == 1 if task == "segmentation" else ~np.isnan(truth)
            if task == "segmentation":
                interval = mean_interval((new - old)[known], after.groups[known])
            else:
                interval = bootstrap_auroc_difference(truth[known], new[known], old[known], after.groups[known])
            entry["verdict"] = BETTER if interval.low > 0 else WORSE if interval.value < -TOLERATED else ALIKE
            entry["difference"] = [round(value, 4) for value in interval]
        found[name] = entry
    return found


def patients_of(some: Outcome, place: int) -> tuple[int, int]:
    """Return how many patients have a label, and how many have an image without it."""
    truth = some.target[:, place]
    return len(np.unique(some.groups[truth == 1])), len(np.unique(some.groups[truth == 0]))


def enough(task: str, some: Outcome, place: int) -> bool:
    """Whether a label can be judged, calibrated and have a threshold."""
    present, absent = patients_of(some, place)
    if task == "segmentation":
        return present >= MIN_PATIENTS[task]
    known = len(np.unique(some.groups[~np.isnan(some.target[:, place])]))
    return known >= MIN_PATIENTS[task] and min(present, absent) >= MIN_EACH


def is_better(judged: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether some label is better and none is worse."""
    verdicts = {entry["verdict"] for entry in judged.values()}
    return BETTER in verdicts and WORSE not in verdicts


def reasons(judged: Mapping[str, Mapping[str, Any]], task: str) -> list[str]:
    """Explain in words, for each label that is not better, why."""
    needed = f"{MIN_PATIENTS[task]} held-back patients" + (
        " with it" if task == "segmentation" else f", {MIN_EACH} with and {MIN_EACH} without it,"
    )
    lines = []
    for name, entry in judged.items():
        if entry["verdict"] == TOO_FEW:
            lines.append(f"{name}: not judged, {needed} are needed; {entry['with']} with, {entry['without']} without")
        elif entry["verdict"] != BETTER:
            value, low, high = entry["difference"]
            lines.append(f"{name}: {entry['verdict']} ({value:+.3f}, {low:+.3f} to {high:+.3f})")
    return lines


def _refuse_other_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    if list(names) != list(wanted):
        raise AfireError(
            f"the model has {', '.join(names)}, the server was started for {', '.join(wanted)}; start it without "
            "naming them, or with another model folder"
        )
