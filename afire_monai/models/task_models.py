"""Models of tasks as files: weights (safetensors) and a JSON that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afire_monai import __version__
from afire_monai.core.errors import CheckpointError
from afire_monai.models.folder import load_encoder, load_module_files, save_module_files, weights_that_fit
from afire_monai.networks import Encoder, build_encoder
from afire_monai.networks.classifier import ViTClassifier
from afire_monai.networks.segmenter import ViTSegmenter

_INPUT = "images (B, C, H, W) float32 in 0…1, bright = dense, row 0 at the top; normalised inside"
_KINDS: dict[str, type[ViTClassifier] | type[ViTSegmenter]] = {"classifier": ViTClassifier, "segmenter": ViTSegmenter}


def export_task(network: ViTClassifier | ViTSegmenter, folder: str | Path, **facts: Any) -> Path:
    """Write ``classifier.safetensors`` or ``segmenter.safetensors`` and its JSON into a model folder.

    Args:
        network: what to write.
        folder: the model folder; made if absent.
        facts: plain values to keep in the JSON: ``thresholds`` (label to probability), validation figures, data hash.

    Returns:
        The weights file.
    """
    kind = "classifier" if isinstance(network, ViTClassifier) else "segmenter"
    description = {
        "format": f"afire-monai {kind} 1",
        "version": __version__,
        kind: network.config,
        "input": _INPUT,
        **facts,
    }
    return save_module_files(network.state_dict(), description, Path(folder) / f"{kind}.safetensors")


def load_classifier(path: str | Path) -> tuple[ViTClassifier, dict[str, Any]]:
    """Read a classifier, in evaluation mode; it refuses images outside 0…1.

    Args:
        path: ``classifier.safetensors`` or the model folder that holds it.

    Returns:
        The classifier and its description, with ``thresholds`` (label to probability).

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
    """
    network, description = _load(path, "classifier")
    assert isinstance(network, ViTClassifier)
    return network, description


def load_segmenter(path: str | Path) -> tuple[ViTSegmenter, dict[str, Any]]:
    """Read a segmenter, in evaluation mode; it refuses images outside 0…1.

    Args:
        path: ``segmenter.safetensors`` or the model folder that holds it.

    Returns:
        The segmenter and its description, with ``mask_values`` (class to value in a mask file).

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
    """
    network, description = _load(path, "segmenter")
    assert isinstance(network, ViTSegmenter)
    return network, description


def _load(path: str | Path, kind: str) -> tuple[ViTClassifier | ViTSegmenter, dict[str, Any]]:
    path = Path(path)
    path = path / f"{kind}.safetensors" if path.is_dir() or not path.suffix else path
    tensors, description = load_module_files(path)
    if kind not in description:
        raise CheckpointError(f"{path}: its JSON lacks {kind!r}, so it does not describe a {kind}")
    with weights_that_fit(path):
        network = _KINDS[kind].from_config(description[kind], check_range=True)
        network.load_state_dict(tensors)
    for key in ("thresholds", "mask_values"):
        _refuse_wrong_numbers(description.get(key) or {}, key, path)
    return network.eval(), description


def _refuse_wrong_numbers(values: Any, key: str, path: Path) -> None:
    """Refuse thresholds outside 0…1 and mask values outside 0…255; what has none may be absent."""
    kinds, most = ((int, float), 1) if key == "thresholds" else ((int,), 255)
    fine = isinstance(values, dict) and all(
        isinstance(v, kinds) and not isinstance(v, bool) and 0 <= v <= most for v in values.values()
    )
    if not fine:
        raise CheckpointError(
            f"{path.with_suffix('.json')}: {key!r} is {str(values)[:100]}; a number in 0…{most} for each name is "
            "expected. Copy the file again from where it was made, or mend it"
        )


def initial_encoder(init: str, preset: str, image_size: int, patch_size: int, statistics: Any) -> Encoder:
    """Give the encoder that fine-tuning starts from.

    Args:
        init: a model folder or file of any method's encoder; ``random`` for one with fresh weights.
        preset: size of a fresh encoder (see :data:`ENCODER_PRESETS`).
        image_size: side in pixels that the task wants; 0 for the size that the encoder was trained at (224 if fresh).
        patch_size: of a fresh encoder.
        statistics: grey-level mean and deviation of the training images, for a fresh encoder; called only then.

    Raises:
        CheckpointError: if there is no such encoder.
    """
    if init == "random":
        mean, std = statistics()
        return build_encoder(
            preset, image_size=image_size or 224, patch_size=patch_size, in_channels=1, mean=mean, std=std
        )
    return load_encoder(init, **({"image_size": image_size} if image_size else {}))
