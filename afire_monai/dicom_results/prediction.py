"""A model's results for one radiograph, checked before they are written for others to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.datalists.cells import means_normal
from afire_monai.predictions.format import JUDGEMENT, Predictions
from afire_monai.predictions.results import RECORDS
from afire_monai.radiographs.judgement import FIT


@dataclass(frozen=True)
class ImagePrediction:
    """A model's results for one radiograph."""

    #: probability in 0…1 by label; labels without one are left out
    probabilities: Mapping[str, float] = field(default_factory=dict)
    #: by label, the probability in 0…1 from which it counts as present; not every label needs one
    thresholds: Mapping[str, float] = field(default_factory=dict)
    anomaly_percentile: float | None = None  #: 0…100, place among normal radiographs; None without an anomaly model
    #: (h, w) in 0…1, of the radiograph's aspect, row 0 at the top; None if there is none
    heatmap: NDArray[np.floating[Any]] | None = None
    heatmap_kind: str = "anomaly"  #: ``anomaly``, ``gradcam``, ``rollout``, or another word for its content
    heatmap_label: str = ""  #: the label that a Grad-CAM is for; "" for others
    #: plain values that identify the model (version, SHA-256 of weights), without names of files or patients
    model: Mapping[str, Any] = field(default_factory=dict)
    #: judgement of the source: `judgement.FIT`, why it is not a frontal chest radiograph, or "" if not judged
    judgement: str = ""
    #: basis of the probability by label, in words; labels whose basis is not known are left out
    rests_on: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (("probability", self.probabilities), ("threshold", self.thresholds)):
            for label, value in values.items():
                if not isinstance(label, str) or not label.strip():
                    raise AfireError(f"label {label!r} has no name; a {name} needs one")
                _check_number(f"{name} of {label!r}", value, 1)
        if self.anomaly_percentile is not None:
            _check_number("anomaly percentile", self.anomaly_percentile, 100)
        if self.heatmap is not None:
            _check_heatmap(self.heatmap)

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], heatmap: NDArray[np.floating[Any]] | None = None
    ) -> ImagePrediction:
        """Take the record of one image as ``afire predict`` writes it (``json/NNNNN.json``).

        Raises AfireError if something is missing or out of its range.
        """
        try:
            labels = {name: entry for name, entry in record["labels"].items() if entry is not None}
            shown = record.get("heatmap") or {}
            return cls(
                {name: entry["probability"] for name, entry in labels.items()},
                {name: entry["threshold"] for name, entry in labels.items() if entry.get("threshold") is not None},
                (record.get("anomaly") or {}).get("percentile"),
                heatmap,
                shown.get("kind", "anomaly"),
                shown.get("label", ""),
                record.get("model") or {},
                str(record.get(JUDGEMENT) or ""),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise AfireError(
                f"the record of a prediction lacks {error}; one as `afire predict` writes it is expected"
            ) from error

    @classmethod
    def from_predictions(cls, predictions: Predictions, index: int) -> ImagePrediction:
        """Take one image's results from a folder of predictions.

        Raises AfireError if the image is not there, or its heatmap cannot be read.
        """
        rows = np.flatnonzero(predictions.index == index)
        if len(rows) != 1:
            raise AfireError(f"there is no prediction of image {index}")
        scores = {name: float(column[rows[0]]) for name, column in predictions.scores.items()}
        known = {name: value for name, value in scores.items() if not math.isnan(value)}
        percentiles = predictions.anomaly_percentile
        percentile = None if percentiles is None else float(percentiles[rows[0]])
        kind = str(predictions.facts.get("heatmap") or "anomaly")
        return cls(
            known,
            {name: value for name, value in predictions.thresholds.items() if name in known},
            None if percentile is None or math.isnan(percentile) else percentile,
            predictions.heatmap(index),
            kind,
            str(_of_record(predictions, index, "heatmap", "label")) if kind == "gradcam" else "",
            _mapping(predictions.facts.get("model")),
            str(_of_record(predictions, index, JUDGEMENT)),
            {str(label): str(words) for label, words in _mapping(predictions.facts.get("rests_on")).items()},
        )

    @property
    def unfit(self) -> str:
        """Why the source file is not a frontal chest radiograph; "" if it is one, or nobody judged."""
        return "" if self.judgement == FIT else self.judgement

    @property
    def findings(self) -> list[str]:
        """Labels whose probability is at least their threshold, the most probable first; normal is none."""
        above = [name for name, value in self.thresholds.items() if self.probabilities.get(name, -1) >= value]
        return sorted((name for name in above if not means_normal(name)), key=lambda name: -self.probabilities[name])

    def only(self, label: str) -> ImagePrediction:
        """Return the results of one label: its probability, and the heatmap if it is that label's."""
        its = self.heatmap is not None and self.heatmap_label == label
        return replace(
            self,
            probabilities={label: self.probabilities[label]},
            thresholds={name: value for name, value in self.thresholds.items() if name == label},
            anomaly_percentile=None,
            heatmap=self.heatmap if its else None,
        )

    def check_any(self) -> None:
        """Refuse a prediction that says nothing."""
        if not self.probabilities and self.anomaly_percentile is None and self.heatmap is None:
            raise AfireError("nothing to show: no probability, no anomaly percentile and no heatmap")

    def grid(self, shape: tuple[int, int]) -> NDArray[np.floating[Any]]:
        """Return the heatmap on its own rows and columns, which lie on a picture of this shape.

        Raises AfireError as `fitted` does.
        """
        if self.heatmap is None:
            raise AfireError("there is no heatmap; predict with --heatmap, or leave out kind 'seg'")
        rows, columns = shape
        h, w = self.heatmap.shape
        # a side that was rounded to whole pixels is off by half a pixel at most
        if abs(h * columns - w * rows) > (rows + columns) / 2:
            raise AfireError(
                f"the heatmap has {h} rows and {w} columns, the source {rows} and {columns}; both must have the same "
                "aspect. Predict the source file again"
            )
        return self.heatmap

    def fitted(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Stretch the heatmap to a picture's rows and columns.

        Returns:
            (rows, columns) in 0…1; as it is if the heatmap already has this size.

        Raises:
            AfireError: if there is no heatmap, or its aspect differs from the picture's.
        """
        from afire_monai.evaluation.localisation import resize_heatmap

        return np.clip(resize_heatmap(self.grid(shape), shape), 0, 1)


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= most:  # false for NaN
        raise AfireError(f"{name} is {value!r}; a number from 0 to {most:g} is expected")


def _check_heatmap(heatmap: NDArray[Any]) -> None:
    if not isinstance(heatmap, np.ndarray) or heatmap.ndim != 2 or heatmap.size == 0:
        shape = getattr(heatmap, "shape", type(heatmap).__name__)
        raise AfireError(f"a heatmap has rows and columns, got {shape}")
    if not np.issubdtype(heatmap.dtype, np.floating):
        raise AfireError(f"a heatmap holds fractions from 0 to 1, got numbers of type {heatmap.dtype}")
    if not np.isfinite(heatmap).all() or heatmap.min() < 0 or heatmap.max() > 1:
        raise AfireError(
            f"heatmap values go from {heatmap.min():g} to {heatmap.max():g}; 0 to 1, all finite, is expected"
        )


def _mapping(model: Any) -> dict[str, Any]:
    return dict(model) if isinstance(model, Mapping) else {"model": model} if model else {}


def _of_record(predictions: Predictions, index: int, *keys: str) -> Any:
    """Return the value under a path of keys in an image's own record; "" if there is none."""
    if predictions.folder is None:
        return ""
    try:
        found = json.loads((predictions.folder / RECORDS / f"{index:05d}.json").read_text(encoding="utf-8"))
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return found
