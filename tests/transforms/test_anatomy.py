from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from afire_monai.transforms.anatomy import LUNG_SIDE, Anatomy, anatomy_of, enclosing_circle, lung_map
from afire_monai.transforms.anatomy import texture_center as center_of
from afire_monai.transforms.lesion import centers_in_pixels, lungs_of


def slow_circle(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The smallest circle through two or three points that holds all, by trying every pair and triple."""
    best, center = math.inf, points[0]
    for a, b in itertools.combinations(points, 2):
        radius = np.linalg.norm(points - (a + b) / 2, axis=1).max()
        if radius < best:
            best, center = radius, (a + b) / 2
    for a, b, c in itertools.combinations(points, 3):
        matrix = 2 * np.stack([b - a, c - a])
        if abs(np.linalg.det(matrix)) > 1e-9:
            middle = np.linalg.solve(matrix, [b @ b - a @ a, c @ c - a @ a])
            radius = np.linalg.norm(points - middle, axis=1).max()
            if radius < best - 1e-9:
                best, center = radius, middle
    return center, best


def test_texture_is_searched_by_rows_and_columns_in_that_order():
    image = np.zeros((30, 50), dtype=np.float32)
    image[6:26, 30:40] = 0.9  # cells' centres 6…25 and 30…39
    image[2:4, 4:10] = 0.9
    assert center_of(image) == pytest.approx((15.5, 34.5))
    large = image.repeat(4, 0).repeat(4, 1)  # searched on 56 columns: within a cell of 3.6 pixels
    assert center_of(large) == pytest.approx((15.5 * 4 + 1.5, 34.5 * 4 + 1.5), abs=3.6)


def test_the_largest_outline_wins_over_the_largest_count():
    image = np.zeros((50, 50), dtype=np.float32)
    image[4:24, 4] = image[4:24, 23] = image[4, 4:24] = image[23, 4:24] = 1  # a frame: 76 cells, 400 in its outline
    image[30:42, 30:42] = 1  # a block: 144 cells
    assert center_of(image) == pytest.approx((13.5, 13.5))


@pytest.mark.parametrize("seed", range(5))
def test_centre_equals_that_of_scikit_images_regions_and_the_best_of_all_circles(seed):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 1, 6, 6), dtype=np.float32))
    image = torch.nn.functional.interpolate(coarse, (40, 40), mode="bicubic").clamp(0, 1)[0, 0].numpy()
    levels = np.rint(image * 255).astype(np.uint8)
    regions = regionprops(label(levels > threshold_otsu(levels), connectivity=2))
    largest = max(regions, key=lambda region: region.area_filled)
    filled = np.argwhere(largest.image_filled) + largest.bbox[:2]
    rows = [filled[filled[:, 0] == row] for row in np.unique(filled[:, 0])]
    ends = np.concatenate([[row[0], row[-1]] for row in rows]).astype(float)
    center, _ = slow_circle(ends)
    assert center_of(image) == pytest.approx(tuple(center), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_enclosing_circle_equals_the_best_of_all_pairs_and_triples(seed):
    points = np.random.default_rng(seed).integers(0, 30, (12, 2)).astype(float)
    center, radius = enclosing_circle(points)
    expected, best = slow_circle(points)
    assert radius == pytest.approx(best)
    assert center == pytest.approx(tuple(expected))


def test_enclosing_circle_of_few_or_collinear_points():
    assert enclosing_circle(np.array([[3.0, 4.0]])) == ((3.0, 4.0), 0.0)
    assert enclosing_circle(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 6.0]]))[0] == (0.0, 3.0)
    center, radius = enclosing_circle(np.array([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [10.0, 10.0]]))
    assert center == pytest.approx((5.0, 5.0))
    assert radius == pytest.approx(5 * math.sqrt(2))


def test_lung_map_finds_two_dark_fields_in_a_bright_trunk():
    y, x = np.mgrid[0:128, 0:128] / 127
    lungs = sum(((x - middle) / 0.13) ** 2 + ((y - 0.48) / 0.3) ** 2 < 1 for middle in (0.3, 0.7)) > 0
    picture = np.where(lungs, 0.2, 0.7).astype(np.float32)
    found = lung_map(picture)
    assert found.shape == (LUNG_SIDE, LUNG_SIDE)
    drawn = lungs.reshape(32, 4, 32, 4).mean((1, 3)) > 0.5
    assert 2 * (found[drawn] > 0.5).sum() / ((found > 0.5).sum() + drawn.sum()) > 0.85
    flat = lung_map(np.full((50, 50), 0.3, dtype=np.float32))
    assert 0.2 < (flat > 0.5).mean() < 0.5  # the usual place


def test_anatomy_gives_fractions_that_lead_back_to_pixels_and_to_the_map():
    pictures = np.random.default_rng(0).random((2, 1, 40, 60), dtype=np.float32)
    pictures[0, 0, 5:20, 30:50] += 2
    pictures = (pictures / pictures.max()).astype(np.float32)
    found = anatomy_of(torch.from_numpy(pictures))
    centers, lungs = centers_in_pixels(found, 40, 60), lungs_of(found)
    for place, picture in enumerate(pictures[:, 0]):
        assert centers[place].tolist() == pytest.approx(center_of(picture), abs=1e-3)
        np.testing.assert_array_equal(lungs[place, 0].numpy(), lung_map(picture))
        np.testing.assert_array_equal(Anatomy()(picture), found[place].numpy())
