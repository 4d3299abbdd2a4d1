"""Methods on equal terms: the same images, encoder, trainer and evaluation; what each is worth, and what it costs.

    python benchmarks/compare.py pretrain --out compare --images normals.json --method afire mae=60 --seeds 3
    python benchmarks/compare.py evaluate --out compare --task kermany=kermany.json:Pneumonia --segment jsrt=jsrt.json
    python benchmarks/compare.py cost --out compare --images normals.json
    python benchmarks/compare.py table --out compare

Everything is resumable: what is finished is not repeated, a pre-training that was cut off goes on from its newest
checkpoint. `NAME=EPOCHS` gives a method epochs of its own, for a comparison at equal computing time.

`evaluate` takes every encoder that is finished in OUT/NAME/SEED/models, or given by `--encoder NAME=FOLDER` (the same
NAME again: another seed), and with the same seed for everything that follows: probes its frozen features (k-NN,
logistic regression; class and mean token side by side, and the mean alone), fine-tunes it on 1, 10 and 100 % of the
labels by the bundle's defaults, fine-tunes a segmenter, and scores anomalies without labels (with pointing where test
images have boxes). `fresh`, `fresh_patches` and `fresh_resnet` are the encoders of AFiRe, of AFiRe without the stem of
convolutions and of MLVICX with the weights that the seed gives; `--pixels` adds the image itself: its 32 x 32 pixels,
and the masks of the training images that are most alike. Scores of single images are kept in OUT/scores; what is there
with the same weights and data list is not repeated. `--share 0/2` and `--share 1/2` are two halves of the work, for two
processes at a time. Anomalies of a grid-shifted model are judged on its larger canvas, those of others on the encoder's
pictures.

Table: mean over seeds, with 95 % bootstrap intervals over patients and seeds (three seeds tell their spread only
roughly: the intervals are a little too narrow), the standard deviation over seeds, and the paired difference to
`--against`, with the number of seeds that are ahead of it. Bold: methods whose paired difference to the best one
includes 0. A task with several labels has their mean AUROC; a label that fewer than 5 test images have, or lack, does
not count, and the row says how many do. With `--images` (and `--method`, `--epochs` as in `pretrain`) the minutes of
each training are shown, at the speed that `cost` measured.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
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
import yaml

from afire_monai.cli.bundle import bundle_root

_FORM = yaml.safe_load((bundle_root() / "configs" / "afire_published.yaml").read_text(encoding="utf-8"))
_PUBLISHED = {key: value for key, value in _FORM.items() if value != ""}  # which a command line would not hand on
_TERMS = {key: value for key, value in _PUBLISHED.items() if key != "shift"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "afire": ("method_afire.yaml", {}),
    "afire_terms": ("method_afire.yaml", _TERMS),  # grid-shifted, with the paper's terms alone
    "afire_published": ("method_afire.yaml", _PUBLISHED),
    "afire_released": ("method_afire.yaml", {**_PUBLISHED, "structure": "cross_entropy", "category_weight": 0.0}),
    "afire_structure": ("method_afire.yaml", {**_TERMS, "category_weight": 0.0, "restoration_weight": 0.0}),
    "peac": ("method_peac.yaml", {}),
    "mlvicx": ("method_mlvicx.yaml", {}),
    "mae": ("method_mae.yaml", {}),
    "dino": ("method_dino.yaml", {}),
}
# baselines: fresh weights in the architecture of a method
FRESH = {"fresh": "afire", "fresh_patches": "afire_terms", "fresh_resnet": "mlvicx"}
FRACTIONS = (1.0, 0.1, 0.01)


def bundle_command(configs: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs the bundle with these config files and settings."""
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


