"""Parts of compare.py: probes, anomalies, and the tables."""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomaly import by_detector, pictures
from probe import cases, images_of

from afire_monai.data import load_datalist
from afire_monai.data.datalist import is_normal
from afire_monai.evaluation import extract_features, knn_probe, linear_probe
from afire_monai.evaluation.draws import figure_draws, macro_mean
from afire_monai.evaluation.heatmaps import image_figures
from afire_monai.evaluation.localisation import summarise
from afire_monai.evaluation.truth import lesion_case
from afire_monai.export import load_encoder
from afire_monai.inference import AnomalyDetector, load_detector
from afire_monai.networks import Encoder, encoder_from_config

Scores = dict[str, Any]


def encoder_of(model: Path, seed: int, out: Path) -> Encoder:
    """Load an encoder; for ``random`` that of the first finished ViT with fresh weights of this seed."""
    if str(model) != "random":
        return load_encoder(model)
    found = sorted(p for p in out.glob("afire/*/models/encoder.safetensors"))
    if not found:
        raise SystemExit("fresh weights take their architecture from `afire`, which is not finished yet")
    torch.manual_seed(seed)
    return encoder_from_config(load_encoder(found[0]).config).eval()


@lru_cache(maxsize=4)
def probe_data(datalist: str, label: str, size: tuple[int, int]) -> tuple[Any, ...]:
    """Training cases with pictures, test cases with pictures; read once for all encoders."""
    train, test = cases(datalist, label, ("training", "validation")), cases(datalist, label, ("test",))
    return train, images_of(train[0], size), test, images_of(test[0], size)


def probe_run(datalist: str, label: str, model: Path, seed: int, out: Path) -> Scores:
    """Probe the mean of frozen tokens: scores (n, 2) of k-NN and of a logistic regression."""
    encoder = encoder_of(model, seed, out)
    (_, known, owners), seen, (_, truth, groups), unseen = probe_data(datalist, label, encoder.image_size)
    a, b = (extract_features(encoder, x, "mean") for x in (seen, unseen))
    scores = np.stack([knn_probe(a, known, b), linear_probe(a, known, b, owners, seed)], 1)
    return {"scores": scores, "truth": np.stack([truth, truth], 1), "groups": groups, "labels": ["k-NN", "linear"]}


@lru_cache(maxsize=4)
def anomaly_data(datalist: str, size: tuple[int, int]) -> tuple[Any, ...]:
    """Normal pictures with their patients; test pictures with truth and patients; lesions of some test pictures."""
    content = load_datalist(datalist)
    reference = [i for i in content["training"] if is_normal(i, content["labels"])]
    test = content["test"]
    groups = np.array([str(i.get("group", i["image"])) for i in test])
    abnormal = np.array([not is_normal(i, content["labels"]) for i in test])
    found = {k: lesion_case(i, f"test[{k}]", groups[k]) for k, i in enumerate(test)}
    lesions = {k: case for k, case in found.items() if case is not None}
    owners = [str(i.get("group", i["image"])) for i in reference]
    return pictures(reference, size), owners, pictures(test, size), abnormal, groups, lesions


def anomaly_run(datalist: str, model: Path, seed: int, out: Path) -> tuple[Scores, dict[str, Any]]:
    """Score test images by the distance of their tokens to those of normal images; no label is used."""
    # tokens alone, which every encoder has: a decoder's residual would be an advantage of its own
    fresh = str(model) == "random"
    detector = AnomalyDetector(encoder_of(model, seed, out)) if fresh else load_detector(model)
    normal, owners, images, abnormal, groups, lesions = anomaly_data(datalist, detector.canvas_size)
    score, heat = by_detector(detector, ("tokens",), normal, owners, images)
    figures = {}
    if lesions:
        found = summarise(
            [image_figures(heat[k], c.lesion(), c.boxes) for k, c in lesions.items()], [*lesions.values()]
        )
        figures = {"pointing": found.pointing.value, "pixel_auroc": found.pixel_auroc.value}
    return {"scores": score[:, None], "truth": abnormal[:, None].astype(float), "groups": groups}, figures


def classification_truth(row: dict[str, Any], saved: Any) -> tuple[np.ndarray, np.ndarray]:
    """Give targets (n, C) and patients of a fine-tuning's test images."""
    from afire_monai.data.targets import target_matrix

    content = load_datalist(row["datalist"])
    items = [content["test"][i] for i in saved["index"]]
    truth = target_matrix(items, content["labels"], select=[str(x) for x in saved["labels"]]).astype(float)
    return truth, np.array([i.get("group", i["image"]) for i in items])


