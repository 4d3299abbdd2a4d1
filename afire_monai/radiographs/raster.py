"""PNG and JPEG radiographs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.radiographs.picture import Picture, check_size, refusal

COLOUR_DIFFERENCE = 16
"""Largest difference between channels, of 255, that still counts as grey (JPEG rounds chroma)."""
COLOUR_SHARE = 0.005
"""Largest share of pixels beyond `COLOUR_DIFFERENCE` (a small coloured marker is let through)."""

WhiteLevel = int | Literal["dtype", "image"]


def read_raster(path: Path, png16_max: WhiteLevel = "dtype") -> Picture:
    """Decode a PNG or JPEG file.

    8-bit values are divided by 255 and 1-bit values by 1. Three equal channels are one channel (the luma of the
    three). Transparent pixels are black. Rows are the stored rows: an EXIF orientation is not applied.

    Args:
        path: the file.
        png16_max: what is white in a 16-bit PNG: "dtype" 65535; "image" the largest value of the image (12-bit pictures
            in 16-bit files would be nearly black otherwise, but each image then has its own scale); or a number such
            as 4095 for all images, which is best where the depth is known.

    Returns:
        The picture; PNG and JPEG carry no spacing that can be trusted, so it is NaN.

    Raises:
        RadiographError: broken, truncated, colour, animated or too large.
    """
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise refusal(path, "multi-frame", f"it holds {frames} frames; one radiograph a file is read")
        image.load()
        return _to_picture(path, image, png16_max)


def raster_size(path: Path) -> tuple[int, int]:
    """Return rows and columns of a PNG or JPEG file, from its header.

    Raises:
        RadiographError: broken or too large.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of acceptable size; what goes wrong until it is closed becomes a refusal."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            check_size(path, image.height, image.width)
            yield image
    except Image.DecompressionBombError as error:
        raise refusal(path, "image too large", f"{error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if hasattr(error, "kind"):  # a refusal of our own
            raise
        reason = str(error).replace(str(path), "").strip(" '\"") or type(error).__name__
        raise refusal(
            path, "broken or truncated", f"the pixels do not decode ({reason}). Copy the file again from its source"
        ) from error


def _to_picture(path: Path, image: Image.Image, png16_max: WhiteLevel) -> Picture:
    name = "JPEG" if image.format == "MPO" else str(image.format)
    if image.mode == "1":
        return Picture(np.asarray(image, dtype=np.float32), name, "/1", bits=1)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        white = _white_level(path, values, png16_max)
        return Picture(_divided(values, white), name, f"/{white:g}", bits=16)
    if image.mode != "L":
        image = _to_grey(path, image)
    return Picture(_divided(np.asarray(image), 255.0), name, "/255", bits=8)


def _divided(values: NDArray[Any], white: float) -> NDArray[np.float32]:
    """Divide in float32 without a float copy of the values in between."""
    return np.divide(values, np.float32(white), dtype=np.float32, casting="unsafe")


def _white_level(path: Path, values: NDArray[Any], png16_max: WhiteLevel) -> float:
    largest = float(values.max())
    if png16_max == "image":
        return max(largest, 1.0)
    white = 65535.0 if png16_max == "dtype" else float(png16_max)
    if largest > white:
        raise refusal(
            path,
            "value above white",
            f"the largest value is {largest:g}, but png16_max is {white:g}. Use a larger one, 'dtype' or 'image'",
        )
    return white


def _to_grey(path: Path, image: Image.Image) -> Image.Image:
    """One 8-bit channel from a palette, transparent, three- or four-channel image that shows grey only."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    rgb = image.convert("RGB")
    channels = np.asarray(rgb)
    spread = channels.max(axis=2) - channels.min(axis=2)
    share = float((spread > COLOUR_DIFFERENCE).mean())
    if share > COLOUR_SHARE:
        raise refusal(
            path,
            "colour image",
            f"{share:.1%} of its pixels differ between channels by more than {COLOUR_DIFFERENCE} of 255; a radiograph "
            "is grey. Remove the file from the list, or convert it to grey if the colour is only a tint",
        )
    return rgb.convert("L")
