"""What the bundle's inference writes of a classifier, a segmenter or an encoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn as nn
from PIL import Image
from torch import Tensor

from afire_monai.core.files import write_rows
from afire_monai.networks import ViTClassifier, ViTSegmenter
from afire_monai.predictions.bundle_writer import picture_name

logger = logging.getLogger(__name__)


class ModelWriter:
    """Write a model's answers, image by image.

    A classifier's calibrated probabilities go to ``predictions.csv``, a segmenter's probabilities to
    ``NAME_NUMBER_CLASS.png`` (white is 1; the class with _ for all but letters, digits and -), an encoder's tokens to
    ``NAME_tokens.npy`` (1 + L, D). NAME is as in
    `afire_monai.predictions.bundle_writer.ResultWriter`.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]], network: nn.Module) -> None:
        self.folder = Path(output_dir)
        self.items = items
        self.network = network
        self.rows: list[list[Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator."""
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _write(self, engine: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output: Tensor = engine.state.output["pred"].float()
        if isinstance(self.network, ViTClassifier):
            output = self.network.calibrated(output)
        elif isinstance(self.network, ViTSegmenter):
            output = output.sigmoid()
        for answer, index in zip(output.cpu(), engine.state.batch["index"].tolist(), strict=True):
            name = picture_name(self.items[index], index)
            if isinstance(self.network, ViTClassifier):
                self.rows.append([name, *answer.tolist()])
            elif isinstance(self.network, ViTSegmenter):
                for number, (label, probability) in enumerate(zip(self.network.classes, answer, strict=True), start=1):
                    grey = (probability * 255).round().numpy().astype(np.uint8)
                    plain = re.sub(r"[^\w-]", "_", label)  # "left/right" names no folder
                    Image.fromarray(grey).save(self.folder / f"{name}_{number}_{plain}.png")
            else:
                np.save(self.folder / f"{name}_tokens.npy", answer.numpy())

    def _finish(self, engine: Any) -> None:
        if isinstance(self.network, ViTClassifier):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_rows(self.folder / "predictions.csv", [["name", *self.network.labels], *self.rows])
        logger.info("%d images: results written to %s", len(self.items), self.folder.name)
