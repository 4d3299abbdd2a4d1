"""Measure during pre-training how well features predict the labels of validation patients."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from numpy.typing import NDArray

from afire_monai.core.distributed import rank
from afire_monai.evaluation.probes import knn_probe
from afire_monai.predictions.features import Embedding, FeatureReader
from afire_monai.training.trainer import PretrainTrainer, after_every
from afire_monai.training.worth import Labelled, labelled_images, mean_auroc, out_of_fold

logger = logging.getLogger(__name__)
MOST = 256  # largest number of images to judge


def knn_auroc(features: NDArray, images: Labelled) -> float:
    """Return the mean AUROC of nearest neighbours among other patients: quick enough for every few epochs."""
    return float(mean_auroc(images, out_of_fold(features, images, knn_probe))[0])


class LabelProbe:
    """Measure every few epochs how well nearest neighbours tell the labels of validation patients, on process 0.

    The figure ``label_auroc`` goes to the trainer's metrics and so to the CSV log, MLflow and the report. Training does
    not see the labels. If the list has too few, nothing is measured.

    Args:
        datalist: the data list.
        dataset_dir: base of relative paths; empty for the list's own folder.
        every_epochs: epochs between measurements, the last one included; 0: never.
    """

    def __init__(self, datalist: str | Path, dataset_dir: str = "", every_epochs: int = 5) -> None:
        self.datalist, self.dataset_dir, self.every_epochs = datalist, dataset_dir, every_epochs
        self.images: Labelled | None = None
        self.pictures = torch.empty(0)

    def attach(self, engine: PretrainTrainer) -> None:
        """Read the images, and register with the trainer."""
        if rank() or not self.every_epochs:
            return
        chosen = labelled_images(self.datalist, self.dataset_dir, most=MOST)
        if isinstance(chosen, str):
            logger.info("label_auroc is not measured: %s", chosen)
            return
        size = engine.method.export_encoder.image_size
        reader = FeatureReader({"pictures": Embedding(size, lambda images: images)}, options=chosen.reader)
        read = reader.features(chosen.items, "validation")["pictures"]
        used = chosen.only(list(read))
        if not used.labels:
            logger.warning("label_auroc is not measured: too few of the labelled validation images can be used")
            return
        self.images, self.pictures = used, torch.stack([*read.values()])
        engine.add_event_handler(after_every(self.every_epochs), self._measure)

    def _measure(self, engine: PretrainTrainer) -> None:
        engine.state.metrics["label_auroc"] = self._auroc(engine)

    @torch.no_grad()
    def _auroc(self, engine: PretrainTrainer) -> float:
        assert self.images is not None
        embed = Embedding.of_encoder(engine.method.export_encoder).embed
        features = torch.cat([embed(some) for some in self.pictures.split(64)])
        return knn_auroc(features.numpy(), self.images)

    def rehearse(self, engine: PretrainTrainer, folder: Path) -> float:
        """Measure once; return how often an epoch that is."""
        if self.images is None:
            return 0.0
        self._auroc(engine)
        return 1 / self.every_epochs
