"""Encoders from vision transformers of other projects: MAE, DINO, DINOv2, DINOv3, timm, RAD-DINO, EVA-X."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from afire_monai.core.errors import UNREADABLE, AfireError, CheckpointError
from afire_monai.core.files import read_object
from afire_monai.models.foreign_names import encoder_entries, to_own_names
from afire_monai.models.released import IMAGENET_MEAN, IMAGENET_STD, fold_encoder, listed, read_checkpoint
from afire_monai.networks import ViTEncoder, encoder_from_config, resample_positions, sincos_positions

logger = logging.getLogger(__name__)
_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_MOST_HEADS = 256
_DINOV3_BASE, _EVA_BASE = 100.0, 10000.0


@dataclass
class ForeignEncoder:
    """An encoder from elsewhere."""

    encoder: ViTEncoder  #: with one input channel
    placed: list[str] = field(default_factory=list)  #: names in the file that the encoder took over
    #: names in the file that are not part of an encoder: heads, decoders, mask tokens, optimizers
    left_out: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)  #: values that neither the file nor a JSON beside it states


def is_foreign(path: str | Path) -> bool:
    """Whether a file or folder holds weights without this package's description beside them."""
    path = Path(path)
    if path.is_dir():
        return not (path / "encoder.safetensors").is_file() and any((path / name).is_file() for name in _FILES)
    if not path.is_file() or path.suffix not in _SUFFIXES:
        return False
    return path.suffix != ".safetensors" or "architecture" not in read_object(path.with_suffix(".json"))


def load_foreign(path: str | Path, image_size: int = 0) -> ForeignEncoder:
    """Build an encoder from another project's vision transformer; it gives the same tokens for a grey image.

    Three input channels are folded into one. Fixed sine positions are recognised and computed; learned ones are
    stretched to ``image_size``. Heads, normalisation and ε come from ``config.json`` and ``preprocessor_config.json``
    beside the weights, else from the usual values of the layout, which are logged as assumed.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` (read without running code) or ``.safetensors``; or a folder.
        image_size: side in pixels; 0 for the size of the positions, 224 if there are none.

    Raises:
        CheckpointError: if the file cannot be read or is not such a transformer, if a name in its encoder has no place
            here, or if a required name is missing; all such names are listed.
    """
    file = _file_of(Path(path))
    try:
        settings = _settings(file.parent)
        entries, left = encoder_entries(_read(file))
        state, origin, unused = to_own_names(entries)
        found = _build({name: value.float() for name, value in state.items()}, origin, entries, settings, image_size)
    except AfireError as error:
        raise CheckpointError(f"{file.name}: {error}") from error
    found.left_out = sorted([*left, *unused])
    logger.info("%s: %d weights placed", file.name, len(found.placed))
    if found.left_out:
        logger.warning("%s: left out, no part of an encoder: %s", file.name, ", ".join(found.left_out))
    for assumed in found.assumed:
        logger.warning("%s: assumed %s", file.name, assumed)
    return found


def _build(
    state: dict[str, Tensor],
    origin: Mapping[str, str],
    entries: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    image_size: int,
) -> ForeignEncoder:
    kernel = state.get("patch_embed.weight")
    first = state.get("blocks.0.mlp.linear1.weight")
    second = state.get("blocks.0.mlp.linear2.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or not kernel.numel():
        raise CheckpointError("patch embedding (D, C, P, P) is expected: it tells the sizes")
    if first is None or second is None or first.ndim != 2 or second.ndim != 2 or not second.numel():
        raise CheckpointError("MLPs of two matrices (hidden, D) and (D, hidden) are expected: they tell the sizes")
    width, channels, patch = kernel.shape[:3]
    if (registers := state.get("registers")) is not None and (registers.ndim != 3 or registers.shape[2] != width):
        raise CheckpointError(f"registers are {tuple(registers.shape)}; (1, R, {width}) is expected")
    hidden, gated = second.shape[1], first.shape[0] == 2 * second.shape[1]
    depth = _depth(state, origin, width, hidden)
    assumed: list[str] = []
    options: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": channels,
        "embed_dim": width,
        "depth": depth,
        "num_heads": _heads(width, state, settings, assumed),
        **_normalisation(channels, settings, assumed),
    }
    extras = {
        "hidden": hidden,
        "gated": gated,
        "registers": registers.shape[1] if registers is not None else 0,
        "layer_scale": "blocks.0.scale1" in state,
        "attention_norm": "blocks.0.attn.norm.weight" in state,
        "mlp_norm": "blocks.0.mlp.norm.weight" in state,
        **_rope(entries, gated, patch, settings),
    }
    if settings.get("hidden_act", activation := "silu" if gated else "gelu") != activation:
        raise CheckpointError(f"its MLPs use {settings['hidden_act']} (config.json); {activation} is expected")
    dinov3 = extras["rope_base"] is not None and not extras["rope_cells"]
    options["layer_norm_eps"] = settings.get("layer_norm_eps", 1e-5 if dinov3 else 1e-6)
    grid = _positions(state, width)
    size = image_size or (grid[0] * patch if grid else 224)
    options["image_size"] = size
    plain = not any(v for k, v in extras.items() if k not in ("hidden", "rope_cells")) and "positions" not in state
    if plain and grid is not None:
        encoder = encoder_from_config({**options, "mlp_ratio": hidden / width, "position_grid": grid})
    else:
        learned = "positions" in state
        encoder = encoder_from_config({"kind": "adapted_vit", **options, **extras, "learned_positions": learned})
        if learned and grid is not None:
            state["positions"] = resample_positions(state["positions"], grid, encoder.grid)
        if extras["rope_cells"]:
            _interleaved_to_halves(state, depth, options["num_heads"])
    assert isinstance(encoder, ViTEncoder)
    placed = _place(encoder, state, origin, assumed)
    if grid is not None and "pos_embed" in entries:
        placed.append("pos_embed")
    return ForeignEncoder(fold_encoder(encoder).eval(), sorted(set(placed)), assumed=assumed)


