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

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.transforms import LesionRecord, LesionSettings, SyntheticLesionMask, SyntheticLesionMaskd
from afire_monai.transforms.anatomy import texture_center
from afire_monai.transforms.lesion_render import lesion_boxes

GREY = 1 / 255
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def clouds(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth random pictures (count, 1, H, W) with values from 0.05 to 0.98."""
    noise = np.random.default_rng(seed).random((count, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, height / 12, width / 12))
    low, span = smooth.min((1, 2), keepdims=True), np.ptp(smooth, axis=(1, 2), keepdims=True)
    return (0.05 + 0.93 * (smooth - low) / span).astype(np.float32)[:, None]


def cloud(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """One such picture (1, H, W)."""
    return clouds(1, height, width, seed)[0]


def draws_for(settings: LesionSettings, count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, settings.draws, generator=torch.Generator().manual_seed(seed))


def slow_boxes(settings: LesionSettings, uniforms: list[float], height: int, width: int) -> list[tuple[int, ...]]:
    """The lesions of one image, drawn one by one."""
    low = max(1, round(settings.lesion_side[0] * min(height, width)))
    high = max(low, round(settings.lesion_side[1] * min(height, width)))
    fewest, most = settings.lesion_count
    boxes = []
    for lesion in range(fewest + int(uniforms[0] * (most - fewest + 1))):
        u = uniforms[5 + 4 * lesion : 9 + 4 * lesion]
        rows, columns = low + int(u[0] * (high - low + 1)), low + int(u[1] * (high - low + 1))
        boxes.append((int(u[2] * (height - rows + 1)), int(u[3] * (width - columns + 1)), rows, columns))
    return boxes


def slow_twin(
    image: np.ndarray,
    uniforms: list[float],
    center: tuple[float, float],
    settings: LesionSettings,
    boxes: list[tuple[int, ...]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The recipe pixel by pixel, in double precision: twin (H, W) and the sum of what was added."""
    height, width = image.shape
    side = min(max(3, round(settings.texture_side * min(height, width))), height, width)
    if uniforms[2] < settings.elsewhere_probability:
        center = (uniforms[3] * (height - 1), uniforms[4] * (width - 1))
    corner = []
    for middle, size in zip(center, (height, width), strict=True):
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
    for top, left, rows, columns in boxes or slow_boxes(settings, uniforms, height, width):
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
        elif uniforms[1] < settings.dark_probability:
            twin[y, x] = min(twin[y, x], max(twin[y, x] - added[y, x], settings.floor))
        else:
            twin[y, x] = max(twin[y, x], min(twin[y, x] + added[y, x], settings.ceiling))
    return twin, added


SETTINGS = [
    LesionSettings(),
    LesionSettings(lesion_count=(2, 7), edge=2.5, peak=0.8, texture_side=0.4, lesion_side=(0.2, 0.9)),
    LesionSettings(dark_probability=0.5, elsewhere_probability=0.5),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [(40, 56), (33, 32), (16, 16)])
def test_batch_and_single_image_equal_the_recipe_written_pixel_by_pixel(settings, size):
    images, draws = clouds(5, *size), draws_for(settings, 5)
    centers = torch.tensor([[17.2, 44.9], [0, 0], [15.5, 15.5], [39, 2], [8, 30]])
    twins, masks = SyntheticLesionMask(settings)(torch.from_numpy(images), draws, centers)
    for place, image in enumerate(images):
        expected, added = slow_twin(image[0], draws[place].tolist(), tuple(centers[place].tolist()), settings)
        clear = np.abs(added - GREY) > 1e-5
        np.testing.assert_allclose(twins[place, 0].numpy()[clear], expected[clear], atol=2e-6)
        np.testing.assert_array_equal(masks[place, 0].numpy()[clear], (added > 0)[clear])
        record = LesionRecord(size, tuple(draws[place].tolist()), tuple(centers[place].tolist()))
        twin, mask = SyntheticLesionMask(settings).replay(image, record)
        np.testing.assert_allclose(twin, twins[place].numpy(), atol=1e-6)
        assert (mask != masks[place].numpy()).sum() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_twin_equals_the_image_outside_the_mask_and_never_wraps_around(seed):
    image = cloud(seed)
    twin, mask = SyntheticLesionMask(LesionSettings(lesion_count=(4, 12), peak=1.0)).set_random_state(seed)(image)
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
    image = cloud(0)
    image[0, 20:30, 20:30] = 1.0
    settings = LesionSettings(lesion_count=(1, 1))
    numbers = [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.3, 0.3]  # 21 x 21 pixels from (13, 13)
    twin, mask = SyntheticLesionMask(settings).replay(image, LesionRecord((64, 64), tuple(numbers), (25.0, 25.0)))
    assert mask[0, 25, 25] == 1
    assert twin[0, 25, 25] == 1


def test_sizes_positions_and_counts_follow_the_published_distribution():
    settings = LesionSettings()
    boxes = lesion_boxes(settings, draws_for(settings, 600, seed=5), 224, 224)
    counts = np.bincount(boxes.number.long().numpy(), minlength=5)
    assert counts.sum() == counts[1:5].sum() == 600
    assert stats.chisquare(counts[1:5]).pvalue > 1e-3
    for values in (boxes.rows, boxes.columns):
        assert (values.min(), values.max()) == (16, 128)
        assert stats.kstest(values.flatten().numpy(), stats.randint(16, 129).cdf).pvalue > 1e-3
    for start, length in ((boxes.top, boxes.rows), (boxes.left, boxes.columns)):
        place = (start + 0.5) / (225 - length)
        assert stats.kstest(place.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(boxes.rows.flatten(), boxes.columns.flatten())[0, 1]) < 0.1


def test_loader_workers_of_a_users_compose_draw_the_same_distribution_as_the_training_step():
    from monai.data import DataLoader, Dataset

    torch.manual_seed(0)  # of the loader, which seeds its workers
    images = clouds(300, seed=4)
    transform = SyntheticLesionMaskd(keys="image", twin_key="twin", mask_key="mask")
    loader = DataLoader(Dataset([{"image": i} for i in images], Compose([transform])), batch_size=50, num_workers=2)
    batches = list(loader)
    light = torch.cat([(b["twin"] - b["image"]).sum((1, 2, 3)) for b in batches])
    area = torch.cat([b["mask"].mean((1, 2, 3)) for b in batches])
    assert len(light.unique()) == 300
    whole = torch.from_numpy(images)
    twins, masks = SyntheticLesionMask()(whole, draws_for(LesionSettings(), 300, seed=9))
    assert stats.ks_2samp(area, masks.mean((1, 2, 3))).pvalue > 1e-3
    assert stats.ks_2samp(light, (twins - whole).sum((1, 2, 3))).pvalue > 1e-3


def test_same_seed_gives_the_same_twin_and_a_record_replays_through_json():
    image = cloud(2)
    first, second = (SyntheticLesionMask().set_random_state(7) for _ in range(2))
    twin, mask = first(image)
    again, mask_again = second(image)
    np.testing.assert_array_equal(twin, again)
    np.testing.assert_array_equal(mask, mask_again)
    record = LesionRecord.from_dict(json.loads(json.dumps(first.record.to_dict())))
    assert record == first.record
    other, other_mask = first(image)
    assert not np.array_equal(twin, other)
    replayed, replayed_mask = SyntheticLesionMask().replay(image, record)
    np.testing.assert_array_equal(replayed, twin)
    np.testing.assert_array_equal(replayed_mask, mask)
    assert not np.array_equal(other_mask, mask)


def test_a_record_of_another_size_or_form_is_refused():
    record = LesionRecord((32, 32), (0.5,) * 21, (16.0, 16.0))
    with pytest.raises(RadiographError, match=r"\(64, 64\).*\(32, 32\)"):
        SyntheticLesionMask().replay(cloud(0), record)
    with pytest.raises(AfireError, match="center"):
        LesionRecord.from_dict({"image_size": [3, 3]})


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_image_gets_flat_lesions_from_its_centre(value):
    image = np.full((1, 33, 48), value, dtype=np.float32)
    transform = SyntheticLesionMask().set_random_state(1)
    twin, mask = transform(image)
    assert transform.record.center == pytest.approx((16.0, 23.5))
    assert mask.sum() > 0
    assert np.isfinite(twin).all()
    assert 0 <= twin.min() <= twin.max() <= 1
    if value < 0.9:
        assert twin.max() == pytest.approx(min(value + 0.25, 235 / 255), abs=0.25)
        assert twin.max() > value


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (9, 200), (512, 300)])
def test_any_size_works(size):
    twin, mask = SyntheticLesionMask().set_random_state(2)(cloud(4, *size))
    assert twin.shape == mask.shape == (1, *size)
    assert mask.any()


