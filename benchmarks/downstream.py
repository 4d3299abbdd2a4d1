"""What an encoder is worth: fine-tuning with 1, 10 and 100 % of the labels, and segmentation, against baselines.

For each task, encoder, share of the labels and seed one run of the bundle's own fine-tuning config; the baseline
without a network is a logistic regression on principal components of raw pixels. Runs that are already in the results
file are not repeated, so the command can be stopped and given again.

    python benchmarks/downstream.py run --out results --task kermany=kermany.json:Pneumonia \\
        --segment jsrt=jsrt.json --encoder afire=runs/first/models --encoder random=random
    python benchmarks/downstream.py table --out results

Seeds decide the share of the labels, the order of images, augmentation and fresh weights; test images are the same for
all. Figures: mean over seeds of the macro AUROC over labels with at least 5 positive test images, its standard
deviation over seeds, and a 95 % bootstrap interval over patients (of that mean; the same draws for all rows of a task,
so differences are paired). Segmentation: mean over seeds of the mean Dice of the test images at the model resolution.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from judging import groups_of, interval
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# passes over the training images; more where there are fewer images, so that every run has steps enough to converge
EPOCHS = {1.0: 10, 0.1: 50, 0.01: 60}
FRESH = "fresh weights"  # method_name of an encoder that was exported untrained
LEAST_POSITIVES = 5
REPEATS = 1000


def layer_decay(encoder: str) -> float:
    """Fresh lower blocks have everything to learn: the same rate for all is the fairer baseline."""
    fresh = encoder == "random" or json.loads((Path(encoder) / "encoder.json").read_text()).get("method_name") == FRESH
    return 1.0 if fresh else 0.75


def classification_run(
    datalist: str, labels: str, encoder: str, fraction: float, seed: int, work: Path
) -> dict[str, Any]:
    """Fine-tune once; gives scores (n, C) of the test images, their targets, patients and the labels."""
    from afire_monai.cli.bundle import run_configs
    from afire_monai.predictions.format import load_predictions

    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist,
        "labels": labels if labels == "all" else labels.split(","),
        "init": encoder,
        "layer_decay": layer_decay(encoder),
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
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.training.startup import reading
    from afire_monai.training.task_data import classification_data

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
    """Fine-tune a segmenter once; gives the mean Dice of the test images, and that of each."""
    from afire_monai.cli.bundle import run_configs

    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist,
        "init": encoder,
        "layer_decay": layer_decay(encoder),
        "output_dir": str(work),
        "fraction": fraction,
        "seed": seed,
        "epochs": 20,
        "image_size": 128,
        "patience": 0,
        "validate_every": 4,
        "decoder_width": 8,
        "classes": {"lung": [255]},
    }
    run_configs(settings, ("finetune_segmentation.yaml",))
    result = json.loads((work / "segmentation.json").read_text())
    shutil.rmtree(work)
    return {"dice": result["test"]["dice/lung"], "images": result["test"]["images"]}


def pixel_segmentation(datalist: str, fraction: float, seed: int) -> dict[str, Any]:
    """Masks of the five training pictures nearest in 32 principal components of pixels, averaged: no network."""
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.radiographs.masks import MaskReading
    from afire_monai.training.startup import reading
    from afire_monai.training.task_data import segmentation_data

    data = segmentation_data(datalist, fraction=fraction, seed=seed, classes=["lung"])
    read = MaskReading(reading((128, 128)), (128, 128), {"lung": [255]}, 127)
    sets = [RadiographDataset(items, read, cache=True, extras=("mask",)) for items in (data.training, data.test)]
    pixels, masks = [], []
    for dataset in sets:
        assert dataset.cached is not None
        pixels.append(dataset.cached.float()[:, 0, ::2, ::2].flatten(1).numpy())
        masks.append(dataset.cached_extras["mask"].flatten(1).numpy())
    model = PCA(min(32, len(pixels[0]) - 1), random_state=seed).fit(pixels[0])
    train, test = model.transform(pixels[0]), model.transform(pixels[1])
    nearest = np.argsort(((test[:, None] - train[None]) ** 2).sum(-1), 1)[:, :5]
    marked = np.nan_to_num(masks[0])[nearest].mean(1) > 0.5
    known, truth = ~np.isnan(masks[1]), np.nan_to_num(masks[1]) > 0
    marked &= known
    total = marked.sum(1) + truth.sum(1)
    return {"dice": float(np.where(total > 0, 2 * (marked & truth).sum(1) / np.maximum(total, 1), 1.0).mean())}


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
        ("segmentation", task, name, args.segment_fraction, seed)
        for seed in range(args.seeds)
        for task in segments
        for name in [*encoders, *(["pixels"] if args.pixels else [])]
    ]
    jobs = [job for job in jobs if "/".join(map(str, job)) not in done]
    started = time.monotonic()
    for number, (kind, task, name, fraction, seed) in enumerate(jobs):
        key = f"{kind}/{task}/{name}/{fraction}/{seed}"
        begin = time.monotonic()
        work = out / f"work_{args.worker}"
        if kind == "segmentation":
            made_without = pixel_segmentation(segments[task], fraction, seed) if name == "pixels" else None
            row = made_without or segmentation_run(segments[task], encoders[name], fraction, seed, work)
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


def macro_draws(rows: list[dict[str, Any]], folder: Path) -> tuple[np.ndarray, list[float], int]:
    """Return the macro AUROC of the sample and of each bootstrap draw, averaged over seeds; of each seed; labels."""
    from afire_monai.datalists.file import load_datalist
    from afire_monai.datalists.targets import target_matrix
    from afire_monai.evaluation.metrics import figure_draws, macro_mean

    content = load_datalist(rows[0]["datalist"])
    draws = []
    for row in rows:
        saved = np.load(folder / "scores" / f"{row['key'].replace('/', '_')}.npz")
        items = [content["test"][i] for i in saved["index"]]
        truth = target_matrix(items, content["labels"], select=[str(x) for x in saved["labels"]]).astype(float)
        groups = groups_of(items)
        enough = [c for c, t in enumerate(truth.T) if min((t == 1).sum(), (t == 0).sum()) >= LEAST_POSITIVES]
        levels = np.full(truth.shape[1], 0.5)
        figure = figure_draws(truth, saved["scores"].astype(float), groups, levels, ("auroc",), REPEATS, 0)["auroc"]
        draws.append(macro_mean(figure, enough))
    return np.mean(draws, 0), [float(d[0]) for d in draws], len(enough)


def table(args: argparse.Namespace) -> None:
    folder = Path(args.out)
    by: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        kind, task, name, fraction, _ = row["key"].split("/")
        by.setdefault((kind, task, name, float(fraction)), []).append(row)
    order = sorted((k for k in by if k[0] == "classification"), key=lambda k: (k[1], -k[3], k[2] != "random", k[2]))
    base: dict[tuple[str, float], np.ndarray] = {}
    print("| task | labels used | encoder | AUROC (95 %) | s.d. over seeds | minus fresh weights | labels | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, task, name, fraction in order:
        draws, single, labels = macro_draws(by[kind, task, name, fraction], folder)
        spread = f"{np.std(single, ddof=1):.3f}" if len(single) > 1 else ""
        if name == "random":
            base[task, fraction] = draws
        against = base.get((task, fraction))
        gain = "" if name == "random" or against is None else interval(draws - against, "+")
        cells = [task, f"{fraction:.0%}", name, interval(draws), spread, gain, str(labels), str(len(single))]
        print("| " + " | ".join(cells) + " |")
    print("\n| structure | training share | encoder | Dice, mean over seeds | s.d. over seeds | seeds |")
    print("|---|---|---|---|---|---|")
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
