"""Methods on equal terms: the same images, encoder, trainer and evaluation; what each is worth, and what it costs.

    python benchmarks/compare.py pretrain --out compare --images normals.json --method afire mae=60 --seeds 3
    python benchmarks/compare.py evaluate --out compare --task kermany=kermany.json:Pneumonia --segment jsrt=jsrt.json
    python benchmarks/compare.py cost --out compare --images normals.json
    python benchmarks/compare.py table --out compare

Everything is resumable: what is finished is not repeated, a pre-training that was cut off goes on from its newest
checkpoint. `NAME=EPOCHS` gives a method epochs of its own, for a comparison at equal computing time.

`evaluate` takes every encoder that is finished in OUT/NAME/SEED/models and, with the same seed for everything that
follows: probes its frozen features (k-NN, logistic regression), fine-tunes it on 1, 10 and 100 % of the labels,
fine-tunes a segmenter, and scores anomalies without labels (with pointing where test images have boxes). `fresh` and
`fresh_resnet` are the same encoders with the weights that the seed gives. Scores of single images are kept in
OUT/scores. `--share 0/2` and `--share 1/2` are two halves of the work, for two processes at a time.

Table: mean over seeds, with 95 % bootstrap intervals over patients and seeds (three seeds tell their spread only
roughly: the intervals are a little too narrow), the standard deviation over seeds, and the paired difference to
`--against`, with the number of seeds that are ahead of it. Bold: methods whose paired difference to the best one
includes 0. With `--images` (and `--method`, `--epochs` as in `pretrain`) the minutes of each training are told at the
speed that `cost` met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

PUBLISHED_TERMS = {
    **{"exposure": 0.0, "match_weight": 0.0, "lesion_weight": 0.0, "lesion_free": 0.0, "lesion_lungs": 0.0},
    "stem": "patches",
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "afire": ("method_afire.yaml", {}),
    "afire_terms": ("method_afire.yaml", PUBLISHED_TERMS),  # grid-shifted, with the paper's terms alone
    "afire_published": ("method_afire.yaml", {**PUBLISHED_TERMS, "shift": 0}),
    "afire_released": (
        "method_afire.yaml",
        {**PUBLISHED_TERMS, "shift": 0, "structure": "cross_entropy", "category_weight": 0.0},
    ),
    "afire_structure": ("method_afire.yaml", {**PUBLISHED_TERMS, "category_weight": 0.0, "restoration_weight": 0.0}),
    "peac": ("method_peac.yaml", {}),
    "mlvicx": ("method_mlvicx.yaml", {}),
    "mae": ("method_mae.yaml", {}),
    "dino": ("method_dino.yaml", {}),
}
FRESH = {"fresh": "afire", "fresh_resnet": "mlvicx"}  # baselines: fresh weights in the architecture of a method
FRACTIONS = (1.0, 0.1, 0.01)


def bundle_command(configs: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs the bundle with these config files and settings."""
    from afire_monai.cli.bundle import bundle_root

    files = [str(bundle_root() / "configs" / name) for name in configs]
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *words]


def train_command(method: str, images: str, folder: Path, epochs: int, seed: int) -> list[str]:
    """Return the bundle's command line of one pre-training."""
    config, settings = METHODS[method]
    settings = {
        **{"datalist": images, "output_dir": folder, "run_name": f"{method}-{seed}", "resume": True, "seed": seed},
        **{"epochs": epochs, "panel_every": epochs, "use_mlflow": False},
        **settings,
    }
    return bundle_command(("pretrain.yaml", config), settings)


def chosen_methods(args: argparse.Namespace) -> dict[str, int]:
    """Return the epochs of each chosen method; end the program, before anything is trained, if one makes no sense."""
    if args.images is None or not Path(args.images).is_file():
        raise SystemExit(f"--images {args.images}: no such file; a data list of normal training images is expected")
    chosen = {}
    for pair in args.method:
        name, _, epochs = pair.partition("=")
        if name not in METHODS:
            raise SystemExit(f"--method {pair}: unknown method {name!r}; there are {', '.join(METHODS)}")
        if "=" in pair and not (epochs.isdecimal() and int(epochs)):
            raise SystemExit(f"--method {pair}: NAME or NAME=EPOCHS is expected, with epochs of at least 1")
        chosen[name] = int(epochs) if epochs else args.epochs
    if min(args.epochs, args.seeds) < 1:
        raise SystemExit(f"--epochs {args.epochs}, --seeds {args.seeds}: at least 1 of each is expected")
    return chosen


