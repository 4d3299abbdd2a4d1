"""A time budget: choose the number of epochs that fits into the given minutes, measured before training begins."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from afire_monai.core.distributed import from_first, rank
from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_text
from afire_monai.core.quiet import only_above
from afire_monai.training.report.page import BUDGET_FILE, budget_in_words

if TYPE_CHECKING:
    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)
# share of the minutes that is reserved for unmeasured work: MLflow, the progress bar, the interpreter's end
RESERVE = 0.03
# share of the remaining time for timing steps, with at most this many seconds and at least this many updates
TIMED_SHARE, TIMED_SECONDS, TIMED_UPDATES = 0.05, 20.0, 3

_began: list[float] = []


@dataclass(frozen=True)
class Costs:
    """Seconds that a command has taken, and seconds of its remaining parts."""

    before: float  #: from the command's start until training begins
    step: float  #: an iteration, including the reading of its images
    epoch_end: float  #: work after an epoch, on average: health, log, checkpoints, pictures
    after: float  #: work after training: the last pictures, export and report

    def epochs(self, minutes: float, steps: int) -> int:
        """Return how many epochs of so many iterations fit into the minutes; 0 or less if not even one does."""
        left = 60 * minutes * (1 - RESERVE) - self.before - self.after
        return int(left // (steps * self.step + self.epoch_end))

    def least_minutes(self, steps: int) -> float:
        """Return the minutes that a single epoch of so many iterations takes, with all around it."""
        return (self.before + self.after + steps * self.step + self.epoch_end) / (1 - RESERVE) / 60


def begin() -> None:
    """Note when the command began: the process's start if it runs a bundle and nothing else, else this moment."""
    alone = Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")
    _began[:] = [time.monotonic() - (_process_age() if alone else 0.0)]


