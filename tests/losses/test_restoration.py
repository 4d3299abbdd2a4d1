from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afire_monai.core.errors import AfireError
from afire_monai.losses import RestorationLoss


def random_case(channels: int = 1):
    generator = torch.Generator().manual_seed(0)
    restored = torch.randn(3, channels, 8, 12, generator=generator, requires_grad=True)
    target = torch.randn(3, channels, 8, 12, generator=generator)
    return restored, target, torch.rand(3, 6, generator=generator) < 0.4


def test_weighted_mean_equals_the_hand_computed_value():
    # a 1 x 2 grid of 2 x 2 pixel cells, errors 1 in the left cell and 2 in the right
    target = torch.zeros(1, 1, 2, 4)
    restored = torch.tensor([[1.0, 1.0, 2.0, 2.0]]).expand(1, 1, 2, 4)
    right = torch.tensor([[False, True]])
    assert RestorationLoss()(restored, target, right, (1, 2)).item() == pytest.approx((1 + 4) / 2)
    assert RestorationLoss(3.0)(restored, target, right, (1, 2)).item() == pytest.approx((1 + 3 * 4) / (1 + 3))
    assert RestorationLoss(3.0)(restored, target, ~right, (1, 2)).item() == pytest.approx((3 + 4) / 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_weights_are_the_plain_mean_squared_error(channels):
    restored, target, abnormal = random_case(channels)
    loss = RestorationLoss()(restored, target, abnormal, (2, 3))
    expected = F.mse_loss(restored, target)
    torch.testing.assert_close(loss, expected)
    ours, reference = (torch.autograd.grad(value, restored)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_value_and_gradient_equal_a_loop_over_pixels(weight):
    restored, target, abnormal = random_case()
    loss = RestorationLoss(weight)(restored, target, abnormal, (2, 3))
    total, weights = torch.zeros(()), 0.0
    for image in range(3):
        for row in range(8):
            for column in range(12):
                w = weight if abnormal[image, row // 4 * 3 + column // 4] else 1.0
                total = total + w * (restored[image, 0, row, column] - target[image, 0, row, column]) ** 2
                weights += w
    torch.testing.assert_close(loss, total / weights)
    ours, reference = (torch.autograd.grad(value, restored)[0] for value in (loss, total / weights))
    torch.testing.assert_close(ours, reference, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", [False, True])
def test_only_normal_or_only_abnormal_cells_give_the_plain_error(kind):
    restored, target, abnormal = random_case()
    loss = RestorationLoss(7.0)(restored, target, torch.full_like(abnormal, kind), (2, 3))
    torch.testing.assert_close(loss, F.mse_loss(restored, target))


def test_loss_is_float32_for_bfloat16_pictures():
    restored, target, abnormal = random_case()
    loss = RestorationLoss()(restored.bfloat16(), target, abnormal, (2, 3))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.mse_loss(restored.bfloat16().float(), target))


def test_shapes_that_do_not_fit_and_weights_of_zero_are_refused():
    restored, target, abnormal = random_case()
    with pytest.raises(AfireError, match=r"\(3, 6\) and grid 2 x 2 do not fit"):
        RestorationLoss()(restored, target, abnormal, (2, 2))
    with pytest.raises(AfireError, match=r"target \(3, 1, 8, 8\)"):
        RestorationLoss()(restored, target[..., :8], abnormal, (2, 3))
    with pytest.raises(AfireError, match="got 0"):
        RestorationLoss(0)
