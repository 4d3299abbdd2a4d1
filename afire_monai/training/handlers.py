"""Handlers that show how a run is doing: progress, logs, health and pictures."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from afire_monai.core.distributed import rank, world_size
from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file
from afire_monai.core.quiet import hidden
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.methods.health import health_warnings, shortcut_in_words
from afire_monai.radiographs.raster import write_png
from afire_monai.training.tracking import RunTracker
from afire_monai.training.trainer import PretrainTrainer, after_every

logger = logging.getLogger(__name__)


class ProgressBar:
    """Show losses, images a second and an estimate of the time left for the whole run, on process 0.

    If the standard error output is not a terminal, a line is logged each epoch instead.

    Args:
        seconds: time between updates; each update reads the losses from the device.
        name: name of the work in progress.
    """

    def __init__(self, seconds: float = 2.0, name: str = "pre-training") -> None:
        self.seconds = seconds
        self.name = name
        self.bar: tqdm | None = None

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._show)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)
            engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: PretrainTrainer) -> None:
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(
            total=total,
            initial=engine.state.iteration,
            desc=self.name,
            unit="step",
            dynamic_ncols=True,
            disable=hidden(),
        )
        self.shown = self.start = time.monotonic()
        self.first = engine.state.iteration

    def _show(self, engine: PretrainTrainer) -> None:
        assert self.bar is not None
        now, iteration = time.monotonic(), engine.state.iteration
        if self.bar.disable:
            return
        if now - self.shown < self.seconds and iteration < self.bar.total:
            return
        self.shown = now
        losses = {name: f"{value.item():.3f}" for name, value in engine.state.output.items()}
        speed = (iteration - self.first) * engine.batch_size * world_size() / max(now - self.start, 1e-9)
        epoch = f"{engine.state.epoch}/{engine.state.max_epochs}"
        self.bar.set_postfix({"epoch": epoch, "images/s": f"{speed:.0f}", **losses}, refresh=False)
        self.bar.update(iteration - self.bar.n)

    def _tell(self, engine: PretrainTrainer) -> None:
        """Log a line for each epoch if the bar is hidden, because it would spoil a log file."""
        if self.bar is not None and self.bar.disable:
            figures = engine.state.metrics
            names = [name for name in (*engine.state.output, "validation_error") if name in figures]
            words = ", ".join(f"{name} {figures[name]:.4g}" for name in [*names, "images_per_second"])
            logger.info("%s: epoch %d/%d: %s", self.name, engine.state.epoch, engine.state.max_epochs, words)

    def _close(self, engine: PretrainTrainer, *error: BaseException) -> None:
        if self.bar is not None:  # another handler may fail before this one is started
            self.bar.close()


class CsvLogger:
    """Append one line an epoch with everything in the trainer's metrics: losses, schedules, speed, health.

    Attach it after the handlers whose figures it is to log. A resumed run keeps the lines of earlier epochs and
    replaces later ones; an epoch that was resumed in its middle has the losses of its rest.

    Args:
        path: the CSV file; its folder is made if absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def rehearse(self, engine: PretrainTrainer, folder: Path) -> float:
        """Write a line into another folder; return how often an epoch that is."""
        if rank() == 0:
            CsvLogger(folder / self.path.name)._write(engine)
        return 1.0

    def _write(self, engine: PretrainTrainer) -> None:
        row = {"epoch": engine.state.epoch, **engine.state.metrics}
        try:
            before = read_csv_log(self.path)
        except AfireError as error:  # an office program may have saved it in its own way
            kept = self.path.replace(self.path.with_name(f"damaged_{self.path.name}"))
            logger.warning("%s; it is kept as %s, and a new one begins", error, kept.name)
            before = []
        rows = [*(r for r in before if r["epoch"] < engine.state.epoch), row]
        names = list(dict.fromkeys(name for r in rows for name in r))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def read_csv_log(path: Path) -> list[dict[str, float]]:
    """Read the file of :class:`CsvLogger`, one dictionary an epoch; empty if there is no file.

    Raises AfireError if it holds something else.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, csv.Error) as error:
        raise AfireError(f"{path} is not a log of this project ({error})") from error
    if any("epoch" not in row for row in rows):
        raise AfireError(f"{path} is not a log of this project (a line without epoch)")
    return rows


def fixed_batch(dataset: RadiographDataset, count: int) -> Tensor:
    """Return up to ``count`` images (B, C, H, W), evenly spaced over the data set; the same at each call."""
    count = min(count, len(dataset))
    return torch.stack([dataset[index * len(dataset) // count]["image"] for index in range(count)])


class HealthMonitor:
    """Measure each epoch, on normal images that training does not see, whether training is sound.

    Figures go to the trainer's metrics (and so to the CSV log, MLflow and the choice of the best checkpoint); problems
    are logged in plain words. Figures are measured in float32, as exported, whatever precision the training uses.

    Args:
        dataset: normal validation images.
        count: number of images. With fewer than 2, health is not measured and a warning is logged.
        every_epochs: epochs between measurements; the last epoch is always measured.
    """

    def __init__(self, dataset: RadiographDataset, count: int = 64, every_epochs: int = 1) -> None:
        self.images = fixed_batch(dataset, count)
        self.every_epochs = every_epochs

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if len(self.images) < 2:
            logger.warning("health is not measured: it takes 2 validation images, there is %d", len(self.images))
            return
        engine.add_event_handler(after_every(self.every_epochs), self._measure)

    def _measure(self, engine: PretrainTrainer) -> None:
        figures = self._figures(engine)
        if rank():
            return
        for warning in health_warnings(figures):
            logger.warning("epoch %d: %s", engine.state.epoch, warning)
        words = shortcut_in_words(figures)
        if words is not None and engine.state.epoch in (self.every_epochs, engine.state.max_epochs):
            logger.info("epoch %d: %s", engine.state.epoch, words)

    def _figures(self, engine: PretrainTrainer) -> dict[str, float]:
        method, device = engine.method, engine.state.device
        method.eval()
        # the same draws each time, so that figures of different epochs can be compared
        uniforms = torch.rand(len(self.images), method.draws, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            figures = method.health(self.images.to(device), uniforms)
        engine.state.metrics.update(figures)
        return figures

    def rehearse(self, engine: PretrainTrainer, folder: Path) -> float:
        """Measure once; return how often an epoch that is."""
        if len(self.images) < 2:
            return 0.0
        self._figures(engine)
        return 1 / self.every_epochs


class PanelWriter:
    """Write a picture that shows how the method changes a few images, at intervals and at the end.

    A :class:`RunTracker` or :class:`TensorBoardWriter` among the trainer's handlers gets each picture.

    Args:
        dataset: images to show.
        folder: folder for the PNG files.
        count: images in a panel.
        every_epochs: epochs between panels; the last epoch always has one.
    """

    def __init__(self, dataset: RadiographDataset, folder: str | Path, count: int = 6, every_epochs: int = 10) -> None:
        self.images = fixed_batch(dataset, count)
        self.folder = Path(folder)
        self.every_epochs = every_epochs

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if rank() == 0:
            engine.add_event_handler(after_every(self.every_epochs), self._write)

    def _write(self, engine: PretrainTrainer) -> None:
        path = self._draw(engine, self.folder)
        for tracker in engine.attached:
            if isinstance(tracker, RunTracker | TensorBoardWriter):
                tracker.keep(path, "panels")

    def _draw(self, engine: PretrainTrainer, folder: Path) -> Path:
        method, device = engine.method, engine.state.device
        method.eval()
        uniforms = torch.rand(len(self.images), method.draws, generator=torch.Generator().manual_seed(2)).to(device)
        path = folder / f"epoch_{engine.state.epoch:04d}.png"
        write_panel(method.panels(self.images.to(device), uniforms), path)
        return path

    def rehearse(self, engine: PretrainTrainer, folder: Path) -> float:
        """Write a picture into another folder; return how often an epoch that is."""
        if rank() == 0:
            self._draw(engine, folder / self.folder.name)
        return 1 / self.every_epochs


def write_panel(pictures: dict[str, Tensor], path: Path) -> None:
    """Write named pictures as a PNG: one row a name, one column an image; its text field ``rows`` has the names.

    Args:
        pictures: each (B, 1, H, W) in 0…1.
        path: PNG to write; its folder is created if absent.
    """
    rows = [torch.cat(list(p[:, 0].cpu()), dim=1) for p in pictures.values()]
    grey = (torch.cat(rows, dim=0) * 255).round().clamp(0, 255).numpy().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text("rows", json.dumps(list(pictures)))
    write_png(path, grey, pnginfo=text)


class TensorBoardWriter:
    """Write all figures of each epoch, and the run's pictures, for TensorBoard; process 0 only.

    Args:
        folder: for the event files; a resumed run adds to them.

    Raises:
        AfireError: if TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise AfireError(
                "use_tensorboard: TensorBoard is not installed; `pip install tensorboard`, or leave it out"
            ) from error
        self.folder = Path(folder)
        self._make = SummaryWriter
        self.writer: Any = None

    def attach(self, engine: PretrainTrainer) -> None:
        """Register with the trainer."""
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
            engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: PretrainTrainer) -> None:
        # entries that a killed run wrote after its last checkpoint are not shown
        self.writer = self._make(str(self.folder), purge_step=engine.state.epoch + 1)

    def _write(self, engine: PretrainTrainer) -> None:
        for name, value in engine.state.metrics.items():
            self.writer.add_scalar(name, value, engine.state.epoch)
        self.writer.flush()

    def keep(self, path: Path, folder: str | None = None) -> None:
        """Show a picture that another handler wrote."""
        if self.writer is not None:
            pixels = np.asarray(Image.open(path).convert("L"))
            self.writer.add_image(folder or path.stem, pixels, int(path.stem.rpartition("_")[2]), dataformats="HW")

    def _close(self, engine: PretrainTrainer, *error: BaseException) -> None:
        if self.writer is not None:
            self.writer.close()
