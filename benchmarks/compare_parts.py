"""Parts of compare.py that score an encoder: probes, anomalies, outlines; and the file of results."""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomaly import by_detector
from downstream import FRESH, segmentation_run
from judging import Cases, groups_of, localisation, pictures, reference_and_test
from probe import cases

from afire_monai.datalists.file import load_datalist
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.networks import encoder_from_config
from afire_monai.predictions.anomaly.detector import load_detector

Scores = dict[str, Any]


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


@lru_cache(maxsize=4)
def probe_data(datalist: str, label: str, size: tuple[int, int]) -> tuple[Any, ...]:
    """Training cases with pictures, test cases with pictures; read once for all encoders."""
    train, test = cases(datalist, label, ("training", "validation")), cases(datalist, label, ("test",))
    return train, pictures(train[0], [size])[size], test, pictures(test[0], [size])[size]


def probe_run(datalist: str, label: str, model: Path, seed: int) -> Scores:
    """Probe the mean of frozen tokens: scores (n, 2) of k-NN and of a logistic regression."""
    encoder = load_encoder(model)
    (_, known, owners), seen, (_, truth, groups), unseen = probe_data(datalist, label, encoder.image_size)
    a, b = (extract_features(encoder, x, "mean") for x in (seen, unseen))
    scores = np.stack([knn_probe(a, known, b), linear_probe(a, known, b, owners, seed)], 1)
    return {"scores": scores, "truth": np.stack([truth, truth], 1), "groups": groups, "labels": ["k-NN", "linear"]}


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
    score, heat = by_detector(detector, ("tokens",), normal, test)
    scores: Scores = {"scores": score[:, None], "truth": test.abnormal[:, None].astype(float), "groups": test.groups}
    if test.lesions:
        found = localisation(heat, test.lesions)
        for name in ("pointing", "pixel_auroc"):
            scores[f"case_{name}"] = found.per_case[name]
        scores["case_groups"] = np.array([case.group for case in test.lesions.values()])
    return scores


def outlines_run(datalist: str, model: Path, seed: int, work: Path) -> Scores:
    """Fine-tune a segmenter; Dice of each test image."""
    images = segmentation_run(datalist, str(model), 1.0, seed, work)["images"]
    items = load_datalist(datalist)["test"]
    groups = groups_of([items[place] for place in images["place"]])
    return {"case_dice": np.array(images["dice/lung"]), "case_groups": groups}


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
