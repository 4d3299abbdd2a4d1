"""Validation during fine-tuning: predictions, scores, and early stopping."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from afire_monai.core.distributed import from_first, rank
from afire_monai.core.errors import DataListError, TrainingHaltedError
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.training.tasks import Task
from afire_monai.training.trainer import PretrainTrainer, after_every

logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_dataset(
    task: Task, dataset: RadiographDataset, batch_size: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a task's network over a data set, in its order.

    Returns:
        Logits (n, …) and the data set's further tensors (n, …), all on the CPU; of a file that cannot be used, none:
        ``index`` tells which images there are.
    """
    parts: list[dict[str, Tensor]] = []
    for place, batch in enumerate(DataLoader(dataset, batch_size)):
        batch["logits"] = task.predict(batch.pop("image").to(device)).float().cpu()
        # the data set puts another image in the place of a file that cannot be used, which must not count twice
        own = batch["index"] == place * batch_size + torch.arange(len(batch["index"]))
        parts.append(batch if own.all() else {name: values[own] for name, values in batch.items()})
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return found.pop("logits"), found


class ValidationMonitor:
    """Score a task on its validation set each epoch, and stop when it has not got better for a while.

    Figures go to the trainer's metrics and so to the CSV log, MLflow and the choice of the best checkpoint
    (``validation_error`` is minus the score). Attach it before the handlers that use them. If several processes
    train, process 0 scores all images and decides; the others wait.

    Args:
        dataset: validation images with targets.
        batch_size: images at a time.
        every_epochs: epochs between validations; the last epoch is always validated.
        patience: epochs without a better score after which training ends; 0 never ends it early.

    Raises:
        DataListError: if there is no validation image.
    """

    def __init__(
        self, dataset: RadiographDataset, batch_size: int = 64, every_epochs: int = 1, patience: int = 0
    ) -> None:
        if not len(dataset):
            raise DataListError("no validation image: build the list with a validation share")
        self.dataset = dataset
        self.batch_size = batch_size
        self.every_epochs = every_epochs
        self.patience = patience

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(after_every(self.every_epochs), self._validate)

    def _validate(self, engine: PretrainTrainer) -> None:
        epoch, task = engine.state.epoch, engine.method
        assert isinstance(task, Task)
        figures: dict[str, float] | None = None
        if rank() == 0:
            logits, batch = predict_dataset(task, self.dataset, self.batch_size, engine.state.device)
            figures = task.figures(logits, batch) if logits.isfinite().all() else None
        # process 0's figures decide for all: differently rounded figures could stop some processes and not others
        figures = from_first(figures)
        if figures is None:
            raise TrainingHaltedError(
                f"after epoch {epoch}, the network's output for validation images is not finite. Checkpoints are "
                "from before this happened: lower lr or lengthen warmup, then continue with --resume true"
            )
        error = -figures.pop("validation_score")
        engine.state.metrics.update({**figures, "validation_error": error})
        if error < engine.best_value:
            engine.best_epoch = epoch
        if self.patience and epoch - engine.best_epoch >= self.patience:
            if not rank():
                logger.info(
                    "stopped after epoch %d: no better validation score since epoch %d", epoch, engine.best_epoch
                )
            engine.stopped_early = True
            engine.terminate()
