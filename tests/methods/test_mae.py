from __future__ import annotations

import pytest
import torch
from helpers import PATCH, smooth_images

from afire_monai.core.errors import AfireError
from afire_monai.losses import MaskedPatchLoss
from afire_monai.methods import MAE
from afire_monai.networks import AnomalyRestorationDecoder, ViTEncoder, build_encoder
from afire_monai.transforms import ViewAugment


def tiny_mae(normalise: bool = True, view: ViewAugment | None = None, **options: float) -> MAE:
    torch.manual_seed(0)
    encoder = ViTEncoder(32, PATCH, embed_dim=32, depth=2, num_heads=2)
    decoder = AnomalyRestorationDecoder(32, encoder.grid, PATCH, dim=32, depth=1, num_heads=2)
    return MAE(encoder, decoder, normalise=normalise, view=view, **options)


def draws_for(method: MAE, count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, method.draws, generator=torch.Generator().manual_seed(seed))


def test_three_of_four_patches_are_hidden_and_each_is_hidden_or_seen():
    method = tiny_mae()
    v = method.views(smooth_images(5, (32, 32)), draws_for(method, 5))
    assert v.visible.shape == (5, 4)
    assert v.masked.sum(1).tolist() == [12] * 5
    assert not v.masked.gather(1, v.visible).any()
    assert len({tuple(row.tolist()) for row in v.visible}) > 1


def test_what_is_hidden_does_not_change_the_reconstruction():
    method = tiny_mae().eval()
    images, uniforms = smooth_images(3, (32, 32)), draws_for(tiny_mae(), 3)
    v = method.views(images, uniforms)
    pixels = torch.nn.functional.interpolate(v.masked.view(3, 1, 4, 4).float(), scale_factor=PATCH) > 0
    other = torch.where(pixels, torch.rand(images.shape, generator=torch.Generator().manual_seed(5)), images)
    (a,), (b,) = method.student(images, v.visible, v.masked), method.student(other, v.visible, v.masked)
    torch.testing.assert_close(a, b)
    (c,) = method.student(1 - images, v.visible, v.masked)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_and_gradient_equal_a_loop_over_hidden_patches(normalise):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 1, 16, 24, generator=generator)
    predicted = torch.randn(3, 1, 16, 24, generator=generator, requires_grad=True)
    masked = torch.rand(3, 6, generator=generator) < 0.6
    loss = MaskedPatchLoss(8, normalise)(predicted, images, masked)
    errors = []
    for b in range(3):
        for cell in range(6):
            if masked[b, cell]:
                r, c = divmod(cell, 3)
                place = (b, 0, slice(8 * r, 8 * r + 8), slice(8 * c, 8 * c + 8))
                target = images[place]
                if normalise:
                    target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
                errors.append(((predicted[place] - target) ** 2).mean())
    expected = torch.stack(errors).mean()
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(loss, predicted)[0], torch.autograd.grad(expected, predicted)[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32)], ids=["black", "white"])
def test_pictures_of_one_grey_level_and_a_batch_of_two_are_finite(images):
    method = tiny_mae()
    loss = method.losses(images, draws_for(method, 2), first_epoch=True)["reconstruction"]
    loss.backward()
    assert loss.isfinite()
    for name, parameter in method.trainable():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_grey_levels_can_be_restored_only_if_patches_are_not_normalised():
    assert tiny_mae(normalise=True).export_decoder is None
    method = tiny_mae(normalise=False)
    assert method.export_decoder is method.student.decoder


def test_panels_keep_what_was_seen():
    method = tiny_mae().eval()
    images, uniforms = smooth_images(2, (32, 32)), draws_for(tiny_mae(), 2)
    pictures = method.panels(images, uniforms)
    seen = ~(
        torch.nn.functional.interpolate(method.views(images, uniforms).masked.view(2, 1, 4, 4).float(), None, 8) > 0
    )
    assert torch.equal(pictures["reconstruction"][seen], images[seen])
    assert pictures["seen"][~seen].unique().tolist() == [0.5]


def test_views_may_be_cut_from_a_larger_canvas():
    method = tiny_mae(view=ViewAugment(32, scale=(0.5, 1.0), flip=0.0, jitter=0.0, blur=0.0))
    v = method.views(smooth_images(3, (40, 40)), draws_for(method, 3))
    assert v.image.shape == (3, 1, 32, 32)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(AfireError, match="leaves 16 of 16"):
        tiny_mae(mask_ratio=0.01)
    for ratio in (float("nan"), -0.5, 2.0):
        with pytest.raises(AfireError, match=r"in 0…1; got"):
            tiny_mae(mask_ratio=ratio)
    with pytest.raises(AfireError, match="do not fit an encoder"):
        tiny_mae(view=ViewAugment(24))
    encoder = ViTEncoder(32, PATCH, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(AfireError, match="differs from the encoder's"):
        MAE(encoder, AnomalyRestorationDecoder(32, (2, 2), PATCH, dim=32, depth=1, num_heads=2))
    odd = torch.zeros(1, 1, 20, 16)
    with pytest.raises(AfireError, match="do not fit a grid of 2 x 2 patches of 8 pixels"):
        tiny_mae().loss(odd, odd, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(AfireError, match="must be"):
        tiny_mae().views(torch.zeros(2, 1, 40, 40), torch.rand(2, 16))


def test_encoder_that_cannot_leave_patches_out_is_refused():
    encoder = build_encoder("resnet18", image_size=64)
    decoder = AnomalyRestorationDecoder(encoder.embed_dim, encoder.grid, 32, dim=32, depth=1, num_heads=2)
    with pytest.raises(AfireError, match="a ResNetEncoder cannot: choose an encoder_preset that begins with vit_"):
        MAE(encoder, decoder)
