"""Augmentation: what is known by hand about single moves, and that masks move with their images."""

from __future__ import annotations

import pytest
import torch
from helpers import smooth_images

from afire_monai.core.errors import AfireError
from afire_monai.transforms import RadiographAugment

STILL = {"rotate": 0.0, "scale": 0.0, "translate": 0.0, "gamma": 0.0, "contrast": 0.0, "brightness": 0.0}


def middle(batch: int) -> torch.Tensor:
    """Uniform numbers whose every signed draw is 0."""
    return torch.full((batch, RadiographAugment.draws), 0.5)


def test_draws_in_the_middle_change_nothing():
    images = smooth_images(3, (24, 32)).clamp(1e-4, 1)
    changed, mask = RadiographAugment(flip=0.5)(images, middle(3), images)
    torch.testing.assert_close(changed, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(mask, images, atol=1e-5, rtol=0)


def test_a_quarter_turn_is_a_quarter_turn():
    images = smooth_images(2, (16, 16)).clamp(1e-4, 1)
    uniforms = middle(2)
    uniforms[:, 0] = 1.0
    changed, _ = RadiographAugment(**{**STILL, "rotate": 90.0})(images, uniforms)
    turned = [torch.rot90(images, k, (2, 3)) for k in (1, 3)]
    assert min((changed - t).abs().max() for t in turned) < 1e-4


@pytest.mark.parametrize("size", [(16, 48), (48, 16)])
def test_a_rotation_keeps_shapes_in_pixels_of_a_picture_that_is_no_square(size):
    images = torch.zeros(1, 1, *size)
    images[0, 0, size[0] // 2 - 2 : size[0] // 2 + 2, size[1] // 2 - 6 : size[1] // 2 + 6] = 1
    uniforms = middle(1)
    uniforms[:, 0] = 1.0
    changed, _ = RadiographAugment(**{**STILL, "rotate": 90.0})(images, uniforms)
    rows, columns = (changed[0, 0] > 0.5).nonzero().unbind(1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (12, 4)


def test_a_shift_moves_by_its_share_of_the_side():
    images = torch.zeros(1, 1, 20, 20)
    images[0, 0, 10, 10] = 1
    uniforms = middle(1)
    uniforms[:, 2] = 0.0  # the sampling place moves to the left, so the picture to the right
    changed, _ = RadiographAugment(**{**STILL, "translate": 0.1})(images, uniforms)
    assert changed[0, 0, 10, 12] == pytest.approx(1, abs=1e-4)


def test_a_mirror_image_swaps_left_and_right():
    images = smooth_images(2, (16, 24)).clamp(1e-4, 1)
    uniforms = middle(2)
    uniforms[0, 7] = 0.0
    changed, _ = RadiographAugment(**STILL, flip=0.1)(images, uniforms)
    torch.testing.assert_close(changed[0], images[0].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed[1], images[1], atol=1e-5, rtol=0)


def test_masks_move_with_their_images_and_keep_their_values():
    images = torch.zeros(4, 1, 64, 64)
    images[:, :, 20:44, 12:30] = 1
    mask = images.clone()
    mask[:, :, :4] = float("nan")
    uniforms = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    changed, moved = RadiographAugment(**{**STILL, "rotate": 10.0, "translate": 0.05})(images, uniforms, mask)
    known = ~moved.isnan()
    assert set(moved[known].unique().tolist()) <= {0.0, 1.0}
    assert moved.isnan().any()
    agreement = ((changed > 0.5) == (moved > 0.5))[known].float().mean()
    assert agreement > 0.99


def test_exposure_stays_in_range_and_keeps_order():
    images = torch.linspace(0.05, 0.95, 64).view(1, 1, 8, 8)
    for seed in range(5):
        uniforms = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed))
        changed, _ = RadiographAugment(rotate=0, scale=0, translate=0)(images, uniforms)
        assert 0 <= changed.min() <= changed.max() <= 1
        assert (changed.flatten().diff() >= -1e-6).all()


@pytest.mark.parametrize("wrong", [{"rotate": -1}, {"flip": 1.1}, {"scale": 1.0}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(AfireError, match=next(iter(wrong))):
        RadiographAugment(**wrong)
