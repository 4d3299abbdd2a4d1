"""Detect JPEG data that end early behind a valid end marker: decoders fill in the missing part silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA_MISSING = "data are missing before the end marker, and so a part of the picture. Copy the file again"

_END = b"\xff\xd9"
_MORE = bytes((place * 73 + 41) % 255 for place in range(64))
"""Data without a marker; 64 bytes change at least one block of 8 × 8 pixels."""


def ends_early(stream: bytes, pixels: NDArray[Any], decode: Callable[[bytes], NDArray[Any]]) -> bool:
    """Return whether a JPEG or JPEG-LS stream has fewer data than its picture needs.

    A decoder that has all pixels ignores further data before the end marker; one that is still waiting for some uses
    them, so that its picture changes or it fails. The picture is decoded a second time for this.

    Args:
        stream: from the start marker to the end marker; without an end marker, decoders say that it is cut off.
        pixels: (H, W) or (H, W, C), decoded from it.
        decode: function from a stream to its picture; it may raise any exception.
    """
    end = stream.rfind(_END)
    if end < 0:
        return False
    try:
        return not np.array_equal(pixels, decode(stream[:end] + _MORE + stream[end:]))
    except Exception:  # the data were used, and are not a picture
        return True


def ends_flat(pixels: NDArray[Any]) -> bool:
    """Return whether the last block of (H, W) or (H, W, C) pixels has equal rows, as where a lossy block is missing.

    Missing blocks of a baseline JPEG are one grey, so that only pictures which end flat need a second decoding.
    """
    return pixels.shape[0] < 2 or bool((pixels[-1, -8:] == pixels[-2, -8:]).all())
