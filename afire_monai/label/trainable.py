"""What labels can train, how they are divided, and how a model is scored on those that are held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError

VALIDATION_SHARE = 0.25


@dataclass(frozen=True)
class Trainable:
    """A task that labels can train.

    Attributes:
        task: ``segmentation`` or ``classification``.
        names: classes or labels, in order.
    """

    task: str
    names: tuple[str, ...]

    @property
    def classes(self) -> dict[str, int]:
        """Value of each class in label maps."""
        return {name: place + 1 for place, name in enumerate(self.names)}


def split(items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Divide items into training and validation, by patient, so that a patient stays where he is as labels are added.

    Args:
        items: each with ``group``, 20 hexadecimal digits that are as good as random.

    Raises:
        AfireError: if all are of one patient.
    """
    groups = sorted({str(item["group"]) for item in items})
    if len(groups) < 2:
        raise AfireError("all labelled images are of one patient; label images of others too")
    wanted = max(1, round(VALIDATION_SHARE * len(groups) / 2))
    below = sum(int(group[:8], 16) < VALIDATION_SHARE * 2**32 for group in groups)
    held_back = set(groups[: min(max(below, wanted), len(groups) - 1)])
    training = [item for item in items if item["group"] not in held_back]
    return training, [item for item in items if item["group"] in held_back]


def validation_score(what: Trainable, model: Path, datalist: Path) -> float:
    """Score a model on the images held back, in the way in which training scores it.

    Args:
        what: is trained.
        model: weights file.
        datalist: of the training.
    """
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.models.task_models import load_classifier, load_segmenter
    from afire_monai.radiographs.masks import MaskReading
    from afire_monai.training.classification import Classification
    from afire_monai.training.segmentation import Segmentation
    from afire_monai.training.startup import reading
    from afire_monai.training.task_base import Task
    from afire_monai.training.task_data import classification_data, segmentation_data
    from afire_monai.training.validation import predict_dataset

    task: Task
    if what.task == "segmentation":
        segmenter, _ = load_segmenter(model)
        _refuse_other_names(what, segmenter.classes)
        size = segmenter.encoder.image_size
        items = segmentation_data(datalist, classes=what.names).validation
        transform: Any = MaskReading(reading(size), size, {name: [v] for name, v in what.classes.items()})
        task, extra = Segmentation(segmenter), "mask"
    else:
        classifier, _ = load_classifier(model)
        _refuse_other_names(what, classifier.labels)
        items = classification_data(datalist, labels=what.names).validation
        transform = reading(classifier.encoder.image_size)
        task, extra = Classification(classifier), "target"
    logits, batch = predict_dataset(task, RadiographDataset(items, transform, extras=(extra,)), 16)
    return task.figures(logits, batch)["validation_score"]


def _refuse_other_names(what: Trainable, names: Sequence[str]) -> None:
    if tuple(names) != what.names:
        raise AfireError(
            f"the model has {', '.join(names)}, the server was started for {', '.join(what.names)}; start it without "
            "naming them, or with another model folder"
        )
