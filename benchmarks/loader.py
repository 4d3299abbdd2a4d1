"""How fast images reach a training: from the cache on disk, and by decoding, against the decoding libraries alone.

Synthetic radiographs are written to a temporary folder. Both sides of each ratio are measured in turns in one run, and
medians are taken. ``processor`` counts the processor's time of this process alone, which other work on the machine
changes less than the clock; what loader processes do is by the clock.

- ``cache``: batches at 224 px out of a cache of uint8 and one of uint16, converted to float, in this process, and
  through a `DataLoader` with 0, 1 and 2 workers, converted in this process (in a training on its device); against
  decoding a PNG of 1024 px, and against copying the same bytes in memory;
- ``PNG``, ``DICOM``: `read_picture` against Pillow and pydicom; `startup.reading`, which is what a training without
  cache does for each image, against both. `read_picture` renders what DICOM's windows say, so pydicom's own rendering
  (`apply_modality_lut`, `apply_windowing`) is measured as well.

    python benchmarks/loader.py
    python benchmarks/loader.py --images 20000 --repeats 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (224, 224)


def radiograph(side: int, white: int, seed: int = 0) -> np.ndarray:
    """Lung fields with noise of about a hundredth of white, as detectors have."""
    y, x = np.mgrid[:side, :side] / side
    fields = sum(np.exp(-(((x - c) / 0.12) ** 2 + ((y - 0.5) / 0.3) ** 2)) for c in (0.28, 0.72))
    noise = np.random.default_rng(seed).normal(0, 0.012, (side, side))
    return np.clip(white * (0.75 * (1 - 0.8 * fields) + noise), 0, white)


def write_dicom(path: Path, pixels: np.ndarray, jpeg2000: bool, **elements: Any) -> None:
    """12 bits of 16, with these elements besides."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID, item.Modality = DigitalXRayImageStorageForPresentation, "1.2.3.4", "DX"
    item.PhotometricInterpretation, item.SamplesPerPixel, item.PixelRepresentation = "MONOCHROME2", 1, 0
    (item.Rows, item.Columns), item.BitsAllocated, item.BitsStored, item.HighBit = pixels.shape, 16, 12, 11
    for name, value in elements.items():
        setattr(item, name, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = item.SOPClassUID, item.SOPInstanceUID
    item.PixelData = pixels.tobytes()
    if jpeg2000:
        item.compress(JPEG2000Lossless, generate_instance_uid=False)
    item.save_as(path, enforce_file_format=True)


def in_turns(repeats: int, **sides: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """Median seconds of each side by the clock and of the processor; the first round does not count."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            clock, worked = time.perf_counter(), time.process_time()
            work()
            if turn:
                found[name].append((time.perf_counter() - clock, time.process_time() - worked))
    return {n: (statistics.median(c for c, _ in t), statistics.median(w for _, w in t)) for n, t in found.items()}


def write_cache(folder: Path, images: int, dtype: str) -> Any:
    """A cache as `build_cache` leaves it, without files to decode."""
    from afire_monai.datalists.paths import ImagePaths
    from afire_monai.loading import cache as ci

    cache = folder / f"{SIZE[0]}x{SIZE[1]}_{dtype}"
    cache.mkdir(parents=True)
    paths = ImagePaths(f"/virtual/{i:08d}.png" for i in range(images))
    index = ci.CacheIndex(ci.cache_settings(SIZE, dtype, None), rows=np.zeros(images, dtype=ci.ROW))
    index.rows["path"], index.rows["outcome"] = ci.path_hashes(paths), ci.READY
    index.rows["bytes"] = index.rows["mtime"] = -1
    picture = (radiograph(SIZE[0], ci.DTYPES[dtype])).astype(dtype)
    index.rows["checksum"] = ci.checksum(picture)
    index.save(cache)
    with open(cache / ci.PIXELS, "wb") as file:
        for _ in range(images):
            file.write(picture.data)
    return paths


def measure_cache(folder: Path, images: int, dtype: str, batch: int, repeats: int) -> float:
    """Print images a second out of the cache; give the processor's seconds for one."""
    import torch
    from torch.utils.data import DataLoader

    from afire_monai.loading.dataset import RadiographDataset, grey_levels
    from afire_monai.loading.sampler import EpochSampler
    from afire_monai.training import startup

    paths = write_cache(folder, images, dtype)
    dataset = RadiographDataset(paths, startup.reading(SIZE), cache="disk", cache_dir=folder, cache_dtype=dtype)
    order = list(EpochSampler(dataset, batch, seed=0))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    source = torch.zeros(batch, 1, *SIZE)

    def read() -> None:
        for indices in batches:
            grey_levels(dataset.collate(dataset.__getitems__(indices))["image"])

    def first() -> None:
        if dataset.disk is not None:
            dataset.disk._unchecked[:] = True
        read()

    def copy() -> None:
        for _ in batches:
            source.clone()

    times = in_turns(repeats, read=read, first=first, copy=copy)
    count = len(order)
    clock, worked = times["read"]
    print(f"cache {dtype}, batches of {batch}, one process:", end=" ")
    print(f"{count / clock:7.0f} images/s, {count / worked:7.0f} by processor time (aim: 5000),", end=" ")
    print(f"{worked / times['copy'][1]:.2f} x copying a batch in memory;", end=" ")
    print(f"{1e6 * (times['first'][1] - worked) / count:.0f} us more for an image when a process first reads it")
    for workers in (0, 1, 2):
        loader = DataLoader(
            dataset,
            batch,
            sampler=EpochSampler(dataset, batch, seed=0),
            num_workers=workers,
            collate_fn=dataset.collate,
            persistent_workers=workers > 0,
        )

        def load(loader: Any = loader) -> None:
            for read_batch in loader:
                grey_levels(read_batch["image"])

        seconds = in_turns(repeats, load=load)["load"][0]
        print(f"   DataLoader, {workers} workers: {count / seconds:7.0f} images/s by the clock")
        del loader
    return worked / count


def measure_file(
    name: str, path: Path, library: Callable[[], Any], repeats: int, rendered: Callable[[], Any] | None = None
) -> float:
    """Print our reading against the library's; give the processor's seconds of `startup.reading`."""
    from afire_monai.radiographs.decode import read_picture
    from afire_monai.training import startup

    read = startup.reading(SIZE)
    sides = {"library": library, "ours": lambda: read_picture(path), "training": lambda: read({"image": str(path)})}
    if rendered:
        sides["rendered"] = rendered
    times = in_turns(repeats, **sides)
    (clock, worked), (our_clock, ours), (_, training) = times["library"], times["ours"], times["training"]
    print(f"{name:28} {1e3 * worked:8.1f} ms {1e3 * ours:8.1f} ms", end=" ")
    print(f"{ours / worked:6.2f} x ({our_clock / clock:.2f} x by the clock) {1e3 * training:8.1f} ms", end=" ")
    print(f"{ours / times['rendered'][1]:22.2f} x" if rendered else "")
    return training


def measure_decoding(folder: Path, repeats: int) -> float:
    """Print all formats; give the seconds that a training spends on a PNG of 1024 px."""
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_windowing

    print(f"{'':28} {'library':>11} {'ours':>11} {'ratio':>8} (aim: 1.20)", end=" ")
    print(f"{'with reduction to 224':>30} {'to its own rendering':>20}")
    png8, png16 = folder / "8.png", folder / "16.png"
    Image.fromarray(radiograph(1024, 255).astype(np.uint8)).save(png8)
    Image.fromarray(radiograph(1024, 65535).astype(np.uint16)).save(png16)
    seconds = measure_file("PNG 1024, 8 bits", png8, lambda: np.asarray(Image.open(png8)), repeats)
    measure_file("PNG 1024, 16 bits", png16, lambda: np.asarray(Image.open(png16)), repeats)
    for side in (1024, 2048):
        for jpeg2000 in (False, True):
            path = folder / f"{side}{jpeg2000}.dcm"
            pixels = radiograph(side, 4095).astype(np.uint16)
            write_dicom(path, pixels, jpeg2000, WindowCenter=2048, WindowWidth=4096)  # as devices send them
            name = f"DICOM {side}, {'JPEG 2000' if jpeg2000 else 'uncompressed'}"

            def library(path: Path = path) -> Any:
                return pydicom.dcmread(path).pixel_array

            def rendered(path: Path = path) -> Any:
                item = pydicom.dcmread(path)
                return apply_windowing(apply_modality_lut(item.pixel_array, item), item)

            measure_file(name, path, library, repeats, rendered)
    return seconds


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {SIZE[0]} px, {options.images} images in the cache")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        decoding = measure_decoding(folder, options.repeats)
        for dtype in ("uint8", "uint16"):
            cached = measure_cache(folder, options.images, dtype, options.batch, options.repeats)
            print(f"   {decoding / cached:.0f} x as fast as decoding a PNG of 1024 px (aim: 20)")


if __name__ == "__main__":
    main()
