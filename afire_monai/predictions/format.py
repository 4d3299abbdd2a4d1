"""Predictions on disk: a folder with a table, its facts, and pictures; no names of files or patients."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.files import write_text
from afire_monai.radiographs.picture import check_size
from afire_monai.radiographs.raster import write_png

TABLE, FACTS, HEATMAPS, MASKS = "predictions.csv", "predictions.json", "heatmaps", "masks"
INDEX, PERCENTILE, JUDGEMENT = "index", "anomaly_percentile", "judgement"
_OWN = (INDEX, PERCENTILE, JUDGEMENT)
FORMAT = "afire predictions 1"
AGAIN = "Write the predictions again with `afire predict`"


def read_facts(path: Path) -> dict[str, Any]:
    """Read and check ``predictions.json``; AfireError if it is missing, damaged or of another format."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AfireError(
            f"{path}: {error.strerror}; a folder of finished predictions is expected (an interrupted run leaves none). "
            f"{AGAIN}"
        ) from error
    except ValueError as error:
        raise AfireError(f"{path}: not JSON ({error}). {AGAIN}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        seen = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise AfireError(f"{path}: format {seen!r}; {FORMAT!r} is expected. {AGAIN}")
    if not isinstance(facts.get("labels"), list) or not isinstance(facts.get("count"), int):
        raise AfireError(f"{path}: 'labels' (names) and 'count' (a number) are expected. {AGAIN}")
    try:
        check_names(facts["labels"])
    except AfireError as error:
        raise AfireError(f"{path}: {error}. {AGAIN}") from error
    for key, kinds, most, expected in (
        ("thresholds", (int, float), 1, "number from 0 to 1 for each label"),
        ("mask_values", (int,), 255, "whole number from 0 to 255 for each class"),
    ):
        given = facts.get(key) or {}
        if not isinstance(given, dict) or not all(type(v) in kinds and 0 <= v <= most for v in given.values()):
            raise AfireError(f"{path}: {key!r} must give a {expected}, got {given!r}. {AGAIN}")
    if not isinstance(facts.get("model") or {}, dict):
        raise AfireError(f"{path}: 'model' must be an object that describes the model, got {facts['model']!r}. {AGAIN}")
    return facts


def read_table(path: Path, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read ``predictions.csv``: (n,) numbers for each column but the words of judgement, NaN where a cell is empty.

    Raises AfireError if it is missing or damaged, or its columns are not those expected.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AfireError(f"{path}: cannot be read ({error}). {AGAIN}") from error
    head = rows[0] if rows else []
    if head != list(columns):
        raise AfireError(f"{path}: columns are {', '.join(head) or 'none'}; {', '.join(columns)} are expected. {AGAIN}")
    if ragged := next((i for i, row in enumerate(rows) if len(row) != len(head)), None):
        raise AfireError(f"{path}: line {ragged + 1} has {len(rows[ragged])} cells, not {len(head)}. {AGAIN}")
    numbers = ((i, name) for i, name in enumerate(columns) if name != JUDGEMENT)
    return {name: _numbers([row[i] for row in rows[1:]], name, path) for i, name in numbers}


def check_names(labels: Sequence[str]) -> None:
    """Refuse label names that cannot be columns."""
    bad = [name for name in labels if not isinstance(name, str) or not name or name in _OWN]
    if bad or len(set(labels)) != len(labels):
        raise AfireError(f"label names must be different and not {', '.join(map(repr, _OWN))}, got {list(labels)!r}")


def _numbers(cells: Sequence[str], name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.array([cell or "nan" for cell in cells], dtype=object).astype(np.float64)
    except ValueError as error:
        raise AfireError(f"{path}: column {name!r}: {error}; a number or nothing is expected. {AGAIN}") from error


class PredictionsWriter:
    """Write predictions image by image; the folder counts as predictions only when all are written.

    Use as a context manager. The facts file is removed first and written last, so that a folder of an interrupted run
    is refused by `load_predictions` instead of read in part. Old tables, heatmaps and masks are replaced.

    Args:
        folder: folder to write; created if absent.
        labels: names of the columns.
        facts: as `Predictions.facts`.
        anomaly: whether there is a column for the anomaly percentile.

    Raises:
        AfireError: for label names that cannot be columns, or if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with PredictionsWriter(folder, ["Effusion"], facts={}) as writer:
        ...         writer.add(0, scores={"Effusion": 0.25})
        ...     load_predictions(folder).scores
        {'Effusion': array([0.25])}
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
        self._seen = set()
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
            scores: probability of each label; a missing label is written as unknown.
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
        if index in self or index < 0:
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

    def __contains__(self, index: object) -> bool:
        """Return whether the image with this index has been written."""
        return index in self._seen

    def _save(self, kind: str, index: int, pixels: NDArray) -> None:
        (self.folder / kind).mkdir(exist_ok=True)
        write_png(self.folder / kind / f"{index:05d}.png", pixels)

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


@dataclass(frozen=True)
class Predictions:
    """A model's results for the images of one section of a data list, or of a folder."""

    #: (n,) int64, place of each image in the section or in the sorted folder, without repetition
    index: NDArray[np.int64]
    scores: dict[str, NDArray[np.float64]]  #: for each label (n,) float64 probability in 0…1, NaN where there is none
    #: (n,) float64 in 0…100, NaN where there is none; None without an anomaly model
    anomaly_percentile: NDArray[np.float64] | None = None
    #: ``section``, ``datalist_sha256`` (both "" for a folder), ``model`` (dictionary), ``thresholds`` (label to
    #: probability), and other values that the writer passes on; JSON values only, never names of files or patients
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None  #: folder of heatmaps and masks; None if there are none

    def __post_init__(self) -> None:
        index = self.index
        if index.ndim != 1 or len(np.unique(index)) != len(index) or (len(index) and index.min() < 0):
            raise AfireError(f"column {INDEX!r} must hold each place from 0 on once; {_index_faults(index)}")
        check_names(list(self.scores))
        for name, values in self.columns.items():
            most = 100 if name == PERCENTILE else 1
            known = values[~np.isnan(values)]
            if values.shape != index.shape:
                raise AfireError(f"column {name!r} has shape {values.shape}, index {index.shape}; they must be equal")
            if len(known) and not (known.min() >= 0 and known.max() <= most):
                seen = f"{known.min():g} to {known.max():g}"
                raise AfireError(f"column {name!r} has values {seen}; 0 to {most} is expected")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the table's columns."""
        return tuple(self.scores)

    @property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Columns of numbers by their names in the table, without the index."""
        rest = {} if self.anomaly_percentile is None else {PERCENTILE: self.anomaly_percentile}
        return {**self.scores, **rest}

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

        Raises AfireError if the file cannot be read or is not a grey picture.
        """
        pixels = self._picture(HEATMAPS, index)
        if pixels is None:
            return None
        return np.asarray(pixels, dtype=np.float32) / (255.0 if pixels.dtype == np.uint8 else 65535.0)

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Read the predicted mask of one image: (H, W) label values, or None if there is none.

        Raises AfireError if the file cannot be read or is not an 8-bit grey picture.
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
                check_size(path, picture.height, picture.width)
                pixels = np.array(picture)
        except RadiographError:
            raise
        except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
            raise AfireError(f"{path}: cannot be read ({error}). {AGAIN}") from error
        if picture.mode not in ("L", "I", "I;16"):  # indices of a palette are no grey values
            raise AfireError(f"{path}: a picture of mode {picture.mode}; grey of 8 or 16 bits is expected. {AGAIN}")
        return pixels


def save_predictions(
    predictions: Predictions,
    folder: str | Path,
    heatmaps: Iterable[NDArray | None] | None = None,
    masks: Iterable[NDArray | None] | None = None,
) -> Path:
    """Write predictions that are all at hand.

    Args:
        predictions: predictions to write.
        folder: folder to write; created if absent.
        heatmaps: (H, W) in 0…1 for each image in the order of ``predictions.index``; None where there is none.
        masks: (H, W) label values, likewise.

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

    Raises AfireError if something is missing or wrong; its message has file, column and value.
    """
    folder = Path(folder)
    facts = read_facts(folder / FACTS)
    labels = list(facts["labels"])
    columns = [INDEX, *labels, *([PERCENTILE] if facts.get("anomaly") else [])]
    columns += [JUDGEMENT] if facts.get(JUDGEMENT) else []
    table = read_table(folder / TABLE, columns)
    if len(table[INDEX]) != facts["count"]:
        seen = len(table[INDEX])
        raise AfireError(f"{folder / TABLE}: {seen} rows; {FACTS} says {facts['count']}. {AGAIN}")
    index = table[INDEX]
    if not np.array_equal(index, np.round(index)):  # also catches NaN
        raise AfireError(f"{folder / TABLE}: column {INDEX!r} has a value that is not a whole number. {AGAIN}")
    rest = {k: v for k, v in facts.items() if k not in ("format", "labels", "count", "anomaly", JUDGEMENT)}
    try:
        return Predictions(
            index.astype(np.int64), {name: table[name] for name in labels}, table.get(PERCENTILE), rest, folder
        )
    except AfireError as error:
        raise AfireError(f"{folder / TABLE}: {error}. {AGAIN}") from error


def _index_faults(index: NDArray) -> str:
    if index.ndim != 1:
        return f"its shape is {index.shape}"
    return f"{len(index) - len(np.unique(index))} of {len(index)} are repeated, the lowest is {index.min()}"
