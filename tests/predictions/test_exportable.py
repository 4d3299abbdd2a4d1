from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth_images, tiny_afire
from PIL import Image

from afire_monai.cli import main as cli
from afire_monai.core.errors import AfireError
from afire_monai.models.export import open_graph
from afire_monai.models.folder import export_encoder, export_task, load_classifier
from afire_monai.networks import ViTClassifier, ViTEncoder, ViTSegmenter
from afire_monai.predictions.anomaly.build_reference import make_reference
from afire_monai.predictions.exportable import comparison_images, load_exportable
from afire_monai.predictions.scoring import Scorer
from afire_monai.training.finish import export_detector, export_restorer


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Normal pictures and a data list of them: 24 for training, 4 for testing."""
    folder = tmp_path_factory.mktemp("scans")
    items = []
    for number, picture in enumerate(smooth_images(28, (48, 48))[:, 0]):
        Image.fromarray((picture.numpy() * 200).astype(np.uint8)).save(folder / f"{number}.png")
        items.append({"image": f"{number}.png", "group": str(number)})
    (folder / "list.json").write_text(json.dumps({"training": items[:24], "test": items[24:]}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    method = tiny_afire(2)
    export_encoder(method.export_encoder, folder)
    export_restorer(method, folder)
    export_detector(method, folder)
    torch.manual_seed(0)
    classifier = ViTClassifier(ViTEncoder((24, 32), 8, embed_dim=16, depth=2, num_heads=2), ["A", "B"])
    torch.nn.init.normal_(classifier.head.weight)
    classifier.calibration_scale.fill_(0.5)
    export_task(classifier, folder, thresholds={"A": 0.25})
    segmenter = ViTSegmenter(ViTEncoder(32, 8, embed_dim=16, depth=3, num_heads=2), ["lung"], width=4)
    export_task(segmenter, folder, mask_values={"lung": 255})
    return folder


def test_each_kind_is_found_with_its_outputs_and_facts(model):
    assert load_exportable([model]).kind == "classifier"
    classifier = load_exportable([model], "classifier")
    assert (classifier.outputs, classifier.size) == (("logits", "probabilities"), (1, 24, 32))
    assert classifier.description["labels"] == ["A", "B"]
    assert classifier.description["thresholds"] == {"A": 0.25}
    assert load_exportable([model], "segmenter").description["mask_values"] == {"lung": 255}
    assert load_exportable([model], "encoder").size == (1, 32, 32)
    detector = load_exportable([model], "detector")
    assert (detector.outputs, detector.size) == (("restored", "difference"), (1, 48, 48))


def test_classifier_gives_calibrated_probabilities(model):
    images = torch.rand(2, 1, 24, 32)
    _, probabilities = load_exportable([model], "classifier").network(images)
    assert torch.allclose(probabilities, load_classifier(model)[0].probabilities(images))


@pytest.mark.parametrize("form", ["onnx", "torchscript", "torch_export"])
@pytest.mark.parametrize("kind", ["classifier", "segmenter", "encoder"])
def test_command_exports_each_kind_and_says_how_near_it_comes(model, tmp_path, capsys, form, kind):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    words = ["export", str(model), "--format", form, "--kind", kind, "--out", str(tmp_path), "--compared", "3"]
    assert cli.run(words) == 0
    output = capsys.readouterr().out
    assert "largest difference" in output
    assert ("opset 20" in output) == (form == "onnx")
    suffix = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}[form]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f"{kind}.json", f"{kind}{suffix}"])


@pytest.mark.parametrize("form", ["onnx", "torchscript", "torch_export"])
def test_exported_detector_ranks_images_as_predict_does(model, scans, tmp_path, capsys, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    for file in model.iterdir():
        if file.stem in ("encoder", "restorer", "detector"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    parts = ("tokens", "residual", "neighbours", "prototypes", "density", "places")
    make_reference(tmp_path, scans / "list.json", parts=parts)
    out = tmp_path / "out"
    words = ["export", str(tmp_path), "--format", form, "--out", str(out), "--kind", "detector"]
    assert cli.run([*words, "--images", str(scans / "list.json"), "--section", "test"]) == 0
    assert "largest difference" in capsys.readouterr().out
    scorer = Scorer([tmp_path], torch.device("cpu"))
    images = comparison_images((1, 48, 48), [str(scans / "list.json")], "test", 4)
    with torch.inference_mode():
        features = scorer.detector.features(images, scorer.reference.parts)
        expected = scorer.reference.judge(features, (48, 48))
    suffix = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}[form]
    assert sorted(p.name for p in out.iterdir()) == sorted(["detector.json", f"detector{suffix}"])
    file = out / f"detector{suffix}"
    score, percentile, heat = open_graph(file, form)(images)
    assert torch.allclose(score, expected.score, atol=1e-4)
    assert torch.allclose(percentile.double(), expected.percentile)
    assert torch.allclose(heat, expected.heat, atol=1e-4)
    if form == "torch_export":  # all crops go through one encoder
        targets = [str(node.target) for node in torch.export.load(file).graph.nodes]
        restored = scorer.detector.restorer.decoder.config["depth"]
        # a block of the decoder has two: among its tokens, and with the encoder's
        assert sum("attention" in target for target in targets) == scorer.detector.encoder.depth + 2 * restored


def test_images_of_a_list_are_compared_at_the_networks_size(scans):
    images = comparison_images((3, 24, 32), [str(scans / "list.json")], "test", 3)
    assert images.shape == (3, 3, 24, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    with pytest.raises(AfireError, match="2 images can be read, but at least 3"):
        comparison_images((1, 24, 32), [str(scans / "0.png"), str(scans / "1.png")], "test", 8)


def test_phantoms_are_drawn_where_no_images_are_named():
    images = comparison_images((1, 24, 40), [], "test", 3)
    assert images.shape == (3, 1, 24, 40)
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(AfireError, match="--compared is 2; at least 3 images are needed"):
        comparison_images((1, 24, 40), [], "test", 2)


def test_wrong_words_are_refused_with_what_there_is(model, tmp_path, capsys):
    assert cli.run(["export", str(model), "--format", "tflite", "--out", str(tmp_path / "a")]) == 2
    assert "--format must be one of onnx, torchscript, torch_export, timm, hf" in capsys.readouterr().err
    assert cli.run(["export", str(model), "--format", "timm", "--kind", "head", "--out", str(tmp_path / "a")]) == 2
    assert "--kind must be one of classifier, segmenter, encoder, detector" in capsys.readouterr().err
    export_encoder(ViTEncoder(32, 8, embed_dim=16, depth=1, num_heads=2), tmp_path / "e")
    words = ["export", str(tmp_path / "e"), "--format", "onnx", "--out", str(tmp_path / "a"), "--kind"]
    assert cli.run([*words, "segmenter"]) == 2
    assert "has no segmenter; it holds encoder.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_encoder_alone_is_no_detector(tmp_path):
    method = tiny_afire(0)
    export_encoder(method.export_encoder, tmp_path)
    with pytest.raises(AfireError, match="has no detector"):
        load_exportable([tmp_path], "detector")


def test_folder_for_timm_is_written_by_the_command(model, tmp_path):
    words = ["export", str(model), "--format", "timm", "--kind", "encoder", "--out", str(tmp_path / "timm")]
    assert cli.run(words) == 0
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]["embed_dim"] == 32
