"""The trainer: one step of a pre-training method, inside MONAI's and Ignite's loop."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import CallableEventWithFilter, Events
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from afire_monai.core.distributed import rank, sum_over_processes, wait_for_all, world_size
from afire_monai.core.errors import AfireError, TrainingHaltedError
from afire_monai.core.precision import bfloat16_is_slow, set_precision
from afire_monai.loading.dataset import RadiographDataset, grey_levels
from afire_monai.loading.sampler import EpochSampler
from afire_monai.methods.base import Method
from afire_monai.networks.blocks import compile_networks, recompute_blocks
from afire_monai.training.lost_workers import lost_workers_in_words
from afire_monai.training.plan import TrainingPlan
from afire_monai.training.resume import Resumable
from afire_monai.training.stopping import StopRequest

logger = logging.getLogger(__name__)


class PretrainTrainer(Resumable, SupervisedTrainer):
    """Train a `Method` on normal radiographs.

    All random numbers of a step are drawn on the CPU from (seed, iteration) for the global batch, and each process
    takes its share. The result therefore does not depend on the number of processes, and a resumed run draws the same
    numbers as an uninterrupted one.

    Args:
        device: device to train on.
        max_epochs: length of training; the schedules span it.
        train_data_loader: yields ``image`` (B, C, Hc, Wc), for `grey_levels`, and ``index`` (B,), with an
            :class:`EpochSampler`.
        method: method to train, already on ``device``.
        optimizer: optimiser over ``parameter_groups(method)``.
        plan: schedules.
        seed: seed of every random number in the steps.
        precision: ``float32``, ``tf32`` or ``bfloat16`` (see `set_precision`); bfloat16
            needs no gradient scaler.
        accumulation_steps: batches whose gradients are averaged before each update; the last update of an epoch
            averages the remaining ones. Prototypes and the category term see one batch at a time.
        compile: compile student and teacher with ``torch.compile`` (see ``compile_networks``).
        recompute: keep only the inputs of transformer blocks and compute the rest again in the backward pass.
        finite_check_interval: iterations between checks that the losses are finite; 0 chooses 1 on a CPU and 20
            on a GPU, where each check waits for the device.
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
        recompute: bool = False,
        finite_check_interval: int = 0,
        train_handlers: Sequence[Any] | None = None,
        inferer: Inferer | None = None,
    ) -> None:
        method.network_dtype = set_precision(precision)
        if recompute and not recompute_blocks(method.student.modules()):
            raise AfireError(
                "recompute_activations is for vision transformers, and this encoder has no blocks to recompute: leave "
                "it False, or choose an encoder_preset that begins with vit_"
            )
        if not isinstance(train_data_loader.sampler, EpochSampler):
            raise AfireError("the training loader needs afire_monai.loading.sampler.EpochSampler as its sampler")
        self.method = method
        self.plan = plan
        self.seed = seed
        self.best_value = math.inf
        self.best_epoch = 0
        self.stopped_early = False
        self.stop_request: StopRequest | None = None
        self.interrupted = False
        device = torch.device(device)
        if precision == "bfloat16" and bfloat16_is_slow(device):
            logger.warning("this CPU has neither AMX nor AVX512-BF16: bfloat16 is slower than --precision float32 here")
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
        #: the given handlers; those that are switched off in the config are None and left out
        self.attached = [handler for handler in train_handlers or () if handler is not None]
        for handler in self.attached:
            handler.attach(self)
        # the last one, so that all others have closed what they had opened
        self.add_event_handler(Events.EXCEPTION_RAISED, self._raise)
        self.compile = compile
        self._student: Any = method.student

    def _wrap_student(self) -> None:
        student: Any = self.method.student
        if self.compile:
            compile_networks(student, self.method.teacher)
        if world_size() > 1:
            for tensor in self.method.state_dict().values():
                dist.broadcast(tensor, 0)
            student = DistributedDataParallel(student, gradient_as_bucket_view=True)
        self.method.call_student_through(student)
        self._student = student

    def _unwrap_student(self) -> None:
        """Let go of the distributed wrapper and of the loader's processes, which stand in cycles of objects.

        A wrapper that outlives its process group can abort the process at exit.
        """
        self.method.call_student_through(self.method.student)
        self._student = self.method.student
        gc.collect()

    @staticmethod
    def _raise(_: Any, error: BaseException) -> None:
        raise error

    # progress -------------------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return math.ceil(self.state.epoch_length / self.accumulation_steps)

    @property
    def at_update(self) -> bool:
        """Whether the current iteration ends with an update of the weights."""
        local = (self.state.iteration - 1) % self.state.epoch_length + 1
        return bool(local % self.accumulation_steps == 0 or local == self.state.epoch_length)

    @property
    def group_size(self) -> int:
        """Batches whose gradients the update of the current iteration averages: fewer at the end of some epochs."""
        local = (self.state.iteration - 1) % self.state.epoch_length
        first = local - local % self.accumulation_steps
        return min(self.accumulation_steps, int(self.state.epoch_length) - first)

    def values_now(self) -> dict[str, float]:
        """Return lr, weight decay and teacher momentum of the current iteration."""
        done, local = divmod(self.state.iteration - 1, self.state.epoch_length)
        step = done * self.steps_per_epoch + local // self.accumulation_steps
        global_batch = self.batch_size * world_size() * self.accumulation_steps
        return self.plan.at(step / (self.state.max_epochs * self.steps_per_epoch), global_batch)

    def uniforms(self, iteration: int, batch: int, draws: int) -> Tensor:
        """Return this process's share (batch, draws) of the random numbers in 0…1 of one iteration."""
        # NumPy's generator, as torch's on a CPU uses only 32 bits of a seed, too few to hold two numbers
        generator = np.random.default_rng([self.seed, iteration])
        everybody = torch.from_numpy(generator.random((batch * world_size(), draws), dtype=np.float32))
        return everybody[rank() :: world_size()].to(self.state.device, non_blocking=True)

    def _start_epoch(self) -> None:
        wait_for_all()  # process 0 may still be writing the files of the last epoch
        done, local = divmod(self.state.iteration, self.state.epoch_length)
        # the first epoch's pass continues through all others, whose settings are for a loader that starts again
        self.sampler.start_at(done, local, epochs=max(1, self.state.max_epochs - done))
        self.state.metrics.clear()  # an old figure must not be logged again, nor stand for later weights
        self._epoch_sums = {}
        self._epoch_images = 0
        self._epoch_start = time.perf_counter()

    def _summarise_epoch(self) -> None:
        self.check_finite()  # before other handlers measure what such a loss has spoiled
        seconds = time.perf_counter() - self._epoch_start
        names = sorted(self._epoch_sums)
        if names:
            iterations = self._epoch_images / self.batch_size
            means = sum_over_processes(torch.stack([self._epoch_sums[n] for n in names])) / (world_size() * iterations)
            self.state.metrics.update(dict(zip(names, means.tolist(), strict=True)))
        self.state.metrics.update(self.values_now())
        self.state.metrics["images_per_second"] = self._epoch_images * world_size() / max(seconds, 1e-9)

    # one step -------------------------------------------------------------------------------------------------------

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Tensor]:
        batch = {k: v.to(self.state.device, non_blocking=True) for k, v in batchdata.items()}
        images = batch["image"] = grey_levels(batch["image"])
        values = self.values_now()
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"] * group.get("lr_scale", 1.0)
            group["weight_decay"] = values["weight_decay"] if group["decay"] else 0.0
        stepping = self.at_update
        self.method.train()
        uniforms = self.uniforms(self.state.iteration, len(images), self.method.draws)
        wait = self._student.no_sync() if world_size() > 1 and not stepping else contextlib.nullcontext()
        with wait:
            losses = self.method.batch_losses(batch, uniforms, first_epoch=self.state.epoch == 1)
            total = torch.stack([losses[name] * weight for name, weight in self.method.loss_weights.items()]).sum()
            (total / self.group_size).backward()
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

        Raises TrainingHaltedError, which names the batch's files and tells of the earlier checkpoints.
        """
        recent, self._recent = self._recent, []
        if not recent or torch.stack([loss for loss, _ in recent]).isfinite().all():
            return
        first = next(indices for loss, indices in recent if not loss.isfinite())
        dataset = self.data_loader.dataset
        files = [dataset.file_of(i) if isinstance(dataset, RadiographDataset) else str(i) for i in first.tolist()]
        # names of DICOM files can identify a patient: for those, show only the place in the list
        shown = [
            f"no. {i}" if not f.lower().endswith((".png", ".jpg", ".jpeg")) else Path(f).name
            for i, f in zip(first.tolist(), files, strict=True)
        ]
        raise TrainingHaltedError(
            f"the loss is not finite at iteration {self.state.iteration} (or up to {len(recent) - 1} before it). "
            f"Images of that batch: {', '.join(shown)}. Checkpoints there are from before this happened: look at "
            "those images with `afire check`, lower lr or lengthen warmup, then continue with --resume true"
        )

    def run(self) -> None:
        """Train until ``max_epochs``; a run that has already got there is left as it is.

        Raises SystemExit: with status 75 if a scheduler asked for an end and a checkpoint was written, or if a loader's
        process was lost.
        """
        if self.state.epoch >= self.state.max_epochs:
            logger.warning("already trained for %d epochs: ask for more with --epochs", self.state.epoch)
            self.fire_event(Events.COMPLETED)  # completes the log of a run that was killed just after its last epoch
            return
        if self.stopped_early:
            logger.warning("this training was stopped early, after epoch %d: it is left as it is", self.state.epoch)
            self.fire_event(Events.COMPLETED)
            return
        self._wrap_student()
        try:
            with self.stop_request or contextlib.nullcontext(), lost_workers_in_words():
                super().run()
        finally:
            self._unwrap_student()
        self.end_if_interrupted()


def after_every(epochs: int) -> CallableEventWithFilter:
    """Return the event of the end of every so-many-th epoch, and of the last one."""
    return Events.EPOCH_COMPLETED(
        event_filter=lambda engine, epoch: epoch % epochs == 0 or epoch == engine.state.max_epochs
    )


def clip_each(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Scale each parameter's gradient down to a norm of at most ``limit``, tensor by tensor, without a host wait."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, list((limit / (norms + 1e-6)).clamp(max=1.0).unbind()))
