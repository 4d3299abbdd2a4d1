"""LARS against its algorithm written out with numpy, and as the trainer uses it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.training.plan import LARS


def test_three_steps_equal_the_published_algorithm():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 3)), rng.normal(size=4)
    parameters = [torch.tensor(weight, requires_grad=True), torch.tensor(bias, requires_grad=True)]
    groups = [
        {"params": parameters[:1], "decay": True},
        {"params": parameters[1:], "decay": False, "weight_decay": 0.0},
    ]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, weight_decay=0.01, trust=0.02)
    v_weight, v_bias = np.zeros_like(weight), np.zeros_like(bias)
    for lr in (0.5, 0.3, 0.1):
        g_weight, g_bias = rng.normal(size=(4, 3)), rng.normal(size=4)
        for group in optimizer.param_groups:
            group["lr"] = lr
        parameters[0].grad, parameters[1].grad = torch.tensor(g_weight), torch.tensor(g_bias)
        optimizer.step()
        norm = np.linalg.norm(weight)
        rate = 0.02 * norm / (np.linalg.norm(g_weight) + 0.01 * norm)
        v_weight = 0.9 * v_weight + lr * rate * (g_weight + 0.01 * weight)
        v_bias = 0.9 * v_bias + lr * g_bias
        weight, bias = weight - v_weight, bias - v_bias
        np.testing.assert_allclose(parameters[0].detach().numpy(), weight, rtol=1e-12)
        np.testing.assert_allclose(parameters[1].detach().numpy(), bias, rtol=1e-12)


def test_steps_of_adapted_tensors_do_not_depend_on_the_size_of_the_gradient():
    def moved(factor: float) -> torch.Tensor:
        weight = torch.full((3, 3), 2.0, requires_grad=True)
        optimizer = LARS([weight], lr=1.0, weight_decay=0.0, trust=0.001)
        weight.grad = torch.arange(9.0).view(3, 3) * factor
        optimizer.step()
        return 2 - weight.detach()

    torch.testing.assert_close(moved(1.0), moved(1000.0), atol=1e-6, rtol=1e-4)
    assert moved(1.0).norm().item() == pytest.approx(0.001 * 6, rel=1e-4)


def test_zero_weights_and_zero_gradients_stay_finite():
    zero, still = torch.zeros(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    optimizer = LARS([zero, still], lr=0.1, weight_decay=0.0)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((2, 2), -0.1))
    torch.testing.assert_close(still.detach(), torch.ones(2, 2))


def test_parameters_without_gradient_are_left_alone():
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = LARS([weight])
    optimizer.step()
    assert not optimizer.state
    torch.testing.assert_close(weight.detach(), torch.ones(2, 2))


def test_momentum_survives_its_state_dict():
    def start() -> tuple[torch.Tensor, LARS]:
        weight = torch.eye(3, requires_grad=True)
        return weight, LARS([weight], lr=1.0)

    first, optimizer = start()
    first.grad = torch.ones(3, 3)
    optimizer.step()
    second, other = start()
    with torch.no_grad():
        second.copy_(first)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, its in ((first, optimizer), (second, other)):
        weight.grad = torch.full((3, 3), 0.5)
        its.step()
    assert torch.equal(first, second)


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"momentum": 1.0}, {"trust": -0.1}, {"weight_decay": -1e-6}])
def test_impossible_values_are_refused(wrong):
    with pytest.raises(AfireError, match="LARS needs"):
        LARS([torch.ones(1, requires_grad=True)], **wrong)
