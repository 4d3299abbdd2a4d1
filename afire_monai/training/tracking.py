"""Log a run to MLflow; a failure of MLflow never ends the training."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml
from monai.handlers import MLFlowHandler

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.training.run_stores import make_store

if TYPE_CHECKING:
    from mlflow.entities import Metric  # a training with use_mlflow false also runs without MLflow installed

    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)

#: figures in one request; MLflow's limit
CHUNK = 1000
#: settings that hold folders of the machine, or do not describe the training
NOT_LOGGED = {"bundle_root", "dataset_dir", "output_dir", "cache_dir", "resume", "device", "run_name", "use_mlflow"}


class RunTracker(MLFlowHandler):
    """MONAI's MLflow handler, except that a store that fails during the run never ends it.

    Figures and files that could not be logged are kept, and logged when the store answers again. A warning at the end
    counts what is still missing; the figures of all epochs are in the run's log.csv in any case.

    Args:
        settings: ``settings.yaml`` of the run; its values are logged as parameters, paths by their last part.
        tags: plain values to find runs by.
        options: options of :class:`monai.handlers.MLFlowHandler`.
    """

    cur_run: Any

    def __init__(self, settings: Path | None = None, tags: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.settings = settings
        self.tags = dict(tags or {})
        self.run_id = ""
        self.retry_seconds = 60.0  # least time between two attempts while the store fails
        self.figures: list[Metric] = []
        self.files: list[tuple[Path, str | None]] = []
        self.retry_at = -math.inf
        self.failing = False

    def start(self, engine: Any) -> None:
        """Begin the MLflow run, or take it up, with settings and tags by which runs can be compared."""
        super().start(engine)
        self.run_id = self.cur_run.info.run_id
        known = self.client.get_run(self.run_id).data.params  # MLflow refuses to change a value
        for name, value in logged_settings(self.settings).items():
            if name not in known:
                self._attempt(partial(self.client.log_param, self.run_id, name, value))
        tags = {"afire_monai": __version__, "method": type(engine.method).__name__, **self.tags}
        for name, value in tags.items():
            self._attempt(partial(self.client.set_tag, self.run_id, name, value))

    def add_results(self, figures: Mapping[str, float], files: Sequence[Path]) -> None:
        """Log results that come only after the training, when the MLflow run has ended."""
        if not self.run_id or self.failing:
            return
        for name, value in figures.items():
            self._attempt(partial(self.client.log_metric, self.run_id, name, value))
        for file in files:
            if file.is_file():
                folder = "models" if file.parent.name == "models" else None
                self._attempt(partial(self.client.log_artifact, self.run_id, str(file), folder))

    def keep(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artefact of the run, in a folder of its artefacts."""
        self.files.append((path, folder))
        self._send()

    def complete(self) -> None:
        """Log the artefacts that were named at the start, and entries that could not be logged before.

        If nothing was left to train, this ends the run of a process that was killed after its last epoch.
        """
        if self.cur_run is None:
            self._attempt(self._take_up)
        self.files += [(Path(name), None) for name in self._parse_artifacts()]
        self._send(last=True)

    def close(self) -> None:
        """End the MLflow run, or warn of missing entries."""
        if self.cur_run is None:
            return
        self._send(last=True)
        ended = not self.failing and self._attempt(super().close)
        if not ended:
            logger.warning(
                "the MLflow run lacks %d figures and %d files and is not marked as ended, because its store did not "
                "answer; the figures of every epoch are in log.csv of the run's folder",
                len(self.figures),
                len(self.files),
            )
            self.cur_run = None

    def _take_up(self) -> None:
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        runs = self.client.search_runs([experiment.experiment_id]) if experiment else []
        own = [run for run in runs if run.info.run_name == self.run_name]
        self.cur_run = next((run for run in own if run.info.status != self.run_finish_status), None)
        # results of an ended run may still be missing; of several, nobody knows which was this one
        found = self.cur_run or (own[0] if len(own) == 1 else None)
        self.run_id = found.info.run_id if found is not None else ""

    def _log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.figures += [Metric(name, float(value), now, step or 0) for name, value in metrics.items()]
        self._send()

    def _send(self, last: bool = False) -> None:
        """Log waiting entries; while the store fails, only at intervals and at the end."""
        if self.cur_run is None or (self.failing and not last and time.monotonic() < self.retry_at):
            return
        run, failed_before = self.cur_run.info.run_id, self.failing
        while self.figures:
            chunk = self.figures[:CHUNK]
            if not self._attempt(partial(self.client.log_batch, run, metrics=chunk)):
                return
            del self.figures[: len(chunk)]
        while self.files:
            path, folder = self.files[0]
            if path.exists() and not self._attempt(partial(self.client.log_artifact, run, str(path), folder)):
                return
            del self.files[0]
        if failed_before and not self.failing:
            logger.info("MLflow answers again; what it missed has been logged")

    def _attempt(self, call: Callable[[], Any]) -> bool:
        """Return whether a call to the store succeeded; the first failure in a row is logged."""
        try:
            call()
        except Exception as error:  # whatever a store, its driver or the network raises
            if not self.failing:
                logger.warning(
                    "MLflow cannot log (%s); the training continues, and logging is tried again every %g seconds",
                    type(error).__name__,
                    self.retry_seconds,
                )
            self.failing, self.retry_at = True, time.monotonic() + self.retry_seconds
            return False
        self.failing = False
        return True


