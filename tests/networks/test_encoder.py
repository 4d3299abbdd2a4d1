from __future__ import annotations

import copy
import math

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.networks import ENCODER_PRESETS, ViTEncoder, build_encoder, sincos_positions


def tiny(**options) -> ViTEncoder:
    torch.manual_seed(0)
    small = {"image_size": (16, 24), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return ViTEncoder(**{**small, **options})


def by_hand(row: float, column: float) -> list[float]:
    """Position of one token of width 8: two frequencies, 1 and 10000 ** -0.5; the column comes first."""
    f = (1.0, 0.01)
    return [
        *(math.sin(column * x) for x in f),
        *(math.cos(column * x) for x in f),
        *(math.sin(row * x) for x in f),
        *(math.cos(row * x) for x in f),
    ]


def test_positions_equal_hand_computed_values_with_the_column_first():
    positions = sincos_positions((2, 3), 8)
    expected = [by_hand(row, column) for row in range(2) for column in range(3)]
    torch.testing.assert_close(positions, torch.tensor(expected), atol=1e-6, rtol=0)
    # the token right of the first differs from it in the first half only, the one below in the second half only
    assert torch.equal(positions[0, 4:], positions[1, 4:])
    assert torch.equal(positions[0, :4], positions[3, :4])
    assert not torch.equal(positions[0, :4], positions[1, :4])


def test_positions_of_a_finer_grid_lie_exactly_between_those_of_the_trained_one():
    fine = sincos_positions((4, 6), 8, reference=(2, 3))
    # cell i of a grid twice as fine has its centre at (i + 0.5) / 2 - 0.5 of the trained grid's cells
    rows, columns = (-0.25, 0.25, 0.75, 1.25), (-0.25, 0.25, 0.75, 1.25, 1.75, 2.25)
    expected = torch.tensor([by_hand(row, column) for row in rows for column in columns])
    torch.testing.assert_close(fine, expected, atol=1e-6, rtol=0)


def test_positions_of_a_coarser_grid_repeat_where_cell_centres_coincide():
    # of three cells in place of nine, each has its centre on that of every third cell
    coarse, fine = sincos_positions((3, 3), 16, reference=(9, 9)), sincos_positions((9, 9), 16)
    torch.testing.assert_close(coarse.view(3, 3, 16), fine.view(9, 9, 16)[1::3, 1::3], atol=1e-6, rtol=0)


def test_token_width_that_positions_cannot_fill_is_refused():
    with pytest.raises(AfireError, match=r"multiple of 4.*got 6"):
        sincos_positions((2, 2), 6)


@pytest.mark.parametrize(
    "wrong", [{"num_heads": 5}, {"num_heads": 0}, {"depth": 0}, {"embed_dim": 0}, {"mlp_ratio": 0.0}, {"registers": -1}]
)
def test_impossible_widths_and_numbers_are_refused(wrong):
    with pytest.raises(AfireError, match="a multiple of its heads"):
        ViTEncoder(**{"image_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **wrong})


def test_registers_take_part_and_are_not_given_out():
    encoder, image = tiny(registers=3).eval(), torch.rand(1, 1, 16, 24)
    x = encoder.patch_embed(encoder.normalise(image)).flatten(2).transpose(1, 2) + encoder.positions
    x = torch.cat([encoder.registers, encoder.cls_token, x], 1)
    for block in encoder.blocks:
        x = block(x)
    torch.testing.assert_close(encoder(image), encoder.norm(x)[:, 3:])
    assert encoder.block_of("registers") == 0
    without = tiny().eval()
    without.load_state_dict({k: v for k, v in encoder.state_dict().items() if k != "registers"})
    assert not torch.allclose(without(image), encoder(image), atol=1e-4)


def test_tokens_come_class_token_first_and_row_by_row():
    encoder = tiny().eval()
    image = torch.rand(1, 1, 16, 24)
    assert encoder(image).shape == (1, 1 + 6, 32)
    assert encoder.grid == (2, 3)
    # before any attention a change of one patch moves its own token alone: row 1, column 2 is token 1 * 3 + 2
    changed = image.clone()
    changed[:, :, 8:, 16:] += 0.1
    encoder.blocks = torch.nn.ModuleList()
    moved = (encoder(image) != encoder(changed)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + 5]


@pytest.mark.parametrize("preset", ["vit_ti6", "vit_ti"])
def test_presets_have_the_number_of_parameters_of_a_vit(preset):
    # per block 12 D² + 13 D; class token, final norm and patch bias 4 D; a grey 16 x 16 patch 256 D
    encoder = build_encoder(preset, image_size=32)
    dim, depth = ENCODER_PRESETS[preset]["embed_dim"], ENCODER_PRESETS[preset]["depth"]
    expected = depth * (12 * dim**2 + 13 * dim) + 4 * dim + 256 * dim
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder(torch.rand(2, 1, 32, 32)).shape == (2, 5, dim)


def test_presets_are_the_usual_widths_depths_and_heads():
    as_tuples = {name: tuple(v.values()) for name, v in ENCODER_PRESETS.items() if name.startswith("vit")}
    assert as_tuples == {"vit_ti6": (192, 6, 3), "vit_ti": (192, 12, 3), "vit_s": (384, 12, 6), "vit_b": (768, 12, 12)}


def test_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(AfireError, match=r"'vit_x'.*vit_ti6, vit_ti, vit_s, vit_b"):
        build_encoder("vit_x")


def test_overrides_of_a_preset_reach_the_encoder():
    encoder = build_encoder("vit_ti6", image_size=32, depth=1, in_channels=3)
    assert len(encoder.blocks) == 1
    assert encoder(torch.rand(1, 3, 32, 32)).shape == (1, 5, 192)


@pytest.mark.parametrize("size", [(32, 48), (8, 8), (16, 48)])
def test_another_image_size_gives_the_tokens_of_an_encoder_built_for_it(size):
    encoder = tiny().eval()
    images = torch.rand(2, 1, *size)
    tokens = encoder(images)
    h, w = size[0] // 8, size[1] // 8
    other = tiny(image_size=size, position_grid=(2, 3)).eval()
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other.positions, sincos_positions((h, w), 32, reference=(2, 3)))
    torch.testing.assert_close(tokens, other(images))


def test_normalisation_happens_inside_and_can_be_undone():
    plain, scaled = tiny(mean=0.0, std=1.0).eval(), tiny(mean=0.4, std=0.2).eval()
    scaled.load_state_dict(plain.state_dict())
    images = torch.rand(2, 1, 16, 24)
    torch.testing.assert_close(scaled(images), plain((images - 0.4) / 0.2))
    torch.testing.assert_close(scaled.denormalise(scaled.normalise(images)), images)


def test_each_channel_has_its_own_mean_and_deviation():
    encoder = tiny(in_channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])
    normalised = encoder.normalise(torch.full((1, 3, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(normalised, torch.tensor([0.8, 0.3, 0.1]))


def test_every_parameter_gets_a_gradient():
    encoder = tiny()
    tokens = encoder(torch.rand(2, 1, 16, 24))
    (tokens * torch.randn_like(tokens)).sum().backward()
    silent = [name for name, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_fixed_positions_and_statistics_are_no_part_of_the_weights():
    names = set(tiny().state_dict())
    assert not names & {"positions", "mean", "std"}
    assert {"cls_token", "patch_embed.weight", "norm.weight"} <= names


def test_weights_load_strictly_into_an_encoder_built_from_its_description():
    encoder = tiny(mean=0.31, std=0.17, layer_norm_eps=1e-5).eval()
    again = ViTEncoder(**encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    images = torch.rand(1, 1, 16, 24)
    assert torch.equal(encoder(images), again(images))
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict({k: v for k, v in encoder.state_dict().items() if k != "cls_token"})


@pytest.mark.parametrize(("height", "width"), [(16, 20), (12, 24), (4, 8)])
def test_size_that_is_no_multiple_of_the_patch_is_refused_with_one_that_is(height, width):
    suggestion = f"{math.ceil(height / 8) * 8} x {math.ceil(width / 8) * 8}"
    with pytest.raises(AfireError, match=f"{height} x {width}.*patch size 8.*{suggestion}"):
        tiny()(torch.rand(1, 1, height, width))
    with pytest.raises(AfireError, match=f"{height} x {width}"):
        tiny(image_size=(height, width))


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 16, 24), (2, 1, 1, 16, 24)])
def test_wrong_shape_is_refused_with_the_shape_seen_and_expected(shape):
    with pytest.raises(AfireError, match=r"\(B, 1, H, W\), got \("):
        tiny()(torch.rand(shape))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"std": 0.0}, "std must be above zero, got 0.0"),
        ({"mean": [0.1, 0.2]}, r"mean must hold one finite value for each of 1 channels, got \[0.1, 0.2\]"),
        ({"mean": math.nan}, "mean must hold one finite value"),
    ],
)
def test_impossible_statistics_are_refused(options, text):
    with pytest.raises(AfireError, match=text):
        tiny(**options)


