"""Inference, training, choice and scoring as MONAI Label's tasks: needs MONAI Label."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from afire_monai.label.images import map_suffix
from afire_monai.label.inference_service import (
    HEAT_THRESHOLD,
    TASKS,
    ModelShelf,
    answer,
    class_values,
    uses,
    write_reply,
)
from afire_monai.label.label_files import score_findings, score_masks
from afire_monai.label.sampling_strategies import STRATEGIES, Chooser
from afire_monai.label.training import DEFAULTS, KIND, Trainable, Workshop

logger = logging.getLogger(__name__)

_TYPES = {
    "segmentation": InferType.SEGMENTATION,
    "anomaly_regions": InferType.SEGMENTATION,
    "classification": InferType.CLASSIFICATION,
}
_FILES = {"segmentation": "segmenter", "classification": "classifier", "restoration": "restorer"}


class RadiographInfer(InferTask):
    """One of `answers.TASKS`.

    Args:
        task: its name.
        shelf: models.
    """

    def __init__(self, task: str, shelf: ModelShelf) -> None:
        config = {"threshold": HEAT_THRESHOLD} if task == "anomaly_regions" else {}
        super().__init__(_TYPES.get(task, InferType.OTHERS), None, 2, TASKS[task], config)
        self.task, self.shelf = task, shelf

    def info(self) -> dict[str, Any]:
        """Say what it gives, with the classes and the version of the model in use."""
        known: dict[str, Any] = {"segmentation": class_values(self.shelf)} if self.task == "segmentation" else {}
        known["anomaly_regions"] = {"anomaly": 1}
        if self.task == "classification":
            known["classification"] = self.shelf.get("classification").scorer.labels
        version = self.shelf.get(uses(self.task)).version
        return {**super().info(), "labels": known.get(self.task, []), "model_version": version}

    def is_valid(self) -> bool:
        """Whether there is a model for it."""
        return self.shelf.offers(uses(self.task))

    def get_path(self, validate: bool = True) -> str | None:
        """Give the file of its weights."""
        path = self.shelf.file(_FILES.get(self.task, "restorer")) or self.shelf.file("encoder")
        return str(path) if path else None

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer a request for the image in its ``image``; see `answers.answer` and `answers.write_reply`."""
        start = time.perf_counter()
        map_suffix(str(request.get("result_extension") or ".nii.gz"))  # before the work, not after it
        reply = answer(self.task, self.shelf, request["image"], request)
        written = time.perf_counter()
        folder = tempfile.mkdtemp(prefix="afire-map-")
        try:
            path = write_reply(reply, folder, "map", request)
            file = None
            if path is not None:  # MONAI Label deletes the file when it is sent, and nothing but the file
                handle, file = tempfile.mkstemp(suffix=path.name.removeprefix("map"), prefix="afire-map-")
                os.close(handle)
                shutil.move(path, file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        end = time.perf_counter()
        latencies = {**reply.latencies, "write": end - written, "total": end - start}
        reply.params["latencies"] = {stage: round(seconds, 4) for stage, seconds in latencies.items()}
        logger.info("%s: %s", self.task, ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in latencies.items()))
        return file, reply.params


class RadiographTrain(TrainTask):
    """Fine-tuning from saved labels.

    Args:
        what: is trained.
        workshop: where.
    """

    def __init__(self, what: Trainable, workshop: Workshop) -> None:
        super().__init__(f"Fine-tune the {KIND[what.task]} ({', '.join(what.names)}) on saved labels")
        self.what, self.workshop = what, workshop

    def config(self) -> dict[str, Any]:
        """Give what a client may set."""
        return dict(DEFAULTS)

    def stats(self) -> dict[str, Any]:
        """See `Workshop.stats`."""
        return self.workshop.stats(self.what.task)

    def check(self, datastore: Any) -> None:
        """Refuse in words, before a process is started, what cannot be trained."""
        self.workshop.labels(self.what, datastore)

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """See `Workshop.train`."""
        return self.workshop.train(self.what, datastore, request)


class RadiographStrategy(Strategy):
    """One of `choice.STRATEGIES`.

    Args:
        name: of it.
        chooser: shared by all, as is what it has seen.
    """

    def __init__(self, name: str, chooser: Chooser) -> None:
        super().__init__(STRATEGIES[name])
        self.name, self.chooser = name, chooser

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Choose an image without label; None if there is none."""
        return self.chooser.choose(self.name, datastore)


class RadiographScoring(ScoringMethod):
    """How well the model in use fits what people saved.

    Args:
        task: ``segmentation`` (Dice) or ``classification`` (AUROC).
        shelf: models.
    """

    def __init__(self, task: str, shelf: ModelShelf) -> None:
        words = {"segmentation": "Dice of the segmenter with saved masks", "classification": "AUROC on saved findings"}
        super().__init__(words[task])
        self.task, self.shelf = task, shelf

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Score all labelled images, also those that were trained on."""
        score = score_masks if self.task == "segmentation" else score_findings
        result = score(self.shelf, datastore)
        logger.info("scored %s: %s", self.task, {k: v for k, v in result.items() if isinstance(v, float | int)})
        return result
