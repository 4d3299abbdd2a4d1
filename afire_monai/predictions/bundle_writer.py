"""Write the results of the bundle's inference, image by image."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from afire_monai.core.files import write_rows
from afire_monai.networks import ViTClassifier, ViTSegmenter

logger = logging.getLogger(__name__)


class _Writer(ABC):
    """Writes the answers of an evaluator, image by image, and a table of all at the end; see the classes below."""

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]]) -> None:
        self.folder = Path(output_dir)
        self.items = items
        self.table, self.head = "summary.csv", ["name", "anomaly_mean", "anomaly_max"]
        self.rows: list[list[Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator."""
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _write(self, engine: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for place, index in enumerate(engine.state.batch["index"].tolist()):
            self._write_one(engine.state.output["pred"], place, picture_name(self.items[index], index))

    @abstractmethod
    def _write_one(self, output: Any, place: int, name: str) -> None:
        """Write the results of one image, and add its row."""

    def _picture(self, values: Tensor, name: str) -> None:
        grey = (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        Image.fromarray(grey).save(self.folder / name)

    def _finish(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.table:
            write_rows(self.folder / self.table, [self.head, *self.rows])
        logger.info("%d images: results written to %s", len(self.items), self.folder.name)


class ResultWriter(_Writer):
    """Write `AnomalyInferer`'s restored pictures, anomaly maps, tokens and a summary, one set an image.

    Args:
        output_dir: gets ``NAME_restored.png``, ``NAME_anomaly.png`` (white is a difference of half the grey scale or
            more), ``NAME_tokens.npy`` (1 + L, D) and ``summary.csv``. NAME is the place in the list and, for PNG and
            JPEG files, the file's name; names of DICOM files can identify a patient and are left out.
        items: data-list items in the order of the loader.
    """

    def _write_one(self, output: Any, place: int, name: str) -> None:
        anomaly = output["anomaly"][place, 0].float().cpu()
        self._picture(output["restored"][place].float().mean(0).cpu(), f"{name}_restored.png")
        self._picture(anomaly * 2, f"{name}_anomaly.png")
        np.save(self.folder / f"{name}_tokens.npy", output["tokens"][place].float().cpu().numpy())
        self.rows.append([name, anomaly.mean().item(), anomaly.max().item()])


class ModelWriter(_Writer):
    """Write a model's answers, image by image.

    A classifier's calibrated probabilities go to ``predictions.csv``, a segmenter's probabilities to
    ``NAME_NUMBER_CLASS.png`` (white is 1; the class with _ for all but letters, digits and -), an encoder's tokens to
    ``NAME_tokens.npy`` (1 + L, D). NAME is as for `ResultWriter`.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]], network: nn.Module) -> None:
        super().__init__(output_dir, items)
        self.network = network
        self.table = "predictions.csv" if isinstance(network, ViTClassifier) else ""
        self.head = ["name", *network.labels] if isinstance(network, ViTClassifier) else []

    def _write_one(self, output: Any, place: int, name: str) -> None:
        answer: Tensor = output[place].float()
        if isinstance(self.network, ViTClassifier):
            self.rows.append([name, *self.network.calibrated(answer[None])[0].tolist()])
        elif isinstance(self.network, ViTSegmenter):
            for number, (label, logits) in enumerate(zip(self.network.classes, answer, strict=True), start=1):
                plain = re.sub(r"[^\w-]", "_", label)  # "left/right" names no folder
                self._picture(logits.sigmoid().cpu(), f"{name}_{number}_{plain}.png")
        else:
            np.save(self.folder / f"{name}_tokens.npy", answer.cpu().numpy())


def picture_name(item: Mapping[str, Any], index: int) -> str:
    """Name the results of an image: its place, and the file's name unless a DICOM's, which can identify a patient."""
    file = Path(str(item["image"]))
    return f"{index:05d}_{file.stem}" if file.suffix.lower() in (".png", ".jpg", ".jpeg") else f"{index:05d}"
