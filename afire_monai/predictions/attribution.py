"""Show where a model looked: Grad-CAM on the token map, and attention rollout."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks import ViTEncoder


def grad_cam(model: nn.Module, images: Tensor, label: int, block: int | None = None) -> Tensor:
    """Map the evidence for a label: Grad-CAM (Selvaraju et al., ICCV 2017) on the encoder's patch tokens or last map.

    Channels are weighted by the mean gradient of the label's logit over the patch tokens (the map's cells), summed, and
    negative values cut off. The class token is not a place in the picture and is left out.

    Args:
        model: model with an ``encoder`` (`Encoder`) that returns logits (B, C). Weights are not
            changed and collect no gradient.
        images: (B, C, H, W) in 0…1.
        label: column of the logits.
        block: block whose output the map is made of, negative counts from the end; None for the encoder's output or, if
            a transformer's has no gradient because only the class token is used further (pooling ``class``), for the
            input of the last block (this project's reading: the paper names no layer for transformers).

    Returns:
        (B, h, w) float32, at least 0; comparable within an image, not between images. The grid is that of the tokens;
        finer after the earlier blocks of a ResNet.

    Raises:
        AfireError: for a label or block that does not exist.
    """
    encoder: Any = model.encoder
    layer: nn.Module = encoder.attribution_layer(block, getattr(model, "pooling", "mean") == "class")
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # cut off here: earlier layers need no gradient, and frozen weights would give tokens without one
        kept.append(output.detach().requires_grad_())
        return kept[0]

    with layer.register_forward_hook(keep), torch.enable_grad():
        logits = model(images)
        if not 0 <= label < logits.shape[1]:
            raise AfireError(f"label {label} is not one of the {logits.shape[1]} columns of the logits")
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), kept[0])
    values, gradient = kept[0].detach().float(), gradient.float()
    if values.ndim == 3:  # tokens (B, 1 + L, D)
        grid = encoder.grid_of(images.shape[2], images.shape[3])
        values, gradient = (t[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid) for t in (values, gradient))
    return F.relu((gradient.mean((2, 3), keepdim=True) * values).sum(1))


@torch.no_grad()
def attention_rollout(model: nn.Module, images: Tensor) -> Tensor:
    """Map where attention flows from: attention rollout (Abnar and Zuidema, ACL 2020).

    Attention is averaged over heads, mixed half and half with the identity for the residual connection, and multiplied
    over the layers. It shows where the model looked, for no label in particular. Followed is what the model pools: the
    class token or, also if it does not say, the mean of the patch tokens.

    Args:
        model: an encoder, or a module with ``encoder``.
        images: (B, C, H, W) in 0…1.

    Returns:
        (B, h, w) float32, at least 0: the share of each patch; the class token's share is left out.

    Raises:
        AfireError: for an encoder without attention.
    """
    encoder: Any = getattr(model, "encoder", model)
    if not isinstance(encoder, ViTEncoder):
        raise AfireError(
            f"attention rollout needs a transformer; {type(encoder).__name__} has no attention between places. Use "
            "Grad-CAM of a classifier instead"
        )
    maps = attention_maps(encoder, images)
    identity = torch.eye(maps[0].shape[-1], device=images.device)
    rollout = identity
    for attention in maps:
        rollout = 0.5 * (attention + identity) @ rollout
    h, w = encoder.grid_of(images.shape[2], images.shape[3])
    # class token and patch tokens come last, behind registers
    of_class = getattr(model, "pooling", "mean") == "class"
    shares = rollout[:, -h * w - 1] if of_class else rollout[:, -h * w :].mean(1)
    return shares[:, -h * w :].view(len(images), h, w)


def attention_maps(encoder: Any, images: Tensor) -> list[Tensor]:
    """Return each block's attention, averaged over heads: (B, 1 + L, 1 + L) float32; rows sum to 1, registers first.

    The fused attention of the blocks does not keep its weights; they are computed again from its input.
    """
    maps: list[Tensor] = []

    def note(attention: Any, arguments: tuple[Tensor, ...]) -> None:
        q, k = (part.float() for part in attention.heads(*arguments)[:2])
        maps.append((q @ k.transpose(-1, -2) * attention.scale).softmax(-1).mean(1))

    with ExitStack() as hooks:
        for block in encoder.blocks:
            hooks.enter_context(block.attn.register_forward_pre_hook(note))
        encoder(images)
    return maps
