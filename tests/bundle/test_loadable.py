"""A bundle with weights, as MONAI's own functions take it: loaded, checked, exported and run, in this process."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import cause_of, run_bundle, tiny_afire
from hospital_files import write
from monai.bundle import ConfigParser
from PIL import Image

from afire_monai.cli.bundle import bundle_root
from afire_monai.cli.bundle_check import CHECKS
from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.bundle_model import data_format, fill_bundle, load_for_bundle, network_config, with_weights
from afire_monai.models.restorer import AnomalyNetwork
from afire_monai.networks import AnomalyRestorationDecoder, ViTClassifier, ViTSegmenter, encoder_from_config
from afire_monai.phantom import write_phantom_dataset
from afire_monai.predictions.format import load_predictions
from afire_monai.radiographs.judgement import LATERAL
from afire_monai.training.finish import export_restorer

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
KINDS = ("classifier", "segmenter", "restorer", "encoder")


def network_of(kind):
    torch.manual_seed(3)
    encoder = encoder_from_config({**SMALL, "mean": 0.4, "std": 0.2})
    if kind == "classifier":
        network = ViTClassifier(encoder, ["Mass", "Effusion", "Nodule"], "class_mean", normality=True)
        network.calibration_scale.fill_(2.0)
        return network.eval()
    if kind == "segmenter":
        return ViTSegmenter(encoder, ["left lung", "heart"], width=4).eval()
    decoder = {"in_dim": 32, "grid": (4, 4), "patch_size": 8}
    if kind == "restorer":
        return AnomalyNetwork(encoder, AnomalyRestorationDecoder(**decoder, dim=16, depth=1, num_heads=2)).eval()
    return encoder.eval()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle of each kind, each alone in a folder."""
    folder = tmp_path_factory.mktemp("bundles")
    for kind in KINDS:
        shutil.copytree(bundle_root(), folder / kind, ignore=shutil.ignore_patterns("models"))
        fill_bundle(folder / kind, network_of(kind))
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory with nothing in it, no command line of a bundle, and no network."""

    def refuse(*args, **kwargs):
        raise AssertionError("something went to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(sys, "argv", ["python"])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_config_builds_the_network_without_its_weights(kind):
    from monai.bundle import ConfigParser

    network = network_of(kind)
    config = json.loads(json.dumps(network_config(network)))
    built = ConfigParser({"network_def": config}).get_parsed_content("network_def")
    assert not all(
        torch.equal(a, b) for a, b in zip(built.state_dict().values(), network.state_dict().values(), strict=True)
    )
    built.load_state_dict(network.state_dict())
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(built.eval()(image), network(image))


@pytest.mark.parametrize("kind", KINDS)
def test_described_output_is_what_comes_out(kind):
    network = network_of(kind)
    described = data_format(network)["outputs"]["pred"]
    output = network(torch.rand(1, 1, 32, 32))
    assert described["num_channels"] == len(described["channel_def"]) == output.shape[1]
    assert [*output.shape[2:]] in (described["spatial_shape"], [])


@pytest.mark.parametrize("kind", KINDS)
def test_monai_loads_the_weights_and_leaves_nothing_behind(kind, bundles, elsewhere):
    from monai.bundle import load

    network = load(kind, bundle_dir=str(bundles), workflow_type="inference", device="cpu").eval()
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(network(image), network_of(kind)(image))
    assert list(elsewhere.iterdir()) == []


def test_training_config_is_the_one_that_monai_loads_unless_told_otherwise(bundles, elsewhere):
    from monai.bundle import load

    network = load("classifier", bundle_dir=str(bundles), device="cpu")
    assert network.labels == ["Mass", "Effusion", "Nodule"]
    assert torch.equal(network.head.weight, network_of("classifier").head.weight)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_zoo_asks_of_a_bundle_holds(kind, bundles, elsewhere, capsys):
    pytest.importorskip("onnxscript")
    code = run(["bundle", "check", str(bundles / kind)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.count("ok ") == len(CHECKS) == 10


@pytest.mark.parametrize(
    ("check", "spoil", "message"),
    [
        ("directory", lambda b: (b / "models/model.pt").unlink(), "models/model.pt missing"),
        ("version and changelog", lambda b: change(b, version="9.0.0"), "9.0.0 is not in the changelog"),
        ("required packages", lambda b: change(b, required_packages_version={"no-such-thing": "1"}), "no-such-thing"),
        ("metadata", lambda b: change(b, network_data_format={}), "Failed validating"),
        ("shape of the answer", lambda b: change(b, network_data_format=wider(b)), "output channel number"),
        ("properties of inference", lambda b: configured(b, "dataset"), "with config ID"),
        ("monai.bundle.load, folder and zip", lambda b: other_weights(b), "not what model.pt holds"),
        ("export to TorchScript", lambda b: (b / "models/model.pt").unlink(), "not found"),
    ],
)
def test_check_finds_a_fault(check, spoil, message, bundles, elsewhere, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundles / "encoder", copy)
    assert CHECKS[check](copy) == ""
    spoil(copy)
    assert message in CHECKS[check](copy)


def change(bundle, **values):
    path = bundle / "configs/metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def wider(bundle):
    content = json.loads((bundle / "configs/metadata.json").read_text())["network_data_format"]
    content["outputs"]["pred"]["num_channels"] = 99
    return content


def configured(bundle, dropped):
    path = bundle / "configs/inference.json"
    content = json.loads(path.read_text())
    del content[dropped]
    path.write_text(json.dumps(content))


def other_weights(bundle):
    torch.save({"head.weight": torch.zeros(3, 3)}, bundle / "models/model.pt")


def test_bundle_alone_predicts_from_another_folder(bundles, elsewhere, tmp_path):
    datalist = write_phantom_dataset(tmp_path / "data", normal=10, abnormal=1, size=32)
    images, config = datalist.parent / "images", str(bundles / "classifier/configs/inference.json")
    settings = {"bundle_root": str(bundles / "classifier"), "dataset_dir": str(images), "device": "cpu"}
    run_bundle(elsewhere, config, output_dir="results", batch_size=4, **settings)
    found = load_predictions(elsewhere / "results")
    assert len(found) == 11
    first = sorted(images.iterdir())[0]
    pixels = torch.from_numpy(np.asarray(Image.open(first), dtype=np.float32))
    image = (pixels / (65535 if pixels.max() > 255 else 255))[None, None]
    expected = network_of("classifier").probabilities(image)[0]
    assert [found.scores[label][0] for label in ("Mass", "Effusion", "Nodule")] == pytest.approx(
        expected.tolist(), abs=1e-4
    )


@pytest.mark.parametrize(("kind", "files"), [("segmenter", "probabilities/*_heart.png"), ("encoder", "tokens/*.npy")])
def test_other_networks_write_a_file_for_each_picture(kind, files, bundles, elsewhere, tmp_path):
    datalist = write_phantom_dataset(tmp_path / "data", normal=10, abnormal=0, size=32)
    settings = {"bundle_root": str(bundles / kind), "dataset_dir": str(datalist.parent / "images"), "device": "cpu"}
    run_bundle(elsewhere, str(bundles / kind / "configs/inference.json"), output_dir="results", **settings)
    assert len(list((elsewhere / "results").glob(files))) == 10


def test_training_goes_on_from_the_weights_of_the_bundle(bundles, elsewhere, tmp_path):
    datalist = write_phantom_dataset(tmp_path / "data", normal=12, abnormal=12, size=32)
    content = json.loads(datalist.read_text())
    content["labels"] = ["Mass", "Effusion", "Nodule"]
    for section in ("training", "validation", "test"):
        for number, item in enumerate(content[section]):
            item["label"] = [number % 2, (number + 1) % 2, number % 2]
    datalist.write_text(json.dumps(content))
    settings = {"bundle_root": str(bundles / "classifier"), "epochs": 1, "lr": 0.0, "final_lr": 0.0, "device": "cpu"}
    config = str(bundles / "classifier/configs/train.json")
    run_bundle(elsewhere, config, datalist=str(datalist), output_dir="tuned", batch_size=4, **settings)
    assert json.loads((elsewhere / "tuned/models/classifier.json").read_text())["encoder"] == "bundle"
    tuned = load_for_bundle([elsewhere / "tuned/models"])
    assert torch.equal(tuned.encoder.cls_token, network_of("classifier").encoder.cls_token)
    assert torch.equal(tuned.head.weight, network_of("classifier").head.weight)


def test_shipped_model_is_copied_by_its_name(elsewhere, capsys):
    from monai.bundle import load

    assert run(["bundle", "copy", "chest", "--model", "chest-s16-1"]) == 0
    assert "research only" in capsys.readouterr().out
    network = load("chest", bundle_dir=".", workflow_type="inference", device="cpu")
    assert network.labels[0] == "Pneumonia"
    described = json.loads((elsewhere / "chest/configs/metadata.json").read_text())["network_data_format"]
    assert described["inputs"]["image"]["spatial_shape"] == [224, 224]


def test_kind_that_a_folder_does_not_hold_is_refused_before_anything_is_written(elsewhere, capsys):
    assert run(["bundle", "copy", "chest", "--model", "chest-s16-1", "--kind", "segmenter"]) == 2
    assert "has no segmenter; it holds" in capsys.readouterr().err
    assert run(["bundle", "copy", "chest", "--kind", "segmenter"]) == 2
    assert list(elsewhere.iterdir()) == []


def test_weights_of_another_network_are_refused(bundles):
    with pytest.raises(CheckpointError, match="does not fit network_def"):
        with_weights(network_of("encoder"), bundles / "classifier/models/model.pt")
    with pytest.raises(CheckpointError, match="no weights at"):
        with_weights(network_of("encoder"), bundles / "absent.pt")
    with pytest.raises(AfireError, match="not a Linear"):
        network_config(torch.nn.Linear(2, 2))


def test_a_bundle_reads_images_as_in_the_models_training(tmp_path):
    shutil.copytree(bundle_root(), tmp_path / "bundle", ignore=shutil.ignore_patterns("models"))
    fill_bundle(tmp_path / "bundle", network_of("encoder"), {"png16_max": 4095})
    Image.fromarray(np.full((32, 32), 4095, np.uint16)).save(tmp_path / "deep.png")
    parser = ConfigParser(ConfigParser.load_config_file(tmp_path / "bundle" / "configs" / "inference.json"))
    read = parser.get_parsed_content("preprocessing")
    assert float(read({"image": str(tmp_path / "deep.png")})["image"].max()) == 1.0


def test_the_restorers_config_reads_images_as_in_its_training(tmp_path):
    export_restorer(tiny_afire(2), tmp_path / "models", reader={"png16_max": 4095})
    Image.fromarray(np.full((32, 32), 4095, np.uint16)).save(tmp_path / "deep.png")
    parser = ConfigParser(ConfigParser.load_config_file(bundle_root() / "configs" / "inference.yaml"))
    parser["model_dir"] = str(tmp_path / "models")
    read = parser.get_parsed_content("preprocessing")
    assert float(read({"image": str(tmp_path / "deep.png")})["image"].max()) == 1.0


def test_inference_configs_refuse_what_is_no_frontal_chest(tmp_path):
    shutil.copytree(bundle_root(), tmp_path / "bundle", ignore=shutil.ignore_patterns("models"))
    fill_bundle(tmp_path / "bundle", network_of("classifier"))
    export_restorer(tiny_afire(2), tmp_path / "models")
    frontal = write(tmp_path / "frontal.dcm", 0)
    lateral = write(tmp_path / "lateral.dcm", 1, ViewPosition="LL")
    for config, models in (
        (tmp_path / "bundle" / "configs" / "inference.json", tmp_path / "bundle" / "models"),
        (bundle_root() / "configs" / "inference.yaml", tmp_path / "models"),
    ):
        parser = ConfigParser(ConfigParser.load_config_file(config))
        parser["model_dir"] = str(models)
        read = parser.get_parsed_content("preprocessing")
        assert read({"image": str(frontal)})["image"].shape == (1, 32, 32)
        with pytest.raises(Exception) as refused:
            read({"image": str(lateral)})
        assert f"lateral.dcm: {LATERAL}" in str(cause_of(refused.value))
