"""Build encoders by name, or from the description of an export."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.networks.adapted_vit import AdaptedViTEncoder
from afire_monai.networks.encoder import ViTEncoder
from afire_monai.networks.encoder_base import Encoder
from afire_monai.networks.resnet import ResNetEncoder
from afire_monai.networks.swin import SwinEncoder

# vit_ti6 is ViT-Ti cut to six layers, for laptops and tests
ENCODER_PRESETS: dict[str, dict[str, Any]] = {
    "vit_ti6": {"embed_dim": 192, "depth": 6, "num_heads": 3},
    "vit_ti": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_s": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "resnet18": {"kind": "resnet", "blocks": [2, 2, 2, 2], "patch_size": 32},
    "swin_t": {"kind": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "heads": [3, 6, 12, 24], "patch_size": 32},
    "swin_b": {"kind": "swin", "embed_dim": 128, "depths": [2, 2, 18, 2], "heads": [4, 8, 16, 32], "patch_size": 32},
}

_KINDS: dict[str, type[ViTEncoder] | type[ResNetEncoder] | type[SwinEncoder]] = {
    "vit": ViTEncoder,
    "adapted_vit": AdaptedViTEncoder,
    "resnet": ResNetEncoder,
    "swin": SwinEncoder,
}


def encoder_from_config(config: Mapping[str, Any], **overrides: Any) -> Encoder:
    """Build an encoder with fresh weights from :attr:`Encoder.config`.

    Args:
        config: arguments of the class; ``kind`` names the class, which is ``vit`` if it is missing.
        overrides: arguments to change.

    Raises:
        AfireError: for an unknown kind or override, or values that the class refuses.
    """
    arguments = {**config, **overrides}
    kind = arguments.pop("kind", "vit")
    if kind not in _KINDS:
        raise AfireError(f"unknown kind of encoder {kind!r}; this version knows {', '.join(_KINDS)}")
    classes = [c for c in _KINDS[kind].__mro__ if issubclass(c, Encoder)]  # some pass options on to the class above
    known = {name for c in classes for name in inspect.signature(c).parameters} - {"options"}
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3) or known
            raise AfireError(f"an encoder of kind {kind!r} has no argument {name!r}; nearest: {', '.join(near)}")
    refuse_kinds(arguments, *classes)
    return _KINDS[kind](**arguments)


def refuse_kinds(arguments: Mapping[str, Any], *classes: type) -> None:
    """Refuse values that are not numbers where a network needs numbers; else it would fail at the first picture.

    Args:
        arguments: arguments of the network, by name.
        classes: the network's class and those that it passes arguments on to; annotations other than ``int`` and
            ``float`` are skipped.

    Raises:
        AfireError: for such a value, naming the argument; also for an ε of zero or below.
    """
    expected = {name: one.annotation for c in classes for name, one in inspect.signature(c).parameters.items()}
    for name, value in arguments.items():
        kind = {"int": Integral, "float": Real}.get(expected.get(name, ""))
        if kind and (not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value)):
            what = "a whole number" if kind is Integral else "a number"
            raise AfireError(f"{name} is {str(value)[:100]!r}; {what} is expected")
        if name == "layer_norm_eps" and value <= 0:
            raise AfireError(f"layer_norm_eps must be above zero, got {value}")


def build_encoder(preset: str, **overrides: Any) -> Encoder:
    """Build an encoder from a preset of :data:`ENCODER_PRESETS`.

    Args:
        preset: ``vit_ti6``, ``vit_ti``, ``vit_s``, ``vit_b``, ``resnet18``, ``swin_t`` or ``swin_b``.
        overrides: any argument of :class:`ViTEncoder`, :class:`ResNetEncoder` or :class:`SwinEncoder`.

    Raises:
        AfireError: for an unknown preset.
    """
    if preset not in ENCODER_PRESETS:
        raise AfireError(f"unknown encoder preset {preset!r}; choose one of {', '.join(ENCODER_PRESETS)}")
    return encoder_from_config(ENCODER_PRESETS[preset], **overrides)
