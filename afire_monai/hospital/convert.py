"""Convert one DICOM file to header values, a 16-bit PNG without metadata, and measurements of the picture."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.core.errors import RadiographError
from afire_monai.core.files import whole_file
from afire_monai.core.pool import Failure
from afire_monai.hospital.forgotten import FORGOTTEN, Forgotten
from afire_monai.radiographs.dicom import picture_of
from afire_monai.radiographs.dicom_open import open_dataset, open_in_two
from afire_monai.radiographs.frontal_look import frontal_look
from afire_monai.radiographs.header import Header, check_start, header_of, read_header
from afire_monai.radiographs.judgement import judge
from afire_monai.radiographs.picture import stretch

LINE_LETTERS = 5  # fewer are not a line of text


def burned_in_text(picture: NDArray[np.float32]) -> int:
    """Count shapes like letters in a line, near the borders of a picture.

    Letters are small, much brighter or darker than their surroundings, and stand beside each other at one height. Only
    the outer sixth of each side is searched. Single side markers do not count, and neither does text that lies over the
    lungs or is rotated. The search misses some text, so it cannot prove that a picture is clean. It flagged 34 of 800
    public radiographs; the twelve of these that were inspected all bear text, most of it "PORTABLE" and the like. It
    cannot tell a name from such text.

    Args:
        picture: (H, W) in 0…1.

    Returns:
        Number of letters in the longest line; 0 if it has fewer than `LINE_LETTERS`.
    """
    height, width = picture.shape
    if min(height, width) < 96:
        return 0
    inner = np.zeros(picture.shape, dtype=bool)
    inner[height // 6 : height - height // 6, width // 6 : width - width // 6] = True
    scaled = stretch(picture.astype(np.float64))
    return max(_letters_in_line(scaled, inner), _letters_in_line(1.0 - scaled, inner))


def _letters_in_line(picture: NDArray[np.float64], inner: NDArray[np.bool_]) -> int:
    from scipy import ndimage

    side = max(picture.shape)
    radius = max(7, side // 40) | 1
    opened = ndimage.grey_opening(picture.astype(np.float32), size=(radius, radius))
    strokes = (picture - opened > 0.35) & ~inner
    labels, count = ndimage.label(strokes, structure=np.ones((3, 3)))
    if count < LINE_LETTERS or count > 20_000:  # noise is not text
        return 0
    boxes = []
    filled = np.bincount(labels.ravel(), minlength=count + 1)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if 6 <= h <= side // 16 and 1 <= w <= 2 * h and filled[number] >= 0.15 * h * w and filled[number] >= 6:
            boxes.append(((rows.start + rows.stop) / 2, columns.start, columns.stop, h))
    boxes.sort(key=lambda box: box[1])
    return _longest_line(boxes)


def _longest_line(boxes: list[tuple[float, int, int, int]]) -> int:
    """Most boxes that follow each other to the right at one height, without a gap of more than two letters."""
    lines: list[list[tuple[float, int, int, int]]] = []
    for box in boxes:
        middle, start, _, h = box
        for line in lines:
            last = line[-1]
            near = -h <= start - last[2] <= 2.5 * max(h, last[3])
            if near and abs(middle - last[0]) <= 0.5 * max(h, last[3]) and 0.5 <= h / last[3] <= 2:
                line.append(box)
                break
        else:
            lines.append([box])
    longest = max((len(line) for line in lines), default=0)
    return longest if longest >= LINE_LETTERS else 0


BINS = 32
DISK = "disk"
CONSTANT = "constant: all pixels have the same value"
_BLOCK = 0xFFFF  # largest stored block of a zlib stream


@dataclass(frozen=True)
class Job:
    """A file to convert."""

    number: int
    source: str
    target: str
    max_side: int
    check_text: bool
    look: bool
    window_index: int

    @property
    def setting(self) -> str:
        """Everything that the result depends on besides the file."""
        return f"{self.max_side} {int(self.check_text)} {int(self.look)} {self.window_index}"


@dataclass(frozen=True)
class Converted:
    """Facts about a picture that was written."""

    size: int  #: bytes of the PNG
    pixels: str  #: SHA-256 of the picture that was written: equal decoded pixels have equal hashes
    shape: tuple[int, int]  #: rows and columns of the PNG
    look: float  #: see `frontal_look`; 1 if it was not computed
    letters: int  #: see `burned_in_text`; -1 if text was not searched for
    #: share of the pixels (in large pictures, of a sample) in each of `BINS` equal parts of 0…1
    histogram: tuple[float, ...]


@dataclass(frozen=True)
class Reading:
    """A file to read for the first time."""

    number: int  #: number of the file
    source: str  #: path of the file
    folder: str  #: folder for its picture, which has a provisional name at first, see `provisional`
    max_side: int  #: longest side of the PNG in pixels
    check_text: bool  #: look for text near the borders
    include_laterals: bool  #: convert lateral views as well
    window_index: int  #: as in `Job`
    forgotten: Forgotten  #: patients of whose files only the header is read


@dataclass(frozen=True)
class Read:
    """Result of the first reading of a file."""

    header: Header  #: header of the file
    setting: str = ""  #: setting of the conversion (`Job.setting`); "" if the header speaks against one
    result: Converted | Failure | None = None  #: result of the conversion


def provisional(number: int) -> str:
    """Name of the picture of a file about which nothing is decided yet."""
    return f".{number}.png.part"


def read_file(task: Reading) -> Read | Failure:
    """Read a file once: its header and, if that does not speak against it, its picture, under a provisional name.

    Most files of an archive of radiographs are kept, so converting them at once is cheaper than reading them twice: a
    file is opened, fetched and parsed once. Raw images are not converted yet, as they are left out if there is a
    processed image.
    """
    path = Path(task.source)
    try:
        with open_in_two(path, lambda head: check_start(path, head)) as (dataset, add_pixels):
            header = header_of(path, dataset)
            if task.forgotten.holds(header, task.source):
                return Failure(FORGOTTEN)
            verdict = judge(header, task.include_laterals)
            if verdict.reason or verdict.raw:
                return Read(header)
            target = os.path.join(task.folder, provisional(task.number))
            look = verdict.needs_look
            job = Job(task.number, task.source, target, task.max_side, task.check_text, look, task.window_index)
            try:
                add_pixels()
                result = _convert(job, path, dataset)
            except RadiographError as error:
                result = _failure(error)
            return Read(header, job.setting, result)
    except RadiographError as error:
        return _failure(error)


def read_header_only(task: Reading) -> Read | Failure:
    """Read the header alone of a file whose pixels cannot be trusted."""
    try:
        header = read_header(Path(task.source))
        return Failure(FORGOTTEN) if task.forgotten.holds(header, task.source) else Read(header)
    except RadiographError as error:
        return _failure(error)


def convert(job: Job) -> Converted | Failure:
    """Decode a file, reduce it, and write it; a failure to write has the kind `DISK`."""
    path = Path(job.source)
    try:
        return _convert(job, path, open_dataset(path))
    except RadiographError as error:
        return _failure(error)


def _convert(job: Job, path: Path, dataset: Any) -> Converted | Failure:
    pixels = picture_of(path, dataset, modalities=None, window_index=job.window_index).pixels
    reduced = reduce(pixels, job.max_side)
    low, high = reduced.min(), reduced.max()  # NaN if any value is
    if not np.isfinite(high - low):
        return Failure("not finite", "decoding gave values that are NaN or infinite")
    inside = reduced if low >= 0 and high <= 1 else np.clip(reduced, 0, 1)
    scaled = inside * np.float32(65535)
    values = np.rint(scaled, out=scaled).astype(np.uint16)
    if values.min() == values.max():
        return Failure(CONSTANT)
    content = encode_png(values)
    try:
        with whole_file(Path(job.target)) as part, part.open("wb", buffering=1 << 18) as file:
            file.writelines(content)
    except OSError as error:
        return Failure(DISK, error.strerror or type(error).__name__)
    return Converted(
        sum(len(part) for part in content),
        _pixel_hash(values),
        (values.shape[0], values.shape[1]),
        frontal_look(reduced) if job.look else 1.0,
        burned_in_text(reduced) if job.check_text else -1,
        _histogram(values),
    )


def reduce(picture: NDArray[np.float32], max_side: int) -> NDArray[np.float32]:
    """Average a picture (H, W) over areas so that its longest side is at most ``max_side``; smaller ones stay."""
    height, width = picture.shape
    scale = max_side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    factor = width // size[0]
    if (width, height) == (factor * size[0], factor * size[1]):
        return _mean_of_blocks(picture, factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _mean_of_blocks(picture: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Average blocks of ``side`` × ``side`` pixels: the same as scaling by areas, several times faster."""
    rows = picture[0::side].copy()
    for start in range(1, side):
        rows += picture[start::side]
    blocks = rows[:, 0::side].copy()
    for start in range(1, side):
        blocks += rows[:, start::side]
    blocks *= np.float32(1 / side**2)
    return blocks


