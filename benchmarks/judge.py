"""Judge many encoders quickly, without fine-tuning: what an experiment's table is made of.

    python benchmarks/judge.py run --out judged --data adults=nih.json --data children=kermany.json \\
        --pretraining pretrain.json --runs compare --encoder other=runs/mine/models
    python benchmarks/judge.py table --out judged
    python benchmarks/judge.py choose --out judged

For each encoder and data list, on the validation and on the test section: AUROC of probes of frozen features (k-NN
and logistic regression, fitted to the training section; on class token and mean patch token side by side, and on the
mean alone), AUROC of anomaly scores (each part alone, and their calibrated sum), and how often heatmaps point into
boxes where there are boxes. Positive are images with any finding. Choices are made on the validation section; the test
section is for what was chosen.

`--cross` judges the test section of each list by the normals and the labels of each other list, as a hospital does with
an encoder and a classifier from elsewhere; a list without normal and abnormal training images is only judged.
`--baselines SEEDS` adds fresh weights in the networks that arms.py trains (`fresh`, `fresh_patches` without the stem of
convolutions, `fresh_resnet`; with the size and grey levels of the first encoder that is given) and `pixels`, probes of
the image itself at 32 x 32.

The reference of normals is the training section's, without what `--pretraining` has, if 20 remain.
`--runs OUT` takes every OUT/NAME/SEED/models, the layout of compare.py; `--encoder NAME=FOLDER` adds a folder, and the
same NAME again adds a seed. Images are read once for all encoders. Each encoder is one line in OUT/judged.jsonl and one
file of scores of single images; what is there with the same weights and settings is not repeated.

Table: mean over seeds, with 95 % bootstrap intervals over patients and seeds. Bold: the paired difference to the best
one includes 0. `choose` prints, best first, what settings are chosen by: for the validation sections alone, each of
four figures, and their mean over figures, lists and seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_parts import stored_rows
from compare_tables import Seeds, auroc_draws, level_with_best, mean_draws, seed_mean
from judging import (
    PIXELS,
    Population,
    anomaly_scores,
    interval,
    localisation,
    named,
    part_of,
    probe_scores,
    read_population,
    reference_of,
)

from afire_monai.datalists.file import datalist_hash, read_raw
from afire_monai.models.folder import export_encoder, load_encoder, model_files, weights_hashes
from afire_monai.networks import Encoder, build_encoder
from afire_monai.predictions.anomaly.detector import PARTS, AnomalyDetector, load_detector

LOG = "judged.jsonl"
WAYS = ("layers", "scales", "window")  # of comparing tokens
POINTS = "points: "
SEEN = {True: "not seen by pre-training", False: "seen by pre-training", None: "perhaps seen by pre-training"}
CHOSEN_BY = ("k-NN, class and mean", "linear, class and mean", "tokens", "density")
FRESH: dict[str, dict[str, Any]] = {
    "fresh": {"preset": "vit_ti6", "stem": "convolutions"},
    "fresh_patches": {"preset": "vit_ti6"},
    "fresh_resnet": {"preset": "resnet18"},
}
"""Baselines with fresh weights: the networks that arms.py trains."""
Encoders = list[tuple[str, int, Path]]


def chosen_encoders(args: argparse.Namespace) -> Encoders:
    """Return name, seed and model folder of each encoder; ends the program for one that is not there."""
    folders = [p.parent for p in Path(args.runs).glob("*/*/models/encoder.safetensors")] if args.runs else []
    found = sorted((p.parts[-3], int(p.parts[-2]), p) for p in folders if p.parts[-2].isdecimal())
    for pair in args.encoder:
        name, _, folder = pair.rpartition("=")
        name = name or "encoder"
        if "/" in name or not (Path(folder) / "encoder.safetensors").is_file():
            raise SystemExit(f"--encoder {pair}: NAME=FOLDER with encoder.safetensors in it is expected")
        found.append((name, sum(other == name for other, _, _ in found), Path(folder)))
    if not found:
        raise SystemExit("no finished encoder in OUT/NAME/SEED/models, and none given by --encoder NAME=FOLDER")
    return found


def add_baselines(encoders: Encoders, out: Path, seeds: int) -> Encoders:
    """Write fresh weights into OUT/fresh/NAME/SEED, with the size and grey levels of the first encoder; add them."""
    config = load_encoder(encoders[0][2]).config
    shared = {name: config[name] for name in ("image_size", "mean", "std")}
    for name, seed in ((name, seed) for name in FRESH for seed in range(seeds)):
        folder = out / "fresh" / name / str(seed)
        if not (folder / "encoder.safetensors").exists():
            torch.manual_seed(seed)
            export_encoder(build_encoder(**FRESH[name], **shared), folder)
        encoders = [*encoders, (name, seed, folder)]
    return encoders


def detector_of(folder: Path, args: argparse.Namespace) -> AnomalyDetector:
    """Load what `afire reference` would take, or the exported encoder whatever else lies there."""
    return load_detector(folder if args.detector == "product" else {"encoder": folder / "encoder.safetensors"})


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides figures besides the encoder; ends the program for what cannot be meant."""
    if missing := [path for path in args.pretraining if not Path(path).is_file()]:
        raise SystemExit(f"--pretraining {missing[0]}: no such file; a data list is expected")
    if not args.data:
        raise SystemExit("nothing to judge by: give --data NAME=datalist.json")
    hashes = {name: datalist_hash(read_raw(Path(path))) for name, path in named("--data", args.data).items()}
    seen = [datalist_hash(read_raw(Path(path))) for path in args.pretraining]
    options = {name: getattr(args, name) for name in ("parts", *WAYS, "detector", "cross")}
    return {**options, "data": hashes, "pretraining": seen}


