"""Estimate the cost of a pre-training from a real step: arithmetic, memory, traffic, hours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.core.precision import set_precision
from afire_monai.transforms.anatomy import anatomy_of

# two batch sizes through which the line of memory over batch size is drawn
COUNTED_BATCHES = (2, 4)


@dataclass(frozen=True)
class StepCost:
    """Cost of one training step."""

    #: floating-point operations of forward and backward passes and of the teacher; a multiplication and an addition are
    #: two
    flops_per_image: float
    trained: int  #: parameters that the optimiser changes
    state_bytes: int  #: weights, teacher, gradients and optimiser's moments, independent of the batch
    activation_bytes: float  #: bytes kept for the backward pass, per image
    fixed_activation_bytes: float  #: the same, independent of the batch

    def memory(self, batch: int) -> float:
        """Estimate bytes on one device for ``batch`` images: state and activations, without a framework's own share."""
        return self.state_bytes + self.fixed_activation_bytes + batch * self.activation_bytes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that processes sum in each step, in float32."""
        return 4 * self.trained


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Measure floating-point operations a second of a large matrix product, best of six."""
    size = 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b), device) for _ in range(6))


def build_training(configs: Sequence[str | Path], settings: dict[str, Any]) -> tuple[Any, torch.optim.Optimizer]:
    """Build method and optimiser from the bundle's configs, without data.

    Raises AfireError for a setting that does not exist.
    """
    from monai.bundle import ConfigParser

    from afire_monai.training.settings import refuse_unknown_keys

    config = ConfigParser.load_config_files([str(path) for path in configs])
    refuse_unknown_keys(config, list(settings))
    # what would need the data; it hardly changes the cost
    parser = ConfigParser({**config, **settings, "statistics": [0.5, 0.25], "populations": None})
    parser.parse()
    return parser.get_parsed_content("method"), parser.get_parsed_content("optimizer")


def settings_of(configs: Sequence[str | Path], keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of some keys in config files, later files overriding earlier ones."""
    from monai.bundle import ConfigParser

    config = ConfigParser.load_config_files([str(path) for path in configs])
    return {key: config[key] for key in keys if key in config}


def count_step(method: Any, device: torch.device, precision: str = "float32") -> StepCost:
    """Count one step's arithmetic and memory by doing it with a few random images."""
    from torch.utils.flop_counter import FlopCounterMode

    method.network_dtype = set_precision(precision)
    kept = []
    for batch in COUNTED_BATCHES:
        kept.append(_saved_bytes(method, batch, device))
    per_image = (kept[1] - kept[0]) / (COUNTED_BATCHES[1] - COUNTED_BATCHES[0])
    batch = COUNTED_BATCHES[0]
    with FlopCounterMode(display=False) as counter:
        _total_loss(method, *_batch(method, batch, device)).backward()
    method.zero_grad(set_to_none=True)
    trained = sum(parameter.numel() for _, parameter in method.trainable())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in method.state_dict().values())
    return StepCost(
        flops_per_image=counter.get_total_flops() / batch,
        trained=trained,
        state_bytes=weights + 12 * trained,  # gradient and both moments of AdamW
        activation_bytes=max(per_image, 0.0),
        fixed_activation_bytes=max(kept[0] - batch * per_image, 0.0),
    )


def time_steps(
    method: Any, optimizer: torch.optim.Optimizer, batch: int, device: torch.device, precision: str
) -> float:
    """Measure seconds per image of whole steps: losses, backward pass, clipping, update, teacher; the median."""
    from afire_monai.training.trainer import clip_each

    method.network_dtype = set_precision(precision)

    inputs = _batch(method, batch, device)

    def step() -> None:
        _total_loss(method, *inputs).backward()
        clip_each(optimizer, 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.update_teacher(0.99)

    step()
    return statistics.median(_seconds(step, device) for _ in range(3)) / batch


def speed_of_run(folder: str | Path) -> float:
    """Return the median images a second of the epochs of a finished or running pre-training.

    Raises AfireError if there is no log with speeds.
    """
    from afire_monai.training.handlers import read_csv_log

    speeds = [row["images_per_second"] for row in read_csv_log(Path(folder) / "log.csv") if "images_per_second" in row]
    if not speeds:
        raise AfireError(f"{folder} has no log.csv with images_per_second: give the output_dir of a pre-training run")
    return statistics.median(speeds)


@dataclass(frozen=True)
class PlannedRun:
    """A run as its folder describes it: settings, and images and epochs of its newest checkpoint."""

    settings: Path
    images: int | None
    epochs: int | None


def settings_of_run(folder: str | Path) -> PlannedRun | None:
    """Find the settings that a pre-training was started with; None if its folder holds none."""
    from afire_monai.training.checkpoint import find_checkpoint

    settings = Path(folder) / "settings.yaml"
    if not settings.is_file():
        return None
    found = find_checkpoint(Path(folder) / "checkpoints")
    progress = found[1]["progress"] if found else {}
    return PlannedRun(settings, progress.get("images"), progress.get("max_epochs"))


def hours(images: int, epochs: int, images_per_second: float) -> float:
    """Hours of ``epochs`` passes over ``images`` at a speed."""
    return images * epochs / images_per_second / 3600


def _batch(method: Any, count: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Make random images with their annotations, and the uniform numbers of a step."""
    images = torch.rand(count, 1, *method.canvas_size, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(count, method.draws, generator=torch.Generator().manual_seed(1)).to(device)
    return {"image": images.to(device), "anatomy": anatomy_of(images).to(device)}, uniforms


def _total_loss(method: Any, batch: dict[str, Tensor], uniforms: Tensor) -> Tensor:
    method.train()
    losses = method.batch_losses(batch, uniforms, first_epoch=False)
    return torch.stack([losses[name] * weight for name, weight in method.loss_weights.items()]).sum()


def _saved_bytes(method: Any, batch: int, device: torch.device) -> int:
    """Bytes of the tensors that wait for the backward pass; weights, which are there anyway, are not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in method.parameters()}
    sizes: dict[int, int] = {}
    held = []  # so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    inputs = _batch(method, batch, device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _total_loss(method, *inputs)
    return sum(sizes.values())


def _seconds(step: Any, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
