"""The vectorised loss against a slow reference that goes through the tokens one by one, as the formulas read."""

from __future__ import annotations

import math

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.losses import TokenContrastiveLoss, own_cell_accuracy

TAU_S = 0.1


def slow_terms(logits, assignment, abnormal, cells, structure, temperature):
    batch, tokens, _ = logits.shape
    count = assignment.shape[0]
    log_q = torch.log_softmax(logits / TAU_S, dim=-1)

    def s(i, j, n):
        several = assignment[n].reshape(-1, assignment.shape[-1])
        return torch.stack([(one * log_q[i, j]).sum().exp() for one in several]).mean().log()

    structure_values, category_values = [], []
    for i in range(batch):
        for j in range(tokens):
            if abnormal[i, j]:
                continue
            c = int(cells[i, j])
            if structure == "contrastive":
                everything = torch.stack([(s(i, j, n) / temperature).exp() for n in range(count)]).sum()
                structure_values.append(-((s(i, j, c) / temperature).exp() / everything).log())
            else:
                structure_values.append(-s(i, j, c))
            negatives = [
                (s(a, b, c) / temperature).exp()
                for a in range(batch)
                for b in range(tokens)
                if abnormal[a, b] and int(cells[a, b]) == c
            ]
            if negatives:
                own = (s(i, j, c) / temperature).exp()
                category_values.append(-(own / (own + torch.stack(negatives).sum())).log())
    zero = logits.sum() * 0
    return (
        torch.stack(structure_values).mean() if structure_values else zero,
        torch.stack(category_values).mean() if category_values else zero,
    )


def random_case(seed, shifted, batch=4, tokens=9, dim=8):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.rand(batch, tokens, dim, generator=generator) * 2 - 1).requires_grad_()
    count = 16 if shifted else tokens
    assignment = torch.softmax(torch.randn(count, dim, generator=generator) * 2, dim=-1)
    abnormal = torch.rand(batch, tokens, generator=generator) < 0.4
    cells = (
        torch.stack([torch.randperm(count, generator=generator)[:tokens] for _ in range(batch)])
        if shifted
        else torch.arange(tokens).expand(batch, tokens)
    )
    return logits, assignment, abnormal, cells