def logged_settings(path: Path | None) -> dict[str, str]:
    """Return the settings of a run that tell it from others, as short texts; of a path its last part alone."""
    if path is None or not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    plain = {k: v for k, v in content.items() if isinstance(v, str | int | float) and k not in NOT_LOGGED}
    texts = {k: str(v) for k, v in plain.items() if not str(v).startswith(("$", "@"))}
    return {name: (Path(text).name if "/" in text else text)[:250] for name, text in texts.items() if text}


def log_results(trainer: PretrainTrainer, figures: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add final figures and files to the run in MLflow, if the trainer has one.

    Args:
        trainer: the trainer, after the training.
        figures: values by name.
        files: existing ones are kept as artefacts; those in ``models/`` stay in such a folder.
    """
    for handler in trainer.attached:
        if isinstance(handler, RunTracker):
            handler.add_results(figures, files)


def mlflow_handler(
    output_dir: str | Path,
    run_name: str,
    experiment: str = "afire-pretraining",
    every: int = 10,
    seconds: float = 5.0,
    tags: Mapping[str, str] | None = None,
    artifacts: Sequence[str | Path] = (),
) -> RunTracker:
    """Return a handler that logs losses each few iterations and all epoch figures to MLflow, under one run name.

    Args:
        output_dir: the run's folder; the store is an SQLite file in it, unless ``MLFLOW_TRACKING_URI`` names another.
        run_name: name of this run; a killed run is continued under the same name, an ended one is not.
        experiment: MLflow experiment.
        every: iterations between logged losses.
        seconds: least time between them. Each costs a tenth of a second, in which a GPU would be idle.
        tags: plain values to find runs by; the package's version and the method are among them in any case.
        artifacts: files or folders to keep with the run at its end.

    Raises:
        AfireError: for a folder that MLflow would take for another one, or if a server is asked for and does not
            answer within seconds.
    """
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    _refuse_silent_server(tracking_uri)
    # MLflow's own would stop the training for up to 2 minutes, 8 times, whenever a server does not answer
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # it shows the traceback of each failure, which is reported in one sentence here
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    folder = Path(output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "mlflow.db"
    if not tracking_uri:
        if unquote(str(base)) != str(base) or "?" in str(base):
            raise AfireError(
                f"output_dir {folder}: MLflow misreads ? and %20 in the path of its store; give a "
                "folder without them, or --use_mlflow False"
            )
        if base.is_file():
            _follow_artifacts(base)
        else:
            make_store(base)
    return RunTracker(
        tracking_uri=tracking_uri or f"sqlite:///{base}",
        iteration_log=_due(every, seconds),
        output_transform=lambda output: {f"step/{name}": value.item() for name, value in output.items()},
        experiment_name=experiment,
        run_name=str(run_name),
        settings=folder / "settings.yaml",
        tags=tags,
        artifacts=[str(a) for a in artifacts],
        close_on_complete=True,
    )


def _due(every: int, seconds: float) -> Callable[[Any, int], bool]:
    logged = -math.inf

    def due(_: Any, iteration: int) -> bool:
        nonlocal logged
        if iteration % every or time.monotonic() - logged < seconds:
            return False
        logged = time.monotonic()
        return True

    return due


def _follow_artifacts(base: Path) -> None:
    """Let a store whose folder was moved or copied keep its files inside: it remembers them by their whole path."""
    here = (base.parent / "mlruns").as_uri()
    with contextlib.closing(sqlite3.connect(base)) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                continue
            for (place,) in store.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                head, found, rest = str(place).rpartition("/mlruns")
                if found and head + found != here:
                    change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                    store.execute(change, (here + rest, place))


def _refuse_silent_server(uri: str, seconds: float = 5.0) -> None:
    """Refuse a tracking server that says nothing; MLflow itself would try for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests  # comes with MLflow, which is not everywhere

    try:
        requests.get(uri.rstrip("/") + "/health", timeout=seconds, stream=True).close()  # any answer will do
    except requests.RequestException as error:
        raise AfireError(
            f"the MLflow server {urlsplit(uri).hostname} does not answer within {seconds:g} seconds "
            f"({type(error).__name__}). Start it, correct or unset MLFLOW_TRACKING_URI, or train without MLflow: "
            "--use_mlflow False"
        ) from None
