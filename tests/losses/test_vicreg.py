"""VICReg's terms against loops over dimensions and pairs of dimensions, values and gradients."""

from __future__ import annotations

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.losses import VICRegLoss


def slow_terms(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One number at a time, from the formulas; target 1, eps 1e-4."""
    count, dim = first.shape
    invariance = sum(((a - b) ** 2).sum() for a, b in zip(first, second, strict=True)) / (count * dim)
    variance, covariance = torch.zeros(()).to(first), torch.zeros(()).to(first)
    for z in (first, second):
        centred = [z[:, d] - z[:, d].sum() / count for d in range(dim)]
        for d in range(dim):
            spread = torch.sqrt((centred[d] ** 2).sum() / (count - 1) + 1e-4)
            variance = variance + torch.clamp(1 - spread, min=0) / dim / 2
            for e in range(dim):
                if e != d:
                    covariance = covariance + ((centred[d] * centred[e]).sum() / (count - 1)) ** 2 / dim
    return torch.as_tensor(invariance), variance, covariance


def test_terms_by_hand():
    # two images, two dimensions: first (0, 0) and (2, 1), second (0, 0) and (0, 0)
    first = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    terms = VICRegLoss()(first, torch.zeros(2, 2))
    assert terms.invariance.item() == pytest.approx((4 + 1) / 4)
    # variances 2 and 0.5: hinges 0 and 1 − √0.5001; of the second view twice 1 − √0.0001
    assert terms.variance.item() == pytest.approx(((0 + 1 - 0.5001**0.5) / 2 + (1 - 0.01)) / 2)
    # covariance 2 · (1 · 0.5) / 1 = 1, twice in the matrix, over D = 2
    assert terms.covariance.item() == pytest.approx(1.0)


@pytest.mark.parametrize(("count", "dim"), [(2, 5), (7, 5), (5, 5), (6, 20)])
def test_terms_and_gradients_equal_the_slow_reference(count, dim):
    generator = torch.Generator().manual_seed(count)
    views = [(torch.randn(count, dim, generator=generator) * 0.8).requires_grad_() for _ in range(2)]
    doubles = [v.detach().double().requires_grad_() for v in views]
    for ours, expected in zip(VICRegLoss()(*views), slow_terms(*doubles), strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-5)
        gradients = torch.autograd.grad(ours, views, retain_graph=True, allow_unused=True)
        references = torch.autograd.grad(expected, doubles, retain_graph=True, allow_unused=True)
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient.double(), reference, atol=1e-6, rtol=1e-4)


def test_both_ways_to_sum_squared_covariances_agree():
    z = torch.randn(40, 39, generator=torch.Generator().manual_seed(0))
    wide, narrow = torch.cat([z, torch.zeros(40, 2)], dim=1), z
    # constant dimensions add nothing but to D
    a, b = VICRegLoss()(wide, wide).covariance * 41, VICRegLoss()(narrow, narrow).covariance * 39
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_equal_embeddings_of_all_images_are_finite_with_finite_gradient():
    views = [torch.ones(2, 4, requires_grad=True) for _ in range(2)]
    terms = VICRegLoss()(*views)
    assert terms.variance.item() == pytest.approx(0.99)
    sum(terms).backward()  # type: ignore[union-attr]
    assert all(v.grad is not None and v.grad.isfinite().all() for v in views)


def test_terms_are_float32_under_mixed_precision():
    views = [torch.randn(4, 8) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        terms = VICRegLoss()(*[v.bfloat16() for v in views])
    expected = VICRegLoss()(*[v.bfloat16().float() for v in views])
    assert all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(tuple(terms), tuple(expected))


def test_a_single_image_and_unequal_shapes_are_refused():
    with pytest.raises(AfireError, match="at least 2 images"):
        VICRegLoss()(torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(AfireError, match=r"two equal \(B, D\)"):
        VICRegLoss()(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(AfireError, match="above 0"):
        VICRegLoss(eps=0)
