"""PEAC's losses against loops written here, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from afire_monai.losses.peac import PEACProjections, global_loss, local_loss, order_loss
from afire_monai.networks.prototypes import match_cells

B, L, E, G = 5, 12, 7, 9


def projections(seed: int, gradient: bool = False) -> PEACProjections:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, G), (B, G), (B, L, E), (B, L, E))
    return PEACProjections(
        *(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_(gradient) for s in shapes)
    )


def offsets() -> tuple[Tensor, Tensor]:
    return torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0]]), torch.tensor(
        [[1, 1], [0, 1], [0, 1], [0, 0], [0, 1]]
    )


def gradients(value: Tensor, of: PEACProjections) -> list[Tensor]:
    found = torch.autograd.grad(value, list(of), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)]


def slow_global(student: PEACProjections, teacher: PEACProjections) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in ((student.global_first, teacher.global_second), (student.global_second, teacher.global_first)):
        for one, other in zip(s, t, strict=True):
            for k in range(G):
                total = total + (one[k] / one.norm() - other[k] / other.norm()) ** 2
    return total / (2 * B * G)


def slow_local(student: PEACProjections, teacher: PEACProjections, kept: list[bool], unit: bool) -> Tensor:
    """Canvas cells of both crops, listed one by one; a pair wherever both show the same."""
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    first, second = offsets()
    for i in range(B):
        if not kept[i]:
            continue
        place = {(r + int(second[i, 0]), c + int(second[i, 1])): r * 4 + c for r in range(3) for c in range(4)}
        for r in range(3):
            for c in range(4):
                other = place.get((r + int(first[i, 0]), c + int(first[i, 1])))
                if other is None:
                    continue
                pairs += 1
                here = r * 4 + c
                for s, t in (
                    (student.local_first[i, here], teacher.local_second[i, other]),
                    (student.local_second[i, other], teacher.local_first[i, here]),
                ):
                    if unit:
                        s, t = s / s.norm(), t / t.norm()
                    total = total + ((s - t) ** 2).sum() / E / 2
    return total / pairs


def test_order_loss_is_the_mean_negative_log_probability_of_the_right_patch():
    logits = torch.randn(B, L, L, generator=torch.Generator().manual_seed(0)).requires_grad_()
    order = torch.rand(B, L, generator=torch.Generator().manual_seed(1)).argsort(1)
    value = order_loss(logits, order)
    expected = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for image, labels in zip(logits.tolist(), order.tolist(), strict=True)
        for row, label in zip(image, labels, strict=True)
    ]
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    right = torch.nn.functional.one_hot(order, L)
    torch.testing.assert_close(gradient, (logits.softmax(-1) - right) / (B * L))
    assert order_loss(torch.zeros(2, 64, 64), torch.arange(64).expand(2, -1)).item() == pytest.approx(math.log(64))


def test_global_loss_equals_the_loop():
    student, teacher = projections(0, gradient=True), projections(1)
    value, expected = global_loss(student, teacher), slow_global(student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, wanted in zip(gradients(value, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-4)


def test_global_loss_of_opposite_unit_vectors_is_four_over_their_width():
    plus = projections(0)
    minus = PEACProjections(*(-3 * p for p in (plus.global_second, plus.global_first, *plus[2:])))
    assert global_loss(plus, minus).item() == pytest.approx(4 / G, rel=1e-5)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("kept", [[True] * B, [True, False, True, False, True], [False] * 4 + [True]])
def test_local_loss_equals_the_loop(unit, kept):
    student, teacher = projections(0, gradient=True), projections(1)
    match, matched = match_cells(torch.sub(*offsets()), (3, 4), (3, 4))
    value = local_loss(student, teacher, match, matched & torch.tensor(kept)[:, None], unit)
    expected = slow_local(student, teacher, kept, unit)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, wanted in zip(gradients(value, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-7, rtol=1e-4)


def test_local_loss_does_not_touch_views_that_were_permuted():
    student, teacher = projections(0, gradient=True), projections(1)
    match, matched = match_cells(torch.sub(*offsets()), (3, 4), (3, 4))
    kept = torch.tensor([True, False, True, False, True])
    value = local_loss(student, teacher, match, matched & kept[:, None], False)
    first, second = gradients(value, student)[2:]
    for gradient in (first, second):
        assert (gradient[~kept] == 0).all()
        assert (gradient[kept] != 0).any((1, 2)).all()
    other = PEACProjections(*(p.detach().clone() for p in student))
    other.local_first[~kept] = torch.nan
    other.local_second[~kept] = torch.inf
    assert local_loss(other, teacher, match, matched & kept[:, None], False).item() == value.item()


def test_without_any_kept_view_the_local_loss_is_zero_with_a_gradient():
    student, teacher = projections(0, gradient=True), projections(1)
    match, matched = match_cells(torch.sub(*offsets()), (3, 4), (3, 4))
    value = local_loss(student, teacher, match, matched & False, True)
    assert value.item() == 0
    first, second = torch.autograd.grad(value, [student.local_first, student.local_second])
    assert not first.any()
    assert not second.any()


@pytest.mark.parametrize("unit", [False, True])
def test_projections_of_zero_length_stay_finite(unit):
    student = PEACProjections(*(torch.zeros_like(p).requires_grad_() for p in projections(0)))
    match, matched = match_cells(torch.sub(*offsets()), (3, 4), (3, 4))
    value = global_loss(student, projections(1)) + local_loss(student, projections(1), match, matched, unit)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients(value, student))
