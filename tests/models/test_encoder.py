from __future__ import annotations

import json

import pytest
import torch
from helpers import tiny_afire
from safetensors.torch import load_file

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.networks import ViTEncoder, sincos_positions


@pytest.fixture
def encoder() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder((32, 40), 8, embed_dim=32, depth=2, num_heads=2, mean=0.4, std=0.3, layer_norm_eps=1e-5)


def test_loaded_encoder_gives_the_tokens_of_the_exported_one(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path / "new" / "models")
    assert path == tmp_path / "new" / "models" / "encoder.safetensors"
    images = torch.rand(3, 1, 32, 40)
    for source in (path, path.parent, str(path)):
        loaded = load_encoder(source)
        assert not loaded.training
        assert torch.equal(loaded(images), encoder.eval()(images))
    assert not list(path.parent.glob("*.part"))


def test_file_of_another_name_has_its_description_beside_it(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path / "mine.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "mine.safetensors"]
    assert load_encoder(path).config == encoder.config


def test_description_says_what_the_weights_are(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path, method_name="AFiRe", epochs=7, data_sha256="0" * 64)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert description["architecture"] == encoder.config
    assert (description["method_name"], description["epochs"]) == ("AFiRe", 7)
    assert "0…1" in description["input"]
    assert "class token" in description["output"]
    assert set(load_file(path)) == set(encoder.state_dict())


def test_teacher_of_a_method_can_be_exported_and_is_not_the_student(tmp_path):
    method = tiny_afire()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1)
    loaded = load_encoder(export_encoder(method.export_encoder, tmp_path))
    assert torch.equal(loaded.cls_token, method.teacher.encoder.cls_token)
    assert not torch.equal(loaded.cls_token, method.student.encoder.cls_token)


@pytest.mark.parametrize(("scale", "text"), [(255.0, "got 0…255"), (-1.0, "got -1…-0")])
def test_pictures_in_another_range_are_refused_with_lowest_and_highest_value(encoder, tmp_path, scale, text):
    loaded = load_encoder(export_encoder(encoder, tmp_path))
    images = torch.linspace(0, 1, 32 * 40).view(1, 1, 32, 40)
    loaded(images)
    with pytest.raises(AfireError, match=f"must be in 0…1, {text}"):
        loaded(images * scale)


def test_another_image_size_gets_positions_that_span_the_same_picture(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    images = torch.rand(2, 1, 64, 80)
    tokens = load_encoder(path)(images)
    assert tokens.shape == (2, 1 + 8 * 10, 32)
    resized = load_encoder(path, image_size=(64, 80))
    assert resized.grid == (8, 10)
    torch.testing.assert_close(resized.positions, sincos_positions((8, 10), 32, reference=(4, 5)))
    torch.testing.assert_close(resized(images), tokens)


def test_an_encoder_trained_on_at_another_size_keeps_its_positions_through_a_further_export(encoder, tmp_path):
    first = export_encoder(encoder, tmp_path / "first")
    second = export_encoder(load_encoder(first, image_size=(64, 80)), tmp_path / "second")
    images = torch.rand(2, 1, 48, 56)
    torch.testing.assert_close(load_encoder(second)(images), load_encoder(first)(images))


def test_description_without_the_grid_of_positions_means_that_of_its_image_size(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del description["architecture"]["position_grid"]
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    images = torch.rand(2, 1, 64, 80)
    torch.testing.assert_close(load_encoder(path, image_size=(64, 80))(images), encoder.eval()(images))


def test_missing_file_is_named_with_the_one_that_must_lie_beside_it(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match=r"encoder.safetensors and encoder.json beside it must both be there"):
        load_encoder(path)
    with pytest.raises(CheckpointError, match=r"absent/?.*encoder.json"):
        load_encoder(tmp_path / "absent" / "encoder.safetensors")
    export_encoder(encoder, tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("damaged", ["encoder.safetensors", "encoder.json"])
def test_damaged_file_is_refused_by_name(encoder, tmp_path, damaged):
    path = export_encoder(encoder, tmp_path)
    file = tmp_path / damaged
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"encoder.safetensors .*whole"):
        load_encoder(path)


def test_weights_of_another_encoder_are_refused_with_what_does_not_fit(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    description["architecture"]["depth"] = 3
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"do not fit their description in encoder.json: [\s\S]*blocks\.2"):
        load_encoder(path)
    path.with_suffix(".json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="lacks 'architecture'"):
        load_encoder(path)


def test_weights_can_be_read_by_whoever_can_read_their_description(tmp_path):
    path = export_encoder(ViTEncoder(16, 8, embed_dim=16, depth=1, num_heads=2), tmp_path)
    assert path.stat().st_mode & 0o777 == path.with_suffix(".json").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 2147483648),
        ("image_size", [8192, 8192.5]),
        ("image_size", -8),
        ("position_grid", [4, 10**9]),
        ("patch_size", 2147483648),
        ("embed_dim", 10**9),
        ("embed_dim", 64),
        ("depth", 10**12),
        ("depth", 64),
        ("mlp_ratio", 1e8),
        ("mlp_ratio", 100.0),
        ("mean", [float("nan")]),
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_a_network_is_built(encoder, tmp_path, monkeypatch, key, value):
    path = export_encoder(encoder, tmp_path)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    described["architecture"][key] = value
    path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    monkeypatch.setattr("afire_monai.models.folder.encoder_from_config", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=r"encoder.json: .* does not fit the weights.*Copy both files again"):
        load_encoder(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(encoder, tmp_path, value):
    with torch.no_grad():
        encoder.blocks[1].norm1.weight[3] = value
    with pytest.raises(CheckpointError, match=r"blocks.1.norm1.weight holds numbers that are not finite"):
        load_encoder(export_encoder(encoder, tmp_path))


def test_weights_that_changed_since_they_were_written_are_refused(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"encoder.safetensors has changed since it was written: its SHA-256"):
        load_encoder(path)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del described["weights_sha256"]  # as earlier versions wrote it
    path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    assert load_encoder(path).config == encoder.config


def test_value_that_an_encoder_cannot_have_is_refused_with_the_file(encoder, tmp_path):
    path = export_encoder(encoder, tmp_path)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    described["architecture"]["std"] = []
    path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"encoder.safetensors: std must hold one finite value"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layer_norm_eps", "x", "layer_norm_eps is 'x'; a number is expected"),
        ("layer_norm_eps", None, "layer_norm_eps is 'None'; a number is expected"),
        ("layer_norm_eps", -1e-3, "layer_norm_eps must be above zero"),
        ("num_heads", 2.0, "num_heads is '2.0'; a whole number is expected"),
    ],
)
def test_number_that_is_none_is_refused_before_a_picture_is_seen(encoder, tmp_path, key, value, words):
    path = export_encoder(encoder, tmp_path)
    described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    described["architecture"][key] = value
    path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"encoder.safetensors: {words}"):
        load_encoder(path)
