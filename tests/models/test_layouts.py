from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from afire_monai.core.errors import AfireError
from afire_monai.models.export import Exportable, prepare
from afire_monai.models.layouts import export_layout, from_hf, plain_vit, to_hf, to_timm
from afire_monai.networks import ViTClassifier, ViTEncoder, build_encoder
from afire_monai.predictions.exportable import ClassifierGraph


def encoder_of(**options) -> ViTEncoder:
    torch.manual_seed(0)
    encoder = ViTEncoder((32, 48), 8, embed_dim=32, depth=2, num_heads=2, mean=0.4, std=0.3, **options)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


def exportable_of(encoder: torch.nn.Module) -> Exportable:
    return Exportable("encoder", prepare(encoder), (1, 32, 48), ("tokens",), {"encoder_sha256": "0" * 64})


def classifier_of(pooling: str) -> Exportable:
    network = ViTClassifier(encoder_of(), ["A", "B", "C"], pooling)
    torch.nn.init.normal_(network.head.weight)
    return Exportable("classifier", prepare(ClassifierGraph(network)), (1, 32, 48), ("logits", "probabilities"))


def test_names_are_those_of_timm_and_positions_a_table():
    encoder = encoder_of()
    state = to_timm(encoder, {})
    expected = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    for block in range(2):
        parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        expected |= {f"blocks.{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert set(state) == expected
    assert torch.equal(state["pos_embed"][0, 1:], encoder.positions)
    assert not state["pos_embed"][0, 0].any()


def test_plain_transformer_gives_the_encoders_tokens():
    encoder = encoder_of()
    images = torch.rand(2, 1, 32, 48)
    tokens = plain_vit(to_timm(encoder, {}), encoder.normalise(images), heads=2, eps=1e-6)
    assert torch.allclose(tokens, encoder(images), atol=1e-5)


def test_huggingface_names_lead_back_to_the_same_weights():
    head = {"head.weight": torch.rand(3, 32), "head.bias": torch.rand(3)}
    for extra in ({}, head):
        state = to_timm(encoder_of(), extra)
        back = from_hf(to_hf(state, 32))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_folder_holds_weights_marked_as_pytorch_and_what_they_are(form, tmp_path):
    report = export_layout(exportable_of(encoder_of()), torch.rand(4, 1, 32, 48), tmp_path / form, form)
    assert report.differences["tokens"] < 1e-5
    with safe_open(tmp_path / form / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    expected = {"config.json", "model.safetensors"}
    expected |= {"preprocessor_config.json", "README.md"} if form == "hf" else set()
    assert {p.name for p in (tmp_path / form).iterdir()} == expected
    if form == "hf":
        card = (tmp_path / form / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: transformers\n")
        assert "Not a medical device" in card
        reading = json.loads((tmp_path / form / "preprocessor_config.json").read_text(encoding="utf-8"))
        assert (reading["image_mean"], reading["image_std"]) == ([0.4], [0.3])


def test_timm_loads_the_folder_and_gives_the_same_tokens(tmp_path):
    timm = pytest.importorskip("timm")
    encoder = encoder_of()
    export_layout(exportable_of(encoder), torch.rand(3, 1, 32, 48), tmp_path, "timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(3, 1, 32, 48)
    with torch.no_grad():
        assert torch.allclose(model.forward_features(encoder.normalise(images)), encoder(images), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_timm_gives_the_classifiers_logits(pooling, tmp_path):
    timm = pytest.importorskip("timm")
    exportable = classifier_of(pooling)
    export_layout(exportable, torch.rand(3, 1, 32, 48), tmp_path, "timm")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(3, 1, 32, 48)
    network = exportable.network.network
    with torch.no_grad():
        assert torch.allclose(model(network.encoder.normalise(images)), network(images), atol=1e-5)


def test_transformers_loads_the_folder_and_gives_the_same_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder = encoder_of()
    export_layout(exportable_of(encoder), torch.rand(3, 1, 32, 48), tmp_path, "hf")
    model, info = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.rand(3, 1, 32, 48)
    with torch.no_grad():
        tokens = model.eval()(encoder.normalise(images)).last_hidden_state
        assert torch.allclose(tokens, encoder(images), atol=1e-5)


def test_transformers_gives_the_logits_of_a_classifier_of_the_class_token(tmp_path):
    transformers = pytest.importorskip("transformers")
    exportable = classifier_of("class")
    export_layout(exportable, torch.rand(3, 1, 32, 48), tmp_path, "hf")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert model.config.id2label == {0: "A", 1: "B", 2: "C"}
    images = torch.rand(3, 1, 32, 48)
    network = exportable.network.network
    with torch.no_grad():
        assert torch.allclose(model(network.encoder.normalise(images)).logits, network(images), atol=1e-5)


def test_what_the_other_library_has_no_network_for_is_refused(tmp_path):
    images = torch.rand(3, 1, 32, 48)
    with pytest.raises(
        AfireError, match="hf reads the last block's tokens by pooling: class; this one has pooling: mean;"
    ):
        export_layout(classifier_of("mean"), images, tmp_path / "a", "hf")
    with pytest.raises(AfireError, match="by pooling: class or mean; this one has pooling: summary; use onnx"):
        export_layout(classifier_of("summary"), images, tmp_path / "a", "timm")
    resnet = Exportable("encoder", build_encoder("resnet18", image_size=64), (1, 64, 64), ("tokens",))
    with pytest.raises(AfireError, match="plain vision transformers, this is a ResNetEncoder; use onnx"):
        export_layout(resnet, torch.rand(3, 1, 64, 64), tmp_path / "a", "timm")
    with pytest.raises(AfireError, match="ε = 1e-6 in layer norms, this encoder 1e-05"):
        export_layout(exportable_of(encoder_of(layer_norm_eps=1e-5)), images, tmp_path / "a", "timm")
    other = Exportable("detector", encoder_of(), (1, 32, 48), ("score",))
    with pytest.raises(AfireError, match="hf has no network like this detector"):
        export_layout(other, images, tmp_path / "a", "hf")
    assert not (tmp_path / "a").exists()


def test_weights_that_do_not_give_the_same_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("afire_monai.models.layouts.plain_vit", lambda *_: torch.zeros(1, 25, 32))
    with pytest.raises(AfireError, match="nothing was written"):
        export_layout(exportable_of(encoder_of()), torch.rand(3, 1, 32, 48), tmp_path / "a", "timm")
    assert not (tmp_path / "a").exists()


def test_safetensors_hold_the_state_of_the_layout(tmp_path):
    encoder = encoder_of()
    export_layout(exportable_of(encoder), torch.rand(3, 1, 32, 48), tmp_path, "timm")
    state = load_file(tmp_path / "model.safetensors")
    assert torch.equal(state["blocks.1.mlp.fc2.weight"], encoder.state_dict()["blocks.1.mlp.linear2.weight"])
