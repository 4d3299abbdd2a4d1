from __future__ import annotations

import argparse
import json
import math
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from afire_monai.core.errors import CheckpointError
from afire_monai.models.folder import load_encoder
from afire_monai.models.released import import_released
from afire_monai.models.restorer import load_restorer
from afire_monai.networks import TokenHead

GRID, PATCH, WIDTH, DEPTH = 3, 8, 128, 2
CELLS = GRID * GRID
DIM, DECODER_DEPTH, OUT, HIDDEN, BOTTLENECK = 64, 2, 24, 40, 32
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def positions(width: int) -> torch.Tensor:
    """Sine-cosine positions element by element: column first, then row; zeros for the class token."""
    table = torch.zeros(1, 1 + CELLS, width)
    for cell in range(CELLS):
        for half, place in enumerate((cell % GRID, cell // GRID)):
            for i in range(width // 4):
                angle = place / 10000 ** (i / (width / 4))
                table[0, 1 + cell, half * width // 2 + i] = math.sin(angle)
                table[0, 1 + cell, half * width // 2 + width // 4 + i] = math.cos(angle)
    return table


def block_shapes(prefix: str, width: int, depth: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(depth):
        for name, (rows, columns) in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        }.items():
            shapes[f"{prefix}blocks.{i}.{name}.weight"] = (rows, columns)
            shapes[f"{prefix}blocks.{i}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            shapes[f"{prefix}blocks.{i}.{name}.weight"] = shapes[f"{prefix}blocks.{i}.{name}.bias"] = (width,)
    shapes[f"{prefix}norm.weight"] = shapes[f"{prefix}norm.bias"] = (width,)
    return shapes


def released_state(seed: int, decoder: bool = False) -> dict[str, torch.Tensor]:
    """Random weights under the names and shapes of the release."""
    shapes = {
        "encoder.cls_token": (1, 1, WIDTH),
        "encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": (WIDTH,),
        **block_shapes("encoder.", WIDTH, DEPTH),
    }
    for layer, (rows, columns) in {0: (HIDDEN, WIDTH), 2: (HIDDEN, HIDDEN), 4: (BOTTLENECK, HIDDEN)}.items():
        shapes[f"head.mlp.{layer}.weight"], shapes[f"head.mlp.{layer}.bias"] = (rows, columns), (rows,)
    for cell in range(CELLS):
        shapes[f"head.last_layers.{cell}.weight_v"] = (OUT, BOTTLENECK)
    if decoder:
        shapes |= {"decoder.embedding.weight": (DIM, WIDTH), "decoder.embedding.bias": (DIM,)}
        shapes |= {"decoder.mask_token": (1, CELLS, DIM), **block_shapes("decoder.", DIM, DECODER_DEPTH)}
        shapes |= {"decoder.image_pred.weight": (PATCH**2 * 3, DIM), "decoder.image_pred.bias": (PATCH**2 * 3,)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if "norm" in name and name.endswith("weight"):
            state[name] += 1
    state["encoder.pos_embed"] = positions(WIDTH)
    for cell in range(CELLS):
        state[f"head.last_layers.{cell}.weight_g"] = torch.ones(OUT, 1)
    if decoder:
        state["decoder.pos_embed"] = positions(DIM)
    return state


def checkpoint() -> dict[str, object]:
    student = {f"module.{name}": value for name, value in released_state(1, decoder=True).items()}
    return {
        "student": student,
        "teacher": released_state(2),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 400,
        "args": argparse.Namespace(patch_size=PATCH, lr=5e-4, output_dir="runs"),
        "AFiRe_loss": {"prototype": torch.randn(1, CELLS, OUT, generator=torch.Generator().manual_seed(3))},
        "fp16_scaler": None,
    }


def saved(folder, content):
    path = folder / "AFiRe_ViT.pth"
    torch.save(content, path)
    return path


def slow_blocks(state, prefix, tokens, heads, depth, eps):
    """Pre-norm transformer in timm's layout, head by head and without fused operations."""
    width = tokens.shape[-1]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * state[f"{prefix}{name}.weight"] + state[f"{prefix}{name}.bias"]

    def linear(x, name):
        return x @ state[f"{prefix}{name}.weight"].T + state[f"{prefix}{name}.bias"]

    size = width // heads
    for i in range(depth):
        mixed = linear(norm(tokens, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        query, key, value = mixed.split(width, dim=-1)
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
            outputs.append(scores.softmax(-1) @ value[..., part])
        tokens = tokens + linear(torch.cat(outputs, -1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(tokens, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + linear(hidden, f"blocks.{i}.mlp.fc2")
    return norm(tokens, "norm")


def slow_encoder(state, grey):
    """Tokens (B, 1 + L, D) of grey images (B, 1, H, W) in 0…1, patch by patch."""
    images = (grey.expand(-1, 3, -1, -1) - MEAN) / STD
    rows = [state["encoder.cls_token"][0].expand(len(images), -1) + state["encoder.pos_embed"][:, 0]]
    for cell in range(CELLS):
        y, x = cell // GRID * PATCH, cell % GRID * PATCH
        patch = images[:, None, :, y : y + PATCH, x : x + PATCH]
        value = (patch * state["encoder.patch_embed.proj.weight"]).sum((2, 3, 4))
        rows.append(value + state["encoder.patch_embed.proj.bias"] + state["encoder.pos_embed"][:, 1 + cell])
    return slow_blocks(state, "encoder.", torch.stack(rows, 1), WIDTH // 64, DEPTH, 1e-6)


def slow_head(state, tokens):
    """Cosines (B, L, K), layer by layer."""
    x = tokens[:, 1:]
    for layer in (0, 2, 4):
        x = F.linear(x, state[f"head.mlp.{layer}.weight"], state[f"head.mlp.{layer}.bias"])
        x = F.gelu(x) if layer < 4 else x
    x = x / x.norm(dim=-1, keepdim=True)
    outputs = []
    for cell in range(CELLS):
        weight = state[f"head.last_layers.{cell}.weight_v"]
        outputs.append(x[:, cell] @ (weight / weight.norm(dim=1, keepdim=True)).T)
    return torch.stack(outputs, 1)


def slow_decoder(state, tokens, abnormal, heads=16):
    """Image (B, 3, H, W) in ImageNet-normalised units."""
    x = tokens @ state["decoder.embedding.weight"].T + state["decoder.embedding.bias"]
    for cell in range(CELLS):
        x[abnormal[:, cell], 1 + cell] = state["decoder.mask_token"][0, cell]
    x = slow_blocks(state, "decoder.", x + state["decoder.pos_embed"], heads, DECODER_DEPTH, 1e-5)
    pixels = x[:, 1:] @ state["decoder.image_pred.weight"].T + state["decoder.image_pred.bias"]
    images = torch.zeros(len(x), 3, GRID * PATCH, GRID * PATCH)
    for cell in range(CELLS):
        y, left = cell // GRID * PATCH, cell % GRID * PATCH
        patch = pixels[:, cell].view(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2)
        images[:, :, y : y + PATCH, left : left + PATCH] = patch
    return images


def grey_images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 1, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize("channels", ["keep", "fold"])
def test_tokens_equal_the_released_forward_pass(tmp_path, part, channels):
    source = checkpoint()
    report = import_released(saved(tmp_path, source), tmp_path / "out", channels=channels, part=part)
    assert report.unplaced == report.missing == []
    state = {name.removeprefix("module."): value for name, value in source[part].items()}
    grey = grey_images()
    expected = slow_encoder(state, grey)
    encoder = load_encoder(tmp_path / "out")
    images = grey if channels == "fold" else grey.expand(-1, 3, -1, -1)
    with torch.no_grad():
        tokens = encoder(images)
    assert encoder.in_channels == (1 if channels == "fold" else 3)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)

    description = json.loads((tmp_path / "out" / "head.json").read_text())
    head = TokenHead(**description["architecture"])
    head.load_state_dict(load_file(tmp_path / "out" / "head.safetensors"))
    torch.testing.assert_close(head(tokens[:, 1:]), slow_head(state, expected), atol=1e-5, rtol=1e-5)


def test_folded_and_kept_channels_give_the_same_tokens(tmp_path):
    path, grey = saved(tmp_path, checkpoint()), grey_images()
    import_released(path, tmp_path / "three", channels="keep")
    import_released(path, tmp_path / "one", channels="fold")
    with torch.no_grad():
        three = load_encoder(tmp_path / "three")(grey.expand(-1, 3, -1, -1))
        one = load_encoder(tmp_path / "one")(grey)
    torch.testing.assert_close(one, three, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", ["keep", "fold"])
def test_restoration_equals_the_released_decoder(tmp_path, channels):
    source = checkpoint()
    import_released(saved(tmp_path, source), tmp_path / "out", channels=channels)
    state = {name.removeprefix("module."): value for name, value in source["student"].items()}
    grey = grey_images()
    abnormal = torch.rand(3, CELLS, generator=torch.Generator().manual_seed(4)) < 0.4
    expected = slow_decoder(state, slow_encoder(state, grey), abnormal) * STD + MEAN
    network = load_restorer(tmp_path / "out")
    images = grey if channels == "fold" else grey.expand(-1, 3, -1, -1)
    with torch.no_grad():
        restored = network.encoder.denormalise(network.decoder(network.encoder(images), abnormal))
    if channels == "fold":
        expected = expected.mean(1, keepdim=True)
    torch.testing.assert_close(restored, expected, atol=1e-5, rtol=1e-5)
    assert {block.norm1.eps for block in network.decoder.blocks} == {network.decoder.norm.eps} == {1e-5}
    assert {block.norm2.eps for block in network.encoder.blocks} == {network.encoder.norm.eps} == {1e-6}


def restored_by(folder, grey, abnormal):
    network = load_restorer(folder)
    with torch.no_grad():
        return network.encoder.denormalise(network.decoder(network.encoder(grey.expand(-1, 3, -1, -1)), abnormal))


@pytest.mark.parametrize(
    ("args", "given", "heads", "assumed"),
    [
        (argparse.Namespace(patch_size=PATCH, decoder_num_heads=4), None, 4, False),
        ({"decoder_heads": 4}, None, 4, False),
        (argparse.Namespace(patch_size=PATCH), 4, 4, False),
        (argparse.Namespace(decoder_num_heads=16), 4, 4, False),  # who asks knows better
        (argparse.Namespace(patch_size=PATCH), None, 16, True),
        (None, None, 16, True),
    ],
)
def test_decoder_heads_are_the_callers_or_the_checkpoints_or_assumed_in_words(
    tmp_path, caplog, args, given, heads, assumed
):
    source = {**checkpoint(), "args": args}
    report = import_released(saved(tmp_path, source), tmp_path / "out", decoder_heads=given)
    state = {name.removeprefix("module."): value for name, value in source["student"].items()}
    grey = grey_images()
    abnormal = torch.rand(3, CELLS, generator=torch.Generator().manual_seed(4)) < 0.4
    expected = slow_decoder(state, slow_encoder(state, grey), abnormal, heads) * STD + MEAN
    torch.testing.assert_close(restored_by(tmp_path / "out", grey, abnormal), expected, atol=1e-5, rtol=1e-5)
    description = json.loads((tmp_path / "out" / "restorer.json").read_text())
    assert description["decoder"]["num_heads"] == heads
    words = ["16 decoder heads, as released: the checkpoint names none"] if assumed else []
    assert description["assumed"] == report.assumed == words
    assert ("--decoder-heads" in caplog.text) == assumed


def test_decoder_heads_that_cannot_be_are_refused(tmp_path):
    path = saved(tmp_path, {**checkpoint(), "args": {"decoder_heads": "four"}})
    with pytest.raises(CheckpointError, match=r"AFiRe_ViT\.pth', args: 'four' decoder heads; a whole number"):
        import_released(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="--decoder-heads: 0 decoder heads"):
        import_released(path, tmp_path / "out", decoder_heads=0)
    with pytest.raises(CheckpointError, match="multiple of the 5 decoder heads"):
        import_released(path, tmp_path / "out", decoder_heads=5)
    assert not (tmp_path / "out").exists()


def test_prototypes_and_facts_are_written(tmp_path):
    source = checkpoint()
    report = import_released(saved(tmp_path, source), tmp_path / "out")
    names = ["encoder", "head", "prototypes", "restorer"]
    assert [file.name for file in report.files] == [f"{name}.safetensors" for name in names]
    found = load_file(tmp_path / "out" / "prototypes.safetensors")["prototypes"]
    assert torch.equal(found, source["AFiRe_loss"]["prototype"][0])
    description = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert description["epochs"] == 400
    assert description["part"] == "teacher"
    assert len(description["source_sha256"]) == 64
    assert description["architecture"]["image_size"] == [GRID * PATCH, GRID * PATCH]
    assert description["architecture"]["depth"] == DEPTH


def test_a_teacher_alone_gives_encoder_and_head_only(tmp_path):
    report = import_released(saved(tmp_path, {"teacher": released_state(2)}), tmp_path / "out")
    assert [file.name for file in report.files] == ["encoder.safetensors", "head.safetensors"]
    with pytest.raises(CheckpointError, match="no entry 'student'"):
        import_released(tmp_path / "AFiRe_ViT.pth", tmp_path / "out", part="student")


class Malicious:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("kind", ["code", "code inside the arguments", "another type"])
def test_a_pickle_with_any_other_type_is_refused(tmp_path, kind):
    marker = tmp_path / "code was run"
    entry = {
        "code": Malicious(marker),
        "code inside the arguments": argparse.Namespace(inner=Malicious(marker)),
        "another type": argparse.HelpFormatter("program"),
    }[kind]
    path = saved(tmp_path, {"teacher": released_state(2), "args": entry})
    with pytest.raises(CheckpointError, match=r"AFiRe_ViT\.pth.*(mkdir|HelpFormatter).*argparse\.Namespace"):
        import_released(path, tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"teacher": 1})])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pth"):
        import_released(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        import_released(tmp_path / "absent.pth", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda c: c["teacher"].pop("encoder.blocks.1.mlp.fc2.bias"), r"Missing: teacher.*linear2\.bias"),
        (
            lambda c: c["teacher"].pop("head.last_layers.4.weight_v"),
            r"Missing: teacher\.head\.last_layers\.4\.weight_v",
        ),
        (lambda c: c["teacher"].pop("encoder.pos_embed"), r"pos_embed is missing"),
        (lambda c: c["teacher"].update({"encoder.extra": torch.ones(1)}), r"No place for: teacher\.encoder\.extra"),
        (lambda c: c["teacher"].update({"rotation.weight": torch.ones(1)}), r"No place for: teacher\.rotation\.weight"),
        (lambda c: c.update({"momentum": 0.9}), r"No place for: momentum"),
        (lambda c: c["AFiRe_loss"].update({"center": torch.ones(1)}), r"No place for: AFiRe_loss\.center"),
        (
            lambda c: c["teacher"].update({"encoder.norm.weight": torch.ones(5)}),
            r"teacher\.encoder\.norm\.weight \(5,\), expected \(128,\)",
        ),
        (lambda c: c["teacher"].update({"encoder.pos_embed": torch.zeros(1, 10, WIDTH)}), "not the fixed sine-cosine"),
        (
            lambda c: c["teacher"].update({"head.last_layers.2.weight_g": torch.full((OUT, 1), 2.0)}),
            r"head\.last_layers\.2\.weight_g \(not one\)",
        ),
        (lambda c: c["teacher"].update({"encoder.norm.bias": torch.full((WIDTH,), math.nan)}), "not finite"),
        (lambda c: c["student"].pop("module.decoder.mask_token"), r"Missing: student\.decoder\.mask_token"),
        (lambda c: c.update(teacher=[1, 2]), "not a dictionary of tensors"),
        (lambda c: c["AFiRe_loss"].update(prototype=torch.ones(4)), r"\(1, L, K\)"),
    ],
)
def test_what_does_not_fit_is_listed_and_fails(tmp_path, change, word):
    source = checkpoint()
    change(source)
    with pytest.raises(CheckpointError, match=word):
        import_released(saved(tmp_path, source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_strict_what_fits_is_imported_and_the_rest_reported(tmp_path):
    source = checkpoint()
    source["teacher"]["encoder.extra"] = torch.ones(1)
    del source["teacher"]["encoder.blocks.1.mlp.fc2.bias"]
    report = import_released(saved(tmp_path, source), tmp_path / "out", strict=False)
    assert report.unplaced == ["teacher.encoder.extra"]
    assert report.missing == ["teacher.encoder.blocks.1.mlp.linear2.bias"]
    description = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert description["missing"] == report.missing
    weights = load_file(tmp_path / "out" / "encoder.safetensors")
    assert torch.equal(weights["patch_embed.weight"], source["teacher"]["encoder.patch_embed.proj.weight"])


def test_unknown_choices_are_refused(tmp_path):
    path = saved(tmp_path, checkpoint())
    with pytest.raises(CheckpointError, match="channels is 'grey'"):
        import_released(path, tmp_path / "out", channels="grey")
    with pytest.raises(CheckpointError, match="part is 'both'"):
        import_released(path, tmp_path / "out", part="both")
