"""Perturbations of appearance against slow references written here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.transforms.perturb import (
    AppearancePerturbation,
    bend_intensities,
    hashed_uniforms,
    paint_noise,
    shuffle_windows,
    whole_numbers,
)


def uniforms(batch: int, draws: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, draws, generator=torch.Generator().manual_seed(seed))


def pictures(batch: int, height: int, width: int, channels: int = 1) -> torch.Tensor:
    """Every pixel of an image has a value of its own, so that each can be traced."""
    count = channels * height * width
    order = torch.rand(batch, count, generator=torch.Generator().manual_seed(9)).argsort(1)
    return (order.view(batch, channels, height, width) + 0.5) / count


def test_whole_numbers_have_both_ends_and_no_more():
    got = whole_numbers(torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1.0]), 3, 6)
    assert got.tolist() == [3, 3, 4, 6, 6]


def test_hashed_numbers_are_uniform_and_not_correlated():
    values = hashed_uniforms(uniforms(8, 2), 20_000).double()
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.stack([torch.histc(row, 50, 0, 1) for row in values])
    # chi-square with 49 degrees of freedom: 95 would be a chance of 1 in 10,000
    assert ((counts - 400) ** 2 / 400).sum(1).max() < 95
    # between images, and between places at distances of one and of a row
    between = torch.corrcoef(values) - torch.eye(8)
    assert between.abs().max() < 0.03
    for distance in (1, 2, 128, 256):
        assert torch.corrcoef(torch.stack([values[0, :-distance], values[0, distance:]]))[0, 1].abs() < 0.03


def test_hashed_numbers_follow_from_their_keys_alone():
    keys = uniforms(3, 2)
    assert torch.equal(hashed_uniforms(keys, 100)[1], hashed_uniforms(keys[1:2], 100)[0])
    assert torch.equal(hashed_uniforms(keys, 200)[:, :100], hashed_uniforms(keys, 100))
    other = keys.clone()
    other[:, 1] += 2**-24
    assert (hashed_uniforms(keys, 100) == hashed_uniforms(other, 100)).float().mean() < 0.01
    assert not torch.equal(hashed_uniforms(torch.zeros(1, 2), 9), hashed_uniforms(torch.tensor([[0.0, 2**-24]]), 9))


@pytest.mark.parametrize(("height", "width", "channels"), [(40, 40, 1), (40, 60, 2), (5, 7, 1)])
def test_shuffling_equals_one_window_after_the_other(height, width, channels):
    windows, images = 12, pictures(3, height, width, channels)
    u = uniforms(3, 4 * windows + 2)
    got = shuffle_windows(images, u, windows, 0.2)
    tallest, widest = max(1, int(height * 0.2)), max(1, int(width * 0.2))
    for i, image in enumerate(images.numpy()):
        expected = image.copy()
        keys = hashed_uniforms(u[i : i + 1, -2:], windows * tallest * widest).view(windows, -1).numpy()
        for k in range(windows):
            a, b, c, d = u[i, 4 * k : 4 * k + 4].tolist()
            rows, columns = min(int(a * tallest), tallest - 1) + 1, min(int(b * widest), widest - 1) + 1
            top = min(int(c * (height - rows + 1)), height - rows)
            left = min(int(d * (width - columns + 1)), width - columns)
            window = image[:, top : top + rows, left : left + columns].reshape(channels, -1)
            order = np.argsort(keys[k, : rows * columns])
            expected[:, top : top + rows, left : left + columns] = window[:, order].reshape(channels, rows, columns)
        np.testing.assert_array_equal(got[i].numpy(), expected)


def test_a_window_keeps_its_pixels_and_what_is_outside():
    images = pictures(64, 40, 40)
    got = shuffle_windows(images, uniforms(64, 6), 1, 0.1)
    changed = (got != images)[:, 0]
    assert changed.flatten(1).any(1).float().mean() > 0.7  # of 4 x 4 sizes few cannot change
    assert torch.equal(got.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    rows, columns = changed.any(2), changed.any(1)
    for touched in (rows, columns):
        places = [torch.nonzero(t)[:, 0] for t in touched if t.any()]
        assert max(int(p.max() - p.min()) for p in places) < 4


def bezier(points: torch.Tensor, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x1, y1, x2, y2 = points.double().tolist()
    return tuple(3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 for a, b in ((x1, x2), (y1, y2)))  # type: ignore[return-value]


def test_intensities_follow_the_bezier_curve():
    images, u = pictures(6, 20, 20, 2), uniforms(6, 5)
    u[:3, 4], u[3:, 4] = 0.9, 0.1
    got = bend_intensities(images, u, 0.5).numpy()
    for i in range(6):
        x, y = bezier(u[i, :4], np.linspace(0, 1, 20_001))
        expected = np.interp(images[i].numpy(), x, y if i < 3 else y[::-1])
        np.testing.assert_allclose(got[i], expected, atol=2e-3)


def test_curves_are_monotone_and_keep_black_and_white():
    ramp = torch.linspace(0, 1, 400).view(1, 1, 20, 20).expand(200, -1, -1, -1)
    u = uniforms(200, 5)
    u[:4, :4] = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]])
    rising = bend_intensities(ramp, u, 0.0).flatten(1)
    assert (rising.diff(dim=1) >= -1e-6).all()
    torch.testing.assert_close(rising[:, [0, -1]], torch.tensor([0.0, 1.0]).expand(200, 2))
    falling = bend_intensities(ramp, u, 1.0).flatten(1)
    assert (falling.diff(dim=1) <= 1e-6).all()
    torch.testing.assert_close(falling[:, [0, -1]], torch.tensor([1.0, 0.0]).expand(200, 2))


@pytest.mark.parametrize("side", [42, 64, 9])
def test_painting_equals_one_block_after_the_other(side):
    images, u = pictures(40, side, side), uniforms(40, 28)
    u[20:, 1:26:5] *= 1.2  # more of them end early
    got = paint_noise(images, u, 0.5)
    for i, image in enumerate(images[:, 0].numpy()):
        numbers = u[i].tolist()
        out = numbers[0] < 0.5
        block = np.zeros((side, side), bool)
        for k in range(5):
            more, *four = numbers[1 + 5 * k : 6 + 5 * k]
            if more >= 0.95 and not (out and k == 0):
                break
            low, high = (side - 4 * side // 7, side - 3 * side // 7) if out else (max(1, side // 6), max(1, side // 3))
            size = [low + min(int(u_ * (high - low + 1)), high - low) for u_ in four[:2]]
            start = []
            for u_, length in zip(four[2:], size, strict=True):
                room = max(side - length - 3, 3) - 3
                start.append(min(3 + min(int(u_ * (room + 1)), room), side - length))
            block[start[0] : start[0] + size[0], start[1] : start[1] + size[1]] = True
        noise = hashed_uniforms(u[i : i + 1, 26:], side * side).view(side, side).numpy()
        expected = np.where(block != out, noise, image)
        np.testing.assert_array_equal(got[i, 0].numpy(), expected)


def test_perturbation_of_an_image_does_not_depend_on_its_batch():
    perturb, images = AppearancePerturbation(), pictures(5, 48, 48)
    u = uniforms(5, perturb.draws)
    whole = perturb(images, u)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(whole, perturb(images, u))
    for i in range(5):
        assert torch.equal(whole[i : i + 1], perturb(images[i : i + 1], u[i : i + 1]))


def test_parts_are_applied_as_often_as_asked():
    images = pictures(400, 24, 24)

    def changed(**settings: float) -> float:
        perturb = AppearancePerturbation(**settings)  # type: ignore[arg-type]
        got = perturb(images, uniforms(400, perturb.draws))
        return (got != images).flatten(1).any(1).float().mean().item()

    nothing = {"windows": 0, "curve_probability": 0.0, "paint_probability": 0.0}
    assert changed(**nothing) == 0
    assert changed(**{**nothing, "curve_probability": 0.9}) == pytest.approx(0.9, abs=0.06)
    assert changed(**{**nothing, "paint_probability": 0.9}) == pytest.approx(0.9, abs=0.06)
    assert changed(**{**nothing, "windows": 40}) > 0.99


def test_black_images_stay_finite():
    perturb = AppearancePerturbation()
    assert perturb(torch.zeros(4, 1, 32, 32), uniforms(4, perturb.draws)).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [{"windows": -1}, {"largest_window": 0.0}, {"largest_window": 1.1}, {"falling": 1.1}, {"paint_probability": -0.1}],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(AfireError, match=next(iter(settings))):
        AppearancePerturbation(**settings)
