"""Checkpoints: everything that an exact resume needs, written completely, also when a scheduler stops the run."""

from __future__ import annotations

import copy
import difflib
import logging
import os
import re
import signal
import threading
import zipfile
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from afire_monai.core.distributed import rank, wait_for_all
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.files import whole_file

if TYPE_CHECKING:
    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)
PARTS = ("method", "optimizer", "progress", "random")
_NAME = re.compile(r"checkpoint_(\d+)\.pt")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader sees the old file or the whole new one, never half of it.

    Raises CheckpointError if there is no room, or no right to write; older files are left as they are.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, shared=True, sync=True) as part, part.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter where a disk is full
        if isinstance(error.__context__, KeyboardInterrupt):  # or where it could not end its archive
            raise error.__context__ from None
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).split("\n")[0][:150]
        raise CheckpointError(
            f"{path.name} cannot be written ({reason}); earlier checkpoints are whole. Make room in {path.parent}, "
            "then continue with --resume true"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``, to the CPU, once its checksums have been found right.

    The file is a ZIP archive with a CRC-32 of each tensor, which PyTorch writes but does not look at. Raises
    CheckpointError if the file cannot be read, is damaged, or is none of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: --resume true finds the newest of output_dir")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside torch's reader
        reason = str(error).split(". ")[0][:150]  # torch goes on about file systems
        raise CheckpointError(f"{path.name} is not a checkpoint that can be read ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in PARTS):
        raise CheckpointError(f"{path.name} is not a checkpoint of this project: it lacks one of {', '.join(PARTS)}")
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that can be read, with its content; a damaged one is passed over with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
    return None


class CheckpointKeeper:
    """Write checkpoints during training: the last few, the best, and one when a scheduler asks the run to stop.

    After SIGTERM or SIGUSR1, in whichever process, all processes write a checkpoint at the same update, the next one,
    and end with :data:`~afire_monai.training.checkpoint.EXIT_STATUS`. In the last epoch's end training ends as usual.

    Args:
        folder: where to; made if absent.
        every_epochs: write at the end of each so many epochs and at the end of training.
        every_iterations: also write each so many iterations, for long epochs; 0 switches it off.
        keep: how many of the last ones to keep.
        best_key: name in the trainer's metrics whose lowest value marks the best checkpoint; None keeps no best. One
            that is not there when others are measured ends the run after its first checkpoint.
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
        """Register with the trainer, and clear away what a killed run left half written."""
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
                self._due = False
            if stop:
                engine.interrupt()

    def _after_epoch(self, engine: PretrainTrainer) -> None:
        last = engine.state.epoch == engine.state.max_epochs
        stop = engine.asked_to_stop() and not last and not engine.stopped_early
        if engine.state.epoch % self.every_epochs == 0 or last or stop:
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
        if best:  # first: a run that is killed in between goes on from before it and comes to the same best again
            save_checkpoint(state, self.folder / "best.pt")
        save_checkpoint(state, newest)
        # damaged files with higher numbers may be left from before: what was just written must not make room for them
        others = [path for path in list_checkpoints(self.folder) if path != newest]
        for old in others[: len(others) - (self.keep - 1)] if len(others) >= self.keep else []:
            old.unlink(missing_ok=True)


#: EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command with --resume true goes on
EXIT_STATUS = 75
SIGNALS = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))  # Windows has no SIGUSR1


class StopRequest:
    """Whether a scheduler asked this process to stop; listens as a context, in a main thread only.

    Slurm sends a signal of choice before a time limit or a pre-emption, Kubernetes SIGTERM before it kills. Signals
    after the first change nothing: launchers and schedulers send several.
    """

    def __init__(self) -> None:
        #: name of the signal, empty as long as there was none
        self.signal = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


def shield_workers(loader: DataLoader) -> None:
    """Let a loader's processes live on when a launcher sends their whole process group a signal to stop.

    Without them the training process could not reach its next update.
    """
    if loader.num_workers and loader.worker_init_fn is None and hasattr(signal, "sigwaitinfo"):
        loader.worker_init_fn = _obey_parent_only


def _obey_parent_only(_: int) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # blocked here, so that the thread gets it, and with it the sender; the parent sends it when all is over
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