def _process_age() -> float:
    """Seconds since this process, or the launcher that started it, began; 0 where the system does not tell."""
    process = str(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else "self"
    try:
        ticks = int(Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def planned_epochs(epochs: int, minutes: float, output_dir: str | Path) -> int:
    """Return the length of a run: the number decided on for its minutes, if any, else ``epochs``.

    Args:
        epochs: number of epochs in the settings; it counts if there is no time budget.
        minutes: the time budget, 0 for none.
        output_dir: the run's folder.

    Raises:
        AfireError: if the folder's run was planned for another number of minutes.
    """
    decided = from_first(_decided(Path(output_dir), minutes)) if minutes else None
    return epochs if decided is None else decided


def _decided(folder: Path, minutes: float) -> int | None:
    if not (folder / BUDGET_FILE).exists():
        return None
    budget = json.loads((folder / BUDGET_FILE).read_text(encoding="utf-8"))
    if budget["minutes"] != minutes:
        raise AfireError(
            f"the run in this output_dir was planned for {budget['minutes']:g} minutes, {budget['epochs']} epochs, not "
            f"for {minutes:g}: its schedules span them. Continue with --minutes {budget['minutes']:g}, or for another "
            "length with --minutes 0 --epochs N, or start again in another output_dir"
        )
    return int(budget["epochs"])


def fit(
    trainer: PretrainTrainer, minutes: float, output_dir: str | Path, compare: Callable[[Path], None] | None = None
) -> None:
    """Decide how many epochs a run has, so that the whole command ends within the minutes, and write it down.

    A few steps, the end of an epoch, export and report are run once and timed. Then everything is restored, so the run
    is bit for bit the one that ``--epochs`` with this number gives. A resumed or restarted run keeps the number decided
    on before. Process 0 decides for all. If the machine gets slower later, the run ends later.

    Args:
        trainer: the trainer, after :meth:`~PretrainTrainer.resume`.
        minutes: from the command's start until its end; 0 leaves the trainer as it is.
        output_dir: the run's folder; gets ``time_budget.json``, and the number of epochs in its ``settings.yaml``.
        compare: the comparison of encoders at the end (`finish.write_worth`); takes the run's folder.

    Raises:
        AfireError: if not even one epoch fits, or the run was begun without a time budget.
    """
    if not minutes:
        return
    folder = Path(output_dir)
    if from_first(_decided(folder, minutes)) is None:
        if trainer.state.iteration:
            raise AfireError(
                f"this run was started with {trainer.state.max_epochs} epochs and no time budget: continue without "
                "--minutes, or start again in another output_dir"
            )
        _decide(trainer, minutes, folder, compare)
    settings = folder / "settings.yaml"
    if rank() == 0 and settings.exists():
        values = yaml.safe_load(settings.read_text(encoding="utf-8")) | {"epochs": trainer.state.max_epochs}
        write_text(settings, yaml.safe_dump(values, sort_keys=False))


def _decide(trainer: PretrainTrainer, minutes: float, folder: Path, compare: Callable[[Path], None] | None) -> None:
    costs, steps = measure(trainer, minutes, compare), int(trainer.state.epoch_length)
    epochs = from_first(costs.epochs(minutes, steps))
    if epochs < 1:
        raise AfireError(
            f"--minutes {minutes:g} is less than one epoch of {steps} steps takes here, start and end included: at "
            f"least --minutes {costs.least_minutes(steps):.1f}, or fewer images or smaller settings"
        )
    trainer.state.max_epochs = epochs
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        seconds = {name: round(value, 4) for name, value in asdict(costs).items()}
        budget = {"minutes": minutes, "epochs": epochs, "steps_per_epoch": steps, "seconds": seconds}
        write_text(folder / BUDGET_FILE, json.dumps(budget, indent=1) + "\n")
        logger.info("%s", budget_in_words(budget))


def measure(trainer: PretrainTrainer, minutes: float, compare: Callable[[Path], None] | None = None) -> Costs:
    """Time the parts of a run by rehearsing them; trainer and folder are left as they were."""
    from afire_monai.training import finish
    from afire_monai.training.report import page  # noqa: F401  # drawing libraries are loaded before the clock starts

    left = 60 * minutes - _since_start()
    dataset: Any = trainer.data_loader.dataset
    # without messages about files that are written for the measurement only
    with tempfile.TemporaryDirectory() as scratch, trainer.rehearsal() as make_step, only_above(logging.INFO):
        folder = Path(scratch)
        step = _seconds_per_step(trainer, make_step, min(TIMED_SHARE * left, TIMED_SECONDS))
        epoch_end = after = 0.0
        for handler in trainer.attached:
            if hasattr(handler, "rehearse"):
                handler.rehearse(trainer, folder)  # the first time takes longer
                seconds, often = _timed(trainer, partial(handler.rehearse, trainer, folder))
                epoch_end += seconds * often
                after += seconds if often < 1 else 0.0
        after += _timed(trainer, lambda: finish.export_run(trainer, folder / "models", ""))[0]
        if compare is not None:
            after += _timed(trainer, partial(compare, folder))[0]
        after += _timed(trainer, lambda: finish.write_run_report(folder, dataset))[0]
    return Costs(_since_start(), step, epoch_end, after)


def _since_start() -> float:
    return time.monotonic() - _began[0] if _began else 0.0


def _seconds_per_step(trainer: PretrainTrainer, make_step: Callable[[Any], None], most: float) -> float:
    """Time steps for so many seconds, after using up the batches that loader processes have read ahead."""
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.data_loader))
    for _ in range((2 + 2 * trainer.data_loader.num_workers) * trainer.accumulation_steps):
        make_step(next(batches))
    _finish(trainer)
    start, count = time.perf_counter(), 0
    # all processes must make the same number of steps
    while from_first(count < TIMED_UPDATES * trainer.accumulation_steps or time.perf_counter() - start < most):
        make_step(next(batches))
        count += 1
    _finish(trainer)
    return (time.perf_counter() - start) / count


def _timed(trainer: PretrainTrainer, work: Callable[[], Any]) -> tuple[float, Any]:
    _finish(trainer)
    start = time.perf_counter()
    result = work()
    _finish(trainer)
    return time.perf_counter() - start, result


def _finish(trainer: PretrainTrainer) -> None:
    """Wait for the device to finish."""
    if trainer.state.device.type != "cpu":
        torch.accelerator.synchronize(trainer.state.device)