def test_wrong_grey_range_is_refused_with_lowest_and_highest_value_where_asked_for():
    images = torch.rand(1, 1, 16, 24)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 255.0, -7.0
    with pytest.raises(AfireError, match=r"0…1, got -7…255"):
        tiny(check_range=True)(images)
    assert tiny()(images).isfinite().all()
    tiny(check_range=True)(torch.tensor([0.0, 1.0]).repeat(192).view(1, 1, 16, 24))
    with pytest.raises(AfireError, match="nan"):
        tiny(check_range=True)(images * math.nan)


def test_visible_tokens_are_encoded_as_if_the_picture_had_no_others():
    torch.manual_seed(0)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2).eval()
    images = torch.rand(2, 1, 32, 32)
    visible = torch.tensor([[5, 0, 9], [15, 3, 4]])
    tokens = encoder.hidden_states(images)[0]  # before the first block each token knows of itself only
    chosen = torch.stack([row[[0, *(place + 1).tolist()]] for row, place in zip(tokens, visible, strict=True)])
    for block in encoder.blocks:
        chosen = block(chosen)
    torch.testing.assert_close(encoder(images, visible=visible), encoder.norm(chosen))
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(images, visible=everything), encoder(images))


def test_fused_attention_equals_monais_in_values_and_gradients():
    from monai.networks.blocks import SABlock

    from afire_monai.networks.blocks import transformer_block

    torch.manual_seed(0)
    ours, theirs = transformer_block(32, 4, 2.0, 1e-6), transformer_block(32, 4, 2.0, 1e-6)
    theirs.attn = SABlock(32, 4, qkv_bias=True)  # the plain form, without the fused kernel
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in range(2)]
    outputs = [block(x) for block, x in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}", atol=1e-5, rtol=1e-4)