def named_lists(option: str, pairs: list[str], label: bool = False) -> dict[str, str]:
    """Read NAME=datalist.json, with :label where a task needs one; ends the program for what cannot be meant."""
    named = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        datalist, _, labels = value.partition(":")
        if not name or not equals or "/" in name or (label and not labels):
            expected = "NAME=datalist.json:label" if label else "NAME=datalist.json"
            raise SystemExit(f"{option} {pair}: {expected} is expected, with no / in the name")
        if not Path(datalist).is_file():
            raise SystemExit(f"{option} {pair}: no such file {datalist}; a data list is expected")
        named[name] = value
    return named


def pretrain(args: argparse.Namespace) -> None:
    """Pre-train every method with every seed; a seed of all methods before the next seed."""
    chosen = chosen_methods(args)
    jobs = [(seed, name) for seed in range(args.seeds) for name in chosen]
    jobs = [(s, n) for s, n in jobs if not (Path(args.out) / n / str(s) / "models" / "encoder.safetensors").exists()]
    for number, (seed, name) in enumerate(jobs):
        folder = Path(args.out) / name / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"[{number + 1}/{len(jobs)}] {name}, seed {seed}, {chosen[name]} epochs", flush=True)
        with (folder / "output.txt").open("a") as log:
            command = train_command(name, args.images, folder, chosen[name], seed)
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{name}, seed {seed} failed; see {folder / 'output.txt'}")


def finished(out: Path) -> list[tuple[str, int, Path]]:
    """Return name, seed and model folder of every encoder that is there, in the order of METHODS."""
    paths = [p for p in out.glob("*/*/models/encoder.safetensors") if p.parts[-3].isdecimal()]  # not those of `cost`
    found = [(p.parts[-4], int(p.parts[-3]), p.parent) for p in paths]
    order = [*METHODS, *FRESH]
    return sorted(found, key=lambda f: (f[1], order.index(f[0]) if f[0] in order else len(order), f[0]))


def evaluate(args: argparse.Namespace) -> None:
    """Do what is not yet in the results file for every finished encoder."""
    tasks = named_lists("--task", args.task, label=True)
    segments, anomalies = named_lists("--segment", args.segment), named_lists("--anomaly", args.anomaly)
    if not (tasks or segments or anomalies):
        raise SystemExit("nothing to evaluate: give --task, --segment or --anomaly")
    out = Path(args.out)
    part, _, parts = args.share.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise SystemExit(f"--share {args.share}: PART/PARTS is expected, with parts counted from 0")
    if not finished(out):
        raise SystemExit(f"--out {out}: no finished encoder in OUT/NAME/SEED/models; `compare.py pretrain` makes them")
    from compare_parts import anomaly_run, outlines_run, probe_run, stored_rows, write_fresh
    from downstream import classification_run

    (out / "scores").mkdir(parents=True, exist_ok=True)
    log = out / "results.jsonl"
    done = {row["key"] for row in stored_rows(log, mend=True)}
    write_fresh(out, FRESH, args.seeds)
    encoders = finished(out)
    lists = {"probe": tasks, "anomaly": anomalies, "segmentation": segments, "classification": tasks}
    jobs: list[tuple[str, str, str, float, int, Path]] = []
    for kind, names in lists.items():
        fractions = tuple(args.fraction) if kind == "classification" else (1.0,)
        jobs += [(kind, t, name, f, seed, path) for name, seed, path in encoders for t in names for f in fractions]
    keys = ["/".join(map(str, job[:5])) for job in jobs]
    # by name and not by place, so that parts stay apart while encoders are added
    jobs = [j for j, k in zip(jobs, keys, strict=True) if k not in done and crc32(k.encode()) % int(parts) == int(part)]
    work, started = out / f"work_{os.getpid()}", time.monotonic()
    for number, (kind, task, name, fraction, seed, path) in enumerate(jobs):
        begin = time.monotonic()
        datalist, _, labels = lists[kind][task].partition(":")
        row: dict[str, Any] = {"key": "/".join(map(str, (kind, task, name, fraction, seed))), "datalist": datalist}
        if kind == "segmentation":
            scores = outlines_run(datalist, path, seed, work)
        elif kind == "classification":
            scores = classification_run(datalist, labels, str(path), fraction, seed, work)
        elif kind == "probe":
            scores = probe_run(datalist, labels, path, seed)
        else:
            scores = anomaly_run(datalist, path)
        np.savez(out / "scores" / f"{row['key'].replace('/', '_')}.npz", **scores)
        row["seconds"] = round(time.monotonic() - begin, 1)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.monotonic() - started) / (number + 1) * (len(jobs) - number - 1)
        print(
            f"[{number + 1}/{len(jobs)}] {row['key']}: {row['seconds']} s, about {left / 60:.0f} min left", flush=True
        )


