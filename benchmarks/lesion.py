"""Time of the Synthetic Lesion Mask: the published recipe pixel by pixel against single images and batches.

    python benchmarks/lesion.py [--size 224] [--batch 64] [--threads 1] [--device cuda]

The pixel-by-pixel form walks over the pixels in Python and is given twice: `loop` takes the steps that an imaging
library offers (Otsu, regions, circle, bilinear resize) from one and loops over the rest; `all-loop` loops over
everything. All forms get the same images and the same draws, and their twins are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_otsu
from torch.nn import functional as F

from afire_monai.datalists.file import load_datalist
from afire_monai.predictions.reading import read_radiograph
from afire_monai.transforms import LesionRecord, LesionSettings, SyntheticLesionMask
from afire_monai.transforms.anatomy import enclosing_circle, texture_center
from afire_monai.transforms.lesion_render import lesion_boxes

SETTINGS = LesionSettings()
Resize = Callable[[np.ndarray, int, int], np.ndarray]


def pictures(count: int, size: int) -> np.ndarray:
    """Two dark ellipses (lungs) in a bright trunk with soft texture: (count, 1, size, size) in 0…1."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    trunk = 0.75 * ((x - 0.5) ** 2 / 0.22 + (y - 0.6) ** 2 / 0.3 < 1)
    lungs = sum(((x - middle) / 0.16) ** 2 + ((y - 0.5) / 0.32) ** 2 < 1 for middle in (0.3, 0.7))
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (count, size, size)), (0, size / 50, size / 50))
    base = ndimage.gaussian_filter(trunk * (1 - 0.7 * lungs), size / 80)
    return np.clip(base + 1.5 * noise, 0, 1).astype(np.float32)[:, None]


def library_center(image: np.ndarray) -> tuple[float, float]:
    """Centre of the largest bright outline's circle at full resolution, by library calls."""
    levels = (image * 255).round().astype(np.uint8)
    filled = ndimage.binary_fill_holes(levels > threshold_otsu(levels))
    labels, _ = ndimage.label(filled, np.ones((3, 3)))
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return enclosing_circle(np.argwhere(labels == counts.argmax()).astype(float))[0]


def loop_center(image: np.ndarray) -> tuple[float, float]:
    """The same pixel by pixel; holes are left out of the count."""
    size = image.shape[0]
    levels = np.zeros((size, size), dtype=np.uint8)
    histogram = np.zeros(256, dtype=np.int64)
    for y in range(size):
        for x in range(size):
            levels[y, x] = round(image[y, x] * 255)
            histogram[levels[y, x]] += 1
    waiting = np.zeros((size, size), dtype=bool)
    threshold = loop_otsu(histogram.tolist())
    for y in range(size):
        for x in range(size):
            waiting[y, x] = levels[y, x] > threshold
    largest: list[tuple[int, int]] = []
    for y in range(size):
        for x in range(size):
            if waiting[y, x]:
                largest = max(largest, loop_region(waiting, (y, x)), key=len)
    return enclosing_circle(np.array(largest, dtype=float))[0]


