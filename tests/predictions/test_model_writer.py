from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from afire_monai.networks import ViTSegmenter, encoder_from_config
from afire_monai.predictions.bundle_writer import ModelWriter

SMALL = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_each_class_has_a_file_in_the_folder_whatever_its_name_is(tmp_path):
    classes = ["left/right", "left_right", "../heart"]
    network = ViTSegmenter(encoder_from_config(SMALL), classes, width=4)
    writer = ModelWriter(tmp_path / "out", [{"image": "a.png"}], network)
    logits = torch.tensor([0.0, 50.0, -50.0])[None, :, None, None].expand(1, 3, 16, 16)
    writer._write(SimpleNamespace(state=SimpleNamespace(output={"pred": logits}, batch={"index": torch.tensor([0])})))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == [f"out/00000_a_{name}.png" for name in ("1_left_right", "2_left_right", "3____heart")]
    assert [int(np.asarray(Image.open(tmp_path / file)).max()) for file in files] == [128, 255, 0]
