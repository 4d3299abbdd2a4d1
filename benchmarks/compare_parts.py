"""Parts of compare.py that score an encoder: probes, anomalies, outlines; and the file of results."""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import (
    PIXELS,
    Cases,
    anomaly_scores,
    groups_of,
    localisation,
    pictures,
    reference_and_test,
    reference_of,
    refuse_shared,
)
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afire_monai.cli.bundle import run_configs
from afire_monai.datalists.file import is_normal, load_datalist, normal_label, reader_options
from afire_monai.datalists.targets import target_matrix
from afire_monai.evaluation.probes import Pooling, extract_features, knn_probe, linear_probe, raw_pixels
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.networks import encoder_from_config
from afire_monai.predictions.anomaly.detector import load_detector
from afire_monai.predictions.format import load_predictions
from afire_monai.radiographs.masks import MaskReading
from afire_monai.training.startup import reading
from afire_monai.training.task_data import classification_data, segmentation_data

Scores = dict[str, Any]
FRESH = "fresh weights"  # method_name of an encoder that was exported untrained
POOLINGS: tuple[Pooling, ...] = ("class_mean", "mean")
PROBES = tuple(f"{probe}, {pooling.replace('_', ' and ')}" for pooling in POOLINGS for probe in ("k-NN", "linear"))


def write_fresh(out: Path, names: dict[str, str], seeds: int) -> None:
    """Export encoders with the weights that each seed gives, as OUT/NAME/SEED/models, for methods that are finished.

    Args:
        out: folder of runs.
        names: name of the fresh encoders, and the method whose architecture they have.
        seeds: how many.
    """
    for name, method in names.items():
        trained = sorted(out.glob(f"{method}/*/models/encoder.safetensors"))[:1]
        missing = [s for s in range(seeds) if not (out / name / str(s) / "models" / "encoder.safetensors").exists()]
        for seed in missing if trained else ():
            torch.manual_seed(seed)
            encoder = encoder_from_config(load_encoder(trained[0]).config)
            export_encoder(encoder, out / name / str(seed) / "models", method_name=FRESH)


def cases(datalist: str, label: str, sections: tuple[str, ...]) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Items of the sections that are normal or have the label, with label values and patients."""
    content = load_datalist(datalist)
    place = content["labels"].index(label)
    items = [item for section in sections for item in content.get(section, [])]
    items = [i for i in items if is_normal(i, content["labels"], normal_label(content)) or i["label"][place] == 1]
    return items, np.array([int(i["label"][place] == 1) for i in items]), groups_of(items)


@lru_cache(maxsize=4)
def probe_data(datalist: str, label: str, size: tuple[int, int]) -> tuple[Any, ...]:
    """Training cases with pictures, test cases with pictures; read once for all encoders."""
    train, test = cases(datalist, label, ("training", "validation")), cases(datalist, label, ("test",))
    refuse_shared({"training and validation": train[0], "test": test[0]}, datalist)
    options = reader_options(load_datalist(datalist))
    return train, pictures(train[0], [size], options)[size], test, pictures(test[0], [size], options)[size]


def probe_run(datalist: str, label: str, model: Path | None, seed: int) -> Scores:
    """Probe frozen tokens, or 32 x 32 pixels without a model: scores (n, 4) of `PROBES`."""
    encoder = load_encoder(model) if model else None
    size = encoder.image_size if encoder else PIXELS
    (_, known, owners), seen, (_, truth, groups), unseen = probe_data(datalist, label, size)
    columns = []
    for pooling in POOLINGS:
        a, b = (extract_features(encoder, x, pooling) if encoder else raw_pixels(x.float()) for x in (seen, unseen))
        columns += [knn_probe(a, known, b), linear_probe(a, known, b, owners, seed)]
    return {"scores": np.stack(columns, 1), "truth": np.stack([truth] * len(columns), 1), "groups": groups}


@lru_cache(maxsize=4)
def anomaly_data(datalist: str, size: tuple[int, int]) -> tuple[Cases, Cases]:
    """Normal images and test images; read once for all encoders."""
    return reference_and_test(datalist, [size])


def anomaly_run(datalist: str, model: Path) -> Scores:
    """Score test images by the distance of their tokens to those of normal images; no label is used.

    With ``pointing`` and ``pixel AUROC`` of each picture that has boxes.
    """
    # tokens alone, which every encoder has: a decoder's residual would be an advantage of its own
    detector = load_detector(model)
    normal, test = anomaly_data(datalist, detector.canvas_size)
    score, heat = anomaly_scores(detector, reference_of(detector, normal, ("tokens",)), test)
    truth = test.abnormal[:, None].astype(float)
    scores: Scores = {"scores": score["sum"][:, None], "truth": truth, "groups": test.groups}
    if test.lesions:
        found = localisation(heat["sum"], test.lesions)
        for name in ("pointing", "pixel_auroc"):
            scores[f"case_{name}"] = found.per_case[name]
        scores["case_groups"] = np.array([case.group for case in test.lesions.values()])
    return scores


def judged(datalist: str, index: Any, labels: Any, scores: np.ndarray) -> Scores:
    """Return scores (n, C) of these test images with their targets and patients."""
    content = load_datalist(datalist)
    items = [content["test"][place] for place in index]
    truth = target_matrix(items, content["labels"], select=[str(label) for label in labels]).astype(float)
    return {"scores": scores, "truth": truth, "groups": groups_of(items)}


def layer_decay(encoder: str) -> float:
    """Fresh lower blocks have everything to learn: the same rate for all is the fairer baseline."""
    fresh = encoder == "random" or json.loads((Path(encoder) / "encoder.json").read_text()).get("method_name") == FRESH
    return 1.0 if fresh else 0.75


def classification_run(datalist: str, labels: str, encoder: str, fraction: float, seed: int, work: Path) -> Scores:
    """Fine-tune once, by the bundle's defaults; scores (n, C) of the test images, their targets and patients."""
    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist,
        "labels": labels if labels == "all" else labels.split(","),
        "init": encoder,
        "layer_decay": layer_decay(encoder),
        "output_dir": str(work),
        "fraction": fraction,
        "seed": seed,
        "image_size": 128,
    }
    run_configs(settings, ("finetune_classification.yaml",))
    predictions = load_predictions(work / "predictions" / "test")
    shutil.rmtree(work)
    return judged(datalist, predictions.index, predictions.labels, np.stack(list(predictions.scores.values()), 1))


