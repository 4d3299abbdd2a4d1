"""Start-up of a training with as many images as the paper's: list, sampler, cache index, one epoch's order.

A data list is written with patients, labels and views, and the index of a cache that holds a picture for each image.
There are no files and no pixels: what is measured grows with the number of images, not with their size. Each of the
parts runs as a training runs it, in a process of its own:

- ``list``: `startup.find_datalist`, which checks the list, and `normal_items` for training and validation;
- ``cache``: opening `DiskCache` with its index, as each process of a training does;
- ``survey``: whether files have changed, which the first process looks up (a call of the system for each file);
- ``order``: `EpochSampler` and the order of one epoch, batch by batch.

Memory is the process's largest beyond what it took after imports (``peak``), and what it holds in the end (``held``).

    python benchmarks/many_images.py                  # 811,170 images
    python benchmarks/many_images.py --images 50000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

PAPER = 811_170
LABELS = ["No Finding", "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"]
SIZE = (224, 224)


def write_list(path: Path, images: int) -> None:
    """A list of normal images, three of a patient, one in a hundred for validation."""

    def items(first: int, end: int) -> list[dict[str, object]]:
        label = [1] + [0] * (len(LABELS) - 1)
        return [
            {
                "image": f"images_{i // 10_000:03d}/{i // 3:08d}_{i % 3:03d}.png",
                "label": label,
                "group": f"{i // 3:08d}",
                "view": "PA" if i % 3 else "AP",
                "sex": "F" if i // 3 % 2 else "M",
                "age": 20 + i // 3 % 60,
            }
            for i in range(first, end)
        ]

    held_out = images // 100 // 3 * 3
    content: dict[str, object] = {"name": "many", "labels": LABELS, "meta": {"normal_label": "No Finding"}}
    content |= {"training": items(held_out, images), "validation": items(0, held_out)}
    path.write_text(json.dumps(content))


def write_index(datalist: Path, folder: Path) -> None:
    """The index of a cache that holds all training images, and pixels of the right length that are a hole."""
    from afire_monai.loading import cache
    from afire_monai.training import startup

    paths = startup.normal_items(datalist, "training")
    folder.mkdir()
    index = cache.CacheIndex(cache.cache_settings(SIZE, "uint8", None), rows=np.zeros(len(paths), dtype=cache.ROW))
    order = np.random.default_rng(0).permutation(len(paths))
    index.rows["path"], index.rows["outcome"] = cache.path_hashes(paths)[order], cache.READY
    index.save(folder)
    (folder / cache.PIXELS).touch()
    os.truncate(folder / cache.PIXELS, len(paths) * int(np.prod(SIZE)))


def resident() -> float:
    """MB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """Largest resident memory of this process so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def measured(name: str) -> Iterator[None]:
    """Print seconds by the clock and of the processor, and memory."""
    before, clock, worked = resident(), time.perf_counter(), time.process_time()
    yield
    clock, worked = time.perf_counter() - clock, time.process_time() - worked
    print(f"{name:8} {clock:7.2f} s {worked:7.2f} s {resident() - before:+8.0f} MB held", flush=True)


def start(datalist: Path, folder: Path, images: int) -> None:
    """What a training does before its first batch, in one process."""
    from afire_monai.loading.cache import DiskCache
    from afire_monai.loading.cache_build import file_facts
    from afire_monai.loading.sampler import EpochSampler
    from afire_monai.training import startup

    resting, lowest = peak(), resident()
    clock, worked = time.perf_counter(), time.process_time()
    print("part       clock  processor")
    with measured("list"):
        startup.find_datalist(str(datalist), "", datalist.parent)
        paths = startup.normal_items(datalist, "training")
        startup.normal_items(datalist, "validation")
    after_list = peak()
    with measured("survey"):
        file_facts(paths)
    with measured("cache"):
        cache = DiskCache(folder, paths)
    with measured("order"):
        batches = sum(1 for _ in zip(*[iter(EpochSampler(cache, 256, seed=0))] * 256, strict=False))
    clock, worked = time.perf_counter() - clock, time.process_time() - worked
    print(f"{'all':8} {clock:7.2f} s {worked:7.2f} s {resident() - lowest:+8.0f} MB held")
    print(
        f"peak     {peak() - resting:.0f} MB beyond imports, {after_list - resting:.0f} MB of it while the list is read"
    )
    print(f"{images} images, {len(cache)} in training, {batches} batches of 256")
    print(f"aims: start-up under 20 s: {clock:.1f} s; index under 500 MB: {resident() - lowest:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=PAPER)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        datalist, folder = Path(temporary, "list.json"), Path(temporary, "cache")
        context = multiprocessing.get_context("spawn")  # each starts with nothing in memory
        for work in (
            context.Process(target=write_list, args=(datalist, options.images)),
            context.Process(target=write_index, args=(datalist, folder)),
            context.Process(target=start, args=(datalist, folder, options.images)),
        ):
            work.start()
            work.join()
            if work.exitcode:
                raise SystemExit(work.exitcode)


if __name__ == "__main__":
    main()
