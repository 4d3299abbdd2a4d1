"""Which checkpoints a training writes and keeps: the last few, the best, and one when a scheduler stops it."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

from ignite.engine import Events

from afire_monai.core.distributed import rank, wait_for_all
from afire_monai.core.errors import AfireError
from afire_monai.training.checkpoint import list_checkpoints, save_checkpoint
from afire_monai.training.stopping import StopRequest, shield_workers
from afire_monai.training.trainer import PretrainTrainer


class CheckpointKeeper:
    """Write checkpoints during training: the last few, the best, and one when a scheduler asks the run to stop.

    After SIGTERM or SIGUSR1 in any process, all processes write a checkpoint at the same update, which is the next one,
    and end with :data:`~afire_monai.training.stopping.EXIT_STATUS`. At the end of the last epoch, it ends as usual.

    Args:
        folder: folder to write into; created if absent.
        every_epochs: epochs between checkpoints; one is also written at the end of training, early or not.
        every_iterations: also write after this many iterations, for long epochs; 0 switches it off.
        keep: number of the latest checkpoints to keep.
        best_key: name in the trainer's metrics whose lowest value marks the best checkpoint; None keeps no best. A name
            that is absent when others are measured ends the run after its first checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        every_epochs: int = 1,
        every_iterations: int = 0,
        keep: int = 2,
        best_key: str | None = "validation_restoration",
    ) -> None:
        self.folder = Path(folder)
        self.every_epochs = every_epochs
        self.every_iterations = every_iterations
        self.keep = max(1, keep)
        self.best_key = best_key
        self._due = False

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer, and remove half-written files of a killed run."""
        if rank() == 0:
            for part in self.folder.glob(".*.pt.*.part"):
                part.unlink(missing_ok=True)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        engine.stop_request = StopRequest()
        shield_workers(engine.data_loader)

    def _after_iteration(self, engine: PretrainTrainer) -> None:
        if self.every_iterations:
            self._due = self._due or engine.state.iteration % self.every_iterations == 0
        # gradients gathered half-way to an update are not saved: wait for the update; epoch ends have their own save
        if engine.at_update and engine.state.iteration % engine.state.epoch_length:
            stop = engine.asked_to_stop()
            if self._due or stop:
                self.save(engine)
            if stop:
                engine.interrupt()

    def _after_epoch(self, engine: PretrainTrainer) -> None:
        last = engine.state.epoch == engine.state.max_epochs
        stop = engine.asked_to_stop() and not last and not engine.stopped_early
        if engine.state.epoch % self.every_epochs == 0 or last or stop or engine.stopped_early:
            self.save(engine, may_be_best=True)
        measured = [name for name in engine.state.metrics if name.startswith("validation_")]
        if self.best_key and measured and self.best_key not in engine.state.metrics:
            near = difflib.get_close_matches(self.best_key, engine.state.metrics, 1, 0.0)
            raise AfireError(
                f"best_figure {self.best_key!r} is not measured; there are {', '.join(measured)} and all that log.csv "
                f"holds. Nothing is lost: continue with --resume true --best_figure {near[0]}"
            )
        if stop:
            engine.interrupt()

    def save(self, engine: PretrainTrainer, may_be_best: bool = False) -> None:
        """Write a checkpoint now; every process must call this, process 0 writes and the others wait."""
        engine.check_finite()
        self._due = False
        value = engine.state.metrics.get(self.best_key) if self.best_key and may_be_best else None
        best = False
        if value is not None and value < engine.best_value:
            best, engine.best_value = True, float(value)
        state = engine.checkpoint_state()
        if rank() == 0:
            self._write(state, engine.state.iteration, best)
        wait_for_all()

    def rehearse(self, engine: PretrainTrainer, folder: Path) -> float:
        """Write a checkpoint, as the newest and the best, into another folder; return how often an epoch that is."""
        elsewhere = copy.copy(self)
        elsewhere.folder = folder / self.folder.name
        state = engine.checkpoint_state()
        if rank() == 0:
            elsewhere._write(state, engine.state.iteration, best=True)
        wait_for_all()
        within = engine.state.epoch_length // self.every_iterations if self.every_iterations else 0
        return 1 / self.every_epochs + within

    def _write(self, state: dict[str, Any], iteration: int, best: bool) -> None:
        newest = self.folder / f"checkpoint_{iteration:08d}.pt"
        if best:  # first: a run killed in between continues from an earlier state and finds the same best again
            save_checkpoint(state, self.folder / "best.pt")
        save_checkpoint(state, newest)
        # damaged files with higher numbers may be left from before: the new file must not be deleted for their sake
        others = [path for path in list_checkpoints(self.folder) if path != newest]
        for old in others[: len(others) - (self.keep - 1)] if len(others) >= self.keep else []:
            old.unlink(missing_ok=True)
