"""Random views against torch's and scipy's own crops, blurs and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from afire_monai.core.errors import AfireError
from afire_monai.transforms.views import RandomViews, ViewAugment, blur_weights, crop_weights

PLAIN = {"flip": 0.0, "jitter": 0.0, "blur": 0.0, "solarise": 0.0}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 1, 48, 64, generator=torch.Generator().manual_seed(0))


def uniforms(batch: int, draws: int = ViewAugment.draws, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, draws, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(12, 20), (48, 64), (96, 80)])
def test_the_whole_picture_is_resized_as_torch_does_with_antialiasing(images, size):
    view = ViewAugment(size, scale=(1, 1), ratio=(64 / 48, 64 / 48), **PLAIN)
    expected = F.interpolate(images, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(view(images, uniforms(3)), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("out", [8, 40])
def test_inside_a_box_of_whole_pixels_the_crop_is_resized_as_torch_does(images, out):
    rows = crop_weights(torch.tensor([10.0]), torch.tensor([20.0]), 48, out)
    columns = crop_weights(torch.tensor([30.0]), torch.tensor([20.0]), 64, out)
    ours = rows @ images[0] @ columns.mT
    expected = F.interpolate(images[:1, :, 10:30, 30:50], (out, out), mode="bilinear", antialias=True)[0]
    # at the border the crop of torch lacks the neighbours that the picture has
    torch.testing.assert_close(ours[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], atol=2e-6, rtol=0)


def test_an_enlarged_box_anywhere_equals_grid_sample(images):
    view = ViewAugment(40, scale=(0.05, 0.2), **PLAIN)
    u = uniforms(3)
    u[:, 2:4] = 0.2 + 0.6 * u[:, 2:4]  # away from the border
    top, left, height, width = view.boxes(u, (48, 64)).T
    steps = (torch.arange(40) + 0.5) / 40
    y = (top[:, None] + steps * height[:, None]) / 48 * 2 - 1
    x = (left[:, None] + steps * width[:, None]) / 64 * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, 40, -1), y[:, :, None].expand(-1, -1, 40)], dim=-1)
    torch.testing.assert_close(view(images, u), F.grid_sample(images, grid, align_corners=False), atol=1e-5, rtol=0)


def test_boxes_keep_area_and_shape_in_their_ranges_and_lie_inside():
    view = ViewAugment(8, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    top, left, height, width = view.boxes(uniforms(5000), (100, 100)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100.001).all()
    assert (left + width <= 100.001).all()
    fits = (height < 99.99) & (width < 99.99)
    area, ratio = (height * width / 1e4)[fits], (width / height)[fits]
    assert area.min() > 0.199
    assert area.max() < 0.501
    assert abs(area.mean() - 0.35) < 0.01
    assert ratio.min() > 0.499
    assert ratio.max() < 2.001
    assert abs(ratio.log().mean()) < 0.03


def test_a_certain_flip_mirrors_left_and_right(images):
    u = uniforms(3)
    plain = ViewAugment(32, **PLAIN)(images, u)
    torch.testing.assert_close(ViewAugment(32, **{**PLAIN, "flip": 1.0})(images, u), plain.flip(3))


def test_brightness_then_contrast_by_hand(images):
    u = uniforms(3)
    plain = ViewAugment(32, **PLAIN)(images, u).double().numpy()
    ours = ViewAugment(32, **{**PLAIN, "jitter": 1.0}, brightness=0.4, contrast=0.3)(images, u)
    for place, picture in enumerate(plain):
        bright = np.clip(picture * (0.6 + 0.8 * float(u[place, 6])), 0, 1)
        factor = 0.7 + 0.6 * float(u[place, 7])
        expected = np.clip(factor * bright + (1 - factor) * bright.mean(), 0, 1)
        np.testing.assert_allclose(ours[place].numpy(), expected, atol=1e-5)


def test_blur_equals_scipys_where_nothing_comes_from_outside(images):
    u = uniforms(3)
    plain = ViewAugment((24, 40), **PLAIN)(images, u).double().numpy()
    ours = ViewAugment((24, 40), **{**PLAIN, "blur": 1.0}, sigma=(0.3, 2.5))(images, u)
    for place, picture in enumerate(plain):
        options = {"sigma": 0.3 + 2.2 * float(u[place, 9]), "mode": "constant", "truncate": 20.0}
        expected = gaussian_filter(picture[0], **options) / gaussian_filter(np.ones((24, 40)), **options)
        np.testing.assert_allclose(ours[place, 0].numpy(), expected, atol=1e-5)


def test_a_blur_of_no_width_changes_nothing():
    torch.testing.assert_close(blur_weights(torch.zeros(2), 5), torch.eye(5).expand(2, 5, 5))


def test_solarise_inverts_from_the_threshold_on(images):
    u = uniforms(3)
    plain = ViewAugment(32, **PLAIN)(images, u)
    ours = ViewAugment(32, **{**PLAIN, "solarise": 1.0}, threshold=0.6)(images, u)
    torch.testing.assert_close(ours, torch.where(plain >= 0.6, 1 - plain, plain))


def test_each_chance_holds_for_its_share_of_images():
    images = torch.rand(1, 1, 8, 8).expand(4000, -1, -1, -1)
    whole = {"scale": (1, 1), "ratio": (1, 1)}
    plain = ViewAugment(8, **whole, **PLAIN)
    for name in ("flip", "jitter", "blur", "solarise"):
        view = ViewAugment(8, **whole, **{**PLAIN, name: 0.3})
        u = uniforms(4000)
        changed = (view(images, u) != plain(images, u)).flatten(1).any(1).float().mean()
        assert abs(changed - 0.3) < 0.03, name


def test_a_view_is_a_function_of_its_own_row_and_stays_in_range(images):
    view = ViewAugment(32, blur=0.5, solarise=0.5)
    u = uniforms(3)
    whole = view(images, u)
    torch.testing.assert_close(whole, torch.cat([view(images[i : i + 1], u[i : i + 1]) for i in range(3)]))
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert view(torch.zeros_like(images), u).eq(0).all()


def test_several_views_use_their_own_numbers(images):
    views = RandomViews([ViewAugment(32), ViewAugment(16, scale=(0.05, 0.3))])
    u = uniforms(3, views.draws)
    first, second = views(images, u)
    assert views.draws == 22
    assert first.shape[2:] == (32, 32)
    assert second.shape[2:] == (16, 16)
    torch.testing.assert_close(second, views.views[1](images, u[:, 11:]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0, 1)},
        {"scale": (0.5, 1.2)},
        {"scale": 0.5},
        {"scale": [0.5]},
        {"ratio": (2, 1)},
        {"flip": 1.5},
        {"sigma": (0, 1)},
        {"threshold": -1},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(AfireError, match=next(iter(wrong))):
        ViewAugment(8, **wrong)


def test_wrong_shapes_are_refused(images):
    with pytest.raises(AfireError, match="uniforms"):
        ViewAugment(8)(images, uniforms(2))
    with pytest.raises(AfireError, match="at least one"):
        RandomViews([])
