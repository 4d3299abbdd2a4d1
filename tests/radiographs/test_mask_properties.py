"""Any mask in any form of PNG, against what its numbers and palette say by the PNG specification, pixel by pixel."""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.masks import MaskReading, read_mask

hypothesis = pytest.importorskip("hypothesis", reason="needs hypothesis of the dev extra")
st = hypothesis.strategies

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types of PNG."""
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}

greys = st.sampled_from([0, 0, 1, 2, 127, 254, 255]).map(lambda v: (v, v, v))
colours = st.one_of(*[greys] * 6, st.sampled_from([(255, 0, 0), (0, 0, 1), (254, 255, 255)]))
WHITE_FIRST, WHITE_LAST = ((255, 255, 255), (0, 0, 0)), ((0, 0, 0), (255, 255, 255))


@st.composite
def pictures(draw: Any) -> dict[str, Any]:
    """A colour type, a depth, a palette where it needs one, and numbers (H, W, channels)."""
    kind = draw(st.sampled_from([GREY] * 4 + [PALETTE] * 4 + [RGB] * 4 + [GREY_ALPHA, RGBA]))
    depth = draw(st.sampled_from(DEPTHS[kind]))
    top = 2**depth - 1
    palette = draw(st.one_of(st.sampled_from([WHITE_FIRST, WHITE_LAST]), st.lists(colours, min_size=1, max_size=4)))
    last = min(top, len(palette) - 1) if kind == PALETTE else top
    values = st.sampled_from(sorted({v for v in (0, 1, 2, 254, 255, 256, top - 1, top) if v <= last}))
    channels = CHANNELS[kind]
    alike = kind == RGB and draw(st.sampled_from([True, True, True, False]))
    pixel = values.map(lambda v: (v,) * channels) if alike else st.tuples(*[values] * channels)
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    rows = draw(st.lists(st.lists(pixel, min_size=width, max_size=width), min_size=height, max_size=height))
    return {"kind": kind, "depth": depth, "palette": palette[: top + 1], "rows": rows}


def written(picture: dict[str, Any]) -> bytes:
    """The picture as PNG, without filters."""
    depth, kind, rows = picture["depth"], picture["kind"], picture["rows"]
    lines = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for pixel in row for value in pixel)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if kind == PALETTE:
        chunks.append((b"PLTE", bytes(value for colour in picture["palette"] for value in colour)))
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def seen(picture: dict[str, Any]) -> list[list[int]] | None:
    """The grey of each pixel, 0…255 or 0…65535 of 16 bits; None for what is refused: colour, alpha, 3 × 16 bits."""
    depth, kind = picture["depth"], picture["kind"]
    if kind in (GREY_ALPHA, RGBA) or (kind, depth) == (RGB, 16):
        return None
    lines = []
    for row in picture["rows"]:
        line = []
        for pixel in row:
            if kind == PALETTE:
                pixel = picture["palette"][pixel[0]]
            elif depth < 8:  # black and white are the ends of any depth
                pixel = tuple(value * 255 // (2**depth - 1) for value in pixel)
            if len(set(pixel)) > 1:
                return None
            line.append(pixel[0])
        lines.append(line)
    return lines


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(pictures())
def test_a_mask_is_read_as_its_numbers_say_or_refused(picture: dict[str, Any]) -> None:
    wanted = seen(picture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        path.write_bytes(written(picture))
        if wanted is None:
            with pytest.raises(RadiographError, match="colour mask"):
                read_mask(path)
            return
        found = read_mask(path)
        assert found.tolist() == wanted
        size, values = found.shape, sorted(set(found.flatten().tolist()))
        planes = MaskReading(None, size, {"any": [], **{str(v): [v] for v in values}}).read_mask(str(path)).numpy()
    grid = np.asarray(wanted)
    np.testing.assert_array_equal(planes, np.stack([grid > 0, *(grid == v for v in values)]))
