"""Ingesting DICOM files against decoding them alone; memory as files become more; a second run over unchanged files.

Synthetic radiographs (16 bits; with --jpeg2000 compressed without loss, as most archives keep them) are written to a
temporary folder, then

- ``decode``: every file is read to a picture, in the same number of processes, and nothing is kept;
- ``ingest``: the whole of `afire ingest`, from scanning to the data card; its memory is sampled when a quarter, a half
  and all of the files have been read;
- ``again``: the same over unchanged files.

Images a second are by the clock, and mean little on a machine that does other work; processor time is of these
processes alone, the start of Python in each of them included.

    python benchmarks/ingest.py                       # 10,000 files of 256 x 256
    python benchmarks/ingest.py --files 200 --side 2048
    python benchmarks/ingest.py --side 512 --jpeg2000
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from loader import radiograph, write_dicom

from afire_monai.core import pool
from afire_monai.hospital import series_choice as choose
from afire_monai.hospital.ingest import ingest
from afire_monai.radiographs.decode import read_picture


def write_archive(folder: Path, files: int, side: int, jpeg2000: bool = False) -> None:
    """Files that differ in a header's numbers and in one row of pixels; each a patient's, in folders of a hundred."""
    pixels = radiograph(side, 4095).astype(np.uint16)
    same = {"PatientName": "A^B", "PatientSex": "F", "PatientAge": "050Y", "BodyPartExamined": "CHEST"}
    for number in range(files):
        pixels[0] = np.random.default_rng(number).integers(0, 4096, side)
        uids = {f"{name}InstanceUID": f"1.2.3.{number}.{k}" for k, name in enumerate(("SOP", "Series", "Study"), 1)}
        (folder / str(number // 100)).mkdir(exist_ok=True)
        path = folder / str(number // 100) / str(number)
        write_dicom(path, pixels, jpeg2000, **uids, **same, PatientID=f"P{number}", ViewPosition="PA")


def decode(path: str) -> float:
    """Read one file as the reader does."""
    return float(read_picture(path).pixels[0, 0])


def busy() -> float:
    """Seconds that processors have worked for this process and those that it has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def seconds_to_decode(paths: list[str], workers: int) -> float:
    """Seconds from the first result on, when processes have started."""
    with pool.Pool(workers) as processes:
        results = processes.run(decode, paths)
        next(results)
        start = time.perf_counter()
        for _ in results:
            pass
        return (time.perf_counter() - start) * len(paths) / (len(paths) - 1)


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/statm").read_text().split()
    return int(status[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Samples:
    """Takes the place of the pool while images are converted, and looks at memory on the way."""

    def __init__(self, files: int) -> None:
        self.at = {files // 4: "1/4", files // 2: "1/2", files - 1: "1"}
        self.seen: list[str] = []
        self.first = 0.0

    def watch(self, results: Iterator) -> Iterator:
        for count, result in enumerate(results):
            if count == 0:
                self.first = time.perf_counter()
            if count in self.at:
                children = [memory(child.pid) for child in pool.multiprocessing.active_children() if child.pid]
                line = f"{self.at[count]} of the files: {memory(os.getpid()):.0f} MB here"
                self.seen.append(line + f", {max(children, default=0):.0f} MB in the largest reading process")
            yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--jpeg2000", action="store_true")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 8))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "in")
        folder.mkdir()
        write_archive(folder, options.files, options.side, options.jpeg2000)
        paths = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
        before = busy()
        alone = seconds_to_decode(paths, options.workers)
        worked_alone = busy() - before
        samples = Samples(options.files)
        read = choose.Chooser.read
        setattr(choose.Chooser, "read", lambda self, runner: read(self, lambda *work: samples.watch(runner(*work))))  # noqa: B010
        before, start = busy(), time.perf_counter()
        done = ingest(folder, Path(temporary, "out"), workers=options.workers)
        whole, worked = time.perf_counter() - start, busy() - before
        start = time.perf_counter()
        again = ingest(folder, Path(temporary, "out"), workers=options.workers)
        second = time.perf_counter() - start
    assert done.kept == again.kept == options.files
    stored = "JPEG 2000" if options.jpeg2000 else "uncompressed"
    print(f"{options.files} files of {options.side} x {options.side}, {stored}, {options.workers} processes")
    print(f"decode: {options.files / alone:7.1f} images/s")
    print(f"ingest: {options.files / whole:7.1f} images/s, {alone / whole:.0%} of decoding alone")
    print(f"processor time: {worked_alone:.1f} s to decode, {worked:.1f} s to ingest ({worked_alone / worked:.0%})")
    print(f"again:  {second:7.1f} s, {again.headers_read} headers and {again.images_read} images read")
    for line in samples.seen:
        print("memory:", line)


if __name__ == "__main__":
    main()