def loop_region(waiting: np.ndarray, start: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels of the region that holds `start`; they are taken out of `waiting`."""
    size = waiting.shape[0]
    waiting[start] = False
    region = [start]
    for y, x in region:  # grows while it is walked
        for near_y in range(max(y - 1, 0), min(y + 2, size)):
            for near_x in range(max(x - 1, 0), min(x + 2, size)):
                if waiting[near_y, near_x]:
                    waiting[near_y, near_x] = False
                    region.append((near_y, near_x))
    return region


def loop_otsu(histogram: list[int]) -> int:
    """Otsu's threshold of a histogram of 256 levels."""
    total, moment = sum(histogram), sum(level * count for level, count in enumerate(histogram))
    below, below_moment, best, threshold = 0, 0, -1.0, 0
    for level, count in enumerate(histogram):
        below, below_moment = below + count, below_moment + level * count
        if 0 < below < total:
            gap = below_moment / below - (moment - below_moment) / (total - below)
            if below * (total - below) * gap * gap > best:
                best, threshold = below * (total - below) * gap * gap, level
    return threshold


def library_resize(blob: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear resize (half-pixel centres) by torch."""
    return F.interpolate(torch.from_numpy(blob)[None, None], size=(rows, columns), mode="bilinear")[0, 0].numpy()


def loop_resize(blob: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The same pixel by pixel."""
    side = blob.shape[0]
    result = np.zeros((rows, columns), dtype=np.float32)
    for r in range(rows):
        y = min(max((r + 0.5) * side / rows - 0.5, 0), side - 1)
        i = min(int(y), side - 2)
        for c in range(columns):
            x = min(max((c + 0.5) * side / columns - 0.5, 0), side - 1)
            j = min(int(x), side - 2)
            upper = blob[i, j] * (j + 1 - x) + blob[i, j + 1] * (x - j)
            lower = blob[i + 1, j] * (j + 1 - x) + blob[i + 1, j + 1] * (x - j)
            result[r, c] = upper * (i + 1 - y) + lower * (y - i)
    return result


def loop_twin(image: np.ndarray, record: LesionRecord, center: tuple[float, float], resize: Resize) -> np.ndarray:
    """Twin (size, size) of an image (size, size), with Python loops over pixels."""
    size = image.shape[0]
    side = SETTINGS.texture_pixels(size, size)
    top, left = (min(max(math.floor(middle - (side - 1) / 2 + 0.5), 0), size - side) for middle in center)
    bell = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            u, v = (i - (side - 1) / 2) / (side / 2), (j - (side - 1) / 2) / (side / 2)
            bell[i, j] = math.exp(-(u * u + v * v) / 0.5)
    low, high = bell.min(), bell.max()
    blob = np.zeros((side, side), dtype=np.float32)
    for i in range(side):
        for j in range(side):
            blob[i, j] = image[top + i, left + j] * SETTINGS.peak * (bell[i, j] - low) / (high - low)
    added = np.zeros((size, size), dtype=np.float32)
    boxes = lesion_boxes(SETTINGS, torch.tensor([record.uniforms]), size, size)
    count = int(boxes.number)
    for y0, x0, rows, columns in torch.stack(boxes[:4], -1)[0, :count].int().tolist():
        lesion = resize(blob, rows, columns)
        for r in range(rows):
            for c in range(columns):
                added[y0 + r, x0 + c] += lesion[r, c]
    twin = image.copy()
    for y in range(size):
        for x in range(size):
            if added[y, x] >= 1 / 255:
                twin[y, x] = max(image[y, x], min(image[y, x] + added[y, x], SETTINGS.ceiling))
    return twin


def interleaved(
    forms: dict[str, tuple[Callable[[], object], int]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Milliseconds per image of each form, the forms taking turns so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, (run, images) in forms.items():
            if device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - begin) / images * 1e3)
    return times


def compare_centers(datalist: str, count: int = 400, side: int = 128, shift: int = 32) -> None:
    """Print how far the texture's place in a canvas is from that in a random crop of it, in pixels."""
    items = load_datalist(datalist)["training"]
    rng = np.random.default_rng(0)
    distances = []
    for place in rng.permutation(len(items))[:count]:
        canvas: Any = read_radiograph(0, str(items[place]["image"]), [(side + shift,) * 2])
        picture = canvas.images[(side + shift,) * 2][0].numpy()
        row, column = rng.integers(0, 3, 2) * shift // 2
        own = np.add(texture_center(picture[row : row + side, column : column + side]), (row, column))
        distances.append(float(np.hypot(*np.subtract(texture_center(picture), own))))
    print(f"{len(distances)} pictures of {side + shift} px, crops of {side} px: median, 75 %, 95 % of the distance")
    print(np.percentile(distances, [50, 75, 95]).round(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images of the batched form")
    parser.add_argument("--loop-images", type=int, default=8, help="images of the pixel-by-pixel forms")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the batched form")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; by default as many as it finds")
    parser.add_argument("--centers", help="data list: compare the texture's place in the canvas with that in each crop")
    options = parser.parse_args()
    if options.centers:
        compare_centers(options.centers)
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    images = pictures(options.batch, options.size)
    transform = SyntheticLesionMask(SETTINGS).set_random_state(0)
    draws = torch.rand(options.batch, transform.draws, generator=torch.Generator().manual_seed(0)).to(options.device)
    places = [texture_center(image[0]) for image in images]
    numbers = [tuple(row) for row in draws.tolist()]
    records = [LesionRecord((options.size, options.size), n, p) for n, p in zip(numbers, places, strict=True)]
    tensor = torch.from_numpy(images).to(options.device)
    centers = torch.tensor(places, device=options.device)
    few = range(min(options.loop_images, options.batch))

    with_library, all_loops, singles = (
        [loop_twin(images[i, 0], records[i], places[i], library_resize) for i in few],
        [loop_twin(images[i, 0], records[i], places[i], loop_resize) for i in few],
        [transform.replay(images[i], records[i])[0] for i in few],
    )
    twins = transform(tensor, draws, centers)[0].cpu().numpy()
    for name, other in (("loop", with_library), ("all-loop", all_loops), ("batched", twins)):
        gap = max(float(np.abs(singles[i] - other[i]).max()) for i in few)
        print(f"largest difference of twins, single image against {name}: {gap:.1e}")

    def looped(center: Callable[[np.ndarray], tuple[float, float]], resize: Resize) -> None:
        for i in few:
            loop_twin(images[i, 0], records[i], center(images[i, 0]), resize)

    def one_by_one() -> None:
        for image in images:
            transform(image)

    forms: dict[str, tuple[Callable[[], object], int]] = {
        "loop": (lambda: looped(library_center, library_resize), len(few)),
        "all-loop": (lambda: looped(loop_center, loop_resize), len(few)),
        "single, with search": (one_by_one, options.batch),
        f"batched ({options.batch}, {options.device})": (lambda: transform(tensor, draws, centers), options.batch),
    }
    times = interleaved(forms, options.repeats, options.device)
    medians = {name: statistics.median(each) for name, each in times.items()}
    where = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{options.size} × {options.size}, {torch.get_num_threads()} threads, {where}, torch {torch.__version__}")
    print(f"{'form':24}{'ms / image':>12}{'× loop':>10}{'× all-loop':>12}")
    for name, each in medians.items():
        print(f"{name:24}{each:12.3f}{medians['loop'] / each:10.0f}{medians['all-loop'] / each:12.0f}")


if __name__ == "__main__":
    main()