@pytest.mark.parametrize("number", [0.0, LARGEST])
def test_the_largest_and_smallest_numbers_stay_inside_the_image(number):
    settings = LesionSettings()
    boxes = lesion_boxes(settings, torch.full((1, settings.draws), number), 50, 40)
    assert boxes.number.item() == (4 if number else 1)
    assert (boxes.top >= 0).all()
    assert (boxes.top + boxes.rows <= 50).all()
    assert (boxes.left + boxes.columns <= 40).all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 48), (48, 0), (48, 48)])
def test_texture_near_the_border_is_shifted_inside(corner):
    image = np.full((1, 64, 64), 0.1, dtype=np.float32)
    image[0, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16] = 0.8
    twin, mask = SyntheticLesionMask().set_random_state(3)(image)
    assert mask.sum() > 10
    assert (twin - image).max() > 0.2


def test_centers_are_searched_where_none_are_given():
    images, settings = torch.from_numpy(clouds(3)), LesionSettings()
    draws = draws_for(settings, 3)
    centers = torch.tensor([texture_center(image[0]) for image in images.numpy()])
    given = SyntheticLesionMask()(images, draws, centers)[0]
    torch.testing.assert_close(SyntheticLesionMask()(images, draws)[0], given, atol=1e-6, rtol=0)


