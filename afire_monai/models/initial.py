"""The encoder that a training starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.folder import load_encoder, load_module_files
from afire_monai.models.foreign import is_foreign, load_foreign
from afire_monai.networks import Encoder, build_encoder

#: settings of a transformer unless others are requested
_PUBLISHED = {"stem": "patches", "registers": 0}


def initial_encoder(
    init: str,
    preset: str,
    image_size: int,
    patch_size: int,
    statistics: Callable[[], Sequence[float]],
    **options: Any,
) -> Encoder:
    """Return the encoder that pre-training or fine-tuning starts from.

    Args:
        init: a model folder or file of any method's encoder; a vision transformer of another project (see
            :func:`~afire_monai.models.foreign.load_foreign`); the name of a model that comes with the package;
            ``random`` for one with fresh weights.
        preset: size of a fresh encoder (see :data:`ENCODER_PRESETS`).
        image_size: side in pixels that the task wants; 0 for the size that the encoder was trained at (224 if fresh).
        patch_size: patch size of a fresh encoder.
        statistics: grey-level mean and deviation of the training images, for a fresh encoder; called only then.
        options: more arguments of a fresh encoder's class.

    Raises:
        CheckpointError: if there is no such encoder.
    """
    if init == "random":
        mean, std = statistics()
        return build_encoder(
            preset, image_size=image_size or 224, patch_size=patch_size, in_channels=1, mean=mean, std=std, **options
        )
    if is_foreign(init):
        return load_foreign(init, image_size).encoder
    return load_encoder(init, **({"image_size": image_size} if image_size else {}))


def origin_of(init: str) -> str | dict[str, Any]:
    """Describe an encoder's origin in plain values, for the description of models that are trained from it.

    Args:
        init: see :func:`initial_encoder`; or ``bundle`` for the weights of a MONAI bundle.

    Returns:
        ``random`` or ``bundle``; for a model folder, method, epochs and hash of the data; else the name of the file.

    Raises:
        CheckpointError: if there is no such encoder.
    """
    if init in ("random", "bundle"):
        return init
    if is_foreign(init):
        return {"weights_from_elsewhere": Path(init).name}
    _, description = load_module_files(init)
    return {k: v for k, v in description.items() if k in ("method_name", "epochs", "data_sha256", "name")}


def pretraining_encoder(
    init: str, preset: str, image_size: int, patch_size: int, statistics: Sequence[float], **options: Any
) -> Encoder:
    """Return the encoder that pre-training starts from, without the range check, which would slow each step.

    Args:
        init: see :func:`initial_encoder`.
        preset: size of a fresh encoder.
        image_size: side in pixels that pre-training wants.
        patch_size: side of a cell that the method uses.
        statistics: grey-level mean and deviation of the training images, for a fresh encoder.
        options: ``stem`` and ``registers`` of a fresh :class:`~afire_monai.networks.ViTEncoder`.

    Raises:
        CheckpointError: if there is no such encoder, or its patches have another size.
        AfireError: for options that the preset does not have.
    """
    options = {name: value for name, value in options.items() if value != _PUBLISHED[name]}
    if options and init == "random" and not preset.startswith("vit_"):
        raise AfireError(f"{', '.join(options)}: encoder_preset {preset} has none; vit_ presets have")
    encoder = initial_encoder(init, preset, image_size, patch_size, lambda: statistics, **options)
    if encoder.patch_size != patch_size:
        side = round(image_size / encoder.patch_size) * encoder.patch_size
        raise CheckpointError(
            f"{init} has patches of {encoder.patch_size} pixels, the method counts with {patch_size}; add --patch_size "
            f"{encoder.patch_size} --image_size {side}"
        )
    encoder.check_range = False
    return encoder
