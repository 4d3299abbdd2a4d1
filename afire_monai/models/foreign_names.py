"""Map the weight names of other projects' vision transformers to the names used here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from afire_monai.core.errors import CheckpointError

# entries in which checkpoints keep the weights; their authors evaluate a teacher or a moving average
_ENTRIES = ("teacher", "model_ema", "ema", "model", "state_dict", "module", "student")
_PATCH = re.compile(r"^(.*?)(?:patch_embed\.proj|embeddings\.patch_embeddings(?:\.projection)?)\.weight$")
# parts of pre-training that are not an encoder, and buffers that are computed here
_NOT_ENCODER = re.compile(
    r"^(decoder|mask_token|embeddings\.mask_token|head|heads|pre_logits|lm_head|fc(?!_norm)|classifier|pooler|projector|predictor|"
    r"dino_head|ibot_head|contrastive|rope|rope_embed|rope_embeddings|pos_drop)([._].*)?$|\.attn\.k_bias$|\.bias_mask$"
)
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.", ""),
        (r"^(?:model\.|encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks of blocks
        (r"^patch_embed(?:dings)?\.(?:proj(?:ection)?\.)?", "patch_embed."),
        (r"^(?:pos_embed|position_embeddings)$", "positions"),
        (r"^(?:reg_token|register_tokens|storage_tokens)$", "registers"),
        (r"^(?:layernorm|fc_norm)\.", "norm."),
        (r"\.(?:layernorm_before)\.", ".norm1."),
        (r"\.(?:layernorm_after)\.", ".norm2."),
        (r"\.(?:ls|gamma_|layer_scale)([12])(?:\.gamma|\.lambda1)?$", r".scale\1"),
        (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attn.{m[1][0]}_proj."),
        (r"\.attention\.output\.dense\.", ".attn.out_proj."),
        (r"\.attention\.o_proj\.", ".attn.out_proj."),
        (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"\.attn\.([qv])_bias$", r".attn.\1_proj.bias"),
        (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
        (r"\.intermediate\.dense\.", ".mlp.linear1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.linear2."),
        (r"\.mlp\.(?:w12|weights_in)\.", ".mlp.linear1."),
        (r"\.mlp\.(?:w1|fc1_g|gate_proj)\.", ".mlp.gate."),
        (r"\.mlp\.(?:w2|fc1_x)\.", ".mlp.value."),
        (r"\.mlp\.(?:w3|weights_out|fc2|down_proj)\.", ".mlp.linear2."),
        (r"\.mlp\.fc1\.", ".mlp.linear1."),
        (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    )
)


def encoder_entries(source: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Find the encoder's tensors in a checkpoint.

    Args:
        source: tensors by name, perhaps within entries such as ``model`` or ``teacher`` and behind prefixes such as
            ``module.backbone.``.

    Returns:
        Tensors by the name that the encoder itself gives them, and the names of everything else.

    Raises:
        CheckpointError: if there is no vision transformer.
    """
    left: list[str] = []
    state: Mapping[str, Any] = source
    while not any(isinstance(value, Tensor) for value in state.values()):
        entry = next((name for name in _ENTRIES if isinstance(state.get(name), Mapping)), None)
        if entry is None:
            raise CheckpointError(f"it contains no weights: it holds {', '.join(map(str, state)) or 'nothing'}")
        left += [str(name) for name in state if name != entry]
        state = state[entry]
    prefixes = [match[1] for name in state if (match := _PATCH.match(str(name)))]
    if not prefixes:
        raise CheckpointError(
            f"it is not a vision transformer: no patch embedding among {len(state)} names: "
            f"{', '.join(list(state)[:3])}, …"
        )
    prefix = next((p for p in prefixes if re.search("teacher|ema", p)), prefixes[0])
    found = {}
    for name, value in state.items():
        if name.startswith(prefix) and isinstance(value, Tensor):
            found[name.removeprefix(prefix)] = value
        else:
            left.append(str(name))
    return found, left


def to_own_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Rename tensors, and join those that are one here: queries, keys and values; gate and value of a gated MLP.

    Args:
        state: the encoder's tensors.

    Returns:
        Tensors by their name here, their former names, and the names that are not part of an encoder.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left = []
    both_norms = "norm.weight" in state and "fc_norm.weight" in state
    for name, value in state.items():
        if _NOT_ENCODER.search(name) or (both_norms and name.startswith("fc_norm.")):
            left.append(name)
            continue
        own = name
        for pattern, replacement in _RENAMES:
            own = pattern.sub(replacement, own)
        if name.endswith(".attn.qkv.bias") and (mask := state.get(f"{name}_mask")) is not None:
            if mask.shape != value.shape:
                raise CheckpointError(f"{name}_mask is {tuple(mask.shape)}, and {name} {tuple(value.shape)}")
            value = torch.where(mask.nan_to_num() == 0, torch.zeros_like(value), value)  # DINOv3's keys have no bias
        renamed[own], origin[own] = value, name
    _join(renamed, origin, "attn.qkv", ("attn.q_proj", "attn.k_proj", "attn.v_proj"))
    _join(renamed, origin, "mlp.linear1", ("mlp.gate", "mlp.value"))
    # timm and DINOv3's rule: an `up_proj` without a gate is the first layer of a plain MLP
    for name in [n for n in renamed if ".mlp.up_proj." in n]:
        stem, _, kind = name.partition(".mlp.up_proj.")
        gate = renamed.pop(f"{stem}.mlp.gate.{kind}", None)
        up = renamed.pop(name)
        own = f"{stem}.mlp.linear1.{kind}"
        renamed[own] = up if gate is None else _stacked(own, [gate, up])
        origin[own] = origin.pop(name)
    return renamed, origin, left


def _join(state: dict[str, Tensor], origin: dict[str, str], whole: str, parts: tuple[str, ...]) -> None:
    """Put weights of parts under each other; a bias that only some have is zero in the others."""
    blocks = sorted({match[1] for name in state if (match := re.match(r"(blocks\.\d+)\.", name))})
    for block in blocks:
        weights = [state.get(f"{block}.{part}.weight") for part in parts]
        present = [weight for weight in weights if weight is not None]
        biases = [state.pop(f"{block}.{part}.bias", None) for part in parts] if _separate(state, block, parts) else []
        if len(present) == len(parts):
            for part in parts:
                state.pop(f"{block}.{part}.weight")
            name = f"{block}.{whole}.weight"
            state[name], origin[name] = _stacked(name, present), origin[f"{block}.{parts[0]}.weight"]
        joined = state.get(f"{block}.{whole}.weight")
        if joined is not None and any(bias is not None for bias in biases):
            name = f"{block}.{whole}.bias"
            size = len(_stacked(name, [joined])) // len(parts)
            state[name] = _stacked(name, [joined.new_zeros(size) if bias is None else bias for bias in biases])
            origin[name] = f"{block}.{parts[0]}.bias"


def _stacked(name: str, parts: list[Tensor]) -> Tensor:
    """Put tensors under each other.

    Raises:
        CheckpointError: if their other sides differ, with the name of the joined tensor.
    """
    if not all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CheckpointError(f"parts of {name} are {shapes}, which do not fit under each other")
    return torch.cat(parts)


def _separate(state: Mapping[str, Tensor], block: str, parts: tuple[str, ...]) -> bool:
    """Whether a block has all parts of a joined weight, or the joined weight with separate biases (EVA-02)."""
    whole = f"{block}.attn.qkv.weight" in state and parts[0] == "attn.q_proj"
    return whole or all(f"{block}.{part}.weight" in state for part in parts)
