from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch
from published_vits import DIM, eva_names, facebook_names, huggingface_dinov2_names, random_vit, slow_tokens
from safetensors.torch import save_file

from afire_monai.core.errors import CheckpointError
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.models.foreign import is_foreign, load_foreign
from afire_monai.models.initial import initial_encoder, pretraining_encoder
from afire_monai.models.shipped import DEFAULT, shipped_names
from afire_monai.networks import AdaptedViTEncoder, ViTEncoder, resample_positions, sincos_positions
from afire_monai.networks.blocks import compile_networks
from afire_monai.predictions.attribution import attention_rollout

IMAGES = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def saved(state, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(state, folder / name)
    return folder / name


def same_tokens(encoder, expected) -> bool:
    with torch.no_grad():
        return torch.allclose(encoder(IMAGES), expected, atol=2e-5)


def test_mae_is_a_plain_transformer_and_its_decoder_is_left_out(tmp_path):
    vit = random_vit()
    vit["positions"] = torch.cat([torch.zeros(1, DIM), sincos_positions((4, 4), DIM)])[None]
    state = facebook_names(vit)
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    extra |= {"decoder_blocks.0.norm1.weight": torch.zeros(8), "decoder_pred.bias": torch.zeros(8)}
    found = load_foreign(saved({"model": {**state, **extra}, "epoch": 3, "optimizer": {}}, tmp_path))
    assert type(found.encoder) is ViTEncoder
    assert found.encoder.in_channels == 1
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES))
    assert found.placed == sorted(state)
    assert found.left_out == sorted([*extra, "epoch", "optimizer"])


def test_dino_gives_its_teacher_without_the_head(tmp_path):
    vit = random_vit()
    teacher = {f"module.backbone.{name}": value for name, value in facebook_names(vit).items()}
    student = {f"module.backbone.{name}": value for name, value in facebook_names(random_vit(seed=1)).items()}
    head = {"module.head.mlp.0.weight": torch.zeros(8, DIM)}
    checkpoint = {"student": {**student, **head}, "teacher": {**teacher, **head}, "epoch": 9}
    found = load_foreign(saved(checkpoint, tmp_path))
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES))
    assert found.left_out == ["epoch", "module.head.mlp.0.weight", "student"]


@pytest.mark.parametrize("chunked", [False, True])
def test_dinov2_keeps_registers_layer_scale_and_gated_mlps(tmp_path, chunked):
    vit = random_vit(gated=True, scaled=True, registers=4)
    state = {**facebook_names(vit), "mask_token": torch.zeros(1, DIM)}
    if chunked:
        state = {name.replace("blocks.", "blocks.0.", 1): value for name, value in state.items()}
    found = load_foreign(saved(state, tmp_path))
    assert found.encoder.config["registers"] == 4
    assert found.encoder.blocks[0].scale1 is not None
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES))
    assert found.left_out == ["mask_token"]


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_keeps_rotary_positions_and_masked_biases(tmp_path, gated):
    vit = random_vit(positions=False, scaled=True, registers=4, gated=gated)
    state = facebook_names(vit, registers="storage_tokens", mlp="separate")
    state["rope_embed.periods"] = 100 ** (torch.arange(DIM // 4) * 4 / DIM)
    for number, block in enumerate(vit["blocks"]):
        mask = torch.ones(3 * DIM)
        mask[DIM : 2 * DIM] = 0
        state[f"blocks.{number}.attn.qkv.bias_mask"] = mask
        block["k"] = (block["k"][0], torch.zeros(DIM))
    found = load_foreign(saved(state, tmp_path), image_size=32)
    assert (found.encoder.config["rope_base"], found.encoder.config["layer_norm_eps"]) == (100.0, 1e-5)
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES, eps=1e-5, rope="dinov3"))


def test_timm_registers_without_a_position_of_the_class_token(tmp_path):
    vit = random_vit(scaled=True, registers=4)
    vit["positions"][:, 0] = 0
    state = facebook_names(vit, registers="reg_token")
    state["pos_embed"] = vit["positions"][:, 1:]
    state["head.weight"] = torch.zeros(5, DIM)
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_args": {"num_heads": 1}, "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_foreign(tmp_path)
    assert found.assumed == []
    assert found.left_out == ["head.weight"]
    assert (found.encoder.config["mean"], found.encoder.config["std"]) == ([0.5], [0.5])
    (tmp_path / "config.json").unlink()
    assert same_tokens(load_foreign(tmp_path).encoder, slow_tokens(vit, IMAGES))


def test_rad_dino_folder_with_its_own_normalisation(tmp_path):
    vit = random_vit(scaled=True)
    save_file(huggingface_dinov2_names(vit), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "dinov2", "num_attention_heads": 1, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reading = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(reading))
    found = load_foreign(tmp_path)
    assert found.assumed == []
    assert found.left_out == ["embeddings.mask_token"]
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES))


