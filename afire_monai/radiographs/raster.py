"""PNG and JPEG radiographs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import RadiographError
from afire_monai.core.files import whole_file
from afire_monai.radiographs.missing_data import DATA_MISSING, ends_early, ends_flat
from afire_monai.radiographs.picture import Picture, check_size, refusal

COLOUR_DIFFERENCE = 16
"""Largest difference between channels, of 255, that still counts as grey (JPEG rounds chroma)."""
COLOUR_SHARE = 0.005
"""Largest share of pixels beyond `COLOUR_DIFFERENCE` (a small coloured marker is let through)."""

_COMMENTS = (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf", b"iCCP", b"pHYs", b"gAMA", b"cHRM",
             b"sRGB", b"bKGD", b"hIST")  # fmt: skip
WhiteLevel = int | Literal["dtype", "image"]


def write_png(path: Path, pixels: NDArray[Any], shared: bool = False, **options: Any) -> None:
    """Write a picture, (H, W) or (H, W, 3), as a whole file (`whole_file`); options are Pillow's."""
    with whole_file(path, shared=shared) as part:
        Image.fromarray(pixels).save(part, format="PNG", **options)


def read_raster(path: Path, png16_max: WhiteLevel = "dtype") -> Picture:
    """Decode a PNG or JPEG file. These carry no spacing that can be trusted, so it is NaN.

    8-bit values are divided by 255 and 1-bit values by 1. Three equal channels are one channel (the luma of the
    three). Transparent pixels are black. Rows are the stored rows: an EXIF orientation is not applied.

    Args:
        path: the file.
        png16_max: white level of a 16-bit PNG: "dtype" for 65535; "image" for the largest value of the image (12-bit
            pictures in 16-bit files would be nearly black otherwise, but each image then has its own scale); or a
            number such as 4095 for all images, which is best if the depth is known.

    Raises:
        RadiographError: if the file is broken, truncated, in colour, animated or too large.
    """
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise refusal(path, "multi-frame", f"it holds {frames} frames; one radiograph a file is read")
        tiles = getattr(image, "tile", [])
        raw = str(tiles[0].args) if tiles else ""
        if raw in ("RGB;16B", "RGBA;16B", "LA;16B"):
            return _deep_picture(path, image, raw, png16_max)
        image.load()
        if image.format != "PNG":
            _check_end(path, image)
        return _to_picture(path, image, raw, png16_max)


def raster_size(path: Path) -> tuple[int, int]:
    """Return rows and columns of a PNG or JPEG file, from its header; RadiographError: broken or too large."""
    with _opened(path) as image:
        return image.height, image.width


def _without_comments(path: Path) -> io.BytesIO | None:
    """Return a PNG without its comments, colour profiles and the like, which may be damaged; None if there are none."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _COMMENTS:
            kept.append(data[at:end])
        at = end
    plain = b"".join(kept)
    return io.BytesIO(plain) if len(plain) < len(data) else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture of acceptable size; errors until it is closed become a refusal."""
    try:
        with contextlib.ExitStack() as stack:
            try:
                image = stack.enter_context(Image.open(path, formats=("PNG", "JPEG")))
            except (OSError, SyntaxError, ValueError) as error:
                plain = _without_comments(path)
                try:
                    image = stack.enter_context(Image.open(plain or path, formats=("PNG",)))
                except (OSError, SyntaxError, ValueError):
                    raise error from None
            check_size(path, image.height, image.width)
            yield image
    except Image.DecompressionBombError as error:
        raise refusal(path, "image too large", f"{error}") from error
    except RadiographError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # a part may claim any length
        reason = str(error).replace(str(path), "").strip(" '\"") or type(error).__name__
        raise refusal(
            path, "broken or truncated", f"the pixels do not decode ({reason}). Copy the file again from its source"
        ) from error


def _check_end(path: Path, image: Image.Image) -> None:
    """Refuse a JPEG with fewer data than its picture needs."""
    last = image.crop((max(image.width - 8, 0), max(image.height - 2, 0), image.width, image.height))
    if not image.info.get("progressive") and not ends_flat(np.asarray(last)):
        return
    if ends_early(path.read_bytes(), np.asarray(image), _jpeg):
        raise refusal(path, "broken or truncated", DATA_MISSING)


def _jpeg(stream: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(stream), formats=("JPEG",)) as image:
        return np.asarray(image)


def _deep_picture(path: Path, image: Any, raw: str, png16_max: WhiteLevel) -> Picture:
    """Decode a PNG with several channels of 16 bits, of which Pillow by itself keeps the upper 8.

    Grey and alpha are decoded as four channels of 8 bits. The lower bytes of other pictures come from a second decoding
    in the other byte order.
    """
    if raw == "LA;16B":
        image.tile = [image.tile[0]._replace(args="RGBA")]
        pairs = np.asarray(image).reshape(image.height, image.width, 2, 2)
        values = pairs[..., 0].astype(np.uint16) << 8 | pairs[..., 1]
    else:
        with _opened(path) as low:
            low.tile = [low.tile[0]._replace(args=raw.replace("16B", "16L"))]  # type: ignore[attr-defined]
            values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
    channels, alpha = (values[..., :-1], values[..., -1:]) if raw[:-4].endswith("A") else (values, None)
    grey = channels[..., 0]
    if channels.shape[2] == 3:
        refuse_colour(path, (channels >> 8).astype(np.uint8))
        grey = np.rint(channels @ np.array([0.299, 0.587, 0.114])).astype(np.uint16)
    if alpha is not None:
        grey = (grey.astype(np.uint32) * alpha[..., 0] // 65535).astype(np.uint16)
    elif image.info.get("transparency") is not None:
        grey[(channels == np.array(image.info["transparency"])).all(axis=2)] = 0
    white = _white_level(path, grey, png16_max)
    return Picture(_divided(grey, white), "PNG", f"/{white:g}", bits=16)


def _to_picture(path: Path, image: Image.Image, raw: str, png16_max: WhiteLevel) -> Picture:
    name = "JPEG" if image.format == "MPO" else str(image.format)
    clear = image.info.get("transparency") if name == "PNG" and image.mode in ("1", "L", "I;16", "I") else None
    if isinstance(clear, int):  # a grey value; the decoder spreads fewer than 8 bits over 0…255
        if raw.startswith("L;"):
            clear = clear * 255 // (2 ** int(raw[2]) - 1)
        values = np.asarray(image)
        kept = values != (bool(clear) if image.mode == "1" else clear)
        image = Image.fromarray(values * kept)
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
    refuse_colour(path, np.asarray(rgb))
    return rgb.convert("L")


def refuse_colour(path: Path, channels: NDArray[np.uint8]) -> None:
    """Refuse (H, W, 3) whose channels differ."""
    spread = channels.max(axis=2) - channels.min(axis=2)
    share = float((spread > COLOUR_DIFFERENCE).mean())
    if share > COLOUR_SHARE:
        raise refusal(
            path,
            "colour image",
            f"{share:.1%} of its pixels differ between channels by more than {COLOUR_DIFFERENCE} of 255; a radiograph "
            "is grey. Remove the file from the list, or convert it to grey if the colour is only a tint",
        )
