"""Small vision transformers with random weights under the names of published checkpoints, and a slow forward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

DIM, HEADS, DEPTH, HIDDEN = 64, 1, 2, 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_vit(
    side: int = 4,
    patch: int = 8,
    gated: bool = False,
    scaled: bool = False,
    registers: int = 0,
    positions: bool = True,
    inner_norms: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Plain parts of a transformer of width 64, 2 blocks and 1 head, on a grid of side x side cells."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
        return some(outputs, inputs), some(outputs)

    def norm(size: int = DIM) -> tuple[Tensor, Tensor]:
        return 1 + some(size), some(size)

    blocks = [
        {
            "norm1": norm(),
            "q": linear(DIM, DIM),
            "k": linear(DIM, DIM),
            "v": linear(DIM, DIM),
            "attn_norm": norm() if inner_norms else None,
            "out": linear(DIM, DIM),
            "ls1": some(DIM) if scaled else None,
            "norm2": norm(),
            "first": linear(HIDDEN, DIM),
            "gate": linear(HIDDEN, DIM) if gated else None,
            "mlp_norm": norm(HIDDEN) if inner_norms else None,
            "second": linear(DIM, HIDDEN),
            "ls2": some(DIM) if scaled else None,
        }
        for _ in range(DEPTH)
    ]
    return {
        "patch": (some(DIM, 3, patch, patch), some(DIM)),
        "cls": some(1, 1, DIM),
        "positions": some(1, 1 + side * side, DIM) if positions else None,
        "registers": some(1, registers, DIM) if registers else None,
        "blocks": blocks,
        "norm": norm(),
    }


def slow_tokens(vit: dict[str, Any], images: Tensor, eps: float = 1e-6, rope: str | None = None) -> Tensor:
    """Tokens (B, 1 + L, D) of grey images (B, 1, H, W), repeated thrice, in float64.

    Args:
        vit: of :func:`random_vit`.
        images: grey, in 0…1.
        eps: of the layer norms.
        rope: ``dinov3`` (halves are turned; coordinates -1…1) or ``eva`` (neighbours are turned; 0…14 in 14ths).
    """
    return torch.stack([_slow_image(vit, image.double(), eps, rope) for image in images[:, 0]]).float()


def _slow_image(vit: dict[str, Any], image: Tensor, eps: float, rope: str | None) -> Tensor:
    kernel, bias = (part.double() for part in vit["patch"])
    patch = kernel.shape[-1]
    side = len(image) // patch
    rows = [vit["cls"][0, 0].double()]
    for row in range(side):
        for column in range(side):
            cell = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            colours = torch.stack([(cell - m) / s for m, s in zip(MEAN, STD, strict=True)])
            rows.append((kernel * colours).sum((1, 2, 3)) + bias)
    tokens = torch.stack(rows)
    if vit["positions"] is not None:
        tokens = tokens + vit["positions"][0].double()
    count = len(tokens)
    if vit["registers"] is not None:
        tokens = torch.cat([tokens, vit["registers"][0].double()])
    for block in vit["blocks"]:
        x = _norm(tokens, block["norm1"], eps)
        q, k, v = (_linear(x, block[name]) for name in "qkv")
        if rope:
            for cell in range(side * side):
                q[1 + cell] = _turned(q[1 + cell], cell // side, cell % side, side, rope)
                k[1 + cell] = _turned(k[1 + cell], cell // side, cell % side, side, rope)
        mixed = (q @ k.T / math.sqrt(DIM // HEADS)).softmax(-1) @ v
        if block["attn_norm"] is not None:
            mixed = _norm(mixed, block["attn_norm"], eps)
        change = _linear(mixed, block["out"])
        tokens = tokens + (change if block["ls1"] is None else change * block["ls1"].double())
        x = _norm(tokens, block["norm2"], eps)
        hidden = _linear(x, block["first"])
        if block["gate"] is None:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        else:
            gate = _linear(x, block["gate"])
            hidden = gate / (1 + torch.exp(-gate)) * hidden
        if block["mlp_norm"] is not None:
            hidden = _norm(hidden, block["mlp_norm"], eps)
        change = _linear(hidden, block["second"])
        tokens = tokens + (change if block["ls2"] is None else change * block["ls2"].double())
    return _norm(tokens[:count], vit["norm"], eps)


def _linear(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return x @ weights[0].double().T + weights[1].double()


def _norm(x: Tensor, weights: tuple[Tensor, Tensor], eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[0].double() + weights[1].double()


def _turned(x: Tensor, row: int, column: int, side: int, rope: str) -> Tensor:
    half, result = DIM // 2, x.clone()
    for pair in range(half):
        place = row if pair < half // 2 else column
        number = pair % (half // 2)
        if rope == "dinov3":
            angle = 2 * math.pi * (2 * (place + 0.5) / side - 1) / 100 ** (4 * number / DIM)
            one, other = pair, pair + half
        else:
            angle = place * (224 // 8) / side / 10000 ** (4 * number / DIM)
            one, other = 2 * pair, 2 * pair + 1
        result[one] = x[one] * math.cos(angle) - x[other] * math.sin(angle)
        result[other] = x[other] * math.cos(angle) + x[one] * math.sin(angle)
    return result


def _pair(state: dict[str, Tensor], name: str, weights: tuple[Tensor, Tensor]) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = weights


def facebook_names(vit: dict[str, Any], registers: str = "register_tokens", mlp: str = "fused") -> dict[str, Tensor]:
    """Names of MAE, DINO, DINOv2 and DINOv3 (the same in timm): ``mlp`` is fused (w12) or separate (w1, w2)."""
    state: dict[str, Tensor] = {"cls_token": vit["cls"]}
    if vit["positions"] is not None:
        state["pos_embed"] = vit["positions"]
    if vit["registers"] is not None:
        state[registers] = vit["registers"]
    _pair(state, "patch_embed.proj", vit["patch"])
    for number, block in enumerate(vit["blocks"]):
        at = f"blocks.{number}"
        for name, key in (("norm1", "norm1"), ("attn.proj", "out"), ("norm2", "norm2")):
            _pair(state, f"{at}.{name}", block[key])
        joined = [torch.cat([block[name][kind] for name in "qkv"]) for kind in (0, 1)]
        _pair(state, f"{at}.attn.qkv", (joined[0], joined[1]))
        for place in (1, 2):
            if block[f"ls{place}"] is not None:
                state[f"{at}.ls{place}.gamma"] = block[f"ls{place}"]
        if block["gate"] is None:
            _pair(state, f"{at}.mlp.fc1", block["first"])
            _pair(state, f"{at}.mlp.fc2", block["second"])
        else:
            if mlp == "fused":
                both = [torch.cat([block["gate"][kind], block["first"][kind]]) for kind in (0, 1)]
                _pair(state, f"{at}.mlp.w12", (both[0], both[1]))
            else:
                _pair(state, f"{at}.mlp.w1", block["gate"])
                _pair(state, f"{at}.mlp.w2", block["first"])
            _pair(state, f"{at}.mlp.w3", block["second"])
    _pair(state, "norm", vit["norm"])
    return state


def huggingface_dinov2_names(vit: dict[str, Any]) -> dict[str, Tensor]:
    """Names of ``Dinov2Model`` as saved, RAD-DINO's among them."""
    state = {
        "embeddings.cls_token": vit["cls"],
        "embeddings.mask_token": torch.zeros(1, DIM),
        "embeddings.position_embeddings": vit["positions"],
    }
    _pair(state, "embeddings.patch_embeddings.projection", vit["patch"])
    for number, block in enumerate(vit["blocks"]):
        at = f"encoder.layer.{number}"
        for name, key in (("query", "q"), ("key", "k"), ("value", "v")):
            _pair(state, f"{at}.attention.attention.{name}", block[key])
        _pair(state, f"{at}.attention.output.dense", block["out"])
        for name, key in (("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "first"), ("mlp.fc2", "second")):
            _pair(state, f"{at}.{name}", block[key])
        for place in (1, 2):
            state[f"{at}.layer_scale{place}.lambda1"] = block[f"ls{place}"]
    _pair(state, "layernorm", vit["norm"])
    return state


def eva_names(vit: dict[str, Any]) -> dict[str, Tensor]:
    """Names of EVA-02 and EVA-X of size B, with mask token and head of masked pre-training; keys have no bias."""
    state = {"cls_token": vit["cls"], "pos_embed": vit["positions"], "mask_token": torch.zeros(1, 1, DIM)}
    _pair(state, "patch_embed.proj", vit["patch"])
    for number, block in enumerate(vit["blocks"]):
        at = f"blocks.{number}"
        for name in "qkv":
            state[f"{at}.attn.{name}_proj.weight"] = block[name][0]
        state[f"{at}.attn.q_bias"], state[f"{at}.attn.v_bias"] = block["q"][1], block["v"][1]
        _pair(state, f"{at}.attn.inner_attn_ln", block["attn_norm"])
        _pair(state, f"{at}.attn.proj", block["out"])
        for name, key in (
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("mlp.w1", "gate"),
            ("mlp.w2", "first"),
            ("mlp.ffn_ln", "mlp_norm"),
            ("mlp.w3", "second"),
        ):
            _pair(state, f"{at}.{name}", block[key])
    _pair(state, "norm", vit["norm"])
    _pair(state, "lm_head", (torch.zeros(8, DIM), torch.zeros(8)))
    return state
