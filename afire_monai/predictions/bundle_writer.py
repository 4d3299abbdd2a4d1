"""Write the results of the bundle's inference as predictions, image by image."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_rows
from afire_monai.networks import ViTClassifier, ViTSegmenter
from afire_monai.predictions.format import PredictionsWriter
from afire_monai.predictions.results import RESTORED, RUN, label_mask
from afire_monai.radiographs.raster import write_png

PROBABILITIES, TOKENS, SUMMARY = "probabilities", "tokens", "summary.csv"

logger = logging.getLogger(__name__)


class _Writer(ABC):
    """Writes the answers of an evaluator as `PredictionsWriter` does, and what that has no place for beside it.

    ``summary.csv`` has a line for each image: its place among all files as ``index``, the file's name if it is a PNG or
    JPEG (names of DICOM files can identify a patient), and further columns of a writer. An item's ``place`` is its
    index; without one, it is the item's place among the items.
    """

    def __init__(
        self,
        output_dir: str | Path,
        items: Sequence[Mapping[str, Any]],
        labels: Sequence[str] = (),
        columns: Sequence[str] = (),
        **facts: Any,
    ) -> None:
        self.folder = Path(output_dir)
        self.items = items
        self.columns = columns
        self.predictions = PredictionsWriter(self.folder, labels, {"section": "", "datalist_sha256": "", **facts})
        self.rows: list[Sequence[Any]]

    def attach(self, engine: Any) -> None:
        """Register with an evaluator."""
        from ignite.engine import Events

        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _start(self) -> None:
        if (self.folder / RUN).exists():
            raise AfireError(f"{self.folder}: holds predictions of `afire predict`; give another output_dir")
        self.rows = []
        self.predictions.__enter__()
        (self.folder / SUMMARY).unlink(missing_ok=True)
        for old in (path for kind in (RESTORED, TOKENS, PROBABILITIES) for path in (self.folder / kind).glob("[0-9]*")):
            old.unlink()

    def _write(self, engine: Any) -> None:
        for row, number in enumerate(engine.state.batch["index"].tolist()):
            item = self.items[number]
            index = item.get("place", number)
            if index in self.predictions:  # it came in place of a file that could not be read a second time
                continue
            values = self._write_one(engine.state.output["pred"], row, index)
            file = Path(str(item["image"]))
            shown = file.name if file.suffix.lower() in (".png", ".jpg", ".jpeg") else ""
            self.rows.append((index, shown, *values))

    @abstractmethod
    def _write_one(self, output: Any, row: int, index: int) -> Sequence[float]:
        """Write the results of one image, a row of a batch; return its values for the summary's further columns."""

    def _file(self, kind: str, name: str) -> Path:
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / kind / name

    def _picture(self, kind: str, name: str, values: Tensor) -> None:
        write_png(self._file(kind, name), (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8))

    def _finish(self) -> None:
        write_rows(self.folder / SUMMARY, [("index", "name", *self.columns), *self.rows])
        self.predictions.__exit__(None, None, None)
        logger.info("%d images: results written to %s", len(self.rows), self.folder.name)

    def _give_up(self, _engine: Any, error: BaseException) -> None:
        self.predictions.__exit__(type(error), error, error.__traceback__)
        raise error


class ResultWriter(_Writer):
    """Write `AnomalyInferer`'s answers: heatmaps, restored pictures, tokens and a summary.

    Args:
        output_dir: gets ``heatmaps/`` (1 is a difference of half the grey scale or more) as predictions have them,
            ``restored/NNNNN.png``, ``tokens/NNNNN.npy`` (1 + L, D), and in ``summary.csv`` the mean and the largest
            difference of grey levels, 0…1.
        items: data-list items in the order of the loader.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(output_dir, items, columns=("anomaly_mean", "anomaly_max"))

    def _write_one(self, output: Any, row: int, index: int) -> Sequence[float]:
        anomaly = output["anomaly"][row, 0].float().cpu()
        finite = bool(anomaly.isfinite().all())
        self.predictions.add(index, heatmap=(anomaly * 2).clamp(0, 1).numpy() if finite else None)
        self._picture(RESTORED, f"{index:05d}.png", output["restored"][row].float().mean(0).cpu())
        np.save(self._file(TOKENS, f"{index:05d}.npy"), output["tokens"][row].float().cpu().numpy())
        return anomaly.mean().item(), anomaly.max().item()


class ModelWriter(_Writer):
    """Write a model's answers: probabilities of a classifier, masks of a segmenter, tokens of an encoder.

    Args:
        output_dir: gets calibrated probabilities in ``predictions.csv``; or ``masks/`` as predictions have them (class
            n of the network is n) and the probability of each class as ``probabilities/NNNNN_n_CLASS.png`` (white is 1;
            the class with _ for all but letters, digits and -); or ``tokens/NNNNN.npy`` (1 + L, D).
        items: data-list items in the order of the loader.
        network: network that gave the answers.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]], network: nn.Module) -> None:
        labels = network.labels if isinstance(network, ViTClassifier) else ()
        classes = network.classes if isinstance(network, ViTSegmenter) else ()
        self.mask_values = {name: number for number, name in enumerate(classes, start=1)}
        super().__init__(output_dir, items, labels, mask_values=self.mask_values)
        self.network = network

    def _write_one(self, output: Any, row: int, index: int) -> Sequence[float]:
        answer: Tensor = output[row].float()
        scores: dict[str, float] = {}
        mask: NDArray | None = None
        if isinstance(self.network, ViTClassifier):
            scores = dict(zip(self.network.labels, self.network.calibrated(answer[None])[0].tolist(), strict=True))
        elif isinstance(self.network, ViTSegmenter):
            probabilities = answer.sigmoid().cpu()
            mask = label_mask(probabilities, list(self.mask_values.values()), (answer.shape[1], answer.shape[2]))
            for (name, number), of_class in zip(self.mask_values.items(), probabilities, strict=True):
                plain = re.sub(r"[^\w-]", "_", name)  # "left/right" must not name a folder
                self._picture(PROBABILITIES, f"{index:05d}_{number}_{plain}.png", of_class)
        else:
            np.save(self._file(TOKENS, f"{index:05d}.npy"), answer.cpu().numpy())
        self.predictions.add(index, scores, mask=mask)
        return ()
