"""A detector from what is in a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from afire_monai.core.errors import CheckpointError
from afire_monai.models.encoder import load_encoder, load_module_files, weights_that_fit
from afire_monai.models.restorer import load_restorer
from afire_monai.networks import TokenHead
from afire_monai.predictions.anomaly.detector import AnomalyDetector


def load_detector(path: str | Path | Mapping[str, Path]) -> AnomalyDetector:
    """Build a detector from what is in a model folder, in evaluation mode.

    Taken are the restorer (``restorer.safetensors``) or, without one, the encoder (``encoder.safetensors``); and the
    student's token head with the prototypes (``detector.safetensors``) if they are there. A restorer that an earlier
    version wrote does not say its shift; it is then taken to be 0.

    Args:
        path: the folder, or paths of the files by kind.

    Raises:
        CheckpointError: if there is neither encoder nor restorer, or a file is damaged.
    """
    files = dict(path) if isinstance(path, Mapping) else _files_of(Path(path))
    if "restorer" not in files:
        if "encoder" not in files:
            raise CheckpointError(f"{path}: neither restorer.safetensors nor encoder.safetensors is there")
        return AnomalyDetector(load_encoder(files["encoder"]), _shift_of(files["encoder"])).eval()
    restorer = load_restorer(files["restorer"])
    shift = _shift_of(files["restorer"])
    head, assignment, temperature = None, None, 0.1
    if "detector" in files:
        head, assignment, temperature = _load_head(files["detector"])
    return AnomalyDetector(restorer.encoder, shift, restorer, head, assignment, temperature).eval()


def _files_of(folder: Path) -> dict[str, Path]:
    kinds = ("encoder", "restorer", "detector")
    return {kind: folder / f"{kind}.safetensors" for kind in kinds if (folder / f"{kind}.safetensors").is_file()}


def _shift_of(path: Path) -> int:
    with weights_that_fit(path):
        return int(load_module_files(path)[1].get("shift", 0))


def _load_head(path: Path) -> tuple[TokenHead, Tensor, float]:
    tensors, description = load_module_files(path)
    with weights_that_fit(path):
        head = TokenHead(**description["head"])
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
        return head, tensors["assignment"], float(description["temperature"])