def _depth(state: Mapping[str, Tensor], origin: Mapping[str, str], width: int, hidden: int) -> int:
    """Return how many blocks there are; the large matrices of each bear out the sizes before a network is built."""
    numbers = {int(match[1]) for name in state if (match := re.match(r"blocks\.([0-9]{1,4})\.", name))}
    depth = 1 + max(numbers)
    if absent := set(range(depth)) - numbers:
        raise CheckpointError(f"blocks 0 to {depth - 1} are expected; {len(absent)} are missing, as {min(absent)}")
    expected = {"attn.qkv": [(3 * width, width)], "mlp.linear2": [(width, hidden)],
                "mlp.linear1": [(hidden, width), (2 * hidden, width)]}  # fmt: skip
    for block in range(depth):
        for part, shapes in expected.items():
            value = state.get(name := f"blocks.{block}.{part}.weight")
            if value is None or tuple(value.shape) not in shapes:
                seen = "missing" if value is None else tuple(value.shape)
                raise CheckpointError(f"{origin.get(name, name)} is {seen}; {shapes[0]} is expected")
    return depth


def _place(encoder: ViTEncoder, state: dict[str, Tensor], origin: Mapping[str, str], assumed: list[str]) -> list[str]:
    """Load the weights; every name has a place or is in the error. Biases that a layout leaves out are zero."""
    targets = encoder.state_dict()
    wrong = [
        f"{origin.get(name, name)} {tuple(value.shape)}"
        for name, value in state.items()
        if name not in targets or targets[name].shape != value.shape
    ]
    missing = [name for name in targets if name not in state]
    absent = [name for name in missing if name.endswith(("attn.qkv.bias", "mlp.linear1.bias", "patch_embed.bias"))]
    missing = [name for name in missing if name not in absent]
    if wrong or missing:
        raise CheckpointError(f"no place for: {listed(wrong)}. Missing, by their name here: {listed(missing)}")
    if bad := [origin.get(name, name) for name, value in state.items() if not value.isfinite().all()]:
        raise CheckpointError(f"values that are not finite in {listed(bad)}")
    if absent:
        assumed.append(f"zero for biases that are not there: {listed(absent)}")
    encoder.load_state_dict({**{name: torch.zeros_like(targets[name]) for name in absent}, **state})
    return [origin.get(name, name) for name in state]


def _positions(state: dict[str, Tensor], width: int) -> tuple[int, int] | None:
    """Turn the table of positions into (L, D), the class token's added to it; drop it if it is the fixed sine table."""
    table = state.pop("positions", None)
    if table is None:
        return None
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != width:
        raise CheckpointError(f"positions are {tuple(table.shape)}; (1, L, {width}) is expected")
    cells, with_class = table.shape[1], False
    if math.isqrt(cells) ** 2 != cells:
        cells, with_class = cells - 1, True
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(f"{table.shape[1]} positions are no square grid, with or without a class token")
    patches = table[0, -cells:]
    fixed = width % 4 == 0 and torch.allclose(patches, sincos_positions((side, side), width), atol=1e-4)
    if with_class and "cls_token" in state:
        if state["cls_token"].shape != (1, 1, width):
            raise CheckpointError(f"cls_token is {tuple(state['cls_token'].shape)}; (1, 1, {width}) is expected")
        state["cls_token"] = state["cls_token"] + table[:, :1]
    if not fixed:
        state["positions"] = patches
    return side, side


