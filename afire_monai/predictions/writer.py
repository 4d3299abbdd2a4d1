"""Write a folder of predictions image by image."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file, write_text
from afire_monai.predictions.file import (
    FACTS,
    FORMAT,
    HEATMAPS,
    INDEX,
    MASKS,
    PERCENTILE,
    TABLE,
    check_names,
)


class PredictionsWriter:
    """Write predictions image by image; the folder counts as predictions only when all are written.

    Use as a context manager. The facts file is removed first and written last, so that a folder of an interrupted run
    is refused by `load_predictions` instead of read in part. Old tables, heatmaps and masks are replaced.

    Args:
        folder: made if need be.
        labels: names of the columns.
        facts: as `Predictions.facts`.
        anomaly: whether there is a column for the anomaly percentile.

    Raises:
        AfireError: for label names that cannot be columns, or if the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, labels: Sequence[str], facts: Mapping[str, Any], anomaly: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.labels = list(labels)
        self.facts = dict(facts)
        self.anomaly = anomaly
        self._seen: set[int] = set()
        self._file: TextIO | None = None
        check_names(self.labels)

    def __enter__(self) -> PredictionsWriter:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / FACTS).unlink(missing_ok=True)
            for kind in (HEATMAPS, MASKS):
                for old in (self.folder / kind).glob("*.png"):
                    if old.stem.isdigit():
                        old.unlink()
            self._file = (self.folder / f".{TABLE}.part").open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise AfireError(f"{self.folder}: {error.strerror}; give a folder that can be written") from error
        self._rows = csv.writer(self._file)
        self._rows.writerow([INDEX, *self.labels, *([PERCENTILE] if self.anomaly else [])])
        return self

    def add(
        self,
        index: int,
        scores: Mapping[str, float] | None = None,
        anomaly_percentile: float | None = None,
        heatmap: NDArray | None = None,
        mask: NDArray | None = None,
    ) -> None:
        """Write one image.

        Args:
            index: place in the section or in the sorted folder.
            scores: probability of each label; a label that is not in it is written as unknown.
            anomaly_percentile: 0…100.
            heatmap: (H, W) in 0…1.
            mask: (H, W) label values 0…255.

        Raises:
            AfireError: for a repeated index, unknown labels, values out of range, or pictures of another shape.
        """
        if self._file is None:
            raise AfireError("PredictionsWriter.add is for use inside `with PredictionsWriter(…) as writer:`")
        given = dict(scores or {})
        if unknown := [name for name in given if name not in self.labels]:
            raise AfireError(f"image {index}: no column for {unknown[0]!r}; columns are {', '.join(self.labels)}")
        if index in self._seen or index < 0:
            raise AfireError(f"image {index}: a place in the section counts from 0 and is written once")
        row = [_cell(given.get(name), 1, f"image {index}: {name}") for name in self.labels]
        if self.anomaly:
            row.append(_cell(anomaly_percentile, 100, f"image {index}: {PERCENTILE}"))
        if heatmap is not None:
            values = _picture_values(heatmap, 1, f"image {index}: heatmap")
            self._save(HEATMAPS, index, (values * 65535).round().astype(np.uint16))
        if mask is not None:
            self._save(MASKS, index, _picture_values(mask, 255, f"image {index}: mask").astype(np.uint8))
        self._seen.add(index)
        self._rows.writerow([index, *row])

    def _save(self, kind: str, index: int, pixels: NDArray) -> None:
        (self.folder / kind).mkdir(exist_ok=True)
        path = self.folder / kind / f"{index:05d}.png"
        with whole_file(path) as part:
            Image.fromarray(pixels).save(part, format="PNG")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        self._file.close()
        part = Path(self._file.name)
        self._file = None
        if kind is not None:
            part.unlink(missing_ok=True)
            return
        os.replace(part, self.folder / TABLE)
        facts = {"format": FORMAT, "labels": self.labels, "count": len(self._seen), "anomaly": self.anomaly}
        write_text(self.folder / FACTS, json.dumps({**self.facts, **facts}, indent=1, ensure_ascii=False) + "\n")


def _cell(value: float | None, most: int, where: str) -> str:
    if value is None or np.isnan(value):
        return ""
    if not 0 <= value <= most:
        raise AfireError(f"{where} is {value:g}; 0 to {most} is expected")
    return repr(float(value))


def _picture_values(values: NDArray, most: int, where: str) -> NDArray:
    values = np.asarray(values)
    if values.ndim != 2 or not values.size:
        raise AfireError(f"{where} has shape {values.shape}; (H, W) is expected")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
        raise AfireError(f"{where} has values {values.min():g} to {values.max():g}; 0 to {most} is expected")
    return values
