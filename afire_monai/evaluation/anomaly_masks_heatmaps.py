"""The parts of an evaluation besides labels: anomaly score, masks and heatmaps; None if there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.evaluation import metrics
from afire_monai.evaluation.bootstrap import RANKING, RATES, Interval, mean_interval
from afire_monai.evaluation.cases import Cases, aligned, box_names, lesion_case
from afire_monai.evaluation.localisation import (
    ImageFigures,
    LesionCase,
    Localisation,
    centre_figures,
    image_figures,
    prior_figures,
    summarise,
)
from afire_monai.evaluation.overlap import IGNORE, evaluate_overlap
from afire_monai.predictions.format import Predictions
from afire_monai.radiographs.masks import read_mask

ANOMALY_FIGURES = (*RANKING, *RATES)
ANOMALY_THRESHOLD = 95.0
"""Percentile of normals from which an image counts as abnormal in the table of rates."""
ALL, PRIOR = "all boxes", "mean lesion of other patients"
Place = tuple[int, LesionCase]


def evaluate_anomaly(
    cases: Cases, predictions: Predictions, other: Predictions | None, repeats: int, seed: int
) -> dict[str, Any] | None:
    """Judge the anomaly percentile: images with any finding against images known to be normal."""
    if predictions.anomaly_percentile is None:
        return None
    column = predictions.anomaly_percentile[:, None]
    result = metrics.evaluate_labels(
        cases.abnormal[:, None], column, cases.groups, ["abnormal"], {"abnormal": ANOMALY_THRESHOLD},
        figures=ANOMALY_FIGURES, repeats=repeats, seed=seed,
    )  # fmt: skip
    part: dict[str, Any] = {"result": result.labels[0], "patients": cases.patients}
    if other is not None and other.anomaly_percentile is not None:
        others = aligned(cases, other, other.anomaly_percentile)[:, None]
        compared = metrics.compare_labels(
            cases.abnormal[:, None], column, others, cases.groups, ["abnormal"],
            figures=RANKING, repeats=repeats, seed=seed,
        )  # fmt: skip
        part["difference"] = compared.labels.get("abnormal", {})
    return part


def evaluate_masks(
    cases: Cases, predictions: Predictions, other: Predictions | None, repeats: int, seed: int
) -> dict[str, Any] | None:
    """Judge predicted masks against the list's.

    An image without a drawn mask that is known to be normal has an empty mask, provided that no image with a drawn mask
    is normal (then masks show findings, not anatomy); other images without a drawn mask are left out.
    """
    places = _mask_places(cases, predictions)
    if not places:
        return None
    groups = cases.groups[places]
    classes, note = _classes(cases, predictions, places)
    result = evaluate_overlap(_pairs(cases, predictions, places), groups, classes, repeats=repeats, seed=seed)
    part: dict[str, Any] = {"classes": result, "note": note}
    shared = sorted({*places} & {*_mask_places(cases, other)}) if other is not None else []
    if other is not None and shared:
        others = evaluate_overlap(_pairs(cases, other, shared), cases.groups[shared], classes, repeats=1, seed=seed)
        keep = np.isin(places, shared)
        part["difference"] = {
            name: mean_interval(result[name].values[keep] - others[name].values, groups[keep], repeats, seed)
            for name in result
        }
    return part


def evaluate_heatmaps(
    cases: Cases, predictions: Predictions, other: Predictions | None, masks: bool, repeats: int, seed: int
) -> dict[str, Any] | None:
    """Judge heatmaps against the list's boxes, and its masks if these show lesions, beside two forms of chance.

    Returns:
        ``kind``: kind of the heatmaps, as far as the predictions name it; ``boxes``: the model's figures for "all
        boxes", and for each name of a box if there are several; ``chance``: figures of the centre and of the mean
        lesion of other patients; ``beyond_prior``: figures minus those of the mean lesion, paired; ``difference`` to
        another model.
    """
    kinds = ["", *box_names(cases.items)]
    named = [predictions.facts.get(key) for key in ("heatmap", "label")]
    part: dict[str, Any] = {"kind": " of ".join(s for s in named if isinstance(s, str)), "boxes": {}, "chance": {}}
    for kind in kinds if len(kinds) > 2 else kinds[:1]:
        places = _lesion_places(cases, predictions, kind, masks)
        if not places:
            continue
        lesions = [lesion for _, lesion in places]
        result = summarise(_figures(cases, predictions, places), lesions, repeats, seed)
        part["boxes"][kind or ALL] = result
        if not kind:
            part["chance"]["centre of the picture"] = summarise(centre_figures(lesions), lesions, repeats, seed)
            if len({lesion.group for lesion in lesions}) > 1:
                prior = summarise(prior_figures(lesions), lesions, repeats, seed)
                part["chance"][PRIOR] = prior
                groups = cases.groups[[p for p, _ in places]]
                part["beyond_prior"] = {
                    name: mean_interval(values - prior.per_case[name], groups, repeats, seed)
                    for name, values in result.per_case.items()
                }
            if other is not None:
                part["difference"] = _heatmap_difference(cases, other, places, result, repeats, seed)
    return part if part["boxes"] else None


def _heatmap_difference(
    cases: Cases, other: Predictions, places: list[Place], ours: Localisation, repeats: int, seed: int
) -> dict[str, Interval]:
    keep = np.array([other.has_heatmap(int(cases.index[p])) for p, _ in places])
    shared = [place for place, kept in zip(places, keep, strict=True) if kept]
    if not shared:
        return {}
    others = summarise(_figures(cases, other, shared), [lesion for _, lesion in shared], 1, seed)
    groups = cases.groups[[p for p, _ in shared]]
    return {
        name: mean_interval(values[keep] - others.per_case[name], groups, repeats, seed)
        for name, values in ours.per_case.items()
    }


def _lesion_places(cases: Cases, predictions: Predictions, kind: str, masks: bool) -> list[Place]:
    found: list[Place] = []
    for place, (item, index) in enumerate(zip(cases.items, cases.index.tolist(), strict=True)):
        if not item.get("boxes") and not (masks and item.get("mask")):
            continue
        if not predictions.has_heatmap(index):
            continue
        lesion = lesion_case(item, f"{cases.section}[{index}]", str(cases.groups[place]), kind, masks)
        if lesion is not None:
            found.append((place, lesion))
    return found


def _figures(cases: Cases, predictions: Predictions, places: list[Place]) -> list[ImageFigures]:
    heatmaps = ((predictions.heatmap(int(cases.index[place])), lesion) for place, lesion in places)
    return [image_figures(map_, lesion.lesion(), lesion.boxes) for map_, lesion in heatmaps if map_ is not None]


def _mask_places(cases: Cases, predictions: Predictions) -> list[int]:
    predicted = [p for p, index in enumerate(cases.index.tolist()) if predictions.has_mask(index)]
    normal = [p for p, value in enumerate(cases.abnormal) if value == 0]
    drawn = {p for p in range(len(cases)) if cases.items[p].get("mask")}
    empty = set() if drawn & set(normal) or not drawn else set(normal)
    return [p for p in predicted if p in drawn or p in empty]


def _pairs(cases: Cases, predictions: Predictions, places: list[int]) -> Iterator[tuple[NDArray, NDArray]]:
    for place in places:
        predicted = predictions.mask(int(cases.index[place]))
        assert predicted is not None  # `_mask_places` looked for it
        path = cases.items[place].get("mask")
        yield predicted, read_mask(path) if path else np.zeros_like(predicted)


def _classes(cases: Cases, predictions: Predictions, places: list[int]) -> tuple[dict[str, int] | None, str]:
    """Return the values of the classes of the masks, and remarks on them.

    With one class, all that is not background counts; with several classes too, if the drawn masks have other values,
    or classes share a value.
    """
    classes: dict[str, int] = predictions.facts.get("mask_values") or {}
    if len(classes) < 2 and IGNORE not in classes.values():
        return None, ""
    paths = [cases.items[p]["mask"] for p in places if cases.items[p].get("mask")]
    drawn = {int(v) for path in paths for v in np.unique(read_mask(path))} - {0, IGNORE}
    if drawn <= set(classes.values()) and len(set(classes.values())) == len(classes):
        return classes, ""
    return None, (
        f"The list's masks hold values {sorted(drawn)}, the predicted classes are {classes}: classes cannot be told "
        "apart, so all that is not background is judged as one."
    )