def _rope(entries: Mapping[str, Tensor], gated: bool, patch: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary positions: of DINOv3 where there is no table, of EVA-02 where names and MLP are its own."""
    names = "\n".join(entries)
    if not re.search(r"^(embeddings\.)?pos(ition)?_embed", names, re.M):
        periods = entries.get("rope_embed.periods")
        base = float(settings.get("rope_theta", _DINOV3_BASE))
        if periods is not None and periods.ndim == 1 and len(periods) > 1:
            base = round(float((periods.double()[1] / periods.double()[0]) ** len(periods)), 1)
        if not 0 < base < 1e9:
            raise CheckpointError(f"its rotary positions have a base of {base:g}; {_DINOV3_BASE:g} or so is expected")
        return {"rope_base": base, "rope_cells": 0}
    eva = gated and re.search(r"^blocks\.0\.attn\.(q_bias|q_proj\.)", names, re.M)
    if not eva:
        return {"rope_base": None, "rope_cells": 0}
    cells = 224 // patch  # EVA-02's and EVA-X's grid of pre-training
    turned = entries.get("rope.freqs_cos")
    if turned is not None:  # (L, d) of the file's own grid; the second cell of the first row decides
        if turned.ndim != 2 or len(turned) < 2 or turned.shape[1] < 1:
            raise CheckpointError(f"rope.freqs_cos is {tuple(turned.shape)}; (L, d) is expected")
        spread = cells / math.isqrt(len(turned))
        if abs(float(turned[1, turned.shape[1] // 2]) - math.cos(spread)) > 1e-3:
            raise CheckpointError(f"its rotary positions do not span {cells} cells as those of EVA-02 and EVA-X do")
    return {"rope_base": _EVA_BASE, "rope_cells": cells}


def _interleaved_to_halves(state: dict[str, Tensor], depth: int, heads: int) -> None:
    """Reorder channels of queries and keys within each head: EVA-02 turns neighbours, here halves are turned."""
    for block in range(depth):
        for kind in ("weight", "bias"):
            name, weight = (f"blocks.{block}.attn.qkv.{one}" for one in (kind, "weight"))
            if name in state and state[name].shape[:1] == state[weight].shape[:1]:  # others are refused by name
                parts = state[name].unflatten(0, (3, heads, -1, 2)).clone()
                halves = parts.transpose(2, 3).flatten(2, 3)
                whole = state[name].unflatten(0, (3, heads, -1))
                state[name] = torch.cat([halves[:2], whole[2:]]).flatten(0, 2)


def _heads(width: int, state: Mapping[str, Tensor], settings: Mapping[str, Any], assumed: list[str]) -> int:
    if (heads := settings.get("num_attention_heads")) is not None:
        if width % heads:
            raise CheckpointError(f"{heads} attention heads (config.json) do not divide a width of {width}")
        return int(heads)
    per_head = {4096: 128}.get(width, 80 if width == 1280 and "blocks.0.scale1" not in state else 64)
    if width % per_head:
        raise CheckpointError(f"heads of {per_head} channels do not divide a width of {width}; put num_attention_heads "
                              "into a config.json beside the weights")  # fmt: skip
    assumed.append(f"{width // per_head} attention heads")
    return width // per_head


def _normalisation(channels: int, settings: Mapping[str, Any], assumed: list[str]) -> dict[str, Any]:
    if "mean" in settings and "std" in settings:
        return {"mean": settings["mean"], "std": settings["std"]}
    if channels != 3:
        assumed.append("normalisation by mean 0.5 and standard deviation 0.25")
        return {"mean": 0.5, "std": 0.25}
    assumed.append("normalisation by ImageNet's mean and standard deviation")
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _settings(folder: Path) -> dict[str, Any]:
    """Read the settings in Hugging Face's and timm's JSON files beside the weights."""
    config, reading = read_object(folder / "config.json"), read_object(folder / "preprocessor_config.json")
    names = ("num_attention_heads", "layer_norm_eps", "rope_theta", "hidden_act")
    found: dict[str, Any] = {name: config[name] for name in names if config.get(name) is not None}
    if config.get("model_type") == "dinov2":
        found.pop("hidden_act", None)  # its gated MLPs use SiLU regardless of this value
    arguments, trained = (_object(config, name) for name in ("model_args", "pretrained_cfg"))
    if "num_heads" in arguments:
        found["num_attention_heads"] = arguments["num_heads"]
    mean, std = reading.get("image_mean", trained.get("mean")), reading.get("image_std", trained.get("std"))
    found = {**found, "mean": mean, "std": std} if mean and std else found
    for name, value in found.items():
        _refuse_odd_setting(name, value)
    return found


def _refuse_odd_setting(name: str, value: Any) -> None:
    """Refuse impossible values in a JSON file beside the weights."""
    numbers = value if isinstance(value, list) and name in ("mean", "std") else [value]
    fine = all(isinstance(n, int | float) and not isinstance(n, bool) and -1e9 < n < 1e9 for n in numbers)
    if name == "num_attention_heads":
        fine = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_HEADS
    elif name == "hidden_act":
        fine = isinstance(value, str)
    elif name != "mean":
        fine = fine and all(n > 0 for n in numbers)
    if not fine:
        raise CheckpointError(f"{name} is {str(value)[:100]} in a JSON file beside it, which cannot be meant; mend it")


def _object(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = next((path / name for name in _FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path}: none of {', '.join(_FILES)} is there")
    return file


def _read(file: Path) -> Mapping[str, Any]:
    if file.suffix != ".safetensors":
        return read_checkpoint(file)
    try:
        return load_file(file)
    except (*UNREADABLE, SafetensorError) as error:
        raise CheckpointError(f"it cannot be read: {error}") from error
