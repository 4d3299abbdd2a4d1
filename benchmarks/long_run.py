"""A long pre-training of a tiny network, watched from outside: memory, handles, threads, step time, output folder.

    python benchmarks/long_run.py --minutes 100 --out runs/long

Everything of a real run is on: checkpoints, health, pictures, MLflow, the cache in memory. After so many minutes the
run is asked to stop by TERM, as a scheduler does. Left in the folder: `samples.csv` and `long_run.png`; a table is
printed. Exit status 1 if something grows: a line is fitted to all samples after the warm-up, and what it gains until
the end must stay below a limit; or if the run does not end with a checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WARM = 0.1  # of the time, left out of all figures
COLUMNS = (
    "seconds",
    "steps",
    "memory_mib",
    "handles",
    "threads",
    "folder_mib",
    "checkpoints_mib",
    "files",
    "processor_s",
)
LIMITS = {"memory_mib": 60.0, "handles": 5.0, "threads": 1.0, "milliseconds": 5.0}
"""What each may gain from the end of the warm-up to the end of the run."""


def make_inputs(folder: Path, images: int) -> None:
    """Write phantoms, each of them many times, and an encoder smaller than any preset."""
    from afire_monai.phantom import write_phantom_dataset

    path = write_phantom_dataset(folder / "data", normal=40, abnormal=0, size=64)
    content = json.loads(path.read_text())
    items = content["training"]
    content["training"] = []
    for number in range(images):
        item = items[number % len(items)]
        name = f"images/copy_{number:05}.png"
        shutil.copy(path.parent / item["image"], path.parent / name)
        content["training"].append({**item, "image": name, "group": f"copy_{number}"})
    path.write_text(json.dumps(content))
    small_encoder(folder / "encoder")


def small_encoder(folder: Path) -> None:
    """Write an encoder smaller than any preset."""
    from afire_monai.models.folder import export_encoder
    from afire_monai.networks.build import build_encoder

    sizes = {"image_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2}
    export_encoder(build_encoder("vit_ti6", in_channels=1, mean=0.5, std=0.25, **sizes), folder)


def start(folder: Path) -> subprocess.Popen[bytes]:
    settings = ("epochs=100000", "image_size=32", "batch_size=2", "health_images=8", "panel_every=10",
                "decoder_depth=1", "decoder_dim=32", "head_hidden=64", "prototype_dim=32", "lr=0.002")  # fmt: skip
    command = [sys.executable, "-m", "afire_monai", "pretrain", str(folder / "data" / "datalist.json"), *settings]
    command += ["--out", str(folder / "run"), f"init={folder / 'encoder'}"]
    with (folder / "log.txt").open("wb") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    try:
        below = [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
                 for word in (task / "children").read_text().split()]  # fmt: skip
    except OSError:
        return []
    return [pid, *(other for child in below for other in tree(child))]


def sample(pid: int, run: Path) -> list[float]:
    """Measure without the time: steps, MiB, handles, threads, the folder, processor time."""
    memory = handles = threads = processor = 0.0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            memory += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
            handles += len(os.listdir(f"/proc/{one}/fd"))
            threads += len(os.listdir(f"/proc/{one}/task"))
            ticks = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]
            processor += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has just ended
            continue
    sizes = {path: path.stat().st_size for path in run.rglob("*") if path.is_file() and path.exists()}
    kept = sum(size for path, size in sizes.items() if path.parent.name == "checkpoints")
    numbers = [int(path.stem.split("_")[1]) for path in run.glob("checkpoints/checkpoint_*.pt")]
    return [max(numbers, default=0), memory, handles, threads, sum(sizes.values()) / 2**20, kept / 2**20,
            len(sizes), processor]  # fmt: skip


def watch(process: subprocess.Popen[bytes], folder: Path, seconds: float, every: float) -> np.ndarray:
    rows: list[list[float]] = []
    begin = time.monotonic()
    with (folder / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        while process.poll() is None and time.monotonic() - begin < seconds:
            time.sleep(every)
            try:
                rows.append([time.monotonic() - begin, *sample(process.pid, folder / "run")])
            except FileNotFoundError:  # a file was replaced in between
                continue
            writer.writerow([f"{value:.1f}" for value in rows[-1]])
            file.flush()
    return np.array(rows)


def draw(rows: np.ndarray, times: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(8, 5), sharex=True)
    for axis, name in zip(axes.flat, ("memory_mib", "handles", "milliseconds", "folder_mib"), strict=True):
        values = times if name == "milliseconds" else rows[:, COLUMNS.index(name)]
        axis.plot(rows[:, 1] / 1000, values, linewidth=1)
        axis.set_title(
            name.replace("_mib", ", MiB").replace("milliseconds", "processor milliseconds a step"), fontsize=9
        )
        axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("thousand steps")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def judge(rows: np.ndarray, out: Path) -> bool:
    """Print the table; return whether all is flat."""
    steps = rows[:, 1]
    span = max(1, len(rows) // 20)  # checkpoints come seldom: a step's time is that of a stretch
    spent = rows[:, -1]  # of the processor: the clock would tell of other people's work as well
    took = np.array([(spent[i] - spent[max(i - span, 0)]) / max(steps[i] - steps[max(i - span, 0)], 1)
                     for i in range(len(rows))]) * 1000  # fmt: skip
    late = rows[:, 0] > max(WARM * rows[-1, 0], 30)
    late[: 2 * span] = False
    late &= np.roll(steps, span) > 0  # the first checkpoint has no stretch before it
    table = {name: rows[:, COLUMNS.index(name)] for name in COLUMNS[2:-1]} | {"milliseconds": took}
    draw(rows, np.where(late, took, np.nan), out / "long_run.png")
    print(f"{steps[-1]:,.0f} steps in {rows[-1, 0] / 60:.0f} minutes, {len(rows)} samples")
    print("| | after warm-up | middle | end | fitted gain until the end | |\n|---|---|---|---|---|---|")
    flat = True
    for name, values in table.items():
        chosen = values[late]
        gain = np.polyfit(steps[late], chosen, 1)[0] * np.ptp(steps[late])
        third = max(1, len(chosen) // 20)
        parts = (chosen[:third], chosen[len(chosen) // 2 :][:third], chosen[-third:])
        word = "" if name not in LIMITS else "flat" if gain <= LIMITS[name] else "GROWS"
        flat = flat and word != "GROWS"
        print(f"| {name} | {' | '.join(f'{np.median(part):.1f}' for part in parts)} | {gain:+.1f} | {word} |")
    each = (table["folder_mib"] - table["checkpoints_mib"])[late]
    print(f"folder without checkpoints: {np.polyfit(steps[late], each, 1)[0] * 1e5:.2f} MiB more in 100,000 steps")
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--images", type=int, default=1000, help="half as many steps an epoch")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    folder = options.out.resolve()
    make_inputs(folder, options.images)
    process = start(folder)
    try:
        rows = watch(process, folder, options.minutes * 60, options.every)
        alive = process.poll() is None
        process.terminate()
        status = process.wait(120)
    finally:
        process.kill()
    print(f"asked to stop: {'exit status ' + str(status) if alive else 'it had ended by itself'}")
    flat = judge(rows, folder)
    return int(not flat or not alive or status != 75)


if __name__ == "__main__":
    raise SystemExit(main())