# positions of other grids ---------------------------------------------------------------------------------------------


def test_positions_of_another_grid_are_computed_once_and_kept_with_the_encoder(monkeypatch):
    from afire_monai.networks import encoder as module

    asked = []
    compute = module.sincos_positions
    monkeypatch.setattr(module, "sincos_positions", lambda grid, *rest: (asked.append(grid), compute(grid, *rest))[1])
    encoder = tiny()
    names = set(encoder.state_dict())
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = encoder(images), encoder(images)
    assert asked == [(2, 3), (4, 4)]
    assert torch.equal(first, second)
    assert set(encoder.state_dict()) == names
    # they move with the encoder, and go with its copies
    twin = copy.deepcopy(encoder).double()
    assert twin.positions_of((4, 4)).dtype == torch.float64
    assert encoder.to("meta").positions_of((4, 4)).device.type == "meta"
    assert asked == [(2, 3), (4, 4)]


@pytest.mark.parametrize("known", [True, False])
def test_another_grid_compiles_and_exports_without_a_break(known):
    encoder, plain = tiny().eval(), tiny().eval()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = plain(images)
    if known:
        encoder.positions_of((4, 4))
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    exported = torch.export.export(encoder, (images,)).module()
    torch.testing.assert_close(exported(images), expected)
    assert ("positions_4x4" in dict(encoder.named_buffers())) == known


def test_summary_holds_class_and_mean_token_of_half_the_depth_and_of_the_end():
    encoder = tiny(depth=4).eval()
    images = torch.rand(3, 1, 16, 24)
    tokens, end = encoder.patch_embed(encoder.normalise(images)).flatten(2).transpose(1, 2), encoder(images)
    tokens = torch.cat([encoder.cls_token.expand(3, -1, -1), tokens + encoder.positions], 1)
    middle = encoder.norm(encoder.blocks[1](encoder.blocks[0](tokens)))
    expected = torch.cat([middle[:, 0], middle[:, 1:].mean(1), end[:, 0], end[:, 1:].mean(1)], 1)
    torch.testing.assert_close(encoder.summary(images), expected)
    assert expected.shape == (3, encoder.summary_dim)