def auroc_draws(row: dict[str, Any], folder: Path, repeats: int = 1000) -> np.ndarray:
    """Give (C, 1 + repeats): AUROC of the sample and of draws of patients, the same for all rows of a task."""
    saved = np.load(folder / "scores" / f"{row['key'].replace('/', '_')}.npz")
    if row["key"].startswith("classification"):
        truth, groups = classification_truth(row, saved)
        levels = np.full(truth.shape[1], 0.5)
        figure = figure_draws(truth, saved["scores"].astype(float), groups, levels, ("auroc",), repeats, 0)["auroc"]
        return macro_mean(figure, list(range(truth.shape[1])))[None]
    truth, groups = saved["truth"].astype(float), saved["groups"]
    levels = np.full(truth.shape[1], 0.5)
    return figure_draws(truth, saved["scores"].astype(float), groups, levels, ("auroc",), repeats, 0)["auroc"]


Draws = dict[tuple[str, str, str], dict[str, list[np.ndarray]]]  # (kind, task, what) -> method -> seeds


def stored_rows(log: Path, mend: bool = False) -> list[dict[str, Any]]:
    """Read a file of results; empty if there is none. A last line that was cut off is left out, as never written.

    Args:
        log: one JSON object a line.
        mend: also take that line out of the file, so that the next one begins where it began.
    """
    text = log.read_text() if log.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        print(f"{log}: its last line was cut off and is left out; `evaluate` does that run again", file=sys.stderr)
        if mend:
            # in place: another process may have the file open
            os.truncate(log, len(whole.encode()))
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
            rows[-1]["key"]
        except (ValueError, KeyError, TypeError):
            raise SystemExit(
                f"{log}, line {number}: no result that can be read; take the line out, and evaluate again"
            ) from None
    return rows


def collect(out: Path) -> tuple[Draws, dict[tuple[str, str, str], dict[str, list[float]]]]:
    """Read the results: bootstrap draws of AUROC (each (1 + repeats,)), and plain figures, by method and seed."""
    draws: Draws = {}
    figures: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in stored_rows(out / "results.jsonl"):
        kind, task, method, fraction, _ = row["key"].split("/")
        for name in ("dice", "pointing", "pixel_auroc"):
            if name in row:
                figures.setdefault((kind, task, name), {}).setdefault(method, []).append(row[name])
        if kind == "segmentation":
            continue
        columns = {"classification": [f"{float(fraction):.0%} of labels"], "probe": ["k-NN", "linear"]}
        found = auroc_draws(row, out)
        for place, what in enumerate(columns.get(kind, ["no labels"])):
            draws.setdefault((kind, task, what), {}).setdefault(method, []).append(found[place])
    return draws, figures


def interval(draws: np.ndarray, sign: str = "") -> str:
    """Write value and 95 % interval."""
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return f"{draws[0]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def spread(values: list[float]) -> str:
    """Write the standard deviation over seeds, if there are several."""
    return f" [{np.std(values, ddof=1):.3f}]" if len(values) > 1 else ""


def print_tables(out: Path, order: list[str]) -> None:
    """Print cost, AUROC by task with intervals and differences, and plain figures."""
    if (out / "cost.json").exists():
        print("| method | images/s | peak memory, GiB |\n|---|---|---|")
        for name, row in json.loads((out / "cost.json").read_text()).items():
            print(f"| {name} | {row['images_per_second']:.1f} | {row['peak_gib']:.2f} |")
    draws, figures = collect(out)
    if not draws and not figures:
        raise SystemExit(f"{out / 'results.jsonl'} holds no results; `compare.py evaluate` writes it")
    # encoders of other methods may lie in OUT as well
    named = {name for row in draws.values() for name in row} | {name for row in figures.values() for name in row}
    order = [*order, *sorted(named - {*order})]
    for (kind, task, what), methods in sorted(draws.items()):
        mean = {name: np.mean(seeds, 0) for name, seeds in methods.items()}
        best = max(mean, key=lambda name: mean[name][0])
        print(f"\n**{kind}, {task}, {what}**\n\n| method | AUROC (95 %) [s.d.] | minus fresh weights | seeds |")
        print("|---|---|---|---|")
        for name in sorted(mean, key=order.index):
            behind = np.nanpercentile((mean[best] - mean[name])[1:], 2.5)
            text = interval(mean[name]) + spread([float(d[0]) for d in methods[name]])
            text = f"**{text}**" if name == best or behind <= 0 else text
            gain = "" if name == "fresh" or "fresh" not in mean else interval(mean[name] - mean["fresh"], "+")
            print(f"| {name} | {text} | {gain} | {len(methods[name])} |")
    for (kind, task, what), plain in sorted(figures.items()):
        print(f"\n**{kind}, {task}, {what}**\n\n| method | mean [s.d.] | seeds |\n|---|---|---|")
        for name in sorted(plain, key=order.index):
            print(f"| {name} | {np.mean(plain[name]):.3f}{spread(plain[name])} | {len(plain[name])} |")
