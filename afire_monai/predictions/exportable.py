"""Prepare the models of a model folder for export from PyTorch, and radiographs to compare the exports on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.models.export import Exportable, prepare
from afire_monai.models.folder import load_classifier, load_encoder, load_segmenter, model_files_of_kind, weights_hashes
from afire_monai.networks import ViTClassifier, ViTSegmenter
from afire_monai.phantom import ChestPhantom
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.predictions.anomaly.reference import NormalReference, load_judge
from afire_monai.predictions.predict import find_source
from afire_monai.predictions.reading import LeftOut, read_radiograph, resize

EXPORT_KINDS = ("classifier", "segmenter", "encoder", "detector")


class ClassifierGraph(nn.Module):
    """A classifier that returns logits and calibrated probabilities, each (B, labels)."""

    def __init__(self, network: ViTClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify images (B, C, H, W) in 0…1."""
        logits = self.network(images)
        return logits, self.network.calibrated(logits)


class SegmenterGraph(nn.Module):
    """A segmenter that returns probabilities (B, classes, H, W)."""

    def __init__(self, network: ViTSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Segment images (B, C, H, W) in 0…1."""
        return self.network.probabilities(images)


class DetectorGraph(nn.Module):
    """An anomaly detector with its normal reference, or a restorer alone, for canvases (B, C, Hc, Wc) in 0…1.

    Raises AfireError if there is neither reference nor restorer.
    """

    def __init__(self, detector: AnomalyDetector, reference: NormalReference | None) -> None:
        super().__init__()
        if reference is None and detector.restorer is None:
            raise AfireError("an encoder alone detects nothing; make a reference with `afire reference` first")
        self.detector = detector
        self.reference = reference

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: (B,), (B,) in 0…100, then pictures (B, C, Hc, Wc) and maps (B, Hc, Wc) in 0…1."""
        if self.reference is None:
            return ("restored", "difference")
        return ("score", "percentile", "heat") if self.reference.has_map else ("score", "percentile")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Look for anomalies in canvases (B, C, Hc, Wc) in 0…1; see :attr:`outputs`."""
        if self.reference is None:
            features = self.detector.features(images, (), restore=True)
            assert features.restored is not None
            assert features.difference is not None
            return features.restored, features.difference
        features = self.detector.features(images, self.reference.parts, layers=self.reference.layers)
        found = self.reference.judge(features, self.detector.canvas_size)
        ranked = (found.score, found.percentile.float())
        return ranked if found.heat is None else (*ranked, found.heat)


def load_exportable(folders: Sequence[str | Path], kind: str | None = None) -> Exportable:
    """Load a network for export from model folders.

    Args:
        folders: model folders as a run writes them; a file in several of them is taken from the first.
        kind: one of `EXPORT_KINDS`; None for the first of them that the folders hold.

    Raises:
        AfireError: for an unknown kind or one that the folders do not hold.
        CheckpointError: if a file is missing or damaged.
    """
    files, kind = model_files_of_kind(folders, kind, EXPORT_KINDS, {"detector": ("restorer", "reference")})
    hashes = {f"{name}_sha256": value for name, value in weights_hashes(files).items()}
    if kind == "encoder":
        encoder = load_encoder(files["encoder"])
        about = {"tokens": "class token, then patch tokens row by row", "encoder_sha256": hashes["encoder_sha256"]}
        return Exportable(kind, prepare(encoder), (encoder.in_channels, *encoder.image_size), ("tokens",), about)
    if kind == "classifier":
        classifier, description = load_classifier(files[kind])
        facts: dict[str, Any] = {"labels": classifier.labels, "thresholds": description.get("thresholds") or {}}
        graph: nn.Module = ClassifierGraph(classifier)
        outputs: tuple[str, ...] = ("logits", "probabilities")
        size = (classifier.encoder.in_channels, *classifier.encoder.image_size)
    elif kind == "segmenter":
        segmenter, description = load_segmenter(files[kind])
        facts = {"classes": segmenter.classes, "mask_values": description.get("mask_values") or {}}
        graph, outputs = SegmenterGraph(segmenter), ("probabilities",)
        size = (segmenter.encoder.in_channels, *segmenter.encoder.image_size)
    else:
        return _detector(files, hashes)
    return Exportable(kind, prepare(graph), size, outputs, {**facts, f"{kind}_sha256": hashes[f"{kind}_sha256"]})


def _detector(files: dict[str, Path], hashes: dict[str, str]) -> Exportable:
    detector, reference = load_judge(files)
    graph = DetectorGraph(detector, reference)
    facts = {
        "parts": list(reference.parts) if reference else [],
        "normals": reference.count if reference else 0,
        **hashes,
    }
    # an image between two normal ones whose scores differ by less than rounding may be ranked before or after one
    steps = {"percentile": 100 / reference.count} if reference else {}
    size = (detector.encoder.in_channels, *detector.canvas_size)
    return Exportable("detector", prepare(graph), size, graph.outputs, facts, steps)


def comparison_images(size: tuple[int, int, int], inputs: Sequence[str], section: str, most: int) -> Tensor:
    """Read radiographs to compare exports on, or draw phantoms where none are named.

    Args:
        size: (C, H, W) that the network expects.
        inputs: folders and files, or one data list; empty for phantoms.
        section: section of the data list.
        most: largest number of images.

    Returns:
        (n, C, H, W) float32 in 0…1.

    Raises:
        AfireError: if fewer than 3 are wanted, or can be read.
    """
    channels, height, width = size
    if most < 3:
        raise AfireError(f"--compared is {most}; at least 3 images are needed to check an export")
    if inputs:
        source = find_source(inputs, section)
        files, options = source.files, source.reader
        read = (read_radiograph(i, file, [(height, width)], options=options) for i, file in enumerate(files))
        pictures = [r.images[height, width] for r in islice((r for r in read if not isinstance(r, LeftOut)), most)]
    else:
        draw = ChestPhantom(max(32, height, width))
        pictures = [resize(torch.from_numpy(draw(seed).image), (height, width)) for seed in range(most)]
    if len(pictures) < 3:
        raise AfireError(f"{len(pictures)} images can be read, but at least 3 are needed to check an export")
    return torch.stack(pictures).expand(-1, channels, -1, -1).contiguous()
