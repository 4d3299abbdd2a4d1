"""Stop and resume: the state that a trainer saves and restores."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import operator
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch.utils.data import DataLoader

from afire_monai.core.distributed import any_process, from_first, leave_group, rank, world_size
from afire_monai.core.errors import CheckpointError
from afire_monai.datalists.paths import names_hash
from afire_monai.loading.sampler import EpochSampler
from afire_monai.methods.base import Method
from afire_monai.training import run_folder
from afire_monai.training.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, set_aside_later
from afire_monai.training.stopping import EXIT_STATUS, StopRequest

logger = logging.getLogger(__name__)


class Resumable:
    """The part of :class:`PretrainTrainer` that saves and takes up a run; a mixin, of no use by itself."""

    method: Method
    optimizer: torch.optim.Optimizer
    data_loader: DataLoader
    state: Any
    seed: int
    best_value: float
    best_epoch: int
    stopped_early: bool
    stop_request: StopRequest | None
    interrupted: bool

    @property
    def sampler(self) -> EpochSampler:
        """The loader's sampler, which decides the order of images."""
        return cast(EpochSampler, self.data_loader.sampler)

    @property
    def batch_size(self) -> int:
        """Images that this process takes in one iteration."""
        return self.sampler.batch_size

    @cached_property
    def data_identity(self) -> str:
        """Hash of the names of the training images in their order, with masks and targets; empty if none are named."""
        items = getattr(self.data_loader.dataset, "items", None)
        return names_hash(items) if items else ""

    def run_identity(self) -> dict[str, int | str]:
        """Return the settings that must be the same in a resumed run, or it would be another training."""
        return {
            "epoch_length": self.state.epoch_length,
            "global_batch": self.batch_size * world_size(),
            "images": self.sampler.length,
            "seed": self.seed,
            "data": self.data_identity,
        }

    def checkpoint_state(self) -> dict[str, Any]:
        """Return everything that an exact resume needs; a collective call."""
        states = [torch.get_rng_state()]
        if world_size() > 1:
            own = states[0].to(self.state.device)
            gathered = [torch.empty_like(own) for _ in range(world_size())]
            dist.all_gather(gathered, own)
            states = [g.cpu() for g in gathered]
        numpy_state: Any = np.random.get_state()  # noqa: NPY002  # the state that MONAI's transforms fall back on
        python_state: Any = random.getstate()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {
                **self.run_identity(),
                "iteration": self.state.iteration,
                "max_epochs": self.state.max_epochs,
                "best_value": self.best_value,
                "best_epoch": self.best_epoch,
                "stopped_early": self.stopped_early,
            },
            "random": {
                "torch": states,
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "numpy": json.dumps([numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]]),
                "python": json.dumps(python_state),
            },
        }

    def restore(self, state: dict[str, Any], source: str) -> None:
        """Go on from a checkpoint.

        Raises CheckpointError if network, data or batch differ from those that the checkpoint was written with, or
        something in it is missing or of another kind.
        """
        try:
            self._restore(state, source)
        except CheckpointError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{source} lacks a part, or holds one of another kind ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:150]}); continue from another checkpoint: --resume PATH"
            ) from error

    def _restore(self, state: dict[str, Any], source: str) -> None:
        progress = state["progress"]
        for key, value in self.run_identity().items():
            before = progress.get(key, value)  # checkpoints of older versions do not describe their data
            if before != value:
                seen = f"{key} {before}, this run has {value}"
                if key == "data":
                    seen = "as many images of other names, masks or labels, or in another order"
                raise CheckpointError(
                    f"{source} was written with {seen}: continuing would not be the same training. Use the same data "
                    "list, batch and seed, or start again in another output_dir"
                )
        try:
            self.method.load_state_dict(state["method"])
            self._refuse_wrong_moments(state["optimizer"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]  # torch names every key
            raise CheckpointError(
                f"{source} does not fit this network; give the settings that it was trained with (encoder_preset, "
                f"image_size, shift, …; settings.yaml has them), or another --output_dir. Seen: {reason}"
            ) from error
        if operator.index(progress["max_epochs"]) != self.state.max_epochs:
            logger.warning(
                "planned epochs change from %d to %d: schedules span the new length",
                progress["max_epochs"],
                self.state.max_epochs,
            )
        self.state.iteration = operator.index(progress["iteration"])
        self.state.epoch = self.state.iteration // self.state.epoch_length
        self.best_value = float(progress["best_value"])
        self.best_epoch = operator.index(progress["best_epoch"])
        self.stopped_early = bool(operator.index(progress["stopped_early"]))
        self._restore_random(state["random"])

    def _refuse_wrong_moments(self, state: dict[str, Any]) -> None:
        """Refuse moments of other shapes or kinds than the optimizer keeps, which it would notice at its first step."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group, given in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            if given.keys() != group.keys():
                raise ValueError(f"a parameter group holds {sorted(given)}")
            for key, value in group.items():
                if key != "params" and _kind(given[key]) is not _kind(value):
                    raise ValueError(f"{key} of a parameter group is {str(given[key])[:50]}")
        kinds = {frozenset(moments) for moments in state["state"].values()}
        if len(kinds) > 1 or (kinds and set(state["state"]) - set(range(len(parameters)))):
            raise ValueError("moments of some parameters are missing")
        for number, moments in state["state"].items():
            for name, value in moments.items():
                expected = () if name == "step" else parameters[number].shape
                if not isinstance(value, torch.Tensor) or value.shape != expected:
                    raise ValueError(f"{name} of parameter {number} is not a tensor of shape {tuple(expected)}")

    def _restore_random(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["torch"][rank() % len(states["torch"])])
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
        name, keys, *rest = json.loads(states["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  # as above
        version, words, gauss = json.loads(states["python"])
        random.setstate((version, tuple(words), gauss))

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Let steps be made before training; at the end all is put back, as if nothing had been.

        Yields:
            A function that makes the next step with a batch of the loader, without handlers.
        """
        trainer: Any = self
        before, metrics = copy.deepcopy(self.checkpoint_state()), dict(self.state.metrics)
        trainer._wrap_student()
        self.state.epoch = 2  # not the first epoch, which has rules of its own

        def step(batch: dict[str, Any]) -> None:
            self.state.iteration += 1
            trainer._iteration(self, batch)

        try:
            yield step
        finally:
            trainer._unwrap_student()
            self.optimizer.zero_grad(set_to_none=True)
            self.restore(before, "the state before")
            self.state.metrics = metrics
            trainer._recent = []

    def asked_to_stop(self) -> bool:
        """Return whether a scheduler asked any process to stop; a collective call, with one answer for all."""
        return any_process(self.stop_request is not None and bool(self.stop_request.signal))

    def interrupt(self) -> None:
        """End the loop after this iteration; a checkpoint has been written."""
        self.interrupted = True
        cast(Engine, self).terminate(skip_completed=True)

    def end_if_interrupted(self) -> None:
        """End the process in a way that lets a job be queued again, if a scheduler asked for its end."""
        if not self.interrupted:
            return
        logger.warning(
            "asked to stop: a checkpoint is written at iteration %d of %d, and nothing is lost. The same command "
            "with --resume true continues from there",
            self.state.iteration,
            self.state.max_epochs * self.state.epoch_length,
        )
        leave_group()
        raise SystemExit(EXIT_STATUS)

    def resume(self, folder: str | Path, resume: bool | str) -> None:
        """Go on from a folder's newest checkpoint or a named one, or make sure that nothing is overwritten.

        Args:
            folder: where this run keeps its checkpoints.
            resume: True for the newest in ``folder`` (a fresh start if there is none), a path for that file (later ones
                in ``folder`` are then renamed), False for a fresh start.

        Raises:
            CheckpointError: if a fresh start would mix with the checkpoints of an earlier run, or none of the
                existing ones can be read.
        """
        if isinstance(resume, str) and resume.lower() in ("true", "false"):
            resume = resume.lower() == "true"  # as the bundle's command line passes it on
        self._take_up(folder, resume)
        run_folder.settings_hold()

    def _take_up(self, folder: str | Path, resume: bool | str) -> None:
        if isinstance(resume, str):
            self.restore(load_checkpoint(Path(resume)), resume)
            if from_first(rank() == 0 and set_aside_later(Path(folder), self.state.iteration)):
                self.best_value, self.best_epoch = math.inf, self.state.epoch  # an earlier best one is lost
        elif resume:
            found = find_checkpoint(Path(folder))
            if found is None and list_checkpoints(Path(folder)):
                raise CheckpointError(
                    f"no checkpoint in {folder} can be read, so there is nothing to continue from. If best.pt is "
                    "there, try --resume with its path; otherwise start again in another --output_dir"
                )
            if found is None:
                logger.warning("nothing to resume in %s: starting from the beginning", Path(folder).name)
                return
            self.restore(found[1], found[0].name)
            logger.info("continuing from %s, epoch %d", found[0].name, self.state.epoch)
        elif list_checkpoints(Path(folder)):
            raise CheckpointError(
                f"{folder} holds checkpoints of an earlier run; "
                "continue with --resume true, or choose another --output_dir"
            )


def _kind(value: object) -> type:
    """Return the type of a setting; a whole number counts as a float, which it becomes at the first step."""
    return float if type(value) is int else type(value)
