"""Weights stored as 8-bit integers, a quarter of the size, for the encoders included in the package."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = ".scale"
LEAST = 4096


def pack_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with large matrices as int8 and a scale for each row (output channel).

    A weight w of a row becomes round(w / s) with s = max |w| / 127, so it moves by at most s / 2. Vectors and small
    tensors stay as they are.

    Args:
        tensors: float32, by name.

    Returns:
        The same names; for each matrix (N, …) also ``NAME.scale`` (N,), float32.
    """
    packed = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < LEAST or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
        packed[name + SCALE] = scale
    return packed


def unpack_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `pack_int8` packed, as float32; other tensors are unchanged."""
    scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    return {
        name: tensor.float() * tensors[name + SCALE].reshape(-1, *[1] * (tensor.ndim - 1))
        if tensor.dtype == torch.int8
        else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }
