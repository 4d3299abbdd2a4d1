"""What an encoder is worth: fine-tuning with 1, 10 and 100 % of the labels, and segmentation, against baselines.

For each task, encoder, share of the labels and seed one run of the bundle's own fine-tuning config; baselines without a network
are principal components of raw pixels with a logistic regression. Runs that are already in the results file are not repeated,
so the command can be stopped and given again.

    python benchmarks/downstream.py run --out results --task kermany=kermany.json:Pneumonia --segment jsrt=jsrt.json \\
        --encoder afire=runs/first/models --encoder random=random
    python benchmarks/downstream.py table --out results

Seeds decide the share of the labels, the order of images, augmentation and fresh weights; test images are the same for all.
Figures: mean over seeds of the macro AUROC over labels with at least 5 positive test images, its standard deviation over
seeds, and a 95 % bootstrap interval over patients (of that mean; the same draws for all rows of a task, so differences are
paired). Segmentation: mean over seeds of the mean Dice of the test images at the model's resolution.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# passes over the training images; more where there are fewer images, so that every run has steps enough to converge
EPOCHS = {1.0: 10, 0.1: 50, 0.01: 60}
LEAST_POSITIVES = 5


def classification_run(
    datalist: str, labels: str, encoder: str, fraction: float, seed: int, work: Path
) -> dict[str, Any]:
    """Fine-tune once; gives scores (n, C) of the test images, their targets, patients and the labels."""
    from afire_monai.commands.bundle import run_configs
    from afire_monai.evaluation.predictions import load_predictions

    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist,
        "labels": labels if labels == "all" else labels.split(","),
        "init": encoder,
        # fresh lower blocks have everything to learn: the same rate for all is the fairer baseline
        "layer_decay": 1.0 if encoder == "random" else 0.75,
        "output_dir": str(work),
        "fraction": fraction,
        "seed": seed,
        "epochs": EPOCHS[fraction],
        "image_size": 128,
        "patience": 0,
        "validate_every": 1 if fraction == 1 else 5,
    }
    run_configs(settings, ("finetune_classification.yaml",))
    predictions = load_predictions(work / "predictions" / "test")
    shutil.rmtree(work)
    return {
        "index": predictions.index,
        "labels": list(predictions.labels),
        "scores": np.stack(list(predictions.scores.values()), 1),
    }


def pixel_run(datalist: str, labels: str, fraction: float, seed: int) -> dict[str, Any]:
    """Principal components of 32 x 32 pixels and a logistic regression on the same share of the labels."""
    from afire_monai.data.dataset import RadiographDataset
    from afire_monai.engines.startup import reading
    from afire_monai.tasks import classification_data

    data = classification_data(
        datalist, labels="all" if labels == "all" else labels.split(","), fraction=fraction, seed=seed
    )
    pixels = {}
    for name, items in (("training", data.training), ("test", data.test)):
        cached = RadiographDataset(items, reading((32, 32)), cache=True).cached
        assert cached is not None
        pixels[name] = cached.float().flatten(1).numpy()
    truth = np.array([i["target"] for i in data.training])
    columns = []
    for column in truth.T:
        known = ~np.isnan(column)
        if len(set(column[known])) < 2:
            columns.append(np.zeros(len(data.test)))
            continue
        parts = min(64, int(known.sum()) - 1)
        model = make_pipeline(
            StandardScaler(), PCA(parts, random_state=seed), StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)
        )
        columns.append(model.fit(pixels["training"][known], column[known]).decision_function(pixels["test"]))
    return {"index": np.array([i["place"] for i in data.test]), "labels": data.labels, "scores": np.stack(columns, 1)}


def segmentation_run(datalist: str, encoder: str, fraction: float, seed: int, work: Path) -> dict[str, Any]:
    """Fine-tune a segmenter once; gives Dice of each test image and the Dice of validation and test."""
    from afire_monai.commands.bundle import run_configs

    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist, "init": encoder, "output_dir": str(work), "fraction": fraction, "seed": seed, "epochs": 20,
        "image_size": 128, "patience": 0, "decoder_width": 8, "classes": {"lung": [255]}, "layer_decay": 1.0 if encoder == "random" else 0.75, "validate_every": 4,
    }  # fmt: skip
    run_configs(settings, ("finetune_segmentation.yaml",))
    result = json.loads((work / "segmentation.json").read_text())
    shutil.rmtree(work)
    return {"dice": result["test"]["dice/lung"]}


def named(pairs: list[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in pairs)


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    (out / "scores").mkdir(parents=True, exist_ok=True)
    log = out / "results.jsonl"
    done = {json.loads(line)["key"] for line in log.read_text().splitlines()} if log.exists() else set()
    encoders, tasks, segments = named(args.encoder), named(args.task), named(args.segment)
    jobs: list[tuple[Any, ...]] = [
        ("classification", task, name, fraction, seed)
        for seed in range(args.seeds)
        for task in tasks
        for fraction in args.fraction
        for name in [*encoders, *(["pixels"] if args.pixels else [])]
    ]
    jobs += [
        ("segmentation", s, name, args.segment_fraction, seed)
        for seed in range(args.seeds)
        for s in segments
        for name in encoders
    ]
    jobs = [job for job in jobs if "/".join(map(str, job)) not in done]
    started = time.monotonic()
    for number, (kind, task, name, fraction, seed) in enumerate(jobs):
        key = f"{kind}/{task}/{name}/{fraction}/{seed}"
        begin = time.monotonic()
        work = out / f"work_{args.worker}"
        if kind == "segmentation":
            row = segmentation_run(segments[task], encoders[name], fraction, seed, work)
        else:
            datalist, _, labels = tasks[task].partition(":")
            made = (
                pixel_run(datalist, labels, fraction, seed)
                if name == "pixels"
                else classification_run(datalist, labels, encoders[name], fraction, seed, work)
            )
            np.savez(
                out / "scores" / f"{key.replace('/', '_')}.npz",
                index=made["index"],
                scores=made["scores"],
                labels=made["labels"],
            )
            row = {"datalist": datalist}
        row |= {"key": key, "seconds": round(time.monotonic() - begin, 1)}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = (time.monotonic() - started) / (number + 1) * (len(jobs) - number - 1)
        print(f"[{number + 1}/{len(jobs)}] {key}: {row['seconds']} s, about {left / 60:.0f} min left", flush=True)


def table(args: argparse.Namespace) -> None:
    from afire_monai.data import load_datalist
    from afire_monai.data.targets import target_matrix
    from afire_monai.evaluation.bootstrap import _draw_patients, _weighted_auroc

    rows = [json.loads(line) for line in (Path(args.out) / "results.jsonl").read_text().splitlines()]
    by: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        kind, task, name, fraction, _ = row["key"].split("/")
        by.setdefault((kind, task, name, float(fraction)), []).append(row)
    values: dict[tuple[str, float, str], np.ndarray] = {}
    print("| task | labels used | encoder | AUROC (95 %) | s.d. over seeds | minus fresh weights (95 %) | seeds |")
    print("|---|---|---|---|---|---|---|")
    order = sorted((k for k in by if k[0] == "classification"), key=lambda k: (k[1], -k[3], k[2] != "random", k[2]))
    for kind, task, name, fraction in order:
        made = by[kind, task, name, fraction]
        content = load_datalist(made[0]["datalist"])
        macro, single = [], []
        for row in made:
            saved = np.load(Path(args.out) / "scores" / f"{row['key'].replace('/', '_')}.npz")
            items = [content["test"][i] for i in saved["index"]]
            truth = target_matrix(items, content["labels"], select=[str(x) for x in saved["labels"]])
            groups = np.array([i.get("group", i["image"]) for i in items])
            weights = np.vstack([np.ones(len(items)), _draw_patients(groups, 1000, 0)])
            columns = [
                _weighted_auroc(
                    saved["scores"][~np.isnan(t), c].astype(float), t[~np.isnan(t)] == 1, weights[:, ~np.isnan(t)]
                )
                for c, t in enumerate(truth.T)
                if (t == 1).sum() >= LEAST_POSITIVES and (t == 0).sum() >= LEAST_POSITIVES
            ]
            macro.append(np.nanmean(columns, 0))
            single.append(macro[-1][0])
        draws = np.mean(macro, 0)
        values[task, fraction, name] = draws
        low, high = np.percentile(draws[1:], [2.5, 97.5])
        line = [task, f"{fraction:.0%}", name, f"{draws[0]:.3f} ({low:.3f} to {high:.3f})"]
        line.append(f"{np.std(single, ddof=1):.3f}" if len(single) > 1 else "")
        base = values.get((task, fraction, "random"))
        if base is None or name == "random":
            line.append("")
        else:
            difference = draws - base
            low, high = np.percentile(difference[1:], [2.5, 97.5])
            line.append(f"{difference[0]:+.3f} ({low:+.3f} to {high:+.3f})")
        print("| " + " | ".join([*line, str(len(made))]) + " |")
    print(
        "\n| structure | training share | encoder | Dice, mean over seeds | s.d. over seeds | seeds |\n|---|---|---|---|---|---|"
    )
    for kind, task, name, fraction in sorted(k for k in by if k[0] == "segmentation"):
        dice = [row["dice"] for row in by[kind, task, name, fraction]]
        spread = f"{np.std(dice, ddof=1):.4f}" if len(dice) > 1 else ""
        print(f"| {task} | {fraction:.0%} | {name} | {np.mean(dice):.4f} | {spread} | {len(dice)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--out", required=True, help="folder of results")
    parser.add_argument("--task", action="append", default=[], help="NAME=datalist.json:label,label or :all")
    parser.add_argument("--segment", action="append", default=[], help="NAME=datalist.json with masks")
    parser.add_argument("--encoder", action="append", default=[], help="NAME=model folder, or NAME=random")
    parser.add_argument("--fraction", type=float, nargs="+", default=[1.0, 0.1, 0.01])
    parser.add_argument("--segment-fraction", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pixels", action="store_true", help="also the baseline without a network")
    parser.add_argument("--worker", default="0", help="name of this process, if several write to one folder")
    args = parser.parse_args()
    (run if args.what == "run" else table)(args)


if __name__ == "__main__":
    main()