def run(args: argparse.Namespace) -> None:
    """Judge what is not yet judged."""
    (part, parts), encoders, settings = part_of(args.share), chosen_encoders(args), settings_of(args)
    out = Path(args.out)
    (out / "scores").mkdir(parents=True, exist_ok=True)
    done = {row["key"]: row for row in stored_rows(out / LOG, mend=True)}
    encoders = add_baselines(encoders, out, args.baselines) if args.baselines else encoders
    jobs: list[tuple[dict[str, Any], Encoder | None, AnomalyDetector | None]] = []
    for name, seed, folder in encoders[part::parts]:
        row: dict[str, Any] = {
            "key": f"{name}/{seed}",
            "weights": weights_hashes(model_files([folder])),
            "settings": settings,
        }
        if not row.items() <= done.get(row["key"], {}).items():
            jobs.append((row, load_encoder(folder).to(args.device), detector_of(folder, args).to(args.device)))
    pixels = {"key": "pixels/0", "settings": settings}
    if args.baselines and not pixels.items() <= done.get("pixels/0", {}).items():
        jobs.append((pixels, None, None))
    sizes = {PIXELS, *(size for _, e, d in jobs if e and d for size in (e.image_size, d.canvas_size))}
    lists = named("--data", args.data) if jobs else {}
    needed = ["test"] if args.cross else ["training"]
    populations = {name: read_population(path, sizes, args.pretraining, needed) for name, path in lists.items()}
    if args.cross:
        populations = crossed(populations)
    normals = {name: {"normals": len(p.normals.groups), "unseen": p.unseen} for name, p in populations.items()}
    for number, (row, encoder, detector) in enumerate(jobs):
        begin = time.monotonic()
        scores: dict[str, Any] = {}
        for name, population in populations.items():
            found = scores_of(encoder, detector, population, args)
            scores |= {f"{name}/{what}": values for what, values in found.items()}
        np.savez(out / "scores" / f"{row['key'].replace('/', '_')}.npz", **scores)
        figures = {"/".join(k): round(float(d[0]), 4) for k, d in draws_of(scores, repeats=0).items()}
        row |= {"reference": normals, "figures": figures, "seconds": round(time.monotonic() - begin, 1)}
        with (out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"[{number + 1}/{len(jobs)}] {row['key']}: {row['seconds']} s", flush=True)


def crossed(populations: dict[str, Population]) -> dict[str, Population]:
    """Return each list that has normal and abnormal training images with the test sections of all lists."""
    tests = {name: population.scored["test"] for name, population in populations.items()}
    fitted = {name: p for name, p in populations.items() if len(set(p.training.abnormal)) == 2}
    return {name: dataclasses.replace(p, scored=tests) for name, p in fitted.items()}


