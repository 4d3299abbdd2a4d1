"""The trainer: one step of a pre-training method, inside MONAI's and Ignite's loop."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from afire_monai.data.dataset import RadiographDataset
from afire_monai.data.sampler import EpochSampler
from afire_monai.distributed import rank, sum_over_processes, world_size
from afire_monai.engines.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint
from afire_monai.engines.plan import TrainingPlan
from afire_monai.errors import AfireError, CheckpointError, TrainingHaltedError
from afire_monai.methods.base import Method

logger = logging.getLogger(__name__)


class PretrainTrainer(SupervisedTrainer):
    """Train a :class:`~afire_monai.methods.Method` on normal radiographs.

    All random numbers of a step are drawn on the CPU from (seed, iteration) for the global batch, and each process
    takes its share: the result does not depend on the number of processes, and a resumed run draws what it would have
    drawn.

    Args:
        device: where to train.
        max_epochs: length of training; the schedules span it.
        train_data_loader: yields ``image`` (B, C, Hc, Wc) and ``index`` (B,), with an :class:`EpochSampler`.
        method: what to train, already on ``device``.
        optimizer: over ``parameter_groups(method)``.
        plan: schedules.
        seed: of every random number in the steps.
        precision: ``float32`` or ``bfloat16`` (autocast without a gradient scaler, which bfloat16 does not need).
        accumulation_steps: batches whose gradients are averaged before each update. Prototypes and the category term
        see
            one batch at a time.
        compile: compile student and teacher with ``torch.compile``.
        finite_check_interval: iterations between looks at whether the losses are finite; 0 chooses 1 on a CPU and 20
        on a
            GPU, where each look waits for the device.
        train_handlers: handlers with ``attach``.
        inferer: unused; bundles must be able to name one.

    Raises:
        AfireError: for an unknown precision or a loader without :class:`EpochSampler`.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: DataLoader,
        method: Method,
        optimizer: torch.optim.Optimizer,
        plan: TrainingPlan,
        seed: int = 0,
        precision: str = "float32",
        accumulation_steps: int = 1,
        compile: bool = False,
        finite_check_interval: int = 0,
        train_handlers: Sequence[Any] | None = None,
        inferer: Inferer | None = None,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise AfireError(f"precision must be float32 or bfloat16, got {precision!r}")
        if not isinstance(train_data_loader.sampler, EpochSampler):
            raise AfireError("the training loader needs afire_monai.data.sampler.EpochSampler as its sampler")
        self.method = method
        self.plan = plan
        self.seed = seed
        self.precision = precision
        self.best_value = math.inf
        device = torch.device(device)
        self.finite_check_interval = finite_check_interval or (1 if device.type == "cpu" else 20)
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._epoch_sums: dict[str, Tensor] = {}
        self._epoch_start = 0.0
        self._epoch_images = 0
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=method,
            optimizer=optimizer,
            loss_function=lambda *_: None,
            inferer=inferer,
            decollate=False,
            accumulation_steps=accumulation_steps,
        )
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._summarise_epoch)
        for handler in train_handlers or ():
            if handler is not None:  # switched off in the config
                handler.attach(self)
        self._student = self._wrap_student(compile)

    def _wrap_student(self, compiled: bool) -> Any:
        student: Any = self.method.student
        if compiled:  # in place, so that the names in checkpoints stay the same
            student.compile()
            self.method.teacher.compile()
        if world_size() > 1:
            for tensor in self.method.state_dict().values():
                dist.broadcast(tensor, 0)
            student = DistributedDataParallel(student, gradient_as_bucket_view=True)
        self.method.call_student_through(student)
        return student

    # progress -------------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Images that this process takes in one iteration."""
        return self.data_loader.sampler.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return math.ceil(self.state.epoch_length / self.accumulation_steps)

    @property
    def at_update(self) -> bool:
        """Whether the current iteration ends with an update of the weights."""
        local = (self.state.iteration - 1) % self.state.epoch_length + 1
        return bool(local % self.accumulation_steps == 0 or local == self.state.epoch_length)

    def values_now(self) -> dict[str, float]:
        """Give lr, weight decay and teacher momentum of the current iteration."""
        done, local = divmod(self.state.iteration - 1, self.state.epoch_length)
        step = done * self.steps_per_epoch + local // self.accumulation_steps
        global_batch = self.batch_size * world_size() * self.accumulation_steps
        return self.plan.at(step / (self.state.max_epochs * self.steps_per_epoch), global_batch)

    def uniforms(self, iteration: int, batch: int, draws: int) -> Tensor:
        """Give this process's share (batch, draws) of the random numbers in 0…1 of one iteration."""
        generator = torch.Generator().manual_seed((self.seed << 40) + iteration)
        everybody = torch.rand(batch * world_size(), draws, generator=generator)
        return everybody[rank() :: world_size()].to(self.state.device, non_blocking=True)

    def _start_epoch(self) -> None:
        done, local = divmod(self.state.iteration, self.state.epoch_length)
        self.data_loader.sampler.start_at(done, local)
        self._epoch_sums = {}
        self._epoch_images = 0
        self._epoch_start = time.perf_counter()

    def _summarise_epoch(self) -> None:
        seconds = time.perf_counter() - self._epoch_start
        names = sorted(self._epoch_sums)
        if names:
            iterations = self._epoch_images / self.batch_size
            means = sum_over_processes(torch.stack([self._epoch_sums[n] for n in names])) / (world_size() * iterations)
            self.state.metrics.update(dict(zip(names, means.tolist(), strict=True)))
        self.state.metrics["images_per_second"] = self._epoch_images * world_size() / max(seconds, 1e-9)

    # one step -------------------------------------------------------------------------------------------------------

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Tensor]:
        images = batchdata["image"].to(self.state.device, non_blocking=True)
        values = self.values_now()
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"]
            group["weight_decay"] = values["weight_decay"] if group["decay"] else 0.0
        stepping = self.at_update
        self.method.train()
        uniforms = self.uniforms(self.state.iteration, len(images), self.method.draws)
        wait = self._student.no_sync() if world_size() > 1 and not stepping else contextlib.nullcontext()
        with wait:
            with torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                losses = self.method.losses(images, uniforms, first_epoch=self.state.epoch == 1)
            total = torch.stack([losses[name] * weight for name, weight in self.method.loss_weights.items()]).sum()
            (total / self.accumulation_steps).backward()
        output = {name: loss.detach() for name, loss in losses.items()} | {"loss": total.detach()}
        self._recent.append((output["loss"], batchdata["index"]))
        if self.state.iteration % self.finite_check_interval == 0:
            self.check_finite()
        if stepping:
            self._update(values["momentum"])
        for name, value in output.items():
            self._epoch_sums[name] = self._epoch_sums[name] + value if name in self._epoch_sums else value
        self._epoch_images += len(images)
        return output

    def _update(self, momentum: float) -> None:
        frozen = self.state.epoch <= self.plan.freeze_last_layer_epochs
        if self.plan.clip:
            clip_each(self.optimizer, self.plan.clip)
        if frozen:
            for parameter in self.method.last_layer_parameters():
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.update_teacher(momentum)

    def check_finite(self) -> None:
        """Stop if a loss since the last look is not finite.

        Raises:
            TrainingHaltedError: naming the batch's files, and where the last good checkpoint is.
        """
        recent, self._recent = self._recent, []
        if not recent or torch.stack([loss for loss, _ in recent]).isfinite().all():
            return
        first = next(indices for loss, indices in recent if not loss.isfinite())
        dataset = self.data_loader.dataset
        files = [dataset.file_of(i) if isinstance(dataset, RadiographDataset) else str(i) for i in first.tolist()]
        # names of DICOM files can identify a patient: of those, only the place in the list
        shown = [
            f"no. {i}" if not f.lower().endswith((".png", ".jpg", ".jpeg")) else Path(f).name
            for i, f in zip(first.tolist(), files, strict=True)
        ]
        raise TrainingHaltedError(
            f"the loss is not finite at iteration {self.state.iteration} (or up to {len(recent) - 1} before it). "
            f"Images of that batch: {', '.join(shown)}. The last checkpoint was written before this happened: look at "
            "those images with `afire check`, lower lr or lengthen warmup, then go on with --resume true"
        )

    # checkpoints ----------------------------------------------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, Any]:
        """Give everything that a run needs to go on exactly; a collective call."""
        states = [torch.get_rng_state()]
        if world_size() > 1:
            mine = states[0].to(self.state.device)
            gathered = [torch.empty_like(mine) for _ in range(world_size())]
            dist.all_gather(gathered, mine)
            states = [g.cpu() for g in gathered]
        numpy_state: Any = np.random.get_state()  # noqa: NPY002  # the state that MONAI's transforms fall back on
        python_state: Any = random.getstate()
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {
                "iteration": self.state.iteration,
                "epoch_length": self.state.epoch_length,
                "max_epochs": self.state.max_epochs,
                "global_batch": self.batch_size * world_size(),
                "images": self.data_loader.sampler.length,
                "seed": self.seed,
                "best_value": self.best_value,
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

        Args:
            state: from :func:`load_checkpoint`.
            source: its name, for messages.

        Raises:
            CheckpointError: if network, data or batch differ from those that the checkpoint was written with.
        """
        progress = state["progress"]
        here = {
            "epoch_length": self.state.epoch_length,
            "global_batch": self.batch_size * world_size(),
            "images": self.data_loader.sampler.length,
            "seed": self.seed,
        }
        for key, value in here.items():
            if progress[key] != value:
                raise CheckpointError(
                    f"{source} was written with {key} {progress[key]}, this run has {value}: going on would not be the "
                    "same training. Use the same data list, batch and seed, or start anew in another output_dir"
                )
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{source} does not fit this network: {error}") from error
        if progress["max_epochs"] != self.state.max_epochs:
            logger.warning(
                "planned epochs change from %d to %d: schedules span the new length",
                progress["max_epochs"],
                self.state.max_epochs,
            )
        self.state.iteration = progress["iteration"]
        self.state.epoch = progress["iteration"] // progress["epoch_length"]
        self.best_value = progress["best_value"]
        self._restore_random(state["random"])

    def _restore_random(self, states: dict[str, Any]) -> None:
        torch.set_rng_state(states["torch"][rank() % len(states["torch"])])
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
        name, keys, *rest = json.loads(states["numpy"])
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002  # as above
        version, words, gauss = json.loads(states["python"])
        random.setstate((version, tuple(words), gauss))

    def resume(self, folder: str | Path, resume: bool | str) -> None:
        """Go on from a folder's newest checkpoint or a named one, or make sure that nothing is overwritten.

        Args:
            folder: where this run keeps its checkpoints.
            resume: True for the newest in ``folder`` (a fresh start if there is none), a path for that file, False
            for a
                fresh start.

        Raises:
            CheckpointError: if a fresh start would mix with the checkpoints of an earlier run.
        """
        if isinstance(resume, str) and resume.lower() in ("true", "false"):
            resume = resume.lower() == "true"  # as the bundle's command line hands it on
        if isinstance(resume, str):
            self.restore(load_checkpoint(Path(resume)), resume)
        elif resume:
            found = find_checkpoint(Path(folder))
            if found is None:
                logger.warning("nothing to resume in %s: starting anew", Path(folder).name)
                return
            self.restore(found[1], found[0].name)
            logger.info("going on from %s, epoch %d", found[0].name, self.state.epoch)
        elif list_checkpoints(Path(folder)):
            raise CheckpointError(
                f"{folder} holds checkpoints of an earlier run; "
                "go on with --resume true, or choose another --output_dir"
            )

    def run(self) -> None:
        """Train until ``max_epochs``; a run that has already got there is left as it is."""
        if self.state.epoch >= self.state.max_epochs:
            logger.warning("already trained for %d epochs: ask for more with --epochs", self.state.epoch)
            return
        super().run()


def clip_each(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Scale each parameter's gradient down to a norm of at most ``limit``, tensor by tensor, without a host wait."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients:
        factors = [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in torch._foreach_norm(gradients)]
        torch._foreach_mul_(gradients, factors)
