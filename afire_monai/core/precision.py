"""Choose the device and its numerical precision: the one place that defines what ``float32`` means on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from afire_monai.core.errors import AfireError

PRECISIONS = ("float32", "tf32", "bfloat16")


def set_precision(precision: str) -> torch.dtype:
    """Set the precision of matrix products and convolutions of float32 numbers, for this whole process.

    PyTorch computes convolutions in TF32 unless told otherwise, and matrix products not: here both are float32, or both
    are TF32. Both old settings are written, because they also set the new ``fp32_precision``, while the compiler cannot
    read the old ones after the new ones alone were written (PyTorch 2.9 to 2.13).

    Args:
        precision: ``float32``: no rounding. ``tf32``: GPUs since Ampere round the factors of products and convolutions
            to 10 bits of mantissa; other devices compute as for ``float32``. ``bfloat16``: networks run in bfloat16 by
            autocast, all else as for ``float32``.

    Returns:
        The type in which networks run: bfloat16 or float32.

    Raises:
        AfireError: for any other value.
    """
    if precision not in PRECISIONS:
        raise AfireError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def bfloat16_is_slow(device: torch.device) -> bool:
    """Return whether a device is an x86 CPU without AMX or AVX512-BF16, on which bfloat16 takes longer than float32."""
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch 2.9 may not say
    x86 = able.get("architecture") == "x86_64"
    return device.type == "cpu" and bool(x86) and not (able.get("amx_bf16") or able.get("avx512_bf16"))


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
