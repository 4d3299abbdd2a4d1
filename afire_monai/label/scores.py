"""How well the models in use fit what people saved."""

from __future__ import annotations

from typing import Any

import numpy as np

from afire_monai.core.errors import AfireError
from afire_monai.label.images import open_image
from afire_monai.label.inference_service import class_values
from afire_monai.label.label_files import Store, read_findings, read_mask, saved_labels
from afire_monai.label.model_registry import ModelShelf
from afire_monai.predictions.pictures import label_mask


def score_masks(shelf: ModelShelf, store: Store) -> dict[str, Any]:
    """Compare the segmenter with saved masks, at the radiographs' own size.

    Returns:
        ``images`` (compared), ``left_out`` (labels that could not be used), and for each class its mean Dice over
        images that have it in the mask or in the prediction; ``dice``, the mean over classes. None where nothing was
        compared.

    Raises:
        NotFoundError: if there is no segmenter.
    """
    loaded, classes = shelf.get("segmentation"), class_values(shelf)
    values: dict[str, list[float]] = {name: [] for name in classes}
    count = left_out = 0
    for saved in saved_labels(store, findings=False):
        try:
            image = open_image(saved.image)
            truth = read_mask(image.grid, saved.label, classes)
        except AfireError:
            left_out += 1
            continue
        with loaded.lock:
            said = loaded.scorer.score([image.seen_at(loaded.scorer.sizes)])[0]
        assert said.masks is not None
        drawn = label_mask(said.masks, list(classes.values()), image.grid.shape)
        count += 1
        for name, value in classes.items():
            total = int((truth == value).sum()) + int((drawn == value).sum())
            if total:
                values[name].append(2 * int(((truth == value) & (drawn == value)).sum()) / total)
    means = {f"dice/{name}": float(np.mean(v)) if v else None for name, v in values.items()}
    known = [v for v in means.values() if v is not None]
    mean = float(np.mean(known)) if known else None
    return {"dice": mean, **means, "images": count, "left_out": left_out, "model_version": loaded.version}


def score_findings(shelf: ModelShelf, store: Store) -> dict[str, Any]:
    """Compare the classifier with saved findings.

    Returns:
        ``images``, ``left_out``, and the AUROC of each label that has both values; ``auroc``, their mean; None where a
        label lacks one.

    Raises:
        NotFoundError: if there is no classifier.
    """
    from sklearn.metrics import roc_auc_score

    loaded = shelf.get("classification")
    names = loaded.scorer.labels
    truth, said, left_out = [], [], 0
    for saved in saved_labels(store, findings=True):
        try:
            findings = read_findings(saved.label, names)
            image = open_image(saved.image)
        except AfireError:
            left_out += 1
            continue
        with loaded.lock:
            answer = loaded.scorer.score([image.seen_at(loaded.scorer.sizes)])[0]
        truth.append([findings.get(name) for name in names])
        said.append([answer.record["labels"][name]["probability"] for name in names])
    values: dict[str, float | None] = {}
    for place, name in enumerate(names):
        pairs = [(t[place], s[place]) for t, s in zip(truth, said, strict=True) if t[place] in (0, 1)]
        both = {t for t, _ in pairs} == {0, 1}
        values[f"auroc/{name}"] = float(roc_auc_score(*zip(*pairs, strict=True))) if both else None
    known = [v for v in values.values() if v is not None]
    mean = float(np.mean(known)) if known else None
    return {"auroc": mean, **values, "images": len(truth), "left_out": left_out, "model_version": loaded.version}
