"""Predictions on disk: a folder with a table, its facts, and pictures; no names of files or patients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.predictions.file import (
    AGAIN,
    FACTS,
    FORMAT,
    HEATMAPS,
    INDEX,
    MASKS,
    PERCENTILE,
    TABLE,
    check_names,
    read_facts,
    read_table,
)
from afire_monai.predictions.writer import PredictionsWriter

__all__ = [
    "FACTS",
    "FORMAT",
    "HEATMAPS",
    "INDEX",
    "MASKS",
    "PERCENTILE",
    "TABLE",
    "Predictions",
    "PredictionsWriter",
    "load_predictions",
    "save_predictions",
]


@dataclass(frozen=True)
class Predictions:
    """What a model said about the images of one section of a data list, or of a folder.

    Attributes:
        index: (n,) int64, place of each image in the section or in the sorted folder, without repetition.
        scores: for each label (n,) float64 probability in 0…1, NaN where there is none.
        anomaly_percentile: (n,) float64 in 0…100, NaN where there is none; None without an anomaly model.
        facts: ``section``, ``datalist_sha256`` (both "" for a folder), ``model`` (dictionary), ``thresholds`` (label
            to probability), and what else the writer wants to pass on; JSON values only, never names of files or
            patients.
        folder: where heatmaps and masks lie; None if there are none.
    """

    index: NDArray[np.int64]
    scores: dict[str, NDArray[np.float64]]
    anomaly_percentile: NDArray[np.float64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the table's columns."""
        return tuple(self.scores)

    @property
    def section(self) -> str:
        """Section of the data list; "" for a folder."""
        return str(self.facts.get("section") or "")

    @property
    def datalist_sha256(self) -> str:
        """Hash of the data list; "" for a folder."""
        return str(self.facts.get("datalist_sha256") or "")

    @property
    def thresholds(self) -> dict[str, float]:
        """Probability from which a label counts as present, for the labels that have one."""
        return {str(k): float(v) for k, v in (self.facts.get("thresholds") or {}).items()}

    def heatmap(self, index: int) -> NDArray[np.float32] | None:
        """Read the heatmap of one image: (H, W) in 0…1, or None if there is none.

        Raises:
            AfireError: if the file cannot be read or is not a grey picture.
        """
        pixels = self._picture(HEATMAPS, index)
        if pixels is None:
            return None
        return np.asarray(pixels, dtype=np.float32) / (255.0 if pixels.dtype == np.uint8 else 65535.0)

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read the predicted mask of one image: (H, W) label values, or None if there is none.

        Raises:
            AfireError: if the file cannot be read or is not an 8-bit grey picture.
        """
        pixels = self._picture(MASKS, index)
        if pixels is not None and pixels.dtype != np.uint8:
            raise AfireError(f"{self.folder}/{MASKS}/{index:05d}.png: a mask has 8 bits, got {pixels.dtype}. {AGAIN}")
        return pixels

    def has_heatmap(self, index: int) -> bool:
        """Whether there is a heatmap of an image."""
        return self.folder is not None and self._path(HEATMAPS, index).is_file()

    def has_mask(self, index: int) -> bool:
        """Whether there is a predicted mask of an image."""
        return self.folder is not None and self._path(MASKS, index).is_file()

    def _path(self, kind: str, index: int) -> Path:
        return (self.folder or Path()) / kind / f"{index:05d}.png"

    def _picture(self, kind: str, index: int) -> NDArray | None:
        if self.folder is None:
            return None
        path = self._path(kind, index)
        if not path.is_file():
            return None
        try:
            with Image.open(path) as picture:
                pixels = np.array(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise AfireError(f"{path}: cannot be read ({error}). {AGAIN}") from error
        if pixels.ndim != 2:
            raise AfireError(f"{path}: shape {pixels.shape}; one grey channel is expected. {AGAIN}")
        return pixels


def save_predictions(
    predictions: Predictions,
    folder: str | Path,
    heatmaps: Iterable[NDArray | None] | None = None,
    masks: Iterable[NDArray | None] | None = None,
) -> Path:
    """Write predictions that are all at hand.

    Args:
        predictions: what to write.
        folder: made if need be.
        heatmaps: (H, W) in 0…1 for each image in the order of ``predictions.index``; None where there is none.
        masks: (H, W) label values, likewise.

    Returns:
        The folder.

    Raises:
        AfireError: as `PredictionsWriter`, or if there are fewer or more pictures than images.
    """
    n = len(predictions)
    pictures: list[Iterable[NDArray | None]] = [[None] * n if given is None else given for given in (heatmaps, masks)]
    percentiles = predictions.anomaly_percentile
    with PredictionsWriter(folder, predictions.labels, predictions.facts, percentiles is not None) as writer:
        try:
            for i, (index, heatmap, mask) in enumerate(zip(predictions.index, *pictures, strict=True)):
                scores = {name: float(column[i]) for name, column in predictions.scores.items()}
                writer.add(int(index), scores, None if percentiles is None else float(percentiles[i]), heatmap, mask)
        except AfireError:
            raise
        except ValueError as error:  # zip: lengths differ
            raise AfireError(f"{n} images need as many heatmaps and masks ({error})") from error
    return Path(folder)


def load_predictions(folder: str | Path) -> Predictions:
    """Read the table and the facts of a folder of predictions; heatmaps and masks are read when asked for.

    Raises:
        AfireError: what is missing or wrong, with file, column and value.
    """
    folder = Path(folder)
    facts = read_facts(folder / FACTS)
    labels = list(facts["labels"])
    columns = [INDEX, *labels, *([PERCENTILE] if facts.get("anomaly") else [])]
    table = read_table(folder / TABLE, columns)
    if len(table[INDEX]) != facts["count"]:
        seen = len(table[INDEX])
        raise AfireError(f"{folder / TABLE}: {seen} rows; {FACTS} says {facts['count']}. {AGAIN}")
    index = table[INDEX]
    if not np.array_equal(index, np.round(index)):  # also catches NaN
        raise AfireError(f"{folder / TABLE}: column {INDEX!r} has a value that is no whole number. {AGAIN}")
    rest = {k: v for k, v in facts.items() if k not in ("format", "labels", "count", "anomaly")}
    try:
        return Predictions(
            index.astype(np.int64), {name: table[name] for name in labels}, table.get(PERCENTILE), rest, folder
        )
    except AfireError as error:
        raise AfireError(f"{folder / TABLE}: {error}. {AGAIN}") from error


def _check(predictions: Predictions) -> None:
    index = predictions.index
    if index.ndim != 1 or len(np.unique(index)) != len(index) or (len(index) and index.min() < 0):
        raise AfireError(f"column {INDEX!r} must hold each place from 0 on once, got {index.shape} with repetitions")
    check_names(list(predictions.scores))
    columns = {**predictions.scores}
    if predictions.anomaly_percentile is not None:
        columns[PERCENTILE] = predictions.anomaly_percentile
    for name, values in columns.items():
        most = 100 if name == PERCENTILE else 1
        known = values[~np.isnan(values)]
        if values.shape != index.shape:
            raise AfireError(f"column {name!r} has shape {values.shape}, index {index.shape}; they must be equal")
        if len(known) and not (known.min() >= 0 and known.max() <= most):
            raise AfireError(f"column {name!r} has values {known.min():g} to {known.max():g}; 0 to {most} is expected")