def test_an_image_does_not_depend_on_its_batch():
    images, settings = torch.from_numpy(clouds(6, 80, 80)), LesionSettings(lung_probability=0.5)
    images[2] = 0
    draws, transform = draws_for(settings, 6), SyntheticLesionMask(settings)
    twins, masks = transform(images, draws)
    for i in range(6):
        twin, mask = transform(images[i : i + 1], draws[i : i + 1])
        torch.testing.assert_close(twin[0], twins[i], atol=1e-6, rtol=0)
        assert (mask[0] != masks[i]).sum() <= 1


@pytest.mark.parametrize("settings", [LesionSettings(), LesionSettings(lung_probability=1.0)])
def test_same_numbers_give_the_same_result_and_inputs_stay_as_they_were(settings):
    images, transform = torch.from_numpy(clouds(4, 80, 80)), SyntheticLesionMask(settings)
    draws, kept = draws_for(settings, 4), images.clone()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = transform(images, draws), transform(images, draws)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(images, kept)
    assert not torch.equal(first[0], transform(images, draws_for(settings, 4, seed=1))[0])


def test_three_channels_types_and_autocast():
    images, transform = torch.from_numpy(clouds(4)), SyntheticLesionMask()
    draws = draws_for(transform.settings, 4)
    twins, masks = transform(images, draws)
    three, masks_three = transform(images.expand(-1, 3, -1, -1), draws)
    assert torch.equal(three, twins.expand(-1, 3, -1, -1))
    assert torch.equal(masks_three, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform(images, draws)[0], twins)
    half, half_masks = transform(images.bfloat16(), draws)
    assert half.dtype == torch.bfloat16
    assert half_masks.dtype == torch.float32
    outside = (half_masks == 0).expand_as(half)
    assert torch.equal(half[outside], images.bfloat16()[outside])
    assert type(transform(MetaTensor(images), draws)[0]) is torch.Tensor


