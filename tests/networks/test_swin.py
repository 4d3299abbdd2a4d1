"""The Swin encoder: MONAI's transformer, seen as any other encoder here."""

from __future__ import annotations

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.networks import ENCODER_PRESETS, ViTClassifier, ViTSegmenter, build_encoder
from afire_monai.networks.swin import SwinEncoder


def tiny(size: int = 128, window: int = 4, **options: object) -> SwinEncoder:
    torch.manual_seed(0)
    settings = {"embed_dim": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 2), **options}
    return SwinEncoder(size, window=window, **settings).eval()  # type: ignore[arg-type]


def images(size: int = 128, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def test_tokens_are_the_cells_of_monais_last_map_before_its_last_merging():
    from monai.networks.nets.swin_unetr import SwinTransformer

    encoder = tiny()
    swin = SwinTransformer(1, 8, (4, 4), (4, 4), (2, 2, 2, 2), (1, 2, 2, 2), patch_norm=True, spatial_dims=2).eval()
    swin.patch_embed.load_state_dict(encoder.patch_embed.state_dict())
    for number, stage in enumerate((swin.layers1[0], swin.layers2[0], swin.layers3[0], swin.layers4[0])):
        stage.blocks.load_state_dict(encoder.stages[number].state_dict())
        if number < 3:
            stage.downsample.load_state_dict(encoder.merging[number].state_dict())
    swin.layers4[0].downsample = None
    pictures = images()
    with torch.no_grad():
        last = swin(encoder.normalise(pictures), normalize=False)[-1]
        expected = torch.nn.functional.layer_norm(last.flatten(2).transpose(1, 2), (64,))
        tokens = encoder(pictures)
    assert tokens.shape == (2, 1 + 16, 64)
    torch.testing.assert_close(tokens[:, 1:], expected)
    torch.testing.assert_close(tokens[:, 0], expected.mean(1))


def test_summary_is_that_of_the_end_as_widths_change_on_the_way():
    encoder = tiny()
    with torch.no_grad():
        tokens, summary = encoder(images()), encoder.summary(images())
    torch.testing.assert_close(summary, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert summary.shape == (2, encoder.summary_dim)


def test_pyramid_is_what_the_feature_maps_say():
    encoder = tiny()
    maps = encoder.pyramid(images())
    assert len(maps) == len(encoder.feature_maps)
    for feature_map, found in zip(encoder.feature_maps, maps, strict=True):
        side = 128 // feature_map.stride
        assert found.shape == (2, feature_map.channels, side, side)
    assert [m.stride for m in encoder.feature_maps] == [4, 4, 8, 16, 32]


def test_blocks_left_out_for_an_image_do_nothing_to_it_and_nothing_to_others():
    encoder = tiny()
    with torch.no_grad():
        whole = encoder(images())
        scale = torch.ones(2, encoder.depth)
        torch.testing.assert_close(encoder(images(), scale), whole)
        scale[1, 3] = 0
        changed = encoder(images(), scale)
    torch.testing.assert_close(changed[0], whole[0])
    assert not torch.allclose(changed[1], whole[1])


def test_every_parameter_has_a_gradient_and_a_depth():
    encoder = tiny().train()
    encoder(images())[:, 1:].square().mul(torch.arange(64)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    depths = {name: encoder.block_of(name) for name, _ in encoder.named_parameters()}
    assert set(depths.values()) == set(range(encoder.depth + 2))
    assert depths["stages.1.0.attn.qkv.weight"] == 3
    assert depths["merging.0.reduction.weight"] == 2
    assert depths["patch_embed.proj.weight"] == 0
    assert depths["norm.weight"] == encoder.depth + 1


def test_an_export_comes_back_the_same(tmp_path):
    encoder = tiny(mean=0.4, std=0.2)
    export_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, SwinEncoder)
    with torch.no_grad():
        assert torch.equal(loaded(images()), encoder(images()))


def test_later_tasks_take_it():
    encoder = tiny()
    classifier = ViTClassifier(encoder, ["a", "b"])
    assert classifier(images()).shape == (2, 2)
    segmenter = ViTSegmenter(encoder, ["lung"], width=4)
    assert segmenter(images()).shape == (2, 1, 128, 128)


def test_larger_pictures_give_more_tokens():
    assert tiny()(images(160)).shape == (2, 1 + 25, 64)


def test_presets_are_those_of_the_paper():
    assert {"swin_t", "swin_b"} <= ENCODER_PRESETS.keys()
    encoder = build_encoder("swin_b", image_size=448)
    assert encoder.grid == (14, 14)
    assert encoder.embed_dim == 1024
    # 87 million are published for Swin-B at window 7, without its classifier and with three channels
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(86.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 96}, "fewer than a window of 4"),
        ({"size": 100}, "multiple of the patch size 32"),
        ({"depths": (2, 2)}, "four stages"),
        ({"window": 0}, "window one above 0"),
        ({"patch_size": 16}, "set patch_size to 32"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(AfireError, match=message):
        tiny(**options)


def test_only_the_last_map_can_be_asked_for():
    encoder = tiny()
    assert encoder.attribution_layer(None, False) is encoder.attribution_layer(-1, True)
    with pytest.raises(AfireError, match="not block 0"):
        encoder.attribution_layer(0, False)
    with pytest.raises(AfireError, match="block must be in"):
        encoder.attribution_layer(8, False)