def pixel_run(datalist: str, labels: str, fraction: float, seed: int) -> Scores:
    """Principal components of 32 x 32 pixels and a logistic regression on the same share of the labels."""
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
    return judged(datalist, [i["place"] for i in data.test], data.labels, np.stack(columns, 1))


def outlines_run(datalist: str, encoder: str, seed: int, work: Path) -> Scores:
    """Fine-tune a segmenter; Dice of each test image."""
    shutil.rmtree(work, ignore_errors=True)
    settings: dict[str, Any] = {
        "datalist": datalist,
        "init": encoder,
        "layer_decay": layer_decay(encoder),
        "output_dir": str(work),
        "seed": seed,
        "epochs": 20,
        "image_size": 128,
        "patience": 0,
        "validate_every": 4,
        "decoder_width": 8,
        "classes": {"lung": [255]},
    }
    run_configs(settings, ("finetune_segmentation.yaml",))
    images = json.loads((work / "segmentation.json").read_text())["test"]["images"]
    shutil.rmtree(work)
    items = load_datalist(datalist)["test"]
    return {"case_dice": np.array(images["dice/lung"]), "case_groups": groups_of([items[k] for k in images["place"]])}


def pixel_outlines(datalist: str, seed: int) -> Scores:
    """Masks of the five training pictures nearest in 32 principal components of pixels, averaged: no network."""
    data = segmentation_data(datalist, seed=seed, classes=["lung"])
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
    dice = np.where(total > 0, 2 * (marked & truth).sum(1) / np.maximum(total, 1), 1.0)
    return {"case_dice": dice, "case_groups": groups_of(data.test)}


def run_job(row: dict[str, Any], path: Path | None, work: Path) -> Scores:
    """Do what a row of results names (kind/task/encoder/fraction/seed), with a model folder or the image itself."""
    kind, _, _, fraction, seed = row["key"].split("/")
    datalist, _, labels = row["task"].partition(":")
    if kind == "segmentation":
        return outlines_run(datalist, str(path), int(seed), work) if path else pixel_outlines(datalist, int(seed))
    if kind == "probe":
        return probe_run(datalist, labels, path, int(seed))
    if kind == "anomaly":
        assert path is not None
        return anomaly_run(datalist, path)
    if path:
        return classification_run(datalist, labels, str(path), float(fraction), int(seed), work)
    return pixel_run(datalist, labels, float(fraction), int(seed))


def stored_rows(log: Path, mend: bool = False) -> list[dict[str, Any]]:
    """Read a file of results; empty if there is none. A last line that was cut off is left out, as never written.

    Args:
        log: one JSON object a line.
        mend: also take that line out of the file, so that the next one begins where it began.
    """
    text = log.read_text() if log.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        print(f"{log}: its last line was cut off and is left out; give the same command again", file=sys.stderr)
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