def test_blocks_of_foreign_weights_are_compiled_one_by_one(tmp_path):
    foreign = load_foreign(saved(facebook_names(random_vit(gated=True, scaled=True)), tmp_path)).encoder
    assert isinstance(foreign, AdaptedViTEncoder)
    compile_networks(foreign)
    assert foreign._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in foreign.blocks)


def test_eva_x_keeps_rotary_positions_inner_norms_and_biases_of_queries_and_values(tmp_path):
    vit = random_vit(gated=True, inner_norms=True)
    state = eva_names(vit)
    for block in vit["blocks"]:
        block["k"] = (block["k"][0], torch.zeros(DIM))
    found = load_foreign(saved({"module": state}, tmp_path))
    assert same_tokens(found.encoder, slow_tokens(vit, IMAGES, rope="eva"))
    assert found.left_out == ["lm_head.bias", "lm_head.weight", "mask_token"]


def test_rotary_buffers_of_another_span_are_refused(tmp_path):
    state = eva_names(random_vit(gated=True, inner_norms=True))
    state["rope.freqs_cos"] = torch.cos(torch.full((16, DIM), 3.0))
    with pytest.raises(CheckpointError, match="do not span 28 cells"):
        load_foreign(saved(state, tmp_path))


def test_learned_positions_are_stretched_to_another_size(tmp_path):
    vit = random_vit()
    path = saved(facebook_names(vit), tmp_path)
    encoder = load_foreign(path, image_size=48).encoder
    expected = torch.nn.functional.interpolate(
        vit["positions"][:, 1:].reshape(1, 4, 4, DIM).permute(0, 3, 1, 2), (6, 6), mode="bicubic", antialias=True
    )
    assert torch.allclose(encoder.positions, expected[0].flatten(1).T, atol=1e-6)
    assert encoder.config["position_grid"] == [6, 6]
    assert encoder(torch.rand(1, 1, 64, 64)).shape == (1, 65, DIM)


def test_positions_that_change_linearly_still_do_when_stretched():
    line = torch.arange(8.0)[:, None].expand(8, 8).reshape(64, 1)
    stretched = resample_positions(line, (8, 8), (16, 16)).view(16, 16)
    assert torch.allclose(stretched[6, 5], torch.tensor(2.75), atol=0.05)
    assert torch.allclose(stretched[:, 0], stretched[:, 15])


@pytest.mark.parametrize("name", ["blocks.0.attn.q_norm.weight", "blocks.1.attn.relative_position_bias_table"])
def test_name_without_a_place_is_refused_by_name(tmp_path, name):
    state = {**facebook_names(random_vit()), name: torch.zeros(4)}
    with pytest.raises(CheckpointError, match=f"no place for: {name} \\(4,\\)"):
        load_foreign(saved(state, tmp_path))


def test_missing_weights_are_refused_by_name(tmp_path):
    state = facebook_names(random_vit())
    del state["blocks.1.norm2.weight"], state["cls_token"]
    with pytest.raises(CheckpointError, match=r"Missing, by their name here: cls_token, blocks.1.norm2.weight"):
        load_foreign(saved(state, tmp_path))


