from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afire_monai.core.errors import AfireError
from afire_monai.methods import MAE
from afire_monai.models.export import Exportable
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.models.initial import pretraining_encoder
from afire_monai.models.layouts import export_layout
from afire_monai.networks import AnomalyRestorationDecoder, ViTEncoder
from afire_monai.networks.stem import Convolution, build_stem

SMALL = {"image_size": (16, 24), "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def convolutional() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(**SMALL, stem="convolutions").eval()


def by_loops(stem: nn.Sequential, image: torch.Tensor) -> torch.Tensor:
    """The stem's tokens of an image (C, H, W), written out."""
    x = image
    for convolution, norm, _ in zip(*[iter(list(stem)[:-1])] * 3, strict=True):
        padded = F.pad(x, (1, 1, 1, 1))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        y = torch.stack(
            [
                torch.stack(
                    [
                        (convolution.weight * padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]).sum((1, 2, 3))
                        for j in range(columns)
                    ],
                    1,
                )
                for i in range(rows)
            ],
            1,
        )
        y = (y - y.mean()) / (y.var(unbiased=False) + norm.eps).sqrt()
        x = (y * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)
    return torch.einsum("oc,chw->ohw", stem[-1].weight[:, :, 0, 0], x) + stem[-1].bias[:, None, None]


def test_channels_last_change_neither_values_nor_how_weights_and_gradients_are_stored():
    torch.manual_seed(0)
    plain, last = nn.Conv2d(3, 8, 3, stride=2, padding=1).double(), Convolution(3, 8, 3, stride=2, padding=1).double()
    last.load_state_dict(plain.state_dict())
    maps = torch.rand(2, 3, 10, 12, dtype=torch.float64)
    for layer in (plain, last):
        layer(maps).square().sum().backward()
    torch.testing.assert_close(last(maps), plain(maps))
    torch.testing.assert_close(last.weight.grad, plain.weight.grad)
    assert last.weight.is_contiguous()
    assert last.weight.grad.is_contiguous()


def test_convolutions_halve_the_picture_until_a_patch_is_a_token():
    stem = build_stem("convolutions", 1, 32, 8)
    assert [layer.out_channels for layer in stem if isinstance(layer, nn.Conv2d)] == [8, 16, 32, 32]
    image = torch.rand(1, 1, 16, 24)
    assert stem(image).shape == (1, 32, 2, 3)
    torch.testing.assert_close(stem(image)[0], by_loops(stem, image[0]), atol=1e-5, rtol=1e-5)


def test_tokens_of_an_image_do_not_depend_on_the_batch():
    encoder, images = convolutional(), torch.rand(3, 1, 16, 24)
    torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]), atol=1e-6, rtol=1e-5)


def test_encoder_is_exported_with_its_stem_and_runs_at_another_size(tmp_path):
    encoder, images = convolutional(), torch.rand(2, 1, 32, 32)
    export_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert torch.equal(loaded(images), encoder(images))
    assert {name for name, _ in loaded.named_parameters() if loaded.block_of(name) == 0} >= {"patch_embed.0.weight"}


def test_fresh_weights_of_the_published_stem_are_as_they_were():
    torch.manual_seed(0)
    encoder = ViTEncoder(**SMALL)
    assert isinstance(encoder.patch_embed, nn.Conv2d)
    limit = (6 / (32 + 64)) ** 0.5  # Xavier, of a linear layer from 8 x 8 pixels to 32
    assert 0.9 * limit < encoder.patch_embed.weight.abs().max() <= limit
    assert not encoder.patch_embed.bias.any()


@pytest.mark.parametrize(
    ("stem", "patch", "width", "message"),
    [
        ("conv", 8, 32, "stem must be one of patches, convolutions; got 'conv'"),
        ("convolutions", 12, 32, "power of 2.*got 12"),
        ("convolutions", 16, 36, "got 16 and a width of 36"),
    ],
)
def test_stems_that_cannot_be_are_refused(stem, patch, width, message):
    with pytest.raises(AfireError, match=message):
        build_stem(stem, 1, width, patch)


def test_masked_autoencoding_and_other_libraries_refuse_convolutions(tmp_path):
    encoder = convolutional()
    with pytest.raises(AfireError, match="set stem to patches"):
        MAE(encoder, AnomalyRestorationDecoder(32, encoder.grid, 8, dim=32, depth=1, num_heads=2))
    exportable = Exportable("encoder", encoder, (1, 16, 24), ("tokens",))
    with pytest.raises(AfireError, match="timm takes vision transformers without registers or a stem"):
        export_layout(exportable, torch.rand(3, 1, 16, 24), tmp_path / "timm", "timm")


def test_pretraining_takes_a_stem_for_fresh_transformers_only(tmp_path):
    fresh = pretraining_encoder("random", "vit_ti6", 32, 16, (0.5, 0.25), stem="convolutions", registers=0)
    assert fresh.config["stem"] == "convolutions"
    with pytest.raises(AfireError, match="stem: encoder_preset resnet18 has none"):
        pretraining_encoder("random", "resnet18", 64, 32, (0.5, 0.25), stem="convolutions")
    with pytest.raises(AfireError, match="one of patches, convolutions"):
        pretraining_encoder("random", "vit_ti6", 32, 16, (0.5, 0.25), stem="conv")
    export_encoder(convolutional(), tmp_path / "convolutions")
    export_encoder(ViTEncoder(**SMALL), tmp_path / "patches")
    taken = pretraining_encoder(str(tmp_path / "convolutions"), "vit_ti6", 16, 8, (0.5, 0.25))
    assert taken.config["stem"] == "convolutions"
    kept = pretraining_encoder(str(tmp_path / "patches"), "vit_ti6", 16, 8, (0.5, 0.25), stem="convolutions")
    assert kept.config["stem"] == "patches"
