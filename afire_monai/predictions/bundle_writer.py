"""What the bundle's inference writes: pictures, tokens and a summary."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from afire_monai.core.files import whole_file

logger = logging.getLogger(__name__)


class ResultWriter:
    """Write restored pictures, anomaly maps, tokens and a summary, one set an image.

    Args:
        output_dir: gets ``NAME_restored.png``, ``NAME_anomaly.png`` (white is a difference of half the grey scale or
            more), ``NAME_tokens.npy`` (1 + L, D) and ``summary.csv``. NAME is the place in the list and, for PNG and
            JPEG files, the file's name; names of DICOM files can identify a patient and are left out.
        items: data-list items in the order of the loader.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]]) -> None:
        self.folder = Path(output_dir)
        self.items = items
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator whose inferer is `AnomalyInferer`."""
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._summarise)

    def _write(self, engine: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output = engine.state.output["pred"]
        for place, index in enumerate(engine.state.batch["index"].tolist()):
            name = picture_name(self.items[index], index)
            anomaly = output["anomaly"][place, 0].float().cpu()
            self._picture(output["restored"][place].float().mean(0).cpu(), f"{name}_restored.png")
            self._picture(anomaly * 2, f"{name}_anomaly.png")
            np.save(self.folder / f"{name}_tokens.npy", output["tokens"][place].float().cpu().numpy())
            self.rows.append({"name": name, "anomaly_mean": anomaly.mean().item(), "anomaly_max": anomaly.max().item()})

    def _picture(self, values: Tensor, name: str) -> None:
        grey = (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        Image.fromarray(grey).save(self.folder / name)

    def _summarise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(self.folder / "summary.csv") as part,
            part.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, ["name", "anomaly_mean", "anomaly_max"])
            writer.writeheader()
            writer.writerows(self.rows)
        logger.info("%d images: pictures, tokens and summary.csv written to %s", len(self.rows), self.folder.name)


def picture_name(item: Mapping[str, Any], index: int) -> str:
    """Name the results of an image: its place, and the file's name unless a DICOM's, which can identify a patient."""
    file = Path(str(item["image"]))
    return f"{index:05d}_{file.stem}" if file.suffix.lower() in (".png", ".jpg", ".jpeg") else f"{index:05d}"