def test_what_is_no_transformer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a vision transformer: .*layer1.0.conv1.weight"):
        load_foreign(saved({"layer1.0.conv1.weight": torch.zeros(2)}, tmp_path))
    with pytest.raises(CheckpointError, match="it contains no weights: it holds epoch"):
        load_foreign(saved({"epoch": 3}, tmp_path))
    state = facebook_names(random_vit())
    state["blocks.0.mlp.fc2.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="MLPs of two matrices"):
        load_foreign(saved(state, tmp_path))
    state = facebook_names(random_vit())
    state["norm.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite in norm\.bias"):
        load_foreign(saved(state, tmp_path))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("blocks.99999999.norm1.weight", (8,), r"no place for: blocks\.99999999"),
        ("blocks.9999.norm1.weight", (8,), "blocks 0 to 9999 are expected; 9997 are missing, as 2"),
        ("blocks.x.norm1.weight", (8,), r"no place for: blocks\.x"),
        ("blocks.0.attn.qkv.weight", (8, 8), r"blocks\.0\.attn\.qkv\.weight is \(8, 8\)"),
        ("blocks.1.mlp.fc2.weight", (1, 7), r"blocks\.1\.mlp\.fc2\.weight is \(1, 7\)"),
        ("blocks.0.mlp.fc2.weight", (0, 2**40), "MLPs of two matrices"),
        ("reg_token", (2**30,), r"registers are \(1073741824,\)"),
        ("reg_token", (1, 2**40, 0), r"registers are \(1, 1099511627776, 0\)"),
        ("blocks.0.attn.qkv.bias_mask", (3,), r"bias_mask is \(3,\)"),
        ("blocks.0.attn.q_proj.bias", (2, 2), r"parts of blocks\.0\.attn\.qkv\.bias"),
        ("blocks.0.mlp.gate_proj.weight", (), r"no place for: blocks\.0\.mlp\.gate_proj"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused_by_name(tmp_path, name, shape, words):
    state = facebook_names(random_vit())
    state[name] = torch.zeros(()).expand(shape) if len(shape) < 3 else torch.empty(shape)
    with pytest.raises(CheckpointError, match=words):
        load_foreign(saved(state, tmp_path))


@pytest.mark.parametrize("turned", [torch.zeros(()), torch.zeros(1, 2), torch.zeros(4, 0)])
def test_rotary_buffers_that_are_none_are_refused_by_name(tmp_path, turned):
    state = eva_names(random_vit(gated=True, inner_norms=True))
    with pytest.raises(CheckpointError, match=r"rope\.freqs_cos is"):
        load_foreign(saved({**state, "rope.freqs_cos": turned}, tmp_path))


def test_periods_that_give_no_base_are_refused(tmp_path):
    state = facebook_names(random_vit())
    del state["pos_embed"]
    with pytest.raises(CheckpointError, match="rotary positions have a base of"):
        load_foreign(saved({**state, "rope_embed.periods": torch.tensor([0.0, 1.0])}, tmp_path))


def test_file_with_code_is_not_read(tmp_path):
    path = saved({"model": facebook_names(random_vit()), "args": Path("here")}, tmp_path)
    with pytest.raises(CheckpointError, match="only tensors, plain containers and argparse"):
        load_foreign(path)


def test_arguments_that_a_checkpoint_keeps_beside_its_weights_do_no_harm(tmp_path):
    path = saved({"model": facebook_names(random_vit()), "args": argparse.Namespace(epochs=1)}, tmp_path)
    assert load_foreign(path).placed


def test_what_is_assumed_and_left_out_is_logged(tmp_path, caplog):
    path = saved({**facebook_names(random_vit()), "head.bias": torch.zeros(3)}, tmp_path)
    with caplog.at_level(logging.INFO):
        load_foreign(path)
    assert "left out, no part of an encoder: head.bias" in caplog.text
    assert "assumed normalisation by ImageNet's mean" in caplog.text
    assert "assumed 1 attention heads" in caplog.text


@pytest.mark.parametrize("form", ["learned", "rotary"])
def test_adapted_encoder_is_exported_and_loaded_like_any_other(tmp_path, form):
    vit = random_vit(gated=True, scaled=True, registers=2, positions=form == "learned")
    encoder = load_foreign(saved(facebook_names(vit), tmp_path), image_size=32).encoder
    loaded = load_encoder(export_encoder(encoder, tmp_path / "models"))
    assert isinstance(loaded, AdaptedViTEncoder)
    assert torch.equal(loaded(IMAGES), encoder(IMAGES))
    assert loaded.pyramid(IMAGES)[-1].shape == (2, DIM, 4, 4)
    assert torch.allclose(attention_rollout(loaded, IMAGES).sum((1, 2)) < 1, torch.tensor([True, True]))
    depths = [loaded.block_of(name) for name in ("registers", "cls_token", "blocks.1.scale1", "norm.bias")]
    assert depths == [0, 0, 2, 3]


@pytest.mark.parametrize("form", ["learned", "rotary"])
def test_visible_patches_alone_keep_their_positions(tmp_path, form):
    vit = random_vit(registers=2, positions=form == "learned")
    encoder = load_foreign(saved(facebook_names(vit), tmp_path), image_size=32).encoder
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    moved = encoder(IMAGES, visible=order)[:, 1:]
    expected = encoder(IMAGES)[:, 1:].gather(1, order[..., None].expand(-1, -1, DIM))
    assert torch.allclose(moved, expected, atol=1e-5)


def test_own_and_foreign_weights_are_told_apart(tmp_path):
    own = export_encoder(ViTEncoder(16, 8, embed_dim=16, depth=1, num_heads=1), tmp_path / "own")
    assert not is_foreign(own)
    assert not is_foreign(own.parent)
    assert not is_foreign(tmp_path / "absent.pth")
    assert is_foreign(saved(facebook_names(random_vit()), tmp_path))
    save_file(facebook_names(random_vit()), tmp_path / "model.safetensors")
    assert is_foreign(tmp_path / "model.safetensors")
    assert is_foreign(tmp_path)


def test_trainings_start_from_either(tmp_path):
    path = saved(facebook_names(random_vit()), tmp_path)
    assert initial_encoder(str(path), "vit_ti", 0, 16, lambda: (0.5, 0.2)).image_size == (32, 32)
    encoder = pretraining_encoder(str(path), "vit_ti", 48, 8, (0.5, 0.2))
    assert (encoder.grid, encoder.check_range) == ((6, 6), False)
    with pytest.raises(CheckpointError, match="patches of 8 pixels, the method counts with 16; add --patch_size 8"):
        pretraining_encoder(str(path), "vit_ti", 48, 16, (0.5, 0.2))
    fresh = pretraining_encoder("random", "vit_ti6", 32, 16, (0.5, 0.2))
    assert fresh.config["std"] == [0.2]
    own = export_encoder(fresh, tmp_path / "own")
    again = pretraining_encoder(str(own.parent), "vit_b", 64, 16, (0.1, 0.1))
    assert (again.grid, again.config["std"]) == ((4, 4), [0.2])
    assert torch.equal(again.cls_token, fresh.cls_token)


@pytest.mark.skipif(not shipped_names(), reason="no weights lie in this copy of the package")
def test_trainings_start_from_a_model_that_comes_with_the_package():
    shipped = load_encoder()
    encoder = pretraining_encoder(DEFAULT, "vit_ti", shipped.image_size[0], shipped.patch_size, (0.5, 0.2))
    assert torch.equal(encoder.cls_token, shipped.cls_token)


TIMM = {
    "vit_tiny_patch16_224": 48,
    "vit_small_patch14_dinov2": 42,
    "vit_small_patch14_reg4_dinov2": 42,
    "eva02_tiny_patch14_224": 42,
    "vit_small_patch16_dinov3": 48,
    "vit_small_plus_patch16_dinov3": 48,
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_give_the_same_tokens(name, tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, depth=2, img_size=TIMM[name]).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 1, TIMM[name], TIMM[name])
    encoder = load_foreign(saved(model.state_dict(), tmp_path), TIMM[name]).encoder
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = model.fc_norm(model.forward_features((images - mean) / std))
        tokens = torch.cat([tokens[:, :1], tokens[:, model.num_prefix_tokens :]], 1)
        assert torch.allclose(encoder(images), tokens, atol=2e-5)


def _huggingface(name):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 8}
    if name == "vit":
        config = transformers.ViTConfig(**small, intermediate_size=96)
        return transformers.ViTModel(config, add_pooling_layer=False), 1
    if name.startswith("dinov2"):
        config = transformers.Dinov2Config(**small, use_swiglu_ffn=name == "dinov2 gated")
        return transformers.Dinov2Model(config), 1
    gated = {"use_gated_mlp": True, "hidden_act": "silu"} if name == "dinov3 gated" else {}
    config = transformers.DINOv3ViTConfig(**small, intermediate_size=96, num_register_tokens=4, **gated)
    return transformers.DINOv3ViTModel(config), 5


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2 gated", "dinov3", "dinov3 gated"])
def test_huggingface_folders_give_the_same_tokens(name, tmp_path):
    model, prefix = _huggingface(name)
    for parameter in model.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 1, 48, 48)
    encoder = load_foreign(tmp_path, 48).encoder
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = model((images - mean) / std).last_hidden_state
        tokens = torch.cat([tokens[:, :1], tokens[:, prefix:]], 1)
        assert torch.allclose(encoder(images), tokens, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": "x"}, "num_attention_heads is x"),
        ({"model_args": {"num_heads": 1.5}}, "num_attention_heads is 1.5"),
        ({"num_attention_heads": 3}, "3 attention heads .* do not divide a width of"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"layer_norm_eps": []}, "layer_norm_eps is"),
        ({"hidden_act": 3}, "hidden_act is 3"),
        ({"pretrained_cfg": {"mean": ["a"], "std": [1]}}, "mean is"),
    ],
)
def test_odd_settings_beside_the_weights_are_refused_by_name(config, words, tmp_path):
    path = saved(facebook_names(random_vit()), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"weights.pth: {words}"):
        load_foreign(path)


def test_settings_beside_the_weights_that_say_nothing_are_passed_over(tmp_path):
    vit = random_vit()
    path = saved(facebook_names(vit), tmp_path)
    config = {"num_attention_heads": None, "layer_norm_eps": None, "model_args": "x", "pretrained_cfg": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_tokens(load_foreign(path).encoder, slow_tokens(vit, IMAGES))


def test_a_wrong_reference_in_a_pickle_is_refused_by_name(tmp_path):
    # an old-style file whose stack machine asks for a value that was never kept: its memo has no number 255
    torch.save({"cls_token": torch.zeros(1, 1, 8)}, tmp_path / "vit.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "vit.pth").read_bytes()
    place = content.rindex(b"}q\x00")  # the dictionary, kept as number 0
    (tmp_path / "vit.pth").write_bytes(content[:place] + b"h\xff." + content[place + 3 :])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_foreign(tmp_path / "vit.pth")
