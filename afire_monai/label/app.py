"""The MONAI Label app and its tasks: inference, training, choice and scoring. Needs MONAI Label."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from afire_monai import __version__
from afire_monai.cli.fronts import reader_arguments
from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.client import DicomWeb
from afire_monai.label.archive_proxy import ArchiveProxy
from afire_monai.label.images import map_suffix
from afire_monai.label.inference_service import (
    HEAT_THRESHOLD,
    KIND,
    TASKS,
    ModelShelf,
    answer,
    asked_for,
    class_values,
    uses,
    write_reply,
)
from afire_monai.label.label_files import score_labels
from afire_monai.label.messages import NotFoundError, quiet_monailabel
from afire_monai.label.sampling_strategies import STRATEGIES, Chooser
from afire_monai.label.stores import ArchiveStore, CarefulStore
from afire_monai.label.training import DEFAULTS, Trainable, Workshop

logger = logging.getLogger(__name__)

SETTINGS = {
    "models": "model folders with commas between them; given to --model of the start script",
    "work": "folder for what is trained; by default work/ beside main.py",
    "classes": "names of the segmenter's classes with commas between them, where no segmenter is given",
    "findings": "names of the classifier's labels with commas between them, where no classifier is given",
    "ca": "PEM file of the authorities that the archive's certificate is checked with, instead of the built-in ones",
    "tls_cert": "PEM file of the own certificate, for an archive that asks for one",
    "tls_key": "PEM file of its private key, without a password",
    "modalities": "of images, with commas between them; DICOMweb lists CR,DX unless given",
    "png16_max": "white level of 16-bit PNG, as for the commands; unless given, as in the models' training",
    "window_index": "which DICOM window to use where a file has several; likewise",
    "also_show": "modalities of DICOMweb that a viewer sees besides, such as SEG,OT,SR; none unless given",
    "to_archive": "true: saved masks go to the DICOMweb archive as DICOM segmentations, as MONAI Label does; or false",
    "candidates": "images without label that a strategy looks at in one call; 48 unless given",
}
"""Keys of ``--conf``."""
ARCHIVE_TIMEOUT = 15.0
"""Seconds to wait for a connection to the archive, or a part of its answer, while a browser waits."""


class RadiographLabelApp(MONAILabelApp):
    """Use, correct and improve this project's models on radiographs from folders and DICOMweb.

    Args:
        app_dir: folder of ``main.py``; MONAI Label makes folders in it.
        studies: folder of radiographs, or root of DICOMweb services.
        conf: see `SETTINGS`.

    Raises:
        AfireError: for an unknown or wrong setting.
        CheckpointError: if a model folder is missing or nothing in it can be read.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None = None) -> None:
        quiet_monailabel()
        given = {key: str(value).strip() for key, value in (conf or {}).items()}
        if unknown := sorted(given.keys() - SETTINGS.keys()):
            raise AfireError(f"--conf {', '.join(unknown)}: there are {', '.join(SETTINGS)}")
        self.given = given
        work = Path(given.get("work") or Path(app_dir) / "work")
        reader = reader_arguments(
            given.get("png16_max"),
            _names(given["modalities"]) if "modalities" in given else None,
            _count(given["window_index"], "window_index", 0) if "window_index" in given else None,
        )
        self.shelf = ModelShelf(work / "models", _names(given.get("models", "")), reader=reader)
        self.workshop = Workshop(work, self.shelf)
        self.chooser = Chooser(self.shelf, _count(given.get("candidates", "48"), "candidates"))
        self.labelling = self._labelling()
        self.trainable = {task: what for task, what in self.labelling.items() if self._can_train(task)}
        self.work = work
        super().__init__(
            app_dir,
            studies,
            dict(given),
            name="AFiRe radiographs",
            description="Anomalies, findings and outlines in radiographs. Research use only; not a medical device.",
            version=__version__,
        )

    def _labelling(self) -> dict[str, Trainable]:
        """Return the labels that can be saved, by the task that they train: those of the models, or those named."""
        classes, labels = (tuple(_labels(self.given.get(key, ""), key)) for key in ("classes", "findings"))
        if self.shelf.offers("segmentation"):
            classes = tuple(class_values(self.shelf))
        if self.shelf.offers("classification"):
            labels = tuple(self.shelf.get("classification").scorer.labels)
        named = {"segmentation": classes, "classification": labels}
        return {task: Trainable(task, names) for task, names in named.items() if names}

    def _can_train(self, task: str) -> bool:
        return self.shelf.offers(task) or self.shelf.file("encoder") is not None

    def _has_folder(self) -> bool:
        return not self.studies.startswith(("http://", "https://"))

    @functools.cached_property
    def archive_proxy(self) -> ArchiveProxy | None:
        """The part of the archive that a browser sees; None for a folder."""
        if self._has_folder():
            return None
        modalities = [*_names(self.given.get("modalities", "CR,DX")), *_names(self.given.get("also_show", ""))]
        return ArchiveProxy(self._archive(ARCHIVE_TIMEOUT, 0), modalities)

    def _archive(self, timeout: float, retries: int) -> DicomWeb:
        ca, cert, key = (self.given.get(name) for name in ("ca", "tls_cert", "tls_key"))
        return DicomWeb(self.studies.rstrip("/"), timeout, retries, ca, cert=cert, key=key)

    def init_datastore(self) -> CarefulStore:
        """Open the folder or the archive."""
        masks, findings = self.labelling.get("segmentation"), self.labelling.get("classification")
        classes, labels = masks.classes if masks else {}, findings.names if findings else ()
        if self._has_folder():
            return CarefulStore(self.studies, classes, labels, self.shelf.reader())
        return ArchiveStore(
            self._archive(20, 1),
            str(self.work / "cache"),
            classes,
            labels,
            _names(self.given.get("modalities", "CR,DX")),
            asked_for(self.given, "to_archive", default=True),
            self.shelf.reader(),
        )

    def init_infers(self) -> dict[str, RadiographInfer]:
        """Return the tasks; those without a model are not shown until one is trained."""
        return {task: RadiographInfer(task, self.shelf) for task in TASKS}

    def init_trainers(self) -> dict[str, RadiographTrain]:
        """Return the tasks that can be trained."""
        return {task: RadiographTrain(what, self.workshop) for task, what in self.trainable.items()}

    def init_strategies(self) -> dict[str, Any]:
        """Return the strategies that there are models for."""
        return {name: RadiographStrategy(name, self.chooser) for name in STRATEGIES if self.chooser.offers(name)}

    def init_scoring_methods(self) -> dict[str, RadiographScoring]:
        """Return Dice and AUROC, for the tasks that can be trained."""
        names = {"segmentation": "dice", "classification": "auroc"}
        return {names[task]: RadiographScoring(task, self.shelf) for task in self.trainable}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Answer a request; see MONAI Label.

        Raises:
            NotFoundError: if there is no such task, or no model for it.
        """
        task = self._infers.get(request.get("model"))
        if task is None or not task.is_valid():
            able = ", ".join(name for name, one in self._infers.items() if one.is_valid()) or "none"
            raise NotFoundError(f"there is no model of this name here; there are {able}")
        result: dict[str, Any] = super().infer(request, datastore)
        return result

    def check_training(self, model: str) -> None:
        """Refuse in words a task that cannot be trained.

        Raises:
            NotFoundError: if there is no such task.
            AfireError: if there are too few labels.
        """
        task = self._trainers.get(model)
        if task is None:
            able = ", ".join(self._trainers) or "none (give --classes or a model, and an encoder)"
            raise NotFoundError(f"nothing of this name can be trained; there are {able}")
        task.check(self.datastore())

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose the next image; see MONAI Label.

        Raises:
            NotFoundError: if there is no such strategy.
        """
        strategy = request.get("strategy") or "random"
        if strategy not in self._strategies:
            raise NotFoundError(f"there is no strategy of this name; there are {', '.join(self._strategies)}")
        found: dict[str, Any] = super().next_sample(request)
        return found

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score; see MONAI Label.

        Raises:
            NotFoundError: if there is no such method.
        """
        if request.get("method") not in self._scoring_methods:
            raise NotFoundError(f"there is no such scoring; there are {', '.join(self._scoring_methods) or 'none'}")
        result: dict[str, Any] = super().scoring(request, datastore)
        return result

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Note that a label was saved, without saying of whom."""
        logger.info("a label was saved; %d images are labelled", self.datastore().status()["completed"])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _labels(text: str, key: str) -> list[str]:
    names = _names(text)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise AfireError(f"--conf {key}: {', '.join(twice)} is named more than once; name each once")
    return names