@pytest.mark.parametrize("structure", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_terms_and_gradients_equal_the_slow_reference(structure, shifted, temperature):
    logits, assignment, abnormal, cells = random_case(1, shifted)
    loss = TokenContrastiveLoss(structure, student_temperature=TAU_S, temperature=temperature)
    terms = loss(logits, assignment, abnormal, cells if shifted else None)
    reference = slow_terms(logits, assignment, abnormal, cells, structure, temperature)
    for ours, theirs in zip(terms, reference, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        (gradient,) = torch.autograd.grad(ours, logits, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs, logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
        assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("structure", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("kind", ["all normal", "all abnormal", "batch of one", "one abnormal token"])
def test_degenerate_batches_give_finite_loss_and_gradient(structure, kind):
    logits, assignment, abnormal, _ = random_case(2, shifted=False, batch=1 if kind == "batch of one" else 3)
    if kind == "all normal":
        abnormal[:] = False
    if kind == "all abnormal":
        abnormal[:] = True
    if kind == "one abnormal token":
        abnormal[:] = False
        abnormal[0, 0] = True
    terms = TokenContrastiveLoss(structure)(logits, assignment, abnormal)
    (gradient,) = torch.autograd.grad(terms.structure + terms.category, logits)
    assert math.isfinite(terms.structure.item())
    assert math.isfinite(terms.category.item())
    assert gradient.isfinite().all()
    if kind == "all abnormal":
        assert terms.structure.item() == 0
        assert terms.category.item() == 0
        assert gradient.abs().max() == 0
    if kind == "all normal":
        assert terms.category.item() == 0


def test_extreme_similarities_stay_finite():
    logits = torch.ones(2, 4, 8)
    logits[:, :, ::2] = -1
    logits.requires_grad_()
    assignment = torch.eye(8)[:4]
    abnormal = torch.tensor([[True, False, False, True], [False, True, False, False]])
    loss = TokenContrastiveLoss(student_temperature=0.01, temperature=0.01)
    terms = loss(logits, assignment, abnormal)
    (gradient,) = torch.autograd.grad(terms.structure + terms.category, logits)
    assert terms.structure.isfinite()
    assert terms.category.isfinite()
    assert gradient.isfinite().all()


def test_autocast_does_not_round_the_similarities():
    logits, assignment, abnormal, _ = random_case(4, shifted=False)
    loss = TokenContrastiveLoss(temperature=0.05)
    plain = loss(logits, assignment, abnormal)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(logits, assignment, abnormal)
    assert cast.structure.dtype == torch.float32
    assert torch.equal(plain.structure, cast.structure)
    assert torch.equal(plain.category, cast.category)


def test_category_weight_zero_leaves_the_term_out():
    logits, assignment, abnormal, _ = random_case(3, shifted=False)
    assert TokenContrastiveLoss(category_weight=0)(logits, assignment, abnormal).category.item() == 0


def test_category_term_of_one_pair_equals_the_hand_computed_value():
    # one cell, two dimensions: similarities are log q of the first dimension; equal tokens give log 2
    logits = torch.zeros(2, 1, 2)
    terms = TokenContrastiveLoss()(logits, torch.tensor([[1.0, 0.0]]), torch.tensor([[True], [False]]))
    assert terms.category.item() == pytest.approx(math.log(2), abs=1e-6)
    assert terms.structure.item() == pytest.approx(0, abs=1e-6)  # a single prototype cannot be missed


@pytest.mark.parametrize("structure", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_cell_of_several_prototypes_is_as_likely_as_their_mean(structure, shifted):
    logits, _, abnormal, cells = random_case(5, shifted)
    draws = torch.randn(16 if shifted else 9, 3, 8, generator=torch.Generator().manual_seed(6))
    assignment = torch.softmax(draws * 2, dim=-1)
    loss = TokenContrastiveLoss(structure, student_temperature=TAU_S, temperature=0.5)
    terms = loss(logits, assignment, abnormal, cells if shifted else None)
    for value, expected in zip(terms, slow_terms(logits, assignment, abnormal, cells, structure, 0.5), strict=True):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, logits, retain_graph=True)[0],
            torch.autograd.grad(expected, logits, retain_graph=True)[0],
            atol=1e-5,
            rtol=1e-4,
        )


def test_equal_prototypes_of_a_cell_are_as_one():
    logits, assignment, abnormal, _ = random_case(6, shifted=False)
    one = TokenContrastiveLoss()(logits, assignment, abnormal)
    several = TokenContrastiveLoss()(logits, assignment[:, None].expand(-1, 4, -1), abnormal)
    torch.testing.assert_close(one, several)


def test_own_cell_accuracy_counts_the_nearest_prototype():
    logits = torch.tensor([[[1.0, -1.0], [1.0, -1.0]]])
    assignment = torch.eye(2)
    assert own_cell_accuracy(logits, assignment, TAU_S).item() == 0.5
    assert own_cell_accuracy(logits, assignment, TAU_S, torch.tensor([[0, 0]])).item() == 1.0


def test_wrong_shapes_and_settings_are_refused_with_both_shapes():
    loss = TokenContrastiveLoss()
    with pytest.raises(AfireError, match=r"\(2, 3, 8\).*\(3, 4\)"):
        loss(torch.zeros(2, 3, 8), torch.zeros(3, 4), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(AfireError, match="give their cells"):
        loss(torch.zeros(2, 3, 8), torch.zeros(5, 8), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(AfireError, match="bogus"):
        TokenContrastiveLoss("bogus")  # type: ignore[arg-type]
