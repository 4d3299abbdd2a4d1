"""A small data list on disk, with all that an evaluation can use, and predictions for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afire_monai.datalists.file import datalist_hash, read_raw
from afire_monai.predictions.format import Predictions, save_predictions

LABELS = ["Normal", "Mass", "Edema", "Hernia"]
HEIGHT, WIDTH = 40, 50


@dataclass
class Small:
    """A data list with its items and a writer of predictions."""

    path: Path
    items: list[dict[str, Any]]

    def predictions(self, name: str = "predictions", seed: int = 0, signal: float = 0.3, **facts: Any) -> Path:
        generator = np.random.default_rng(seed)
        scores = {}
        for place, label in enumerate(LABELS[1:], start=1):
            truth = np.array([item["label"][place] == 1 for item in self.items])
            scores[label] = np.clip(generator.normal(0.3, 0.15, len(truth)) + signal * truth, 0, 1)
        abnormal = np.array([item["label"][0] != 1 for item in self.items])
        percentile = np.clip(generator.uniform(0, 90, len(abnormal)) + 30 * abnormal, 0, 100)
        about = {"section": "test", "datalist_sha256": datalist_hash(read_raw(self.path)), "model": {"kind": "toy"}}
        thresholds = {"Mass": 0.45, "Edema": 0.45, "Hernia": 0.5}
        predictions = Predictions(
            np.arange(len(self.items)), scores, percentile, {**about, "thresholds": thresholds, **facts}
        )
        heatmaps = [np.roll(np.eye(8), i % 8, axis=1) for i in range(len(self.items))]
        masks = [drawn_mask(shift=2 + seed) if "mask" in item else None for item in self.items]
        return save_predictions(predictions, self.path.parent / name, heatmaps, masks)


def drawn_mask(shift: int = 0) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[10:30, 10 + shift : 30 + shift] = 255
    return mask


@pytest.fixture
def small(tmp_path: Path) -> Small:
    generator = np.random.default_rng(5)
    items = []
    for i in range(90):
        pixels = generator.integers(0, 255, (HEIGHT, WIDTH)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"doe_jane_{i}.png")
        label = [0, int(i % 3 == 0), int(i % 4 == 0), 0]
        label[0] = int(not any(label))
        item: dict[str, Any] = {"image": f"doe_jane_{i}.png", "group": f"Doe^Jane{i // 2}", "label": label}
        item |= {"sex": "FM"[i % 2], "age": 10 * (i % 10), "view": "PA" if i % 5 else "AP"}
        if label[1]:
            item["boxes"] = [[5, 5, 20, 20, "Mass"], *([[30, 10, 10, 10, "Nodule"]] if i % 2 else [])]
        if label[2]:
            item["mask"] = f"mask{i}.png"
            Image.fromarray(drawn_mask()).save(tmp_path / item["mask"])
        items.append(item)
    items[1]["label"] = [0, -1, 0, None]
    training = [{"image": "other.png", "group": "Roe^Richard", "label": [1, 0, 0, 0]}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"name": "toy", "labels": LABELS, "training": training, "test": items}))
    return Small(path, items)