# single images --------------------------------------------------------------------------------------------------------


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
        (np.zeros((2, 1, 16, 16), np.float32), r"\(2, 1, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "uint8"),
        (np.stack([np.zeros((16, 16)), np.ones((16, 16))]).astype(np.float32), "channels that differ"),
    ],
)
def test_bad_images_are_refused_by_key(image, words):
    with pytest.raises(AfireError, match=words) as caught:
        SyntheticLesionMaskd(keys="radiograph")({"radiograph": image})
    assert "'radiograph'" in str(caught.value)


def test_uniforms_of_another_shape_are_refused():
    with pytest.raises(AfireError, match=r"\(3, 21\).*\(2, 21\)"):
        SyntheticLesionMask()(torch.zeros(2, 1, 32, 32), torch.zeros(3, 21))


def test_tensor_types_and_metadata_are_kept():
    image = cloud(5)
    expected, expected_mask = SyntheticLesionMask().set_random_state(1)(image)
    for given in (torch.from_numpy(image), MetaTensor(image, meta={"filename_or_obj": "a.png"})):
        twin, mask = SyntheticLesionMask().set_random_state(1)(given)
        assert type(twin) is type(mask) is type(given)
        np.testing.assert_array_equal(np.asarray(twin), expected)
        np.testing.assert_array_equal(np.asarray(mask), expected_mask)
    assert twin.meta["filename_or_obj"] == "a.png"


def test_dictionary_form_leaves_the_image_alone_and_takes_its_seed_from_compose():
    image = cloud(6)
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
    twin, _ = SyntheticLesionMask().replay(image, LesionRecord.from_dict(results[0]["lesions"]))
    np.testing.assert_array_equal(twin, results[0]["twin"])
    assert SyntheticLesionMaskd(allow_missing_keys=True)({"label": 1}) == {"label": 1}
    with pytest.raises(RadiographError, match="twin_key"):
        SyntheticLesionMaskd(keys="image", twin_key="image")


# options --------------------------------------------------------------------------------------------------------------


def lungs_of_two_boxes() -> torch.Tensor:
    """A lung map with sharp sides: rows 16 to 47 of 64, columns 8 to 23 and 40 to 55."""
    lungs = torch.zeros(1, 1, 64, 64)
    lungs[..., 16:48, 8:24] = lungs[..., 16:48, 40:56] = 1
    return lungs


def test_lesions_in_the_lungs_stay_there_and_keep_to_their_strength():
    settings = LesionSettings(lung_probability=1.0, lung_strength=(0.1, 0.3), nodule_side=(0.05, 0.1))
    images, lungs = torch.full((400, 1, 64, 64), 0.4), lungs_of_two_boxes()
    draws = draws_for(settings, 400)
    twins, masks = SyntheticLesionMask(settings)(
        images, draws, torch.full((400, 2), 31.5), lungs.expand(400, -1, -1, -1)
    )
    change = (twins - images)[:, 0]
    near = torch.nn.functional.max_pool2d(lungs, 9, 1, 4)[0, 0] > 0  # half a nodule may lie beside the lung
    assert not change[:, ~near].any()
    kind = draws[:, settings.lung_slice][:, 1]
    fields = kind < 0.75
    assert change[fields][:, lungs[0, 0] == 0].abs().max() == 0
    assert change[fields].flatten(1).amax(1).max() <= 0.3 + 1e-6
    assert (change[fields].flatten(1).amax(1) > 0.02).float().mean() > 0.98
    one_sided = fields & (draws[:, settings.lung_slice][:, 4] < 0.5)
    left, right = change[..., :32].flatten(1).sum(1), change[..., 32:].flatten(1).sum(1)
    assert (torch.minimum(left, right)[one_sided] < 0.02 * torch.maximum(left, right)[one_sided]).all()
    assert (masks.flatten(1).amax(1) == 1).float().mean() > 0.98


def cubic(values: list[float], share: float) -> float:
    """Cubic convolution with a = -0.75 between the second and third of four values."""

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    return sum(value * weight(share + 1 - k) for k, value in enumerate(values))


