from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage, stats
from skimage.filters import threshold_otsu

from afire_monai.errors import AfireError
from afire_monai.transforms import LesionRecord, LesionSettings, SyntheticLesionMask, SyntheticLesionMaskBatch
from afire_monai.transforms.lesion_search import enclosing_circle
from afire_monai.transforms.lesion_search_batch import (
    EnclosingCircle,
    connected_labels,
    largest_region,
    otsu_threshold,
)


def clouds(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures (count, 1, H, W) with values from 0 to 1."""
    noise = np.random.default_rng(seed).random((count, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, height / 12, width / 12))
    low = smooth.min((1, 2), keepdims=True)
    return ((smooth - low) / (smooth.max((1, 2), keepdims=True) - low)).astype(np.float32)[:, None]


def uniforms(count: int, module: SyntheticLesionMaskBatch, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, module.draws, generator=torch.Generator().manual_seed(seed))


SETTINGS = [
    LesionSettings(),
    LesionSettings(lesion_count=(2, 7), edge=2.5, peak=0.8, texture_side=0.4, lesion_side=(0.2, 0.9)),
    LesionSettings(dark_probability=0.5, elsewhere_probability=0.5),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [(96, 96), (70, 121), (16, 16)])
def test_batch_equals_the_array_form_for_the_same_draws(settings, size):
    images = clouds(12, *size)
    batch, single = SyntheticLesionMaskBatch(settings), SyntheticLesionMask(settings)
    draws = uniforms(12, batch)
    twins, masks = batch(torch.from_numpy(images), draws)
    for image, drawn, twin, mask in zip(images, draws.numpy(), twins.numpy(), masks.numpy(), strict=True):
        expected, expected_mask = single.apply(image, single.plan(image[0], drawn))
        edge = mask != expected_mask  # only where the added value is one grey level up to rounding
        assert edge.sum() <= 2
        assert np.abs(twin - expected)[edge].sum() <= edge.sum() * 1.001 / 255
        np.testing.assert_allclose(twin[~edge], expected[~edge], atol=2e-6)
        np.testing.assert_array_equal(twin[mask == 0], image[mask == 0])


@pytest.mark.parametrize("size", [(224, 224), (128, 128), (60, 200)])
def test_texture_centers_equal_the_exact_circle_of_the_array_form(size):
    images = clouds(20, *size, seed=3)
    module, single = SyntheticLesionMaskBatch(), SyntheticLesionMask()
    centers = module.texture_centers(torch.from_numpy(images)).numpy()
    draws = np.zeros(module.draws, dtype=np.float32)
    exact = np.array([single.plan(image[0], draws).texture_center for image in images])
    assert np.abs(centers - exact).max() <= 0.02 * max(size)  # extreme points in 16 directions, not all
    assert np.median(np.abs(centers - exact)) < 1e-3 * max(size)


def test_given_centers_replace_the_search():
    images, module = torch.from_numpy(clouds(3, 64, 64)), SyntheticLesionMaskBatch()
    draws = uniforms(3, module)
    searched = module(images, draws)
    given = module(images, draws, module.texture_centers(images))
    assert torch.equal(searched[0], given[0])
    moved = module(images, draws, torch.tensor([[5.0, 60.0]]).expand(3, 2))
    record = SyntheticLesionMask().plan(images[1, 0].numpy(), draws[1].numpy())
    record = LesionRecord(record.image_size, (5.0, 60.0), 0.0, record.boxes)
    expected, _ = SyntheticLesionMask().apply(images[1].numpy(), record)
    np.testing.assert_allclose(moved[0][1].numpy(), expected, atol=2e-6)


def test_otsu_equals_scikit_image():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (12, 40, 40)) * (rng.random((12, 40, 40)) < 0.6)
    levels[6:] = np.clip(rng.normal(60, 15, (6, 40, 40)) + 110 * (rng.random((6, 40, 40)) < 0.3), 0, 255).round()
    found = otsu_threshold(torch.from_numpy(levels).float()).numpy()
    for level, threshold in zip(levels.astype(np.uint8), found, strict=True):
        np.testing.assert_array_equal(level > threshold, level > threshold_otsu(level))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.45, 0.59, 0.7])
def test_regions_equal_scipy_label_also_in_noise(share, diagonal):
    rng = np.random.default_rng(1)
    masks = np.zeros((40, 58, 58), dtype=bool)
    masks[:20, 1:-1, 1:-1] = rng.random((20, 56, 56)) < share
    smooth = ndimage.gaussian_filter(rng.random((20, 56, 56)), (0, 1.5, 1.5))
    masks[20:, 1:-1, 1:-1] = smooth < np.quantile(smooth, share)
    found = connected_labels(torch.from_numpy(masks), diagonal).view(40, 58, 58).numpy()
    for mask, labels in zip(masks, found, strict=True):
        expected, count = ndimage.label(mask, np.ones((3, 3)) if diagonal else None)
        pairs = {(a, b) for a, b in zip(expected.ravel().tolist(), labels.ravel().tolist(), strict=True)}
        assert len(pairs) == count + 1  # one to one, background included


def test_a_long_winding_path_is_one_region():
    grid = torch.zeros(1, 58, 58, dtype=torch.bool)
    for row in range(1, 57, 2):
        grid[0, row, 1:57] = True
        grid[0, row + 1, 56 if (row // 2) % 2 else 1] = row + 1 < 56
    labels = connected_labels(grid, diagonal=False)
    assert labels[grid.flatten(1)].unique().numel() == 1


def test_largest_region_counts_holes_and_keeps_to_one_region():
    grid = torch.zeros(2, 50, 40, dtype=torch.bool)
    grid[0, 0:20, 0] = grid[0, 0:20, 19] = grid[0, 0, 0:20] = grid[0, 19, 0:20] = True  # a frame at the border
    grid[0, 30:42, 25:37] = True
    grid[0, 8:10, 8:10] = True  # inside the frame
    expected = torch.zeros_like(grid)
    expected[0, 0:20, 0:20] = True
    assert torch.equal(largest_region(grid), expected)


def test_circle_centre_is_that_of_the_extreme_points():
    rng = np.random.default_rng(2)
    regions = np.zeros((30, 56, 56), dtype=bool)
    for region in regions:
        region[tuple(rng.integers(0, 56, (2, 40)))] = True
    regions[0] = False
    regions[0, 3, 7] = True
    regions[1] = False
    regions[1, 10, 5:30] = True
    centers = EnclosingCircle()(torch.from_numpy(regions)).numpy()
    np.testing.assert_allclose(centers[:2], [[3, 7], [10, 17]], atol=1e-4)
    for region, center in zip(regions, centers, strict=True):
        points = np.argwhere(region).astype(float)
        _, radius = enclosing_circle(points)
        assert np.linalg.norm(points - center, axis=1).max() <= radius * 1.05 + 1e-4


def test_distribution_equals_that_of_the_array_form():
    images = clouds(300, 64, 64, seed=4)
    module = SyntheticLesionMaskBatch()
    twins, masks = module(torch.from_numpy(images), uniforms(300, module, seed=9))
    single = SyntheticLesionMask().set_random_state(10)
    results = [single(image) for image in images]
    area = np.array([mask.mean() for _, mask in results])
    light = np.array([(twin - image).sum() for (twin, _), image in zip(results, images, strict=True)])
    regions = np.array([ndimage.label(mask[0])[1] for _, mask in results])
    batch_regions = np.array([ndimage.label(mask[0])[1] for mask in masks.numpy()])
    assert stats.ks_2samp(area, masks.mean((1, 2, 3)).numpy()).pvalue > 1e-3
    assert stats.ks_2samp(light, (twins.numpy() - images).sum((1, 2, 3))).pvalue > 1e-3
    assert stats.ks_2samp(regions, batch_regions).pvalue > 1e-3
    covered = masks.mean((0, 1)).numpy()
    array_covered = np.mean([mask[0] for _, mask in results], axis=0)
    assert np.abs(covered - array_covered).mean() < 0.05
    assert np.corrcoef(covered.ravel(), array_covered.ravel())[0, 1] > 0.5


def test_an_image_does_not_depend_on_its_batch():
    images, module = torch.from_numpy(clouds(6, 80, 80)), SyntheticLesionMaskBatch()
    images[2] = 0
    draws = uniforms(6, module)
    twins, masks = module(images, draws)
    for i in range(6):
        twin, mask = module(images[i : i + 1], draws[i : i + 1])
        torch.testing.assert_close(twin[0], twins[i], atol=1e-6, rtol=0)
        assert (mask[0] != masks[i]).sum() <= 1


def test_same_numbers_give_the_same_result_and_inputs_stay_as_they_were():
    images, module = torch.from_numpy(clouds(4, 80, 80)), SyntheticLesionMaskBatch()
    draws = uniforms(4, module)
    kept = images.clone()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = module(images, draws), module(images, draws)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(images, kept)
    assert not torch.equal(first[0], module(images, uniforms(4, module, seed=1))[0])


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_constant_images_get_flat_lesions(value):
    images, module = torch.full((8, 1, 40, 40), value), SyntheticLesionMaskBatch()
    assert torch.equal(module.texture_centers(images), torch.full((8, 2), 19.5))
    twins, masks = module(images, uniforms(8, module))
    assert twins.isfinite().all()
    assert (masks.flatten(1).sum(1) > 0).all()
    assert (twins >= images).all()
    assert twins.max() <= 1


def test_the_largest_and_smallest_numbers_stay_inside_the_image():
    images, module = torch.from_numpy(clouds(2, 50, 50)), SyntheticLesionMaskBatch()
    largest = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).expand(2, module.draws)
    for draws in (torch.zeros(2, module.draws), largest):
        record = SyntheticLesionMask().plan(images[0, 0].numpy(), draws[0].numpy())
        assert record.count == (1 if draws[0, 0] == 0 else 4)
        for top, left, height, width in record.boxes:
            assert 0 <= top <= 50 - height
            assert 0 <= left <= 50 - width
        _, masks = module(images, draws)
        assert (masks.flatten(1).sum(1) > 0).all()


def test_three_channels_types_and_autocast():
    images, module = torch.from_numpy(clouds(4, 64, 64)), SyntheticLesionMaskBatch()
    draws = uniforms(4, module)
    twins, masks = module(images, draws)
    three, masks_three = module(images.expand(-1, 3, -1, -1), draws)
    assert torch.equal(three, twins.expand(-1, 3, -1, -1))
    assert torch.equal(masks_three, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(images, draws)[0], twins)
    half, half_masks = module(images.bfloat16(), draws)
    assert half.dtype == torch.bfloat16
    assert half_masks.dtype == torch.float32
    outside = (half_masks == 0).expand_as(half)
    assert torch.equal(half[outside], images.bfloat16()[outside])
    assert type(module(MetaTensor(images), draws)[0]) is torch.Tensor


def test_forward_is_one_graph_without_state_and_without_gradient():
    images, module = torch.from_numpy(clouds(2, 48, 48)).requires_grad_(), SyntheticLesionMaskBatch()
    draws = uniforms(2, module)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    twins, masks = compiled(images, draws)
    assert not twins.requires_grad
    torch.testing.assert_close(twins, module(images, draws)[0])
    assert torch.equal(masks, module(images, draws)[1])
    assert module.state_dict() == {}


def test_wrong_shapes_are_refused():
    module = SyntheticLesionMaskBatch()
    with pytest.raises(AfireError, match=r"\(2, draws\)|\(2, 21\)"):
        module(torch.zeros(2, 1, 32, 32), torch.zeros(3, module.draws))
    with pytest.raises(AfireError, match="expected \\(B, C, H, W\\)"):
        module(torch.zeros(1, 32, 32), torch.zeros(1, module.draws))
    with pytest.raises(AfireError, match="uint8"):
        module(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, module.draws))
