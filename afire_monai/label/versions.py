"""The models that were trained here, and the way back to an earlier one."""

from __future__ import annotations

import datetime
import logging
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.files import read_object
from afire_monai.label.inference_service import KIND
from afire_monai.label.messages import NotFoundError, without_names
from afire_monai.label.training import RESULT, Workshop
from afire_monai.models.folder import model_files
from afire_monai.predictions.scoring import Scorer

logger = logging.getLogger(__name__)

GIVEN = ""
"""Stands for the run of a model that came with the model folders that the server was started with."""
_SHOWN = ("best_metric", "validation_before", "model", "training", "validation", "warnings")


def versions(workshop: Workshop, task: str) -> list[dict[str, Any]]:
    """Return the models of a task that can be used, newest first; last the one that the server was started with.

    Args:
        workshop: where models are trained.
        task: ``segmentation`` or ``classification``.

    Returns:
        For each ``run`` (its number, or "" for the model that was given), ``made`` (ISO date and time, UTC), ``in_use``
        and, as far as they are known, ``best_metric``, ``validation_before``, ``model`` (replaced, kept, first),
        ``training`` and ``validation`` (numbers of images) and ``warnings``, as in `Workshop.stats`.
    """
    kind, current = KIND[task], _run_in_use(workshop, task)
    found = []
    for folder in sorted((workshop.folder / "runs").glob("[0-9]*"), reverse=True):
        weights = folder / "models" / f"{kind}.safetensors"
        if weights.is_file() and weights.with_suffix(".json").is_file():
            result = read_object(folder / RESULT)
            made = datetime.datetime.fromtimestamp(weights.stat().st_mtime, datetime.UTC)
            entry = {"run": folder.name, "made": made.isoformat(timespec="seconds"), "in_use": current == folder.name}
            found.append(entry | {key: result[key] for key in _SHOWN if key in result})
    if kind in model_files(workshop.shelf.given):
        found.append({"run": GIVEN, "made": "", "in_use": current == GIVEN})
    return found


def use_version(workshop: Workshop, task: str, run: str) -> None:
    """Put the model of an earlier run, or the one that the server was started with, in use.

    Args:
        workshop: where models are trained.
        task: ``segmentation`` or ``classification``.
        run: as in `versions`.

    Raises:
        NotFoundError: if there is no such model.
        AfireError: if a training is under way, the model cannot be read, or the disk cannot be written.
    """
    if task not in KIND:
        raise NotFoundError(f"no model of this task is trained here; there are {', '.join(KIND)}")
    if run not in [entry["run"] for entry in versions(workshop, task)]:
        raise NotFoundError("there is no model of this run")
    kind, trained = KIND[task], workshop.folder / "runs" / run / "models"
    with workshop.alone():
        try:
            Scorer([trained] if run != GIVEN else workshop.shelf.given, workshop.shelf.device, "none", kinds=(kind,))
        except AfireError as error:
            words = without_names(str(error))
            raise AfireError(f"this model cannot be read, so the present one stays in use: {words}") from error
        if run != GIVEN:
            workshop.publish(kind, trained / f"{kind}.safetensors")
        else:
            weights = workshop.shelf.trained / f"{kind}.safetensors"
            try:  # weights without a description are ignored, so the description goes first
                weights.with_suffix(".json").unlink(missing_ok=True)
                weights.unlink(missing_ok=True)
            except OSError as error:
                raise AfireError(f"the model in use cannot be put away ({error.strerror})") from error
    logger.info("%s: the model of %s is in use", task, f"run {run}" if run else "the start")


def _run_in_use(workshop: Workshop, task: str) -> str | None:
    """Return the run of the model in use; None where it was trained here, but does not say when."""
    path = workshop.shelf.file(KIND[task])
    if path is None or path.parent != workshop.shelf.trained:
        return GIVEN
    run = read_object(path.with_suffix(".json")).get("run")
    return None if run is None else str(run)
