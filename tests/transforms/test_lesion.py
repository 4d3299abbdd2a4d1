from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage, stats

from afire_monai.errors import AfireError, RadiographError
from afire_monai.transforms import LesionRecord, LesionSettings, SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.lesion_search import enclosing_circle, texture_circle

GREY = 1 / 255


def smooth_image(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A cloudy picture (1, H, W) with values from 0.05 to 0.98."""
    noise = np.random.default_rng(seed).random((height, width))
    cloud = ndimage.gaussian_filter(noise, min(height, width) / 12)
    return (0.05 + 0.93 * (cloud - cloud.min()) / np.ptp(cloud)).astype(np.float32)[None]


def slow_twin(image: np.ndarray, record: LesionRecord, settings: LesionSettings) -> tuple[np.ndarray, np.ndarray]:
    """The recipe pixel by pixel, in double precision: twin (H, W) and the sum of what was added."""
    height, width = image.shape
    side = round(settings.texture_side * min(height, width))
    corner = []
    for middle, size in zip(record.texture_center, (height, width), strict=True):
        start = math.floor(middle - (side - 1) / 2 + 0.5)
        corner.append(min(max(start, 0), size - side))
    bell = {}
    for i, j in itertools.product(range(side), range(side)):
        u, v = (i - (side - 1) / 2) / (side / 2), (j - (side - 1) / 2) / (side / 2)
        bell[i, j] = math.exp(-(((u * u + v * v) / 0.5) ** settings.edge))
    low, high = min(bell.values()), max(bell.values())

    def blob(i: int, j: int) -> float:
        weight = settings.peak * (bell[i, j] - low) / (high - low)
        return weight * float(image[corner[0] + i, corner[1] + j])

    added = np.zeros((height, width))
    for top, left, rows, columns in record.boxes:
        for r, c in itertools.product(range(rows), range(columns)):
            y = min(max((r + 0.5) * side / rows - 0.5, 0), side - 1)
            x = min(max((c + 0.5) * side / columns - 0.5, 0), side - 1)
            i, j = min(int(y), side - 2), min(int(x), side - 2)
            fy, fx = y - i, x - j
            near = (1 - fx) * blob(i, j) + fx * blob(i, j + 1)
            far = (1 - fx) * blob(i + 1, j) + fx * blob(i + 1, j + 1)
            added[top + r, left + c] += (1 - fy) * near + fy * far
    twin = np.array(image, dtype=np.float64)
    for y, x in itertools.product(range(height), range(width)):
        if added[y, x] < GREY:
            added[y, x] = 0
        elif record.polarity == "bright":
            twin[y, x] = max(twin[y, x], min(twin[y, x] + added[y, x], settings.ceiling))
        else:
            twin[y, x] = min(twin[y, x], max(twin[y, x] - added[y, x], settings.floor))
    return twin, added


@pytest.mark.parametrize(
    ("settings", "polarity"),
    [(LesionSettings(), "bright"), (LesionSettings(edge=3.0, peak=0.9), "bright"), (LesionSettings(), "dark")],
)
def test_twin_equals_the_recipe_written_pixel_by_pixel(settings, polarity):
    image = smooth_image(1, 40, 56)
    boxes = ((2, 5, 20, 9), (10, 8, 7, 22), (38, 54, 2, 2), (12, 30, 23, 23))
    record = LesionRecord((40, 56), (17.2, 44.9), 12.0, boxes, polarity)
    twin, mask = SyntheticLesionMask(settings).apply(image, record)
    expected, added = slow_twin(image[0], record, settings)
    clear = np.abs(added - GREY) > 1e-6
    np.testing.assert_allclose(twin[0][clear], expected[clear], atol=1e-6)
    np.testing.assert_array_equal(mask[0][clear], (added > 0)[clear])


@pytest.mark.parametrize("seed", range(8))
def test_twin_equals_the_image_outside_the_mask_and_never_wraps_around(seed):
    image = smooth_image(seed)
    transform = SyntheticLesionMask(LesionSettings(lesion_count=(4, 12), peak=1.0)).set_random_state(seed)
    twin, mask = transform(image)
    assert mask.shape == (1, 64, 64)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert (twin >= image).all()
    assert twin.max() <= 1
    np.testing.assert_array_equal(twin[mask == 0], image[mask == 0])
    raised = (mask > 0) & (image <= 234 / 255)
    assert (twin[raised] > image[raised]).all()
    assert twin[raised].max() <= np.float32(235 / 255)


def test_a_pixel_above_the_ceiling_is_kept():
    image = smooth_image(0)
    image[0, 20:30, 20:30] = 1.0
    record = LesionRecord((64, 64), (25, 25), 5.0, ((10, 10, 30, 30),))
    twin, mask = SyntheticLesionMask().apply(image, record)
    assert mask[0, 25, 25] == 1
    assert twin[0, 25, 25] == 1


def test_texture_is_searched_by_rows_and_columns_in_that_order():
    image = np.zeros((1, 60, 100), dtype=np.float32)
    image[0, 6:26, 70:80] = 0.9  # 20 rows, 10 columns, cells' centres 6…25 and 70…79
    image[0, 40:44, 4:10] = 0.9
    settings = LesionSettings(search_side=100)
    (row, column), radius = texture_circle(image[0], settings)
    assert (row, column) == pytest.approx((15.5, 74.5))
    assert radius == pytest.approx(math.hypot(9.5, 4.5))
    transform = SyntheticLesionMask(settings).set_random_state(0)
    transform(image)
    assert transform.record.texture_center == pytest.approx((15.5, 74.5))
    (row, column), _ = texture_circle(image[0], LesionSettings())  # on 56 columns: within a cell of 1.8 pixels
    assert (row, column) == pytest.approx((15.5, 74.5), abs=1.8)


def test_lesion_box_is_top_left_height_width():
    image = np.full((1, 60, 100), 0.2, dtype=np.float32)
    image[0, 0, 0] = 0.9
    record = LesionRecord((60, 100), (30, 50), 1.0, ((5, 60, 30, 12),))
    _, mask = SyntheticLesionMask().apply(image, record)
    rows, columns = np.flatnonzero(mask[0].any(1)), np.flatnonzero(mask[0].any(0))
    assert 5 <= rows[0] <= 8
    assert 31 <= rows[-1] <= 34
    assert 60 <= columns[0] <= 62
    assert 69 <= columns[-1] <= 71


def test_the_largest_outline_wins_over_the_largest_count():
    image = np.zeros((50, 50), dtype=np.float32)
    image[4:24, 4] = image[4:24, 23] = image[4, 4:24] = image[23, 4:24] = 1  # a frame: 76 cells, 400 in its outline
    image[30:42, 30:42] = 1  # a block: 144 cells
    assert texture_circle(image, LesionSettings())[0] == pytest.approx((13.5, 13.5))


@pytest.mark.parametrize("seed", range(10))
def test_enclosing_circle_equals_the_best_of_all_pairs_and_triples(seed):
    points = np.random.default_rng(seed).integers(0, 30, (12, 2)).astype(float)
    best = math.inf
    for a, b in itertools.combinations(points, 2):
        best = min(best, np.linalg.norm(points - (a + b) / 2, axis=1).max())
    for a, b, c in itertools.combinations(points, 3):
        matrix = 2 * np.stack([b - a, c - a])
        if abs(np.linalg.det(matrix)) > 1e-9:
            middle = np.linalg.solve(matrix, [b @ b - a @ a, c @ c - a @ a])
            best = min(best, np.linalg.norm(points - middle, axis=1).max())
    center, radius = enclosing_circle(points)
    assert radius == pytest.approx(best)
    assert np.linalg.norm(points - center, axis=1).max() <= radius * (1 + 1e-6)


def test_enclosing_circle_of_few_or_collinear_points():
    assert enclosing_circle(np.array([[3.0, 4.0]])) == ((3.0, 4.0), 0.0)
    assert enclosing_circle(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 6.0]]))[0] == (0.0, 3.0)
    center, radius = enclosing_circle(np.array([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [10.0, 10.0]]))
    assert center == pytest.approx((5.0, 5.0))
    assert radius == pytest.approx(5 * math.sqrt(2))


def test_sizes_positions_and_counts_follow_the_published_distribution():
    image = smooth_image(3, 224, 224)
    transform = SyntheticLesionMask().set_random_state(5)
    center = texture_circle(image[0], transform.settings)
    assert center[1] > 0
    records = []
    for _ in range(600):
        transform.randomize(image)
        records.append(transform.record)
    counts = np.bincount([r.count for r in records], minlength=5)
    assert counts.sum() == counts[1:5].sum() == 600
    assert stats.chisquare(counts[1:5]).pvalue > 1e-3
    boxes = np.array([box for r in records for box in r.boxes])
    for column in (2, 3):
        assert boxes[:, column].min() == 16
        assert boxes[:, column].max() == 128
        assert stats.kstest(boxes[:, column], stats.randint(16, 129).cdf).pvalue > 1e-3
    for start, size in ((0, 2), (1, 3)):
        place = (boxes[:, start] + 0.5) / (225 - boxes[:, size])
        assert stats.kstest(place, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(boxes[:, 2], boxes[:, 3])[0, 1]) < 0.1
    assert {r.polarity for r in records} == {"bright"}


def test_same_seed_gives_the_same_twin_and_a_record_replays_through_json():
    image = smooth_image(2)
    first, second = (SyntheticLesionMask().set_random_state(7) for _ in range(2))
    twin, mask = first(image)
    again, mask_again = second(image)
    np.testing.assert_array_equal(twin, again)
    np.testing.assert_array_equal(mask, mask_again)
    record = LesionRecord.from_dict(json.loads(json.dumps(first.record.to_dict())))
    assert record == first.record
    other, other_mask = first(image)
    assert not np.array_equal(twin, other)
    replayed, replayed_mask = SyntheticLesionMask().apply(image, record)
    np.testing.assert_array_equal(replayed, twin)
    np.testing.assert_array_equal(replayed_mask, mask)
    assert not np.array_equal(other_mask, mask)


def test_a_record_of_another_size_or_form_is_refused():
    record = LesionRecord((32, 32), (16, 16), 4.0, ((1, 1, 8, 8),))
    with pytest.raises(RadiographError, match=r"\(64, 64\).*\(32, 32\)"):
        SyntheticLesionMask().apply(smooth_image(0), record)
    with pytest.raises(AfireError, match="texture_center"):
        LesionRecord.from_dict({"image_size": [3, 3]})


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_gets_flat_lesions_from_its_centre(value):
    image = np.full((1, 33, 48), value, dtype=np.float32)
    transform = SyntheticLesionMask().set_random_state(1)
    twin, mask = transform(image)
    assert transform.record.texture_center == (16.0, 23.5)
    assert mask.sum() > 0
    assert np.isfinite(twin).all()
    assert 0 <= twin.min() <= twin.max() <= 1
    if value < 0.9:
        assert twin.max() == pytest.approx(min(value + 0.25, 235 / 255), abs=0.25)
        assert twin.max() > value


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (9, 200), (512, 300)])
def test_any_size_works(size):
    twin, mask = SyntheticLesionMask().set_random_state(2)(smooth_image(4, *size))
    assert twin.shape == mask.shape == (1, *size)
    assert mask.any()


@pytest.mark.parametrize("corner", [(0, 0), (0, 48), (48, 0), (48, 48)])
def test_texture_near_the_border_is_shifted_inside(corner):
    image = np.full((1, 64, 64), 0.1, dtype=np.float32)
    image[0, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16] = 0.8
    twin, mask = SyntheticLesionMask().set_random_state(3)(image)
    assert mask.sum() > 10
    assert (twin - image).max() > 0.2


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((1, 16, 16), np.nan, np.float32), "nan"),
        (np.where(np.eye(16, dtype=bool), np.inf, 0.5).astype(np.float32)[None], "inf"),
        (np.full((1, 16, 16), 255.0, np.float32), "255"),
        (np.full((1, 16, 16), -0.1, np.float32), "-0.1"),
        (np.zeros((16, 16), np.float32), r"\(16, 16\)"),
        (np.zeros((1, 16, 16), np.uint8), "uint8"),
        (np.zeros((1, 4, 16), np.float32), "4 × 16"),
        (np.stack([np.zeros((16, 16)), np.ones((16, 16))]).astype(np.float32), "channels that differ"),
    ],
)
def test_bad_images_are_refused_by_key(image, words):
    with pytest.raises(AfireError, match=words) as caught:
        SyntheticLesionMaskd(keys="radiograph")({"radiograph": image})
    assert "'radiograph'" in str(caught.value)


def test_tensor_types_and_metadata_are_kept():
    image = smooth_image(5)
    expected, expected_mask = SyntheticLesionMask().set_random_state(1)(image)
    for given in (torch.from_numpy(image), MetaTensor(image, meta={"filename_or_obj": "a.png"})):
        twin, mask = SyntheticLesionMask().set_random_state(1)(given)
        assert type(twin) is type(mask) is type(given)
        np.testing.assert_array_equal(np.asarray(twin), expected)
        np.testing.assert_array_equal(np.asarray(mask), expected_mask)
    assert twin.meta["filename_or_obj"] == "a.png"


def test_equal_channels_get_the_same_lesion():
    image = smooth_image(5)
    twin, mask = SyntheticLesionMask().set_random_state(1)(np.repeat(image, 3, axis=0))
    single, _ = SyntheticLesionMask().set_random_state(1)(image)
    assert mask.shape == (1, 64, 64)
    np.testing.assert_array_equal(twin, np.repeat(single, 3, axis=0))


def test_dictionary_form_leaves_the_image_alone_and_takes_its_seed_from_compose():
    image = smooth_image(6)
    transform = SyntheticLesionMaskd(keys="image", record_key="lesions")
    results = []
    for _ in range(2):
        Compose([transform]).set_random_state(11)
        results.append(transform({"image": image.copy(), "label": 3}))
    np.testing.assert_array_equal(results[0]["image"], image)
    np.testing.assert_array_equal(results[0]["twin"], results[1]["twin"])
    assert results[0]["lesions"] == results[1]["lesions"]
    assert results[0]["label"] == 3
    assert not np.array_equal(results[0]["twin"], image)
    twin, _ = SyntheticLesionMask().apply(image, LesionRecord.from_dict(results[0]["lesions"]))
    np.testing.assert_array_equal(twin, results[0]["twin"])
    assert SyntheticLesionMaskd(allow_missing_keys=True)({"label": 1}) == {"label": 1}
    with pytest.raises(RadiographError, match="twin_key"):
        SyntheticLesionMaskd(keys="image", twin_key="image")


def test_options_make_dark_lesions_and_texture_from_elsewhere():
    image = smooth_image(8)
    settings = LesionSettings(dark_probability=0.5, elsewhere_probability=0.5)
    transform = SyntheticLesionMask(settings).set_random_state(0)
    searched, _ = texture_circle(image[0], settings)
    dark = elsewhere = 0
    for _ in range(200):
        twin, mask = transform(image)
        is_dark = transform.record.polarity == "dark"
        assert (twin <= image).all() if is_dark else (twin >= image).all()
        np.testing.assert_array_equal(twin[mask == 0], image[mask == 0])
        dark += is_dark
        elsewhere += transform.record.texture_center != searched
    assert 70 < dark < 130
    assert 70 < elsewhere < 130


@pytest.mark.parametrize(
    "values",
    [
        {"texture_side": 0.0},
        {"texture_side": 1.5},
        {"lesion_count": (0, 4)},
        {"lesion_count": (3, 2)},
        {"lesion_count": (1, 2.5)},
        {"lesion_side": (0.0, 0.5)},
        {"lesion_side": (0.6, 0.5)},
        {"lesion_side": (0.1, 0.2, 0.3)},
        {"peak": -0.1},
        {"ceiling": 1.2},
        {"floor": 0.95},
        {"dark_probability": 1.1},
        {"elsewhere_probability": math.nan},
        {"edge": 0.0},
        {"search_side": 2},
    ],
)
def test_settings_out_of_range_are_refused_by_name(values):
    with pytest.raises(AfireError, match=next(iter(values))):
        LesionSettings(**values)