def slow_opacity(numbers: list[float], lungs: np.ndarray, settings: LesionSettings) -> np.ndarray:
    """What an opacity or a layer adds to each of 64 x 64 pixels, one by one in double precision."""
    _, kind, strength, extent, which, _ = numbers[:6]
    knots, grains = np.reshape(numbers[6:55], (7, 7)), np.reshape(numbers[55:], (16, 16))

    def step(value: float, level: float, width: float) -> float:
        return 1 / (1 + math.exp(-(value - level) / width))

    def field(row: int, column: int) -> float:
        (y, v), (x, u) = (divmod(place * 6 / 63, 1) for place in (row, column))
        rows, columns = ([min(max(int(place) + i, 0), 6) for i in range(-1, 3)] for place in (y, x))
        return cubic([cubic([knots[i, j] for j in columns], u) for i in rows], v)

    def grain(row: int, column: int) -> float:
        (y, v), (x, u) = (divmod(place * 15 / 63, 1) for place in (row, column))
        below, right = min(int(y) + 1, 15), min(int(x) + 1, 15)
        a = (1 - u) * grains[int(y), int(x)] + u * grains[int(y), right]
        return (1 - v) * a + v * ((1 - u) * grains[below, int(x)] + u * grains[below, right])

    fields = np.array([[field(row, column) for column in range(64)] for row in range(64)])
    low, high = fields[lungs > 0.5].min(), fields[lungs > 0.5].max()
    faint, strong = settings.lung_strength
    added = np.zeros((64, 64))
    for row, column in itertools.product(range(64), range(64)):
        if kind < 0.55:
            drawn = step((fields[row, column] - low) / (high - low), 0.3 + 0.5 * (1 - extent), 0.08)
        else:
            whole = max(lungs[:, column].sum(), 1e-3)
            drawn = step(lungs[: row + 1, column].sum() / whole, 1 - (0.08 + 0.42 * extent), 0.05)
        side = 1.0
        if which < 0.5:
            side = step((1 if which < 0.25 else -1) * (-1 + 2 * column / 63), 0, 1 / 20)
        weight = (faint + (strong - faint) * strength) * (0.6 + 0.4 * grain(row, column))
        added[row, column] = drawn * lungs[row, column] * side * weight
    return added


@pytest.mark.parametrize(("kind", "which"), [(0.1, 0.9), (0.5, 0.1), (0.6, 0.4), (0.7, 0.6)])
def test_opacities_and_layers_equal_a_slow_reference(kind, which):
    settings = LesionSettings(lung_probability=1.0, lung_strength=(0.1, 0.3), ceiling=1.0)
    draws = draws_for(settings, 1, seed=5)
    numbers = draws[:, settings.lung_slice]
    numbers[:, 1], numbers[:, 4] = kind, which
    lungs = torch.from_numpy(clouds(1, seed=8))
    images = torch.full((1, 1, 64, 64), 0.4)
    twin, _ = SyntheticLesionMask(settings)(images, draws, torch.full((1, 2), 31.5), lungs)
    expected = slow_opacity(numbers[0].tolist(), lungs[0, 0].double().numpy(), settings)
    expected[expected < GREY] = 0
    np.testing.assert_allclose((twin - images)[0, 0].numpy(), expected, atol=2e-5)


