"""A disk that is full at a seeded write of a command: words, an exit status, nothing half-written, and it goes on.

    nice -n 5 python benchmarks/full_disk.py --times 12

As root, who may mount: each command writes into a file system in memory, which is filled to its last byte at the n-th
time that the command opens a file to write, moves one or makes a folder (`faults.py`). Wanted: an exit status
other than 0, the folder named, no traceback, and no file that reads as whole but is not. Then room is made and the same
command given again (with `--resume` where it has that): it must end as one that always had room, with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import faults
import kills
from double_start import same_models
from long_run import small_encoder

MEGABYTES = 96
RUNS = ("pretrain", "finetune")
RESUMED = (*RUNS, "predict")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"skipped: no file system can be mounted here ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte, in blocks that get smaller."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    if not file.write(b"\0" * size):
                        break


def commands(root: Path, disk: Path) -> dict[str, list[str]]:
    data, out = str(root / "data" / "datalist.json"), str(disk / "out")
    model = str(root / "finished" / "models")
    return {
        "pretrain": kills.words("pretrain", disk),
        "finetune": kills.words("finetune", disk),
        "cache": ["cache", data, "--cache-dir", str(disk / "cache"), "--size", "64"],
        "predict": ["predict", data, "--model", model, "--out", out],
        "export": ["export", model, "--format", "torchscript", "--out", out],
        "report": ["report", str(disk / "run")],
        "evaluate": ["evaluate", str(root / "predicted"), "--datalist", data, "--out", out],
        "ingest": ["ingest", str(root / "dicom"), "--out", out],
    }


def prepare(root: Path) -> None:
    """Write what commands read: phantoms, an encoder, a finished run, predictions, DICOM files."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from hospital.planted import small, write  # type: ignore[import-not-found]

    from afire_monai.phantom import write_phantom_dataset

    write_phantom_dataset(root / "data", normal=20, abnormal=12, size=48)
    small_encoder(root / "encoder")
    for number in range(8):
        write(small(number), root / "dicom" / f"{number}.dcm")
    work = root / "work"
    work.mkdir()
    for line in (kills.words("finetune", work), kills.words("pretrain", work)):
        out = root / ("finished" if line[0] == "finetune" else "run")
        line[line.index("--out") + 1] = str(out)
        if (ended := faults.run(line, work)).status:
            raise SystemExit(ended.text)
    line = commands(root, work)["predict"]
    line[-1] = str(root / "predicted")
    if (ended := faults.run(line, work)).status:
        raise SystemExit(ended.text)


def clear(disk: Path, root: Path, name: str) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if name == "report":
        shutil.copytree(root / "run", disk / "run", ignore=shutil.ignore_patterns("report.html"))


def files_of(disk: Path) -> set[str]:
    ignored = {"tmp", "mlruns", "checkpoints", "ballast"}
    names = sorted(str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file() and not ignored & set(p.parts))
    return {re.sub("[0-9a-f]{20}", f"hash {place}", name) for place, name in enumerate(names)}  # made from a secret key


def one(name: str, root: Path, disk: Path, at: int, whole: set[str]) -> list[str]:
    """Fill the disk at a write, then make room; return what was wrong."""
    clear(disk, root, name)
    line = commands(root, disk)[name]
    ended = faults.run(line, disk, at=at, action=lambda: fill(disk))
    wrong, text = [], ended.text.strip()
    if "Traceback" in text:
        wrong.append(f"traceback: {text[-500:]}")
    complete = files_of(disk) >= whole
    said = [row for row in text.splitlines() if any(word in row for word in ("space", "room", "full", "could not be"))]
    if not said and not complete:
        wrong.append(f"exit status {ended.status} without words: {text[-300:]}")
    if ended.status == 0 and not complete:
        wrong.append(f"exit status 0, and there is no {sorted(whole - files_of(disk))}; it says: {said[-1:]}")
    wrong += [f"half-written: {row}" for row in kills.unreadable(disk / "out")]
    (disk / "ballast").unlink(missing_ok=True)
    again = faults.run([*line, "--resume"] if name in RESUMED else line, disk)
    if again.status:
        wrong.append(f"with room again: exit status {again.status}: {again.text.strip()[-400:]}")
    elif missing := whole - files_of(disk):
        wrong.append(f"with room again there is no {sorted(missing)}")
    elif name in RUNS and not same_models(root / f"{name}_alone", disk / "out"):
        wrong.append("other weights with room again")
    wrong += [f"left behind: {p.relative_to(disk)}" for p in disk.rglob("*.part")]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=12, help="full disks for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults.preload()
    root, failures = Path(tempfile.mkdtemp(prefix="full_")), 0
    try:
        with small_disk(root / "disk") as disk:
            prepare(root)
            for name, line in commands(root, disk).items():
                if options.only and name not in options.only:
                    continue
                clear(disk, root, name)
                alone = faults.run(line, disk)
                if alone.status:
                    raise SystemExit(alone.text)
                whole = files_of(disk)
                if name in RUNS:
                    shutil.copytree(disk / "out", root / f"{name}_alone")
                draw, bad = random.Random(options.seed), 0
                points = sorted(draw.sample(range(1, alone.writes + 1), min(options.times, alone.writes)))
                for at in points:
                    wrong = one(name, root, disk, at, whole)
                    bad += bool(wrong)
                    for row in wrong:
                        print(f"{name} at write {at}: {row}", file=sys.stderr, flush=True)
                failures += bad
                print(f"| {name} | full at {len(points)} of {alone.writes} writes | {len(points) - bad} in words and "
                      f"whole afterwards, {bad} not |", flush=True)  # fmt: skip
    finally:
        shutil.rmtree(root)
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
