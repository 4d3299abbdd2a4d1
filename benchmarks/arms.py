"""Train many settings ("arms") of the methods, several at a time, each with several seeds.

    python benchmarks/arms.py --arms benchmarks/arms.yaml --images pretrain.json --out arms --epochs 20 --seeds 3
    python benchmarks/arms.py --arms benchmarks/arms.yaml --images pretrain.json --out arms --device cuda --parallel 12
    python benchmarks/judge.py run --out judged --runs arms --data adults=adults.json --data children=children.json
    python benchmarks/judge.py table --out judged

Every arm is a method and settings of its config, in a YAML file; a seed of all arms comes before the next seed. Runs
lie in OUT/ARM/SEED, the layout of compare.py. What is finished is not repeated; what was stopped by TERM goes on from
its newest checkpoint, and what was killed begins again unless the arm sets `checkpoint_every`. Each process trains one
arm after the other; decoded pictures are shared by all (`cache: disk`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from compare import keep_settings

Job = tuple[str, int, dict[str, Any]]


def read_arms(path: Path, chosen: list[str]) -> dict[str, dict[str, Any]]:
    """Read the arms that were chosen, all if none; ends the program for one that is not there."""
    arms: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in chosen:
        if name not in arms:
            raise SystemExit(f"--arm {name}: {path} has {', '.join(arms)}")
    return {name: dict(arms[name] or {}) for name in chosen or arms}


def finished(out: Path, name: str, seed: int) -> bool:
    return (out / name / str(seed) / "models" / "encoder.safetensors").exists()


def train(job: Job, images: str, out: Path, epochs: int, device: str) -> None:
    """Train one arm with one seed in this process, as `python -m monai.bundle run` would."""
    from monai.bundle import run

    from afire_monai.cli.bundle import bundle_root

    name, seed, arm = job
    folder, configs = out / name / str(seed), bundle_root() / "configs"
    names = ["pretrain.yaml", f"method_{arm.get('method', 'afire')}.yaml"]
    keep_settings(folder, {"arm": arm, "epochs": epochs}, images, names)
    settings = {
        **{"datalist": images, "output_dir": str(folder), "run_name": f"{name}-{seed}", "resume": True, "seed": seed},
        **{"epochs": epochs, "panel_every": epochs, "health_every": epochs, "checkpoint_every": epochs},
        **{
            "use_mlflow": False,
            "cache": "disk",
            "cache_dir": str(out / "cache"),
            "device": f"$torch.device('{device}')",
        },
        **{key: value for key, value in arm.items() if key != "method"},
    }
    if "best_figure" not in settings:
        settings["best_figure"] = "images_per_second"  # always there: the last checkpoint is what counts
    files = [str(configs / name) for name in names]
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    sys.argv = ["monai.bundle", "run", "--config_file", str(files), *words]
    run(config_file=files, meta_file=str(configs / "metadata.json"), logging_file=False, **settings)


def work(number: int, jobs: Any, args: argparse.Namespace, until: float) -> None:
    """Take jobs until there are none, or no time for another one."""
    from afire_monai.training.stopping import EXIT_STATUS

    out = Path(args.out)
    log = (out / f"worker_{number}.txt").open("ab", buffering=0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    longest = 0.0
    while True:
        job = jobs.get()
        if job is None or time.time() + longest > until:
            return
        name, seed, _ = job
        print(f"== {name}, seed {seed}", flush=True)
        begin = time.time()
        try:
            train(job, args.images, out, args.epochs, args.device)
        except BaseException as error:
            (out / "failed.txt").open("a").write(f"{name}, seed {seed}: {error!r}\n")
            if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == EXIT_STATUS):
                raise
        longest = max(longest, time.time() - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=Path, default=Path(__file__).with_name("arms.yaml"))
    parser.add_argument("--arm", nargs="*", default=[], help="names; all of the file if none")
    parser.add_argument("--images", required=True, help="data list; its normal training images are used")
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parallel", type=int, default=1, help="trainings at a time")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="start no training that would end after this many; 0: no limit"
    )
    args = parser.parse_args()
    arms, out = read_arms(args.arms, args.arm), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * args.minutes if args.minutes else float("inf")
    waiting = [(n, s, arm) for s in range(args.seeds) for n, arm in arms.items() if not finished(out, n, s)]
    context = multiprocessing.get_context("spawn")
    jobs = context.Queue()
    for job in [*waiting, *[None] * args.parallel]:
        jobs.put(job)
    workers = [context.Process(target=work, args=(k, jobs, args, until)) for k in range(args.parallel)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(5)
        done = sum(finished(out, n, s) for n, s, _ in waiting)
        print(f"\r{done} of {len(waiting)} trained", end="", flush=True)
    print()
    missing = [f"{n}/{s}" for n, s, _ in waiting if not finished(out, n, s)]
    if missing:
        print(f"not trained: {', '.join(missing)}; OUT/failed.txt and OUT/worker_*.txt say why")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