def test_nodules_equal_a_slow_reference():
    """The published blob in a box whose centre is drawn from the lung map."""
    settings = LesionSettings(lung_probability=1.0, lesion_count=(2, 2), nodule_side=(0.1, 0.3))
    draws = draws_for(settings, 3, seed=2)
    draws[:, settings.lung_slice][:, 1] = 0.9
    lungs, images = torch.from_numpy(clouds(3, seed=4)), torch.from_numpy(clouds(3, seed=6))
    centers = torch.tensor([[30.0, 20.0]]).expand(3, -1)
    twins, _ = SyntheticLesionMask(settings)(images, draws, centers, lungs)
    published = LesionSettings(lesion_count=(2, 2))
    for image, twin, numbers, lung in zip(images, twins, draws.tolist(), lungs, strict=True):
        boxes = []
        for lesion in range(2):
            u = numbers[5 + 4 * lesion : 9 + 4 * lesion]
            rows = 6 + int(u[0] * (19 - 6 + 1))
            columns = round(rows * (0.75 + 0.5 * u[1]))
            mass = (np.rint(lung[0].numpy() * 255).astype(int).ravel() + 1) ** 2
            place = int(np.searchsorted(mass.cumsum(), int(np.float32(u[2]) * mass.sum()), side="right"))
            row, column = place // 64 + u[3], place % 64 + u[3]
            top = min(max(round(row - rows / 2), 0), 64 - rows)
            boxes.append((top, min(max(round(column - columns / 2), 0), 64 - columns), rows, columns))
        expected, _ = slow_twin(image[0].numpy(), numbers, (30.0, 20.0), published, boxes)
        np.testing.assert_allclose(twin[0].numpy(), expected, atol=2e-5)


def test_a_layer_fills_the_lowest_part_of_the_lungs():
    settings = LesionSettings(lung_probability=1.0, lung_strength=(0.3, 0.3))
    draws = torch.full((1, settings.draws), 0.5)
    numbers = draws[:, settings.lung_slice]
    numbers[:, 0], numbers[:, 1], numbers[:, 3], numbers[:, 4] = 0.0, 0.6, 1.0, 0.9  # a layer, of half, on both sides
    images = torch.full((1, 1, 64, 64), 0.4)
    twin, _ = SyntheticLesionMask(settings)(images, draws, torch.full((1, 2), 31.5), lungs_of_two_boxes())
    column = (twin - images)[0, 0, :, 16]
    assert column[16:28].max() < 0.05  # the upper part of 32 rows
    assert column[36:48].min() > 0.15
    assert column[48:].max() == 0


def test_only_the_asked_share_of_images_gets_lesions_in_the_lungs():
    settings = LesionSettings(lung_probability=0.5)
    published = LesionSettings()
    images, draws = torch.from_numpy(clouds(200)), draws_for(settings, 200)
    twins, _ = SyntheticLesionMask(settings)(images, draws)
    plain, _ = SyntheticLesionMask(published)(images, draws[:, : published.draws])
    same = (twins == plain).flatten(1).all(1)
    assert torch.equal(same, draws[:, settings.lung_slice][:, 0] >= 0.5)


@pytest.mark.parametrize("lungs", [0.0, 1.0])
def test_only_the_asked_share_of_images_stays_free_of_lesions(lungs):
    settings = LesionSettings(lung_probability=lungs, free_probability=0.3)
    images, draws = torch.from_numpy(clouds(300)), draws_for(settings, 300)
    twins, masks = SyntheticLesionMask(settings)(images, draws)
    free = draws[:, -1] < 0.3
    assert 60 < free.sum() < 120
    assert torch.equal(twins[free], images[free])
    assert not masks[free].any()
    assert masks[~free].flatten(1).amax(1).mean() > 0.97


@pytest.mark.parametrize("lungs", [torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32)])
def test_a_map_without_lungs_or_with_nothing_else_gives_finite_twins(lungs):
    settings = LesionSettings(lung_probability=1.0)
    images = torch.from_numpy(clouds(2))
    twins, masks = SyntheticLesionMask(settings)(images, draws_for(settings, 2), torch.full((2, 2), 31.5), lungs)
    assert twins.isfinite().all()
    assert masks.isfinite().all()


def test_whole_numbers_may_be_written_with_a_point():
    settings = LesionSettings(lesion_count=[1.0, 4.0])  # type: ignore[arg-type]
    assert settings == LesionSettings(lesion_count=(1, 4))
    assert torch.rand(2, settings.draws).shape == (2, 21)


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
        {"lung_probability": 2},
        {"free_probability": -1},
        {"lung_strength": (0.5, 0.1)},
        {"nodule_side": (0.0, 0.1)},
        {"edge": 0.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(values):
    with pytest.raises(AfireError, match=next(iter(values))):
        LesionSettings(**values)