def encode_png(values: NDArray[np.uint16]) -> list[bytes | memoryview]:
    """Encode (H, W) uint16 as a grey 16-bit PNG of three chunks: header, pixels, end. Nothing else is in it.

    The pixels are not deflated (the low bytes of 16 bits are noise: that would save a fifth of the space at the cost of
    as much time as decoding), so they are handed on without being copied.
    """
    height, width = values.shape
    lines = np.zeros((height, 1 + 2 * width), dtype=np.uint8)  # each line starts with 0: no filter
    lines[:, 1:] = values.astype(">u2").view(np.uint8).reshape(height, 2 * width)
    header = struct.pack(">2I5B", width, height, 16, 0, 0, 0, 0)
    return [
        b"\x89PNG\r\n\x1a\n",
        *_chunk(b"IHDR", [header]),
        *_chunk(b"IDAT", _stored(lines.reshape(-1).data)),
        *_chunk(b"IEND", []),
    ]


def _stored(content: memoryview) -> list[bytes | memoryview]:
    """Wrap content as a zlib stream of blocks that are stored as they are (RFC 1950, RFC 1951 §3.2.4)."""
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        last = start + _BLOCK >= len(content)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", zlib.adler32(content))]


def _chunk(name: bytes, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    check = zlib.crc32(name)
    for part in parts:
        check = zlib.crc32(part, check)
    return [struct.pack(">I", sum(len(part) for part in parts)) + name, *parts, struct.pack(">I", check)]


def _pixel_hash(values: NDArray[np.uint16]) -> str:
    """SHA-256 of shape and pixels."""
    found = hashlib.sha256(struct.pack("<2Q", *values.shape))
    found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def _histogram(values: NDArray[np.uint16]) -> tuple[float, ...]:
    """Share of pixels in each of `BINS` grey levels, over some 128 × 128 of them."""
    step = max(1, max(values.shape) // 128)
    counts = np.bincount((values[::step, ::step] >> 11).ravel(), minlength=BINS)
    return tuple(round(float(share), 6) for share in counts / counts.sum())


def _failure(error: RadiographError) -> Failure:
    return Failure(error.kind, error.detail)
