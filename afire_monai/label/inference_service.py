"""Results of models for one stored radiograph, as a viewer wants them: a map on its pixels, and plain values."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.files import read_object
from afire_monai.label.images import Grid, StoredImage, map_suffix, open_image, write_map
from afire_monai.label.messages import NotFoundError
from afire_monai.models.folder import model_files, used_model_files
from afire_monai.predictions.anomaly.detector import load_detector
from afire_monai.predictions.results import enlarge, label_mask
from afire_monai.predictions.scoring import Answer, Scorer, reader_of

KIND = {"segmentation": "segmenter", "classification": "classifier"}
"""Kind of weights of each task that labels can train."""
DETECTING = ("detector", "restorer", "encoder", "reference")
_USES: dict[str, tuple[tuple[str, ...], str, bool]] = {
    # weights, heatmap, restored pictures
    "anomaly": (DETECTING, "anomaly", False),
    "restoration": (DETECTING, "none", True),
    "classification": (("classifier",), "none", False),
    "gradcam": (("classifier",), "gradcam", False),
    "segmentation": (("segmenter",), "none", False),
}
"""Options of `Scorer` for each use of models."""


@dataclass(frozen=True)
class Loaded:
    """Models that are ready.

    Attributes:
        scorer: runs the models.
        version: 12 hexadecimal digits that stand for exactly these weights.
        reader: reader options for these models.
        lock: to hold while the models run, as heatmaps hook into the network.
    """

    scorer: Scorer
    version: str
    reader: Mapping[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelShelf:
    """Models in folders; one in the first folder, where this server trains, goes before those in later ones.

    Args:
        trained: folder for models that are trained here; it need not exist yet.
        given: model folders that are only read.
        device: where to compute; None for a GPU if there is one.
        reader: reader options that override those of the models' training.

    Raises:
        CheckpointError: if a given folder does not exist.
    """

    def __init__(
        self,
        trained: str | Path,
        given: Sequence[str | Path] = (),
        device: torch.device | None = None,
        reader: Mapping[str, Any] | None = None,
    ) -> None:
        self.trained = Path(trained)
        self.given = [Path(folder) for folder in given]
        self.device = device
        self._given_reader = dict(reader or {})
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Any, Loaded]] = {}
        self._encoder: tuple[Any, Any] | None = None
        model_files(self.given)

    @property
    def folders(self) -> list[Path]:
        """Folders, in the order in which they are searched."""
        return [*([self.trained] if self.trained.is_dir() else []), *self.given]

    def file(self, kind: str) -> Path | None:
        """Return the weights file of a kind (`models.folder.KINDS`), or None."""
        return model_files(self.folders).get(kind)

    def reader(self, *kinds: str) -> dict[str, Any]:
        """Return how images are read: as the server was told, else as the first model that says was trained.

        Args:
            kinds: kinds of models (`models.folder.KINDS`), in the order in which they are asked; all unless given.
        """
        files = model_files(self.folders)
        return {**reader_of(files[kind] for kind in kinds or files if kind in files), **self._given_reader}

    def offers(self, use: str) -> bool:
        """Whether there are models for a use: anomaly, restoration, classification, gradcam, segmentation."""
        kinds = _USES[use][0]
        try:
            files = used_model_files(self.folders, kinds)
        except CheckpointError:
            return False
        return use != "restoration" or "restorer" in files

    def get(self, use: str) -> Loaded:
        """Return the models for a use. Files that changed are read again; until they can be, the earlier models stay.

        Raises:
            NotFoundError: if there are none.
            CheckpointError: if they cannot be read, and there are no earlier ones.
        """
        kinds, heatmap, restored = _USES[use]
        with self._lock:
            if not self.offers(use):
                if use in self._loaded:
                    return self._loaded[use][1]
                raise NotFoundError(f"there is no model for {use}; name a folder that has one, or train one")
            state = _state(used_model_files(self.folders, kinds))
            before = self._loaded.get(use)
            if before is not None and before[0] == state:
                return before[1]
            try:
                scorer = Scorer(self.folders, self.device, heatmap, restored=restored, kinds=kinds)
            except CheckpointError:
                if before is None:
                    raise
                return before[1]  # half-written: the next request reads the whole file
            hashes = "".join(str(value) for value in scorer.facts.values())
            version = hashlib.sha256(hashes.encode()).hexdigest()[:12]
            loaded = Loaded(scorer, version, {**scorer.reader, **self._given_reader})
            self._loaded[use] = (state, loaded)
            return loaded

    def cautions(self, task: str) -> dict[str, Any]:
        """Return ``not_calibrated`` (labels) and ``warnings`` of the classifier or segmenter, where there are any."""
        path = self.file(KIND[task]) if task in KIND else None
        if path is None:
            return {}
        description = read_object(path.with_suffix(".json"))
        found = {"warnings": [str(text) for text in description.get("warnings") or []]}
        if task == "classification":
            found["not_calibrated"] = not_calibrated(description)
        return {name: values for name, values in found.items() if values}

    def encoder(self) -> tuple[Any, str]:
        """Return the encoder whose tokens tell how alike images are, and its version: pre-trained, else a task's.

        Raises:
            NotFoundError: if there is no model at all.
        """
        files = model_files(self.folders)
        detecting = {kind: path for kind, path in files.items() if kind in ("restorer", "encoder")}
        with self._lock:
            if detecting:
                state = _state(detecting)
                if self._encoder is None or self._encoder[0] != state:
                    self._encoder = (state, load_detector(detecting).encoder)
                return self._encoder[1], hashlib.sha256(repr(state).encode()).hexdigest()[:12]
        for use in ("classification", "segmentation"):
            if self.offers(use):
                loaded = self.get(use)
                network = loaded.scorer.classifier or loaded.scorer.segmenter
                return network.encoder, loaded.version
        raise NotFoundError("there is no model; name a model folder")


def not_calibrated(description: Mapping[str, Any]) -> list[str]:
    """Return the labels whose probabilities are not calibrated, from a classifier's description."""
    if "not_calibrated" in description:
        return [str(name) for name in description["not_calibrated"]]
    known = str(description.get("calibration") or "none") != "none"
    return [] if known else list(description.get("classifier", {}).get("labels", []))


