import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from afire_monai.networks import ViTClassifier, ViTSegmenter, encoder_from_config
from afire_monai.predictions.bundle_writer import ModelWriter
from afire_monai.predictions.format import load_predictions

SMALL = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def written(folder, network, answer):
    engine = Engine(lambda *_: {"pred": answer})
    ModelWriter(folder, [{"image": "a.png"}], network).attach(engine)
    engine.run([{"index": torch.tensor([0])}], max_epochs=1)
    return load_predictions(folder)


def test_each_class_has_a_file_in_the_folder_whatever_its_name_is(tmp_path):
    classes = ["left/right", "left_right", "../heart"]
    network = ViTSegmenter(encoder_from_config(SMALL), classes, width=4)
    logits = torch.tensor([0.0, 50.0, -50.0])[None, :, None, None].expand(1, 3, 16, 16)
    found = written(tmp_path / "out", network, logits)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("probabilities/*.png"))
    assert files == [f"out/probabilities/00000_{name}.png" for name in ("1_left_right", "2_left_right", "3____heart")]
    assert [int(np.asarray(Image.open(tmp_path / file)).max()) for file in files] == [128, 255, 0]
    assert (found.mask(0) == 2).all()  # the likeliest class
    assert found.facts["mask_values"] == {"left/right": 1, "left_right": 2, "../heart": 3}


def test_probabilities_of_a_classifier_are_predictions(tmp_path):
    network = ViTClassifier(encoder_from_config(SMALL), ["Mass", "Edema"])
    network.calibration_bias += 1
    found = written(tmp_path, network, torch.tensor([[0.0, -1.0]]))
    assert {name: values.tolist() for name, values in found.scores.items()} == {
        "Mass": [pytest.approx(1 / (1 + np.exp(-1)))], "Edema": [pytest.approx(0.5)]
    }  # fmt: skip
