"""The models that a label server offers: loaded when they are first needed, and again when they change."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from afire_monai.core.errors import CheckpointError
from afire_monai.label.http_errors import NotFoundError
from afire_monai.models.folder import model_files, used_model_files
from afire_monai.predictions.anomaly.load_detector import load_detector
from afire_monai.predictions.scoring import Scorer

DETECTING = ("detector", "restorer", "encoder", "reference")
_USES: dict[str, tuple[tuple[str, ...], str, bool]] = {
    # weights, heatmap, restored pictures
    "anomaly": (DETECTING, "anomaly", False),
    "restoration": (DETECTING, "none", True),
    "classification": (("classifier",), "none", False),
    "gradcam": (("classifier",), "gradcam", False),
    "segmentation": (("segmenter",), "none", False),
}
"""What each use of models needs of `Scorer`."""


@dataclass(frozen=True)
class Loaded:
    """Models that are ready.

    Attributes:
        scorer: asks them.
        version: 12 hexadecimal digits that stand for exactly these weights.
        lock: to hold while they are asked, as heatmaps hook into the network.
    """

    scorer: Scorer
    version: str
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelShelf:
    """Models in folders, the first folder first: there, what was trained here takes the place of what came before.

    Args:
        trained: folder for what is trained here; it need not be there yet.
        given: model folders that are only read.
        device: where to compute; None for a GPU if there is one.

    Raises:
        CheckpointError: if a given folder is not there.
    """

    def __init__(
        self, trained: str | Path, given: Sequence[str | Path] = (), device: torch.device | None = None
    ) -> None:
        self.trained = Path(trained)
        self.given = [Path(folder) for folder in given]
        self.device = device
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[Any, Loaded]] = {}
        self._encoder: tuple[Any, Any] | None = None
        model_files(self.given)

    @property
    def folders(self) -> list[Path]:
        """Folders, in the order in which they are searched."""
        return [*([self.trained] if self.trained.is_dir() else []), *self.given]

    def file(self, kind: str) -> Path | None:
        """Give the weights file of a kind (`model_files.KINDS`), or None."""
        return model_files(self.folders).get(kind)

    def offers(self, use: str) -> bool:
        """Whether there are models for a use: anomaly, restoration, classification, gradcam, segmentation."""
        kinds = _USES[use][0]
        try:
            files = used_model_files(self.folders, kinds)
        except CheckpointError:
            return False
        return use != "restoration" or "restorer" in files

    def get(self, use: str) -> Loaded:
        """Give the models for a use. Files that changed are read again; until they can be, the earlier models stay.

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
                return before[1]  # half-written: the next request sees it whole
            hashes = "".join(str(value) for value in scorer.facts.values())
            loaded = Loaded(scorer, hashlib.sha256(hashes.encode()).hexdigest()[:12])
            self._loaded[use] = (state, loaded)
            return loaded

    def encoder(self) -> tuple[Any, str]:
        """Give the encoder whose tokens tell how alike images are, and its version: the pre-trained one, else a task's.

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


def _state(files: dict[str, Path]) -> tuple[Any, ...]:
    """What changes when a file is replaced."""
    found = []
    for kind, path in sorted(files.items()):
        about = path.stat()
        found.append((kind, str(path), about.st_ino, about.st_mtime_ns, about.st_size))
    return tuple(found)