def keep_settings(folder: Path, settings: Mapping[str, Any], images: str, configs: Sequence[str]) -> None:
    """Write the settings of a run into its folder; ends the program if the run that is there has others.

    The values of its config files belong to them, so that a run with a former default is not taken for one of today's.
    """
    from afire_monai.datalists.file import datalist_hash, read_raw

    values = [yaml.safe_load((bundle_root() / "configs" / name).read_text(encoding="utf-8")) for name in configs]
    defaults = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    data = datalist_hash(read_raw(Path(images)))
    record = folder / "benchmark.json"
    wanted = json.dumps({**settings, "configs": [*configs], "defaults": defaults, "data": data})
    if record.exists() and record.read_text() != wanted:
        raise SystemExit(
            f"{folder} was pre-trained with other settings or defaults ({record}); use another --out, or the same ones"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(wanted)


def pretrain(args: argparse.Namespace) -> None:
    """Pre-train every method with every seed; a seed of all methods before the next seed."""
    chosen = chosen_methods(args)
    jobs = [(seed, name) for seed in range(args.seeds) for name in chosen]
    folders = {(s, n): Path(args.out) / n / str(s) for s, n in jobs}
    for (_, name), folder in folders.items():
        config, settings = METHODS[name]
        keep_settings(folder, {**settings, "epochs": chosen[name]}, args.images, ["pretrain.yaml", config])
    jobs = [job for job in jobs if not (folders[job] / "models" / "encoder.safetensors").exists()]
    for number, (seed, name) in enumerate(jobs):
        folder = folders[seed, name]
        print(f"[{number + 1}/{len(jobs)}] {name}, seed {seed}, {chosen[name]} epochs", flush=True)
        with (folder / "output.txt").open("a") as log:
            command = train_command(name, args.images, folder, chosen[name], seed)
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{name}, seed {seed} failed; see {folder / 'output.txt'}")


def evaluate(args: argparse.Namespace) -> None:
    """Do what is not yet in the results file for every finished encoder."""
    import compare_parts
    from judge import chosen_encoders
    from judging import named, part_of

    from afire_monai.datalists.file import datalist_hash, read_raw
    from afire_monai.models.folder import model_files, weights_hashes

    tasks = named("--task", args.task, "datalist.json:label")
    segments, anomalies = named("--segment", args.segment), named("--anomaly", args.anomaly)
    if not (tasks or segments or anomalies):
        raise SystemExit("nothing to evaluate: give --task, --segment or --anomaly")
    out = Path(args.out)
    part, parts = part_of(args.share)
    args.runs = str(out)
    chosen_encoders(args)
    compare_parts.write_fresh(out, FRESH, args.seeds)
    (out / "scores").mkdir(parents=True, exist_ok=True)
    log = out / "results.jsonl"
    done = {row["key"]: row for row in compare_parts.stored_rows(log, mend=True)}
    encoders: list[tuple[str, int, Path | None]] = sorted(chosen_encoders(args), key=lambda found: found[1])
    encoders += [("pixels", seed, None) for seed in range(args.seeds) if args.pixels]
    weights = {path: weights_hashes(model_files([path])) if path else {} for _, _, path in encoders}
    lists = {"probe": tasks, "anomaly": anomalies, "segmentation": segments, "classification": tasks}
    jobs: list[tuple[dict[str, Any], Path | None]] = []
    for kind, names in lists.items():
        fractions = tuple(args.fraction) if kind == "classification" else (1.0,)
        for (name, seed, path), task, fraction in itertools.product(encoders, names, fractions):
            key = "/".join(map(str, (kind, task, name, fraction, seed)))
            data = datalist_hash(read_raw(Path(names[task].partition(":")[0])))
            row: dict[str, Any] = {"key": key, "task": names[task], "data": data, "weights": weights[path]}
            # by name and not by place, so that parts stay apart while encoders are added
            if (path or kind != "anomaly") and crc32(key.encode()) % parts == part:
                jobs += [] if row.items() <= done.get(key, {}).items() else [(row, path)]
    work, started = out / f"work_{os.getpid()}", time.monotonic()
    for number, (row, path) in enumerate(jobs):
        begin = time.monotonic()
        scores = compare_parts.run_job(row, path, work)
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
    parser.add_argument("--images", help="data list; its normal training images are used")
    parser.add_argument("--method", nargs="+", default=list(METHODS), help="names, or NAME=EPOCHS")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraction", type=float, nargs="+", default=FRACTIONS, help="shares of the labels")
    parser.add_argument("--encoder", action="append", default=[], help="NAME=model folder; NAME again: another seed")
    parser.add_argument("--pixels", action="store_true", help="also the image itself, without an encoder")
    parser.add_argument("--task", action="append", default=[], help="NAME=datalist.json:label")
    parser.add_argument("--segment", action="append", default=[], help="NAME=datalist.json with masks")
    parser.add_argument("--anomaly", action="append", default=[], help="NAME=datalist.json, perhaps with boxes")
    parser.add_argument("--share", default="0/1", help="PART/PARTS of the evaluation that this process does")
    parser.add_argument("--against", default="fresh", help="method that the table shows differences to")
    parser.add_argument("--chart", help="PNG that `table` draws: each figure of each method with its interval")
    parser.add_argument("--csv", help="CSV that `table` writes: the same figures")
    args = parser.parse_args()
    {"pretrain": pretrain, "evaluate": evaluate, "cost": cost, "table": table}[args.what](args)


if __name__ == "__main__":
    main()