def cost(args: argparse.Namespace) -> None:
    """Train each method for one epoch, one after the other on this machine: images a second and peak memory."""
    rows = {}
    for name in chosen_methods(args):
        folder = Path(args.out) / "cost" / name
        subprocess.run(["rm", "-rf", str(folder)], check=True)
        folder.mkdir(parents=True)
        with (folder / "output.txt").open("w") as log:
            process = subprocess.Popen(
                train_command(name, args.images, folder, 1, 0), stdout=log, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name} failed; see {folder / 'output.txt'}")
        header, values = (folder / "log.csv").read_text().splitlines()[:2]
        speed = float(dict(zip(header.split(","), values.split(","), strict=True))["images_per_second"])
        rows[name] = {"images_per_second": speed, "peak_gib": usage.ru_maxrss / 2**20}
        print(f"{name}: {speed:.1f} images/s, peak {rows[name]['peak_gib']:.2f} GiB", flush=True)
    (Path(args.out) / "cost.json").write_text(json.dumps(rows, indent=1))


def table(args: argparse.Namespace) -> None:
    """Print the tables from stored scores; with --images the minutes of each method's training as well."""
    chosen = chosen_methods(args) if args.images else {}
    chart = Path(args.chart) if args.chart else None
    if chart and not (chart.suffix == ".png" and chart.parent.is_dir()):
        raise SystemExit(f"--chart {chart}: the name of a .png in a folder that is there is expected")
    from compare_tables import print_tables

    from afire_monai.training.startup import normal_items

    count = len(normal_items(Path(args.images), "training")) if chosen else 0
    presented = {name: epochs * count for name, epochs in chosen.items()}
    file = Path(args.csv) if args.csv else None
    print_tables(Path(args.out), [*METHODS, *FRESH], args.against, presented, chart, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pretrain", "evaluate", "cost", "table"])
    parser.add_argument("--out", required=True, help="folder of runs and results")
    parser.add_argument("--images", help="data list whose normal training images are learned from")
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="names, or NAME=EPOCHS")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraction", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--task", action="append", default=[], help="NAME=datalist.json:label")
    parser.add_argument("--segment", action="append", default=[], help="NAME=datalist.json with masks")
    parser.add_argument("--anomaly", action="append", default=[], help="NAME=datalist.json, with boxes if there are")
    parser.add_argument("--share", default="0/1", help="PART/PARTS of the evaluation that this process does")
    parser.add_argument("--against", default="fresh", help="method that the table shows differences to")
    parser.add_argument("--chart", help="PNG that `table` draws: each figure of each method with its interval")
    parser.add_argument("--csv", help="CSV that `table` writes: the same figures")
    args = parser.parse_args()
    {"pretrain": pretrain, "evaluate": evaluate, "cost": cost, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
