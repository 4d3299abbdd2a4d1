"""Labels that people saved: masks and findings, checked before they are kept and read for training."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.evaluation.overlap import dice
from afire_monai.label.images import Grid, open_image, read_label
from afire_monai.label.inference_service import ModelShelf, class_values
from afire_monai.predictions.results import label_mask

FINAL, FINDINGS = "final", "findings"
"""Tags under which MONAI Label keeps a person's label: masks (of earlier versions also findings), and findings."""
FINDINGS_SUFFIX = ".json"


class Store(Protocol):
    """The methods of MONAI Label's store of images and labels that are used here."""

    def list_images(self) -> list[str]:
        """Return the ids of all images."""

    def get_image_uri(self, image_id: str) -> str:
        """Return the file or folder of an image; "" for an unknown id."""

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the id of the label under each tag."""

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the file of a label; "" if there is none."""


@dataclass(frozen=True)
class SavedLabel:
    """A label in the store.

    Attributes:
        image_id: id of its image.
        image: the image's file or folder.
        label: the label's file.
    """

    image_id: str
    image: str
    label: str


def is_findings(name: str) -> bool:
    """Whether a label's file name says that it holds findings, not a mask."""
    return name.lower().endswith(FINDINGS_SUFFIX)


def saved_labels(store: Store, findings: bool) -> list[SavedLabel]:
    """Return the labels that people saved, sorted by image.

    Args:
        store: store of images and labels.
        findings: return labels that hold findings; otherwise masks.
    """
    found = []
    for image_id in sorted(store.list_images()):
        if file := label_file(store, image_id, findings):
            found.append(SavedLabel(image_id, store.get_image_uri(image_id), file))
    return found


def label_file(store: Store, image_id: str, findings: bool) -> str:
    """Return the file of the label that a person saved for an image; "" if there is none.

    Args:
        store: store of images and labels.
        image_id: id of an image in the store.
        findings: return the label that holds findings; otherwise the mask.
    """
    tags = store.get_labels_by_image_id(image_id)
    for tag in (FINDINGS, FINAL) if findings else (FINAL,):
        file = store.get_label_uri(tags[tag], tag) if tag in tags else ""
        if file and Path(file).is_file() and is_findings(file) == findings:
            return file
    return ""


def has_label(store: Store, image_id: str) -> bool:
    """Whether a person labelled an image."""
    return bool({FINAL, FINDINGS} & set(store.get_labels_by_image_id(image_id)))


def read_findings(path: str | Path, known: Sequence[str] = ()) -> dict[str, int | None]:
    """Read findings: ``{"Effusion": 1, "Mass": 0, "Nodule": -1, "Hernia": null}``, perhaps below ``"findings"``.

    Args:
        path: JSON file.
        known: labels that the model has; if empty, any name is allowed.

    Returns:
        1 present, 0 absent, -1 uncertain or None not known, by label.

    Raises:
        AfireError: if the file is not of this form, or has no finding, an unknown name or another value.
    """
    expected = 'an object such as {"Effusion": 1, "Mass": 0} is expected (1 present, 0 absent, -1 uncertain, null)'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AfireError(f"the findings are not JSON; {expected}") from error
    if isinstance(content, dict) and isinstance(content.get("findings"), dict):
        content = content["findings"]
    if not isinstance(content, dict) or not content:
        raise AfireError(f"the label holds no findings; {expected}")
    if unknown := [str(name)[:40] for name in content if known and name not in known]:
        raise AfireError(f"unknown finding {', '.join(unknown)}; the model has {', '.join(known)}")
    for name, value in content.items():
        if isinstance(value, bool) or value not in (0, 1, -1, None):
            raise AfireError(f"finding {str(name)[:40]!r}: {str(value)[:20]!r}; {expected}")
    return {str(name): None if value is None else int(value) for name, value in content.items()}


def read_mask(grid: Grid, label: str | Path, classes: Mapping[str, int]) -> NDArray[np.uint8]:
    """Read a saved mask as the rows and columns of its radiograph.

    Args:
        grid: the radiograph's rows and columns; see `open_image`.
        label: the mask's file.
        classes: value of each class; if empty, any value is allowed.

    Raises:
        AfireError: see `read_label`; or for a value that is not a class.
    """
    mask = read_label(label, grid)
    allowed: Collection[int] = {0, *classes.values()}
    if classes and (strange := sorted(set(np.unique(mask).tolist()) - set(allowed))):
        known = ", ".join(f"{value} {name}" for name, value in classes.items())
        raise AfireError(f"the label has the values {strange[:5]}, which are not classes; the classes are {known}")
    return mask


def score_labels(shelf: ModelShelf, store: Store, task: str) -> dict[str, Any]:
    """Compare the segmenter with saved masks, at the radiographs' own size, or the classifier with saved findings.

    Returns:
        ``images`` (compared), ``left_out`` (labels that could not be used), and for each class its mean Dice over
        images that have it in the mask or in the prediction, or the AUROC of each label that has both values; ``dice``
        or ``auroc``, their mean. None if nothing was compared, or a label lacks a value.

    Raises:
        NotFoundError: if there is no such model.
    """
    loaded, masks = shelf.get(task), task == "segmentation"
    classes = class_values(shelf) if masks else {}
    names = list(classes) if masks else loaded.scorer.labels
    saved, rows = saved_labels(store, findings=not masks), list[list[Any]]()
    for one in saved:
        try:
            image = open_image(one.image, loaded.reader)
            truth: Any = read_mask(image.grid, one.label, classes) if masks else read_findings(one.label, names)
        except AfireError:
            continue
        with loaded.lock:
            answer = loaded.scorer.score([image.seen_at(loaded.scorer.sizes)])[0]
        if masks:
            assert answer.masks is not None
            drawn = label_mask(answer.masks, list(classes.values()), image.grid.shape)
            pairs = [(drawn == value, truth == value) for value in classes.values()]
            rows.append([float(dice(a, b)) if a.any() or b.any() else None for a, b in pairs])
        else:
            rows.append([(truth.get(name), answer.record["labels"][name]["probability"]) for name in names])
    kind, figure = ("dice", _mean) if masks else ("auroc", _auroc)
    values = {f"{kind}/{name}": figure([row[place] for row in rows]) for place, name in enumerate(names)}
    counts = {"images": len(rows), "left_out": len(saved) - len(rows)}
    return {kind: _mean(values.values()), **values, **counts, "model_version": loaded.version}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _auroc(pairs: Iterable[tuple[int | None, float]]) -> float | None:
    from sklearn.metrics import roc_auc_score

    known = [pair for pair in pairs if pair[0] in (0, 1)]
    return float(roc_auc_score(*zip(*known, strict=True))) if {truth for truth, _ in known} == {0, 1} else None
