"""What a picture itself shows of its view and of text in it; for files whose tags are silent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai.radiographs.picture import stretch

LEAST_LUNG_FIELDS = 0.08
_SIDE = 64


def lung_fields(picture: NDArray[np.float32]) -> float:
    """How clearly two dark fields lie on both sides of something bright, in -1…1.

    Columns of the middle part of the picture are averaged; the score is how much brighter a middle is than the darkest
    column on its left and on its right, whichever differs less, for the best middle (this project's reading).

    Args:
        picture: (H, W) in 0…1, bright = dense.
    """
    small = np.asarray(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    low, high = np.percentile(small, (2, 98))
    spread = np.clip((small - low) / max(high - low, 1e-6), 0, 1)
    columns = np.pad(spread[10:46].mean(axis=0), 2, mode="edge")
    profile = np.convolve(columns, np.full(5, 0.2), "valid")
    best = -1.0
    for middle in range(22, 43):
        bright = profile[middle - 2 : middle + 3].mean()
        left, right = profile[max(0, middle - 24) : middle - 5].min(), profile[middle + 6 : middle + 25].min()
        best = max(best, float(bright - max(left, right)))
    return best


def looks_lateral(picture: NDArray[np.float32]) -> bool:
    """Whether a picture shows no two lung fields side by side: a lateral view, or not a chest.

    Of 2,500 frontal radiographs from nine public sources 0.4 % were taken for something else. How many laterals it
    finds is not known, as no set of them was at hand: of one lateral and four other body parts it found three. It is
    for files whose tags are silent, where the alternative is no look at all.

    Args:
        picture: (H, W) in 0…1, bright = dense.
    """
    return lung_fields(picture) < LEAST_LUNG_FIELDS


def burned_in_text(picture: NDArray[np.float32], least: int = 5) -> int:
    """Count what looks like letters in a line, near the borders of a picture.

    Letters are small, much brighter or darker than what is around them, and stand beside each other at one height;
    the bands are the outer sixth of each side. Single side markers do not count, and neither does text written over
    the lungs or rotated. It misses text, and proves no picture clean. Of 800 public radiographs it pointed at 34;
    the twelve that were looked at all bear text, most of it "PORTABLE" and the like: it cannot tell a name from
    that.

    Args:
        picture: (H, W) in 0…1.
        least: letters that make a line.

    Returns:
        Letters in the longest line, 0 if it has fewer than ``least``.
    """
    height, width = picture.shape
    if min(height, width) < 96:
        return 0
    inner = np.zeros(picture.shape, dtype=bool)
    inner[height // 6 : height - height // 6, width // 6 : width - width // 6] = True
    scaled = stretch(picture.astype(np.float64))
    return max(_letters_in_line(scaled, inner, least), _letters_in_line(1.0 - scaled, inner, least))


def _letters_in_line(picture: NDArray[np.float64], inner: NDArray[np.bool_], least: int) -> int:
    from scipy import ndimage

    side = max(picture.shape)
    radius = max(7, side // 40) | 1
    opened = ndimage.grey_opening(picture.astype(np.float32), size=(radius, radius))
    strokes = (picture - opened > 0.35) & ~inner
    labels, count = ndimage.label(strokes, structure=np.ones((3, 3)))
    if count < least or count > 20_000:  # noise is no text
        return 0
    boxes = []
    filled = np.bincount(labels.ravel(), minlength=count + 1)
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        if 6 <= h <= side // 16 and 1 <= w <= 2 * h and filled[number] >= 0.15 * h * w and filled[number] >= 6:
            boxes.append(((rows.start + rows.stop) / 2, columns.start, columns.stop, h))
    boxes.sort(key=lambda box: box[1])
    return _longest_line(boxes, least)


def _longest_line(boxes: list[tuple[float, int, int, int]], least: int) -> int:
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
    return longest if longest >= least else 0
