"""Choose the device and its numerical precision: the one place that defines what ``float32`` means on a GPU."""

from __future__ import annotations

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


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