def _count(text: str, key: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise AfireError(f"--conf {key} {text}: a whole number of at least {least} is expected")
    return int(text)


_TYPES = {
    "segmentation": InferType.SEGMENTATION,
    "anomaly_regions": InferType.SEGMENTATION,
    "classification": InferType.CLASSIFICATION,
}


class RadiographInfer(InferTask):
    """One of `inference_service.TASKS`.

    Args:
        task: name of the task.
        shelf: the models.
    """

    def __init__(self, task: str, shelf: ModelShelf) -> None:
        config = {"threshold": HEAT_THRESHOLD} if task == "anomaly_regions" else {}
        super().__init__(_TYPES.get(task, InferType.OTHERS), None, 2, TASKS[task], config)
        self.task, self.shelf = task, shelf

    def info(self) -> dict[str, Any]:
        """Describe the task, with the classes and the version of the model in use."""
        labels: Any = {"anomaly": 1} if self.task == "anomaly_regions" else []
        if self.task == "segmentation":
            labels = class_values(self.shelf)
        elif self.task == "classification":
            labels = self.shelf.get("classification").scorer.labels
        version = self.shelf.get(uses(self.task)).version
        return {
            **super().info(),
            "labels": labels,
            "model_version": version,
            **self.shelf.cautions(self.task),
        }

    def is_valid(self) -> bool:
        """Whether there is a model for it."""
        return self.shelf.offers(uses(self.task))

    def get_path(self, validate: bool = True) -> str | None:
        """Return the file of its weights."""
        path = self.shelf.file(KIND.get(self.task, "restorer")) or self.shelf.file("encoder")
        return str(path) if path else None

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Answer a request for the image in its ``image``; see `answer` and `write_reply`."""
        start = time.perf_counter()
        map_suffix(str(request.get("result_extension") or ".nii.gz"))  # refuses before the work, not after it
        reply = answer(self.task, self.shelf, request["image"], request)
        written = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="afire-map-") as folder:
            path = write_reply(reply, folder, "map", request)
            file = None
            if path is not None:  # MONAI Label deletes the file once it is sent, and only the file
                handle, file = tempfile.mkstemp(suffix=path.name.removeprefix("map"), prefix="afire-map-")
                os.close(handle)
                shutil.move(path, file)
        end = time.perf_counter()
        latencies = {**reply.latencies, "write": end - written, "total": end - start}
        reply.params["latencies"] = {stage: round(seconds, 4) for stage, seconds in latencies.items()}
        logger.info("%s: %s", self.task, ", ".join(f"{k} {1000 * v:.0f} ms" for k, v in latencies.items()))
        return file, reply.params


class RadiographTrain(TrainTask):
    """Fine-tuning from saved labels.

    Args:
        what: task and labels to train.
        workshop: place of the training.
    """

    def __init__(self, what: Trainable, workshop: Workshop) -> None:
        super().__init__(f"Fine-tune the {KIND[what.task]} ({', '.join(what.names)}) on saved labels")
        self.what, self.workshop = what, workshop

    def config(self) -> dict[str, Any]:
        """Return the options that a client may set."""
        return dict(DEFAULTS)

    def stats(self) -> dict[str, Any]:
        """See `Workshop.stats`."""
        return self.workshop.stats(self.what.task)

    def check(self, datastore: Any) -> None:
        """Refuse in words, before a process is started, a training that cannot work."""
        self.workshop.labels(self.what, datastore)

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """See `Workshop.train`."""
        return self.workshop.train(self.what, datastore, request)


class RadiographStrategy(Strategy):
    """One of `sampling_strategies.STRATEGIES`.

    Args:
        name: name of the strategy.
        chooser: shared by all strategies, together with the values that it has computed.
    """

    def __init__(self, name: str, chooser: Chooser) -> None:
        super().__init__(STRATEGIES[name])
        self.name, self.chooser = name, chooser

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        """Choose an image without label; None if there is none."""
        return self.chooser.choose(self.name, datastore)


class RadiographScoring(ScoringMethod):
    """How well the model in use agrees with saved labels.

    Args:
        task: ``segmentation`` (Dice) or ``classification`` (AUROC).
        shelf: the models.
    """

    def __init__(self, task: str, shelf: ModelShelf) -> None:
        words = {"segmentation": "Dice of the segmenter with saved masks", "classification": "AUROC on saved findings"}
        super().__init__(words[task])
        self.task, self.shelf = task, shelf

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        """Score all labelled images, also those that were trained on."""
        result = score_labels(self.shelf, datastore, self.task)
        logger.info("scored %s: %s", self.task, {k: v for k, v in result.items() if isinstance(v, float | int)})
        return result
