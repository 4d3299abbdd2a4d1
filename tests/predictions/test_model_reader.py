"""Folders are predicted as the images of training were read."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from afire_monai.datalists.file import save_datalist
from afire_monai.loading.dataset import RadiographDataset, reader_facts
from afire_monai.models.folder import export_task
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.predictions.format import load_predictions
from afire_monai.predictions.predict import predict
from afire_monai.training.startup import reading


def test_folder_is_read_with_the_options_that_the_model_was_trained_with(tmp_path):
    (tmp_path / "images").mkdir()
    grey = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)  # 12 bits in 16
    Image.fromarray(grey).save(tmp_path / "images" / "a.png")
    items = [{"image": str(tmp_path / "images" / "a.png")}]
    options = {"png16_max": 4095}
    listed = save_datalist({"meta": {"reader": options}, "training": items, "test": items}, tmp_path / "list.json")
    dataset = RadiographDataset(items, reading((32, 32), datalist=listed))
    assert reader_facts(dataset) == {"reader": options}
    torch.manual_seed(0)
    network = ViTClassifier(ViTEncoder(32, 8, embed_dim=32, depth=1, num_heads=2), ["Mass"])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # so that every picture counts
    export_task(network, tmp_path / "model", **reader_facts(dataset))
    export_task(network, tmp_path / "plain_model")
    found = {}
    runs = {"folder": ("images", "model"), "list": ("list.json", "model"), "plain": ("images", "plain_model")}
    for name, (source, model) in runs.items():
        predict([tmp_path / source], [tmp_path / model], tmp_path / name, heatmap="none", workers=0)
        found[name] = float(load_predictions(tmp_path / name).scores["Mass"][0])
    source, model, out = [tmp_path / "images"], [tmp_path / "plain_model"], tmp_path / "given"
    predict(source, model, out, heatmap="none", workers=0, reader=options)
    assert float(load_predictions(out).scores["Mass"][0]) == found["list"]
    assert found["folder"] == found["list"]
    assert found["folder"] != found["plain"]