def _state(files: dict[str, Path]) -> tuple[Any, ...]:
    """Facts of a file that change when it is replaced."""
    found = []
    for kind, path in sorted(files.items()):
        about = path.stat()
        found.append((kind, str(path), about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)


logger = logging.getLogger(__name__)

TASKS = {
    "anomaly_heatmap": "How unlike normal radiographs each place is, 0…1",
    "anomaly_regions": "Outline of the places that are unlike normal radiographs, as a label map",
    "restoration": "The radiograph as the model holds it to be without anomaly, 0…1",
    "classification": "Probability of each finding; with heatmap: true, also where it is seen (Grad-CAM)",
    "segmentation": "Outline of each class",
}
"""Tasks and their descriptions; each needs models of the use that `uses` names."""
HEAT_THRESHOLD = 0.5
"""Threshold of regions unless the request sets one: 3 standard deviations above normal if there is a reference."""
WARNING = "Research use only. No medical device, no diagnosis."


@dataclass
class Reply:
    """The answer to a request.

    Attributes:
        params: plain values.
        rows: the map, (rows, columns) of the radiograph, or None.
        grid: grid of the radiograph.
    """

    params: dict[str, Any]
    grid: Grid
    rows: NDArray[Any] | None = None
    latencies: dict[str, float] = field(default_factory=dict)


def uses(task: str, request: Mapping[str, Any] | None = None) -> str:
    """Name the use of models (see `ModelShelf`) that a task needs."""
    if task == "classification" and asked_for(request or {}, "heatmap"):
        return "gradcam"
    return {"anomaly_heatmap": "anomaly", "anomaly_regions": "anomaly"}.get(task, task)


def asked_for(request: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return whether a request switches something on; ``default`` if it does not say, or says null.

    Raises:
        AfireError: for anything but true and false.
    """
    value = request.get(key)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise AfireError(f"{key}: true or false is expected, got {str(value)[:40]!r}")
    return value


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return the value of each class in label maps: 1, 2, … in their order."""
    return {name: value for value, name in enumerate(names, 1)}


def class_values(shelf: ModelShelf) -> dict[str, int]:
    """Return the value of each class of the segmenter in label maps; empty if there is no segmenter."""
    return numbered(shelf.get("segmentation").scorer.segmenter.classes) if shelf.offers("segmentation") else {}


def answer(task: str, shelf: ModelShelf, path: str | Path, request: Mapping[str, Any]) -> Reply:
    """Ask the models about one radiograph.

    Args:
        task: one of `TASKS`.
        shelf: the models.
        path: the radiograph's file.
        request: may hold ``threshold`` (of regions, in 0…1) and ``heatmap`` (of classification).

    Raises:
        AfireError: if the image, the model or the request cannot be used.
    """
    start = time.perf_counter()
    loaded = shelf.get(uses(task, request))
    image = open_image(path, loaded.reader)
    radiograph = image.seen_at(loaded.scorer.sizes)
    read = time.perf_counter()
    with loaded.lock:
        scored = loaded.scorer.score([radiograph])[0]
    inferred = time.perf_counter()
    reply = _reply(task, scored, loaded.scorer, image, request)
    done = time.perf_counter()
    reply.params |= {"model_version": loaded.version, "warning": WARNING, **shelf.cautions(task)}
    reply.latencies = {"pre": read - start, "infer": inferred - read, "post": done - inferred}
    return reply


def _reply(task: str, scored: Answer, scorer: Scorer, image: StoredImage, request: Mapping[str, Any]) -> Reply:
    params = {key: scored.record[key] for key in ("labels", "anomaly", "heatmap") if scored.record.get(key)}
    reply = Reply(params, image.grid)
    shape = image.grid.shape
    if task == "segmentation" and scored.masks is not None:
        classes = numbered(scorer.segmenter.classes)
        reply.rows = label_mask(scored.masks, list(classes.values()), shape)
        params["label_names"] = classes
        params["share_of_image"] = {name: float((reply.rows == value).mean()) for name, value in classes.items()}
    elif task == "restoration" and scored.restored is not None:
        reply.rows = _to_size(scored.restored, shape)
    elif task == "anomaly_regions" and scored.heatmap is not None:
        threshold = _threshold(request)
        reply.rows = (_to_size(scored.heatmap, shape) >= threshold).astype(np.uint8)
        params |= {"label_names": {"anomaly": 1}, "threshold": threshold}
    elif scored.heatmap is not None:
        reply.rows = _to_size(scored.heatmap, shape)
    return reply


def _to_size(values: torch.Tensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    large: NDArray[np.float32] = enlarge(values[None], shape)[0].clamp(0, 1).numpy().astype(np.float32)
    return large


def _threshold(request: Mapping[str, Any]) -> float:
    value = request.get("threshold", HEAT_THRESHOLD)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 < number < 1:
        raise AfireError(f"threshold: a number between 0 and 1 is expected, got {str(value)[:40]!r}")
    return number


def write_reply(reply: Reply, folder: str | Path, name: str, request: Mapping[str, Any]) -> Path | None:
    """Write the map of a reply where and as the client wants it.

    Args:
        reply: the reply; without a map the result is None.
        folder: folder for the file.
        name: name of the file without suffix.
        request: ``result_extension`` (``.nii.gz`` unless given), ``result_dtype`` (``uint8`` and ``uint16`` scale maps
            of 0…1 to their range), ``result_compress``.

    Raises:
        AfireError: for a format that is not supported.
    """
    if reply.rows is None:
        return None
    suffix = map_suffix(str(request.get("result_extension") or ".nii.gz"))
    rows, wanted = reply.rows, str(request.get("result_dtype") or "")
    if rows.dtype.kind == "f":
        wanted = wanted or ("uint16" if suffix == ".png" else "")
        if wanted in ("uint8", "uint16"):
            rows = np.round(rows * np.iinfo(wanted).max).astype(wanted)
    elif wanted == "uint16":
        rows = rows.astype(np.uint16)
    return write_map(Path(folder) / f"{name}{suffix}", rows, reply.grid, asked_for(request, "result_compress"))
