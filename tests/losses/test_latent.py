from __future__ import annotations

import math

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.losses.latent import koleo_loss, latent_restoration_loss


def test_latent_loss_equals_a_loop_over_lesioned_cells_that_the_teacher_sees():
    generator = torch.Generator().manual_seed(0)
    predicted, teacher = (3 * torch.randn(2, 4, 6, generator=generator) for _ in range(2))
    matched = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0]], dtype=torch.bool)
    terms = []
    for i, j in matched.nonzero().tolist():
        token = teacher[i, j]
        target = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
        for difference in (predicted[i, j] - target).abs().tolist():
            terms.append(difference**2 / 2 if difference < 1 else difference - 0.5)
    found = latent_restoration_loss(predicted, teacher, matched)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_latent_loss_without_lesions_is_zero_with_a_gradient_of_zero():
    predicted = torch.rand(2, 3, 4, requires_grad=True)
    loss = latent_restoration_loss(predicted, torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not predicted.grad.any()


def test_latent_loss_refuses_shapes_that_do_not_fit():
    with pytest.raises(AfireError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        latent_restoration_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1, 2).bool())


def test_koleo_equals_hand_computed_distances_to_the_nearest():
    # unit vectors at 0, 60 and 180 degrees, of any length: nearest are 1, 0 and 1, at 2 sin 30, 2 sin 30 and 2 sin 60
    angles = torch.tensor([0.0, math.pi / 3, math.pi])
    tokens = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[1.0], [5.0], [0.2]])
    expected = -(math.log(1) + math.log(1) + math.log(2 * math.sin(math.pi / 3))) / 3
    assert koleo_loss(tokens).item() == pytest.approx(expected, abs=1e-6)


def test_koleo_pushes_neighbours_apart_and_bears_equal_and_single_images():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.0]], requires_grad=True)
    koleo_loss(tokens).backward()
    assert torch.isfinite(tokens.grad).all()
    assert tokens.grad[1, 1] < 0  # the one that stands apart goes further
    assert koleo_loss(torch.rand(1, 4)).item() == 0
