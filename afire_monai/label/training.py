"""Training from saved labels: the bundle's own fine-tuning, and the new model in use if it is better."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.core.files import lock_file, read_object, write_text
from afire_monai.hospital.identity import IdentityKey
from afire_monai.label import comparison, held_back
from afire_monai.label.images import file_of, open_image, patient_of
from afire_monai.label.inference_service import KIND, ModelShelf, not_calibrated, numbered
from afire_monai.label.label_files import SavedLabel, Store, read_findings, read_mask, saved_labels
from afire_monai.label.messages import problem, without_names


@dataclass(frozen=True)
class Trainable:
    """A task that labels can train.

    Attributes:
        task: ``segmentation`` or ``classification``.
        names: classes or labels, in order.
    """

    task: str
    names: tuple[str, ...]

    @property
    def classes(self) -> dict[str, int]:
        """Value of each class in label maps."""
        return numbered(self.names)


logger = logging.getLogger(__name__)

MIN_LABELS = 4
RESULT = "result.json"
"""File in the folder of a run: the result of the training."""
DEFAULTS: dict[str, Any] = {
    "max_epochs": 30,
    "batch_size": 8,
    "lr": 0.0,  # 0: the bundle's own
    "start": ["model", "encoder"],  # continue from the model in use, or put a fresh head on the pre-trained encoder
}
"""Options that a client may set, as MONAI Label shows them (the first of several is the default)."""


class Workshop:
    """Where training takes place.

    Args:
        folder: folder for ``runs/NNNN`` (settings, log, model of each training), ``key`` (of patient hashes) and the
            results of trainings. No picture and no name stays in it.
        shelf: the models; new models go to its ``trained`` folder.
    """

    def __init__(self, folder: str | Path, shelf: ModelShelf) -> None:
        self.folder = Path(folder)
        self.shelf = shelf

    def labels(self, what: Trainable, store: Store) -> list[SavedLabel]:
        """Return the labels to train on.

        Raises:
            AfireError: if there are too few.
        """
        found = saved_labels(store, findings=what.task == "classification")
        if len(found) < MIN_LABELS:
            kind = "findings (.json)" if what.task == "classification" else "masks"
            raise AfireError(
                f"{len(found)} saved labels with {kind}: at least {MIN_LABELS} are needed to train {what.task}, "
                "of which a part is held back for validation. Label more images, then train again"
            )
        return found

    def train(self, what: Trainable, store: Store, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train on the labelled images, and use the new model if it is shown to be better on the patients held back.

        Args:
            what: task and labels to train.
            store: store of images and labels.
            request: ``max_epochs``, ``batch_size``, ``lr`` (0: the bundle's own), ``start`` (``model`` or ``encoder``).

        Returns:
            The result; see :meth:`stats`.

        Raises:
            AfireError: for too few labels, a training that is under way, wrong settings, no room, or no encoder.
        """
        settings = _settings(request)
        labels = self.labels(what, store)
        started = time.monotonic()
        with self.alone():
            run = self._new_run()
            self._tell(what.task, {"epoch": 0, "total_epochs": settings["epochs"], "run": run.name})
            try:
                datalist, counts = self._write_data(run, what, labels)
                result = self._run(run, what, datalist, settings, str(_first(request.get("start"), "model")))
            except BaseException as error:
                _clear(run)
                with contextlib.suppress(OSError):  # a full disk; the raised error says so
                    failed = without_names(problem(error)[1])
                    self._tell(what.task, {"run": run.name, "failed": failed, "total_time": _clock(started)})
                raise
            _clear(run)
            result |= {**counts, "run": run.name, "total_epochs": settings["epochs"], "total_time": _clock(started)}
            write_text(run / RESULT, json.dumps(result) + "\n")
            self._tell(what.task, result)
        score = f"{result['validation_before']} before, {result['best_metric']:.4f} now"
        logger.info("trained %s: validation score %s; %s", what.task, score, result["model"])
        return result

    def stats(self, task: str) -> dict[str, Any]:
        """Return the state of the last or present training of a task.

        Returns:
            ``epoch`` of ``total_epochs``, ``best_metric`` (validation score), ``total_time`` once it ended,
            ``validation_before`` (of the model that was in use, on the same images; None without), ``model``
            (``replaced``, ``kept``, or ``first`` if there was none), ``judged`` (see `comparison.compare`),
            ``warnings``, ``training`` and ``validation`` (numbers of images), ``model_version``; or ``failed``: why.
        """
        from afire_monai.training.handlers import read_csv_log

        if not (result := read_object(self.folder / f"{task}.json")):
            return {}
        with contextlib.suppress(OSError, ValueError):
            rows = read_csv_log(self.folder / "runs" / str(result.get("run")) / "log.csv")
            scores = [-row["validation_error"] for row in rows if "validation_error" in row]
            result = {**({"best_metric": max(scores)} if scores else {}), **result, "epoch": len(rows)}
        return result

    def key(self) -> IdentityKey:
        """Return the key of patient hashes, made once."""
        path = self.folder / "key"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return IdentityKey.load(path) if path.exists() else IdentityKey.make(path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other trainings, and changes of the model in use, away for as long as the context lasts.

        Raises:
            AfireError: if a training is under way.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "training.lock").open("w") as lock:
            try:
                lock_file(lock, wait=False)
            except BlockingIOError:
                raise AfireError("a training is under way; wait for its end or stop it") from None
            yield

    def _new_run(self) -> Path:
        runs = self.folder / "runs"
        runs.mkdir(exist_ok=True)
        for stopped in runs.iterdir():  # a killed training could not clean up
            _clear(stopped)
        number = max((int(p.name) for p in runs.iterdir() if p.name.isdigit()), default=0) + 1
        run = runs / f"{number:04d}"
        run.mkdir()
        return run

    def _tell(self, task: str, content: dict[str, Any]) -> None:
        write_text(self.folder / f"{task}.json", json.dumps(content) + "\n")

    def _write_data(self, run: Path, what: Trainable, labels: Sequence[SavedLabel]) -> tuple[Path, dict[str, int]]:
        """Write a data list whose files are numbers: messages of training then name nobody."""
        from afire_monai.datalists.file import save_datalist

        data, key, reader = run / "data", self.key(), self.shelf.reader(KIND[what.task], "encoder")
        data.mkdir(mode=0o700)
        items: list[dict[str, Any]] = []
        facts: list[list[str]] = []
        for number, saved in enumerate(labels):
            image = file_of(saved.image)
            link = data / f"{number:05d}{image.suffix}"
            link.symlink_to(image)
            item: dict[str, Any] = {"image": str(link), "group": patient_of(image, saved.image_id, key)}
            if what.task == "segmentation":
                mask = read_mask(open_image(image, reader).grid, saved.label, what.classes)
                Image.fromarray(mask).save(data / f"{number:05d}.mask.png")
                item["mask"] = str(data / f"{number:05d}.mask.png")
                facts.append([f"1 {name}" for name, value in what.classes.items() if (mask == value).any()])
            else:
                findings = read_findings(saved.label, what.names)
                item["label"] = [findings.get(name) for name in what.names]
                facts.append([f"{value} {name}" for name, value in findings.items() if value in (0, 1)])
            items.append(item)
        if what.task == "segmentation":
            drawn = {fact for image in facts for fact in image}
            if absent := [name for name in what.names if f"1 {name}" not in drawn]:
                raise AfireError(f"no saved mask has a pixel of {', '.join(absent)}; draw it in some, then train again")
        training, validation = self._split(what, items, facts)
        content: dict[str, Any] = {"name": "saved labels", "training": training, "validation": validation}
        content["meta"] = {"reader": reader} if reader else {}
        if what.task == "classification":
            content["labels"] = list(what.names)
        return save_datalist(content, data / "datalist.json"), {
            "training": len(training),
            "validation": len(validation),
        }

    def _split(
        self, what: Trainable, items: list[dict[str, Any]], facts: list[list[str]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Divide by patient as in earlier trainings; roles are kept by hash."""
        path = self.folder / f"{what.task}_patients.json"
        training, validation, roles = held_back.split(items, facts, read_object(path))
        write_text(path, json.dumps(roles) + "\n")
        return training, validation

    def _run(self, run: Path, what: Trainable, datalist: Path, settings: dict[str, Any], start: str) -> dict[str, Any]:
        from afire_monai.cli.bundle import run_configs

        kind = KIND[what.task]
        current = self.shelf.file(kind)
        configs = [f"finetune_{what.task}.yaml"]
        given = {**settings, "datalist": str(datalist), "output_dir": str(run)}
        given |= {"classes": {n: [v] for n, v in what.classes.items()}} if what.task == "segmentation" else {}
        if current is not None and start == "model":
            configs.append(f"continue_{what.task}.yaml")
            given["start"] = str(current)
        else:
            given["init"] = self._encoder_folder()
        given |= {"calibration": "platt"} if what.task == "classification" else {}  # each label by itself
        ask = partial(comparison.outcome, what.task, what.classes, datalist=datalist)
        before = ask(model=current) if current is not None else None
        run_configs(given, tuple(configs))
        trained = run / "models" / f"{kind}.safetensors"
        after = ask(model=trained)
        judged = {} if before is None else comparison.compare(what.task, what.names, before, after)
        better = before is None or comparison.is_better(judged)
        warnings = comparison.reasons(judged, what.task) if before is not None else [NOT_COMPARED]
        if what.task == "classification":
            warnings += keep_unlearned(trained, current, after)
        self._describe(trained, current if start == "model" else None, warnings, run.name)
        if better:
            self.publish(kind, trained)
        version = self.shelf.get(what.task).version
        scores = {"best_metric": after.score, "validation_before": before.score if before else None}
        found = {"judged": judged, "warnings": warnings}
        model = "first" if before is None else "replaced" if better else "kept"
        return {**scores, "model": model, "model_version": version, **found}

    def _encoder_folder(self) -> str:
        encoder = self.shelf.file("encoder")
        if encoder is None:
            raise AfireError("no encoder.safetensors in the model folders: training cannot start from an encoder")
        return str(encoder.parent)

    def _describe(self, trained: Path, origin: Path | None, warnings: Sequence[str], run: str) -> None:
        """Store a new model's facts beside it, whether it is put in use now, later or never."""
        from afire_monai.models.folder import load_module_files, save_module_files

        tensors, description = load_module_files(trained)
        description |= {"warnings": list(warnings), "run": run}
        if origin is not None:  # training calls its start random; the true origin is that of the earlier model
            description["encoder"] = load_module_files(origin)[1].get("encoder", "not known")
        save_module_files(tensors, description, trained)

    def publish(self, kind: str, trained: Path) -> None:
        """Put a model in use, whole or not at all.

        Args:
            kind: ``segmenter`` or ``classifier``.
            trained: its weights file in the folder of a run.
        """
        from afire_monai.models.folder import load_module_files, save_module_files

        save_module_files(*load_module_files(trained), self.shelf.trained / f"{kind}.safetensors")


NOT_COMPARED = "there was no model before, so this one was compared with none; how good it is is not known"


def keep_unlearned(trained: Path, current: Path | None, after: comparison.Outcome) -> list[str]:
    """Keep the earlier calibration and threshold of labels with too few held-back patients.

    Args:
        trained: the new classifier's file, which is changed.
        current: file of the classifier in use; without one, these labels get no calibration and the threshold 0.5.
        after: results of the new classifier for the images held back.

    Returns:
        A sentence about labels that are not calibrated, if there are any; their names are kept with the model.
    """
    from afire_monai.models.folder import load_module_files, save_module_files

    tensors, description = load_module_files(trained)
    old, known = load_module_files(current) if current is not None else ({}, {})
    names, missing = list(description["classifier"]["labels"]), []
    thresholds = dict(description.get("thresholds") or {})
    for place, name in enumerate(names):
        if comparison.enough("classification", after, place):
            continue
        for key, empty in (("calibration_scale", 1.0), ("calibration_bias", 0.0)):
            tensors[key] = tensors[key].clone()
            tensors[key][place] = old[key][place] if key in old else empty
        thresholds[name] = float((known.get("thresholds") or {}).get(name, 0.5))
        if current is None or name in not_calibrated(known):
            missing.append(name)
    description |= {"thresholds": thresholds, "not_calibrated": missing}
    save_module_files(tensors, description, trained)
    return [f"not calibrated: {', '.join(missing)}"] if missing else []


def _clear(run: Path) -> None:
    """Delete files of a run that show or name images, or that only a running training needs."""
    for name in ("data", "checkpoints", "predictions"):
        shutil.rmtree(run / name, ignore_errors=True)


def _settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings that a client asks for."""
    settings: dict[str, Any] = {}
    for key, name, kind, least, most in (
        ("max_epochs", "epochs", int, 1, 10_000),
        ("batch_size", "batch_size", int, 1, 1024),
        ("lr", "lr", float, 0.0, 10.0),
    ):
        value = _first(request.get(key), DEFAULTS[key])
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not least <= number <= most or kind(number) != number:
            what = "whole number" if kind is int else "number"
            raise AfireError(f"{key}: a {what} from {least} to {most} is expected, got {str(value)[:40]!r}")
        settings[name] = kind(number)
    if not settings["lr"]:
        del settings["lr"]
    if _first(request.get("start"), "model") not in DEFAULTS["start"]:
        raise AfireError(f"start: one of {', '.join(DEFAULTS['start'])} is expected")
    return settings


def _first(value: Any, default: Any) -> Any:
    """Return a value; of several, as a client sends back what it was offered, the first."""
    if value is None or value == "":
        return default
    return value[0] if isinstance(value, list | tuple) and value else value


def _clock(started: float) -> str:
    seconds = int(time.monotonic() - started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
