"""SIGKILL at seeded points of pre-training and fine-tuning: what is left can be read, and the end is the same bits.

    nice -n 5 python benchmarks/kills.py --times 50

Tiny runs by the command line with everything on: a cache on disk is built (pre-training), checkpoints, health,
pictures, MLflow, export, report, predictions. The whole process group is killed one to three times, at a moment of the
clock or at the n-th write; after each kill every checkpoint, model, table and store that is there is opened. `--resume`
then goes on until it ends. Its weights must be those of a run that nobody killed, to the bit, and neither half-written
files, nor locks, nor temporary files, nor shared memory may be left. Exit status 1 otherwise; the draws that failed are
named. `TMPDIR=/dev/shm` spares the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import faults
from double_start import same_models
from long_run import small_encoder

TINY = ("image_size=32", "batch_size=4", "use_mlflow=True")
PRETRAIN = (*TINY, "epochs=3", "health_images=4", "panel_every=1", "cache=disk", "prototype_dim=16", "head_hidden=32",
            "decoder_dim=32", "decoder_depth=1", "decoder_heads=2", "checkpoint_every_iterations=2")  # fmt: skip
FINETUNE = (*TINY, "epochs=3", "patience=0")


def words(task: str, folder: Path, resume: bool = False) -> list[str]:
    small = folder.parent / "encoder"
    given = [*PRETRAIN, f"cache_dir={folder / 'cache'}", f"init={small}"]
    if task == "finetune":
        given = [*FINETUNE, "--init", str(small)]
    out = ["--out", str(folder / "out"), *(["--resume"] if resume else [])]
    return [task, str(folder.parent / "data" / "datalist.json"), *given, *out]


def unreadable(folder: Path) -> list[str]:
    """Return which files of a run, finished or not, cannot be read."""
    from PIL import Image

    from afire_monai.models.folder import load_module_files
    from afire_monai.training.checkpoint import load_checkpoint
    from afire_monai.training.handlers import read_csv_log

    found = []
    readers = {"checkpoints/*.pt": load_checkpoint, "log.csv": read_csv_log, "mlflow.db": _open_store,
               "panels/*.png": lambda path: Image.open(path).load(), "settings.yaml": _not_empty,
               "report.html": _not_empty, "**/*.json": _json, "predictions/**/*.csv": _not_empty}  # fmt: skip
    for pattern, reader in readers.items():
        for path in folder.glob(pattern):
            try:
                reader(path)
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {type(error).__name__} {str(error)[:200]}")
    for path in folder.glob("models/*.safetensors"):
        if path.with_suffix(".json").exists():  # weights without a description are refused by every reader
            try:
                load_module_files(path)
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {str(error)[:200]}")
    return found


def _open_store(path: Path) -> None:
    with sqlite3.connect(path) as store:
        (answer,) = store.execute("PRAGMA integrity_check").fetchone()
    store.close()
    if answer != "ok":
        raise ValueError(answer)


def _not_empty(path: Path) -> None:
    if not path.read_text(encoding="utf-8"):
        raise ValueError("empty")


def _json(path: Path) -> None:
    import json

    json.loads(path.read_text(encoding="utf-8"))


def left_behind(folder: Path, shared_before: set[str]) -> list[str]:
    """Return what killed processes left: half-written and temporary files, locks, shared memory."""
    found = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(".part") or p.name == ".running"]
    found += [str(p.relative_to(folder)) for p in (folder / "tmp").rglob("*")]
    new = set(os.listdir("/dev/shm")) - shared_before
    return found + sorted(name for name in new if Path("/dev/shm", name).is_file() and not _mapped(name))


def _mapped(name: str) -> bool:
    """Whether a living process has a piece of shared memory: then it belongs to somebody else."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text():
                return True
    return False


def open_runs(path: Path) -> list[str]:
    with sqlite3.connect(path) as store:
        rows = store.execute("SELECT status FROM runs WHERE lifecycle_stage = 'active'").fetchall()
    store.close()
    return [status for (status,) in rows]


def one(task: str, folder: Path, alone: Path, draw: random.Random, whole: faults.Ended) -> tuple[int, list[str]]:
    """Kill a run up to three times, let it end; return the number of kills and what was wrong."""
    folder.mkdir()
    shared = set(os.listdir("/dev/shm"))
    kills, wrong = 0, []
    points = []
    for _ in range(draw.choice((1, 2, 3))):
        by_clock = draw.random() < 0.5
        points.append(
            ("s", draw.uniform(0.02, 1) * whole.seconds) if by_clock else ("w", draw.randint(1, whole.writes))
        )
    for kind, point in points:
        ended = faults.run(words(task, folder, kills > 0), folder, at=int(point) if kind == "w" else None,
                           kill_after=point if kind == "s" else None)  # fmt: skip
        if ended.status != -9:
            wrong += [] if ended.status == 0 else [f"exit status {ended.status}: {ended.text[-600:]}"]
            break
        kills += 1
        wrong += [f"after a kill at {kind}{point:.4g}: {line}" for line in unreadable(folder / "out")]
    if ended.status == -9:
        ended = faults.run(words(task, folder, True), folder)
    name = ", ".join(f"{kind}{point:.4g}" for kind, point in points)
    if ended.status:
        wrong.append(f"{name}: resumed run ends with {ended.status}: {ended.text[-600:]}")
    elif not same_models(alone / "out", folder / "out"):
        wrong.append(f"{name}: other weights")
    else:
        wrong += [f"{name}: {line}" for line in unreadable(folder / "out")]
        wrong += [f"{name}: left behind {line}" for line in left_behind(folder, shared)]
        statuses = open_runs(folder / "out" / "mlflow.db")
        wrong += [] if statuses == ["FINISHED"] else [f"{name}: MLflow runs {statuses}"]
        missing = {p.name for p in (alone / "out").rglob("*") if p.is_file() and "mlruns" not in p.parts}
        missing -= {p.name for p in (folder / "out").rglob("*")}
        wrong += [f"{name}: lacks {missing}"] if missing else []
    return kills, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="kills of each task, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="the folders of runs that failed")
    parser.add_argument("--tasks", nargs="+", default=["pretrain", "finetune"])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from afire_monai.phantom import write_phantom_dataset

    faults.preload()
    root, failures = (
        Path(tempfile.mkdtemp(prefix="kills_")),
        0,
    )  # no TemporaryDirectory: forked processes would empty it
    try:
        write_phantom_dataset(root / "data", normal=20, abnormal=12, size=48)
        small_encoder(root / "encoder")
        for task in options.tasks:
            alone = root / f"{task}_alone"
            alone.mkdir()
            whole = faults.run(words(task, alone), alone)
            if whole.status:
                raise SystemExit(whole.text)
            draw, kills, runs, bad = random.Random(options.seed), 0, 0, 0
            while kills < options.times:
                done, wrong = one(task, root / f"{task}_{runs}", alone, draw, whole)
                kills, runs, bad = kills + done, runs + 1, bad + bool(wrong)
                for line in wrong:
                    print(f"{task} {runs - 1}: {line}", file=sys.stderr, flush=True)
                if not (wrong and options.keep):
                    shutil.rmtree(root / f"{task}_{runs - 1}")
            failures += bad
            print(f"| {task} | {kills} kills of {runs} runs ({whole.writes} writes, {whole.seconds:.1f} s alone) | "
                  f"{runs - bad} bit-equal and clean, {bad} not |", flush=True)  # fmt: skip
    finally:
        if not options.keep:
            shutil.rmtree(root)
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
