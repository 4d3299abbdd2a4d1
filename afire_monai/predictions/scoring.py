"""All outputs of a model folder for radiographs: probabilities, masks, anomaly scores, maps."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.core.precision import best_device, set_precision
from afire_monai.datalists.cells import means_normal
from afire_monai.models.folder import KINDS, load_classifier, load_segmenter, names, used_model_files, weights_hashes
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.predictions.anomaly.reference import NormalReference, load_judge
from afire_monai.predictions.attribution import attention_rollout, grad_cam
from afire_monai.predictions.reading import Radiograph, Size
from afire_monai.radiographs.decode import checked_options

Heatmap = Literal["auto", "anomaly", "gradcam", "rollout", "none"]
HEATMAP_KINDS: tuple[str, ...] = get_args(Heatmap)


@dataclass
class Answer:
    """Results for one radiograph."""

    record: dict[str, Any]  #: plain values, as written to its JSON
    heatmap: Tensor | None = None  #: (h, w) in 0…1, or None
    restored: Tensor | None = None  #: (h, w) in 0…1, or None
    masks: Tensor | None = None  #: (classes, h, w) probabilities of the segmenter, or None


@dataclass
class _Batch:
    """Answers of all models to one batch, before they are told apart by image."""

    probabilities: Tensor | None = None
    anomaly: dict[str, Tensor] = field(default_factory=dict)
    heatmap: Tensor | None = None
    restored: Tensor | None = None
    masks: Tensor | None = None


class Scorer:
    """Use whatever models there are in one or more model folders.

    A classifier gives probabilities, and a segmenter gives masks. An encoder or detector with its normal reference
    gives the anomaly percentile and its map, and a restorer gives restored pictures.

    Args:
        folders: model folders; a file in several of them is taken from the first.
        device: device to compute on.
        heatmap: ``anomaly``, ``gradcam``, ``rollout``, ``none``, or ``auto``: the anomaly map if there is a detector,
            else Grad-CAM if there is a classifier.
        label: label for Grad-CAM; None for each image's most probable one (except normal).
        restored: also give restored pictures.
        kinds: weights to use (`models.folder.KINDS`), if not everything available should be computed.

    Raises:
        CheckpointError: if a folder is missing, holds no model, or a model cannot be read.
        AfireError: for a heatmap, label or restored picture that these models cannot give.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        device: torch.device | None = None,
        heatmap: str = "auto",
        label: str | None = None,
        restored: bool = False,
        kinds: Collection[str] = KINDS,
    ) -> None:
        set_precision("float32")
        self.device = device or best_device()
        self.files = used_model_files(folders, kinds)
        self.classifier: Any = None
        self.segmenter: Any = None
        self.detector: AnomalyDetector | None = None
        self.reference: NormalReference | None = None
        self.thresholds: dict[str, float] = {}
        self.rests_on: dict[str, str] = {}
        self.mask_values: dict[str, int] = {}
        self._load()
        self.labels: list[str] = list(self.classifier.labels) if self.classifier else []
        #: the models' identity: the package's version and the SHA-256 of each weights file
        self.facts: dict[str, Any] = {"version": __version__}
        self.facts |= {f"{kind}_sha256": value for kind, value in weights_hashes(self.files).items()}
        self.reader = reader_of(self.files.values())
        self.heatmap = self._choose_heatmap(heatmap)
        self.label = self._choose_label(label)
        self.restored = restored
        if restored and (self.detector is None or self.detector.restorer is None):
            raise AfireError("there is no restorer.safetensors in the model folder, so no picture can be restored")

    def _load(self) -> None:
        if "classifier" in self.files:
            self.classifier, description = load_classifier(self.files["classifier"])
            self.classifier.to(self.device)
            self.thresholds = {str(k): float(v) for k, v in (description.get("thresholds") or {}).items()}
            self.rests_on = {str(k): str(v) for k, v in (description.get("rests_on") or {}).items()}
        if "segmenter" in self.files:
            self.segmenter, description = load_segmenter(self.files["segmenter"])
            self.segmenter.to(self.device)
            self.mask_values = _distinct(self.segmenter.classes, description.get("mask_values") or {})
        if {"reference", "restorer"} & self.files.keys():
            detector, reference = load_judge(self.files)
            self.detector = detector.to(self.device)
            self.reference = None if reference is None else reference.to(self.device)

    def _choose_heatmap(self, heatmap: str) -> str:
        if heatmap not in HEATMAP_KINDS:
            raise AfireError(f"--heatmap must be one of {', '.join(HEATMAP_KINDS)}, got {heatmap!r}")
        able = {
            "anomaly": self.detector is not None and (self.reference is None or self.reference.has_map),
            "gradcam": self.classifier is not None,
            "rollout": self.classifier is not None,
            "none": True,
        }
        if heatmap == "auto":
            return next(kind for kind in ("anomaly", "gradcam", "none") if able[kind])
        if not able[heatmap]:
            needs = (
                "restorer.safetensors, or a reference with a part that judges cells"
                if heatmap == "anomaly"
                else "a classifier"
            )
            raise AfireError(f"--heatmap {heatmap} needs {needs} in the model folder, which holds {names(self.files)}")
        return heatmap

    def _choose_label(self, label: str | None) -> str | None:
        if label is not None and label not in self.labels:
            known = ", ".join(self.labels) or "none, for there is no classifier"
            raise AfireError(f"--label {label!r}: the model's labels are {known}")
        return label

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes (height, width) that the models want radiographs at."""
        networks = [n.encoder.image_size for n in (self.classifier, self.segmenter) if n is not None]
        return tuple(dict.fromkeys([*networks, *([self.detector.canvas_size] if self.detector else [])]))

    def score(self, radiographs: Sequence[Radiograph]) -> list[Answer]:
        """Ask all models about a batch."""
        images = {
            size: torch.stack([r.images[size] for r in radiographs]).to(self.device, non_blocking=True)
            for size in self.sizes
        }
        batch = _Batch()
        with torch.inference_mode():
            if self.classifier is not None:
                batch.probabilities = self.classifier.probabilities(self._seen_by(self.classifier, images))
            if self.segmenter is not None:
                batch.masks = self.segmenter.probabilities(self._seen_by(self.segmenter, images))
            if self.detector is not None:
                self._find_anomalies(self.detector, images[self.detector.canvas_size], batch)
        chosen = self._explain(images, batch)
        for values in (batch.probabilities, batch.anomaly.get("score")):
            if values is not None and not values.isfinite().all():
                raise AfireError(
                    "the model gives values that are not finite: its weights are damaged, or training failed"
                )
        parts = [batch.probabilities, batch.heatmap, batch.restored, batch.masks]
        batch.probabilities, batch.heatmap, batch.restored, batch.masks = (p if p is None else p.cpu() for p in parts)
        batch.anomaly = {name: values.cpu() for name, values in batch.anomaly.items()}
        return [self._answer(place, r.index, batch, chosen) for place, r in enumerate(radiographs)]

    @staticmethod
    def _seen_by(network: Any, images: dict[Size, Tensor]) -> Tensor:
        grey = images[network.encoder.image_size]
        return grey.expand(-1, network.encoder.in_channels, -1, -1)

    def _find_anomalies(self, detector: AnomalyDetector, images: Tensor, batch: _Batch) -> None:
        parts, layers = (self.reference.parts, self.reference.layers) if self.reference is not None else ((), ())
        features = detector.features(images, parts, self.restored or self.reference is None, layers)
        if self.restored and features.restored is not None:
            batch.restored = features.restored.mean(1)
        if self.reference is not None:
            found = self.reference.judge(features, detector.canvas_size)
            batch.anomaly = {"score": found.score, "percentile": found.percentile}
            heat: Tensor | None = found.heat
        else:
            assert features.difference is not None
            heat = features.difference.clamp(0, 1)
            batch.anomaly = {"score": heat.flatten(1).mean(1)}
        if self.heatmap == "anomaly":
            batch.heatmap = heat

    def _explain(self, images: dict[Size, Tensor], batch: _Batch) -> Tensor | None:
        """Make the classifier's heatmaps; return the label of each image's map."""
        if self.heatmap not in ("gradcam", "rollout"):
            return None
        seen = self._seen_by(self.classifier, images)
        if self.heatmap == "rollout":
            batch.heatmap = _stretched(attention_rollout(self.classifier, seen), seen)
            return None
        assert batch.probabilities is not None
        chosen = self._explained_labels(batch.probabilities)
        maps = torch.zeros(len(seen), *self.classifier.encoder.grid, device=seen.device)
        for place in chosen.unique().tolist():
            of_image = chosen == place
            maps[of_image] = grad_cam(self.classifier, seen[of_image], place)
        batch.heatmap = _stretched(maps, seen)
        return chosen.cpu()

    def _explained_labels(self, probabilities: Tensor) -> Tensor:
        if self.label is not None:
            return torch.full((len(probabilities),), self.labels.index(self.label), device=probabilities.device)
        findings = probabilities.clone()
        normal = [place for place, name in enumerate(self.labels) if means_normal(name)]
        if len(normal) < len(self.labels):
            findings[:, normal] = -1
        return findings.argmax(1)

    def _answer(self, place: int, index: int, batch: _Batch, chosen: Tensor | None) -> Answer:
        record: dict[str, Any] = {"index": index, "labels": {}}
        if batch.probabilities is not None:
            for name, value in zip(self.labels, batch.probabilities[place].tolist(), strict=True):
                record["labels"][name] = self._labelled(name, value)
        if batch.anomaly:
            record["anomaly"] = {name: values[place].item() for name, values in batch.anomaly.items()}
            if self.reference is not None:
                record["anomaly"].update(self.reference.in_words(record["anomaly"]["percentile"]))
        if self.heatmap != "none":
            label = self.labels[int(chosen[place])] if chosen is not None else None
            record["heatmap"] = {"kind": self.heatmap, **({"label": label} if label else {})}
            if label and batch.heatmap is not None and not batch.heatmap[place].any():
                record["heatmap"]["empty"] = True  # Grad-CAM gives black here; no picture is missing

        def of_image(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[place].float()

        return Answer(record, of_image(batch.heatmap), of_image(batch.restored), of_image(batch.masks))

    def _labelled(self, name: str, probability: float) -> dict[str, Any]:
        threshold = self.thresholds.get(name)
        above = None if threshold is None else probability >= threshold
        return {"probability": probability, "threshold": threshold, "above_threshold": above}


def _stretched(maps: Tensor, images: Tensor) -> Tensor:
    """Bring maps (B, h, w) of at least 0 to the pictures' size and each to 0…1 of its largest value."""
    large = torch.nn.functional.interpolate(maps[:, None].float(), images.shape[2:], mode="bilinear")[:, 0]
    return (large / large.flatten(1).amax(1).clamp_min(1e-12)[:, None, None]).clamp(0, 1)


def _distinct(classes: Sequence[str], values: dict[str, int]) -> dict[str, int]:
    """Return each class's value in a mask: that of the training, or 1, 2, … if it does not tell classes apart.

    Masks of training may be a file for each class, all with 255; the mask that is written here holds all classes.
    """
    given = {name: int(values.get(name, 255)) for name in classes}
    apart = len(set(given.values())) == len(given) and all(0 < value < 256 for value in given.values())
    return given if apart else {name: place + 1 for place, name in enumerate(classes)}


def reader_of(files: Iterable[Path]) -> dict[str, Any]:
    """Return the reader options that the list of the first model with some had; none if no model has.

    Raises RadiographError for an option that the reader does not have.
    """
    for path in files:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if description.get("reader"):
            return checked_options(description["reader"], f"{path.with_suffix('.json')}, reader")
    return {}