def scores_of(
    encoder: Encoder | None, detector: AnomalyDetector | None, population: Population, args: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Return by section and figure the scores of single images, with truth and patients."""
    scores = {f"{section}/{what}": v for (section, what), v in probe_scores(encoder, population).items()}
    for section, cases in population.scored.items():
        scores |= {f"{section}/abnormal": cases.abnormal, f"{section}/groups": cases.groups}
    if detector is None:
        return scores
    ways = {name: getattr(args, name) for name in WAYS}
    reference = reference_of(detector, population.normals, args.parts, **ways)
    for section, cases in population.scored.items():
        found, heat = anomaly_scores(detector, reference, cases)
        scores |= {f"{section}/{part}": values for part, values in found.items()}
        if cases.lesions:
            for part, maps in heat.items():
                scores[f"{section}/{POINTS}{part}"] = localisation(maps, cases.lesions, repeats=1).per_case["pointing"]
            scores[f"{section}/lesion groups"] = np.array([c.group for c in cases.lesions.values()])
    return scores


def draws_of(scores: Any, repeats: int = 1000) -> dict[tuple[str, str, str], np.ndarray]:
    """Return by data list, section and figure (1 + repeats,): the value and its bootstrap draws over patients."""
    draws = {}
    for key in scores:
        population, section, what = key.split("/")
        if what in ("abnormal", "groups", "lesion groups"):
            continue
        around = f"{population}/{section}"
        if what.startswith(POINTS):
            found = mean_draws(scores[key], scores[f"{around}/lesion groups"], repeats)
        else:
            truth = scores[f"{around}/abnormal"].astype(float)
            found = auroc_draws(truth[:, None], scores[key][:, None], scores[f"{around}/groups"], repeats)[0]
        draws[population, section, what] = found
    return draws


def judged(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last row of each encoder; ends the program if there is none, or settings differ."""
    rows = {row["key"]: row for row in stored_rows(out / LOG)}
    if not rows:
        raise SystemExit(f"{out / LOG} holds no results; `judge.py run` writes it")
    if len({json.dumps(row["settings"], sort_keys=True) for row in rows.values()}) > 1:
        raise SystemExit(
            f"{out}: encoders were judged with different settings; give `judge.py run` for all of them again"
        )
    return rows


def choose(args: argparse.Namespace) -> None:
    """Print the figures of validation patients by which settings are chosen, the best encoder first."""
    found: dict[str, list[dict[str, float]]] = {}
    for key, row in judged(Path(args.out)).items():
        wanted = {f"{name}/validation/{what}" for name in row["settings"]["data"] for what in CHOSEN_BY}
        found.setdefault(key.rpartition("/")[0], []).append({n: v for n, v in row["figures"].items() if n in wanted})
    columns = list(dict.fromkeys(name for some in found.values() for name in some[0]))
    means = {name: [np.mean([one.get(c, np.nan) for one in some]) for c in columns] for name, some in found.items()}
    print(f"| encoder | seeds | {' | '.join(c.replace('/validation/', ': ') for c in columns)} | mean |")
    print("|---" * (len(columns) + 3) + "|")
    for name in sorted(means, key=lambda n: -np.nan_to_num(np.mean(means[n]))):
        cells = " | ".join(f"{value:.3f}" for value in (*means[name], np.mean(means[name])))
        print(f"| {name} | {len(found[name])} | {cells} |")


def table(args: argparse.Namespace) -> None:
    """Print a table for each data list and section: encoders in rows, figures in columns."""
    out = Path(args.out)
    rows = judged(out)
    figures: dict[tuple[str, str], dict[str, dict[str, Seeds]]] = {}
    for key in rows:
        name, _, seed = key.rpartition("/")
        with np.load(out / "scores" / f"{key.replace('/', '_')}.npz") as saved:
            for (population, section, what), draws in draws_of(dict(saved)).items():
                columns = figures.setdefault((population, section), {})
                columns.setdefault(what, {}).setdefault(name, {})[int(seed)] = draws
    last = [*rows.values()][-1]
    for (population, section), columns in sorted(figures.items(), key=lambda f: (f[0][1] == "test", f[0])):
        use = "choices are made here" if section == "validation" else "no choice is made here"
        count, unseen = last["reference"][population].values()
        print(f"**{population}, {section}** ({use}; reference: {count} normals, {SEEN[unseen]})")
        print_columns(columns)


def print_columns(columns: dict[str, dict[str, Seeds]]) -> None:
    """Print encoders in rows and figures in columns: mean over seeds with its interval; bold: level with the best."""
    print(f"\n| encoder | seeds | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    level = {what: level_with_best(by_name) for what, by_name in columns.items()}
    seeds = {name: len(some) for by_name in columns.values() for name, some in by_name.items()}
    for name, count in seeds.items():
        draws = {what: by_name.get(name) for what, by_name in columns.items()}
        texts = {what: interval(seed_mean(some)) if some else "" for what, some in draws.items()}
        cells = [f"**{text}**" if name in level[what] else text for what, text in texts.items()]
        print(f"| {name} | {count} | {' | '.join(cells)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "choose"])
    parser.add_argument("--out", required=True, help="folder of results")
    parser.add_argument("--data", action="append", default=[], help="NAME=datalist.json with labels")
    parser.add_argument("--pretraining", nargs="+", default=[], help="data lists that encoders were pre-trained on")
    parser.add_argument("--runs", help="folder of compare.py, whose encoders are judged")
    parser.add_argument("--encoder", action="append", default=[], help="NAME=model folder; NAME again: another seed")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["tokens", "neighbours", "density"], help="of anomaly scores"
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="blocks judged besides the encoder's output")
    parser.add_argument("--scales", type=int, nargs="+", default=[1], help="cells over which tokens are averaged; odd")
    parser.add_argument("--window", type=int, default=0, help="of the part neighbours")
    parser.add_argument(
        "--detector",
        choices=["product", "encoder"],
        default="product",
        help="of anomalies: what `afire reference` takes (of AFiRe the student), or the exported encoder (the teacher)",
    )
    parser.add_argument("--cross", action="store_true", help="judge the test images of each list by each other list")
    parser.add_argument("--baselines", type=int, default=0, help="seeds of fresh weights, and pixels once; 0: none")
    parser.add_argument("--share", default="0/1", help="PART/PARTS of the encoders, for several processes at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    {"run": run, "table": table, "choose": choose}[args.what](args)


if __name__ == "__main__":
    main()
