from __future__ import annotations

import math

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.networks import PrototypeBank, sinkhorn


def slow_sinkhorn(scores: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """As the release goes about it: a matrix (K, L) of sum one, then prototypes to 1/K and cells to 1/L in turn."""
    q = torch.exp(scores.double() / temperature).T
    dims, cells = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for k in range(dims):
            q[k] = q[k] / q[k].sum() / dims
        for n in range(cells):
            q[:, n] = q[:, n] / q[:, n].sum() / cells
    return (q * cells).T.float()


@pytest.mark.parametrize(("cells", "dims"), [(9, 5), (4, 16), (16, 16)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_the_released_formula(cells, dims, iterations):
    scores = torch.rand(cells, dims, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = slow_sinkhorn(scores, 0.05, iterations)
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), expected, atol=1e-5, rtol=0)


def test_rows_are_distributions_and_columns_are_used_equally():
    scores = torch.rand(12, 4, generator=torch.Generator().manual_seed(1))
    assignment = sinkhorn(scores, 0.5, 50)
    torch.testing.assert_close(assignment.sum(1), torch.ones(12))
    torch.testing.assert_close(assignment.sum(0), torch.full((4,), 3.0), atol=1e-4, rtol=0)


def test_two_by_two_equals_the_hand_computed_value():
    # exp([[log 3, 0], [0, 0]]) = [[3, 1], [1, 1]]; columns → [[3/4, 1/2], [1/4, 1/2]]; rows → [[3/5, 2/5], [1/3, 2/3]]
    assignment = sinkhorn(torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), temperature=1.0, iterations=1)
    torch.testing.assert_close(assignment, torch.tensor([[3 / 5, 2 / 5], [1 / 3, 2 / 3]]))


def test_scores_that_would_overflow_an_exponential_stay_finite():
    assignment = sinkhorn(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]]), temperature=1e-3)
    assert assignment.isfinite().all()
    torch.testing.assert_close(assignment.sum(1), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinkhorn_computes_in_float32_whatever_comes_in(dtype):
    scores = (torch.rand(9, 5, generator=torch.Generator().manual_seed(2)) * 2 - 1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assignment = sinkhorn(scores)
    assert assignment.dtype == torch.float32
    torch.testing.assert_close(assignment, slow_sinkhorn(scores.float(), 0.05, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [(torch.zeros(3), 0.1, 3), (torch.zeros(3, 3), 0.0, 3), (torch.zeros(3, 3), 0.1, 0)])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(AfireError, match=r"\(N, K\) scores"):
        sinkhorn(*bad)


def slow_update(bank: torch.Tensor, logits, cells, momentum, replace) -> torch.Tensor:
    result = bank.clone()
    for n in range(len(bank)):
        shown = [logits[i, j] for i in range(len(logits)) for j in range(logits.shape[1]) if int(cells[i, j]) == n]
        if shown:
            mean = torch.stack(shown).mean(0)
            result[n] = mean if replace else momentum * bank[n] + (1 - momentum) * mean
    return result


@pytest.mark.parametrize("shifted", [False, True], ids=["published", "grid-shifted"])
@pytest.mark.parametrize("replace", [True, False])
def test_update_equals_the_mean_over_the_tokens_of_each_cell(shifted, replace):
    generator = torch.Generator().manual_seed(3)
    logits = torch.rand(4, 6, 5, generator=generator) * 2 - 1
    count = 15 if shifted else 6
    cells = (
        torch.stack([torch.randperm(12, generator=generator)[:6] for _ in range(4)])  # cells 12…14 are never shown
        if shifted
        else torch.arange(6).expand(4, 6)
    )
    bank = PrototypeBank(count, 5, momentum=0.75)
    bank.prototypes.copy_(torch.rand(count, 5, generator=generator))
    before = bank.prototypes.clone()
    bank.update(logits, cells if shifted else None, replace=replace)
    expected = slow_update(before, logits, cells, 0.75, replace)
    torch.testing.assert_close(bank.prototypes, expected, atol=1e-6, rtol=1e-5)
    if shifted:
        assert torch.equal(bank.prototypes[12:], before[12:])
        assert not torch.equal(bank.prototypes[:12], before[:12])


def test_prototypes_stay_float32_and_exact_under_bfloat16():
    logits = (torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(4)) * 2 - 1).bfloat16()
    bank = PrototypeBank(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        bank.update(logits, replace=True)
        assignment = bank.assignment()
    assert bank.prototypes.dtype == assignment.dtype == torch.float32
    torch.testing.assert_close(bank.prototypes, logits.double().mean(0).float(), atol=1e-6, rtol=0)


def test_prototypes_are_saved_and_carry_no_gradient():
    bank = PrototypeBank(4, 3)
    logits = torch.rand(2, 4, 3, requires_grad=True)
    bank.update(logits)
    torch.testing.assert_close(bank.prototypes, logits.detach().mean(0) / 4)  # from zero, by default a quarter
    assert not bank.prototypes.requires_grad
    assert not bank.assignment().requires_grad
    assert list(bank.state_dict()) == ["prototypes"]
    assert list(bank.parameters()) == []


def test_assignment_is_the_sinkhorn_of_the_prototypes_with_the_banks_settings():
    bank = PrototypeBank(4, 3, temperature=0.2, iterations=2)
    bank.update(torch.rand(2, 4, 3), replace=True)
    torch.testing.assert_close(bank.assignment(), slow_sinkhorn(bank.prototypes, 0.2, 2), atol=1e-5, rtol=0)


def test_output_that_does_not_fit_the_bank_is_refused_with_both_shapes():
    with pytest.raises(AfireError, match=r"4 cells with prototypes of width 3.*\(2, 5, 3\)"):
        PrototypeBank(4, 3).update(torch.zeros(2, 5, 3))
    with pytest.raises(AfireError, match=r"width 3.*\(2, 4, 7\)"):
        PrototypeBank(4, 3).update(torch.zeros(2, 4, 7))
    with pytest.raises(AfireError, match=r"got 1.0"):
        PrototypeBank(4, 3, momentum=1.0)


@pytest.mark.parametrize("shifted", [False, True], ids=["published", "grid-shifted"])
@pytest.mark.parametrize("replace", [True, False])
def test_of_several_prototypes_a_token_moves_the_nearest_and_at_first_images_take_turns(shifted, replace):
    generator = torch.Generator().manual_seed(5)
    logits = torch.rand(7, 6, 5, generator=generator) * 2 - 1
    cells = torch.stack([torch.randperm(9, generator=generator)[:6] if shifted else torch.arange(6) for _ in range(7)])
    bank = PrototypeBank(9 if shifted else 6, 5, momentum=0.6, per_cell=3)
    bank.prototypes.copy_(torch.rand(bank.prototypes.shape, generator=generator) * 2 - 1)
    before = bank.prototypes.clone()
    expected, taken = before.clone(), {}
    for i in range(7):
        for j in range(6):
            cell = int(cells[i, j])
            distances = [float((logits[i, j] - before[cell, m]).square().sum()) for m in range(3)]
            m = i % 3 if replace else distances.index(min(distances))
            taken.setdefault((cell, m), []).append(logits[i, j])
            torch.testing.assert_close(
                bank.of_tokens(logits, cells if shifted else None)[i, j], before[cell, distances.index(min(distances))]
            )
    for (cell, m), tokens in taken.items():
        mean = torch.stack(tokens).mean(0)
        expected[cell, m] = mean if replace else 0.6 * before[cell, m] + 0.4 * mean
    bank.update(logits, cells if shifted else None, replace=replace)
    torch.testing.assert_close(bank.prototypes, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shifted", [False, True], ids=["published", "grid-shifted"])
@pytest.mark.parametrize("replace", [True, False])
def test_images_whose_kind_is_known_move_and_have_the_prototypes_of_their_kind(shifted, replace):
    generator = torch.Generator().manual_seed(8)
    logits = torch.rand(7, 6, 5, generator=generator) * 2 - 1
    count, members = 9 if shifted else 6, torch.tensor([0, 2, 2, 0, 0, 2, 2])
    cells = torch.stack([torch.randperm(9, generator=generator)[:6] if shifted else torch.arange(6) for _ in range(7)])
    bank = PrototypeBank(count, 5, momentum=0.6, per_cell=3)
    bank.prototypes.copy_(torch.rand(bank.prototypes.shape, generator=generator) * 2 - 1)
    before = bank.prototypes.clone()
    own = bank.of_tokens(logits, cells if shifted else None, members)
    for i, j in [(0, 0), (1, 3), (6, 5)]:
        assert torch.equal(own[i, j], before[cells[i, j], members[i]])
    bank.update(logits, cells if shifted else None, replace, members)
    for kind in range(3):
        chosen = members == kind
        expected = slow_update(before[:, kind], logits[chosen], cells[chosen], 0.6, replace)
        torch.testing.assert_close(bank.prototypes[:, kind], expected, atol=1e-6, rtol=1e-5)


def test_several_prototypes_are_balanced_all_together():
    bank = PrototypeBank(6, 5, per_cell=2)
    bank.prototypes.copy_(torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(6)) * 2 - 1)
    expected = slow_sinkhorn(bank.prototypes.reshape(12, 5), 0.05, 3).reshape(6, 2, 5)
    torch.testing.assert_close(bank.assignment(), expected, atol=1e-5, rtol=0)


def test_prototypes_find_two_kinds_of_people():
    generator = torch.Generator().manual_seed(7)
    kinds = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    bank = PrototypeBank(4, 3, per_cell=2)
    for step in range(60):
        kind = torch.randint(2, (16,), generator=generator)
        tokens = kinds[kind][:, None] + 0.1 * torch.randn(16, 4, 3, generator=generator)
        bank.update(tokens, replace=step < 5)
    found = bank.prototypes.sort(dim=1).values  # either may come first
    torch.testing.assert_close(found, kinds.sort(dim=0).values.expand(4, -1, -1), atol=0.15, rtol=0)


def test_a_cell_without_prototypes_is_refused():
    with pytest.raises(AfireError, match="at least 1 prototype, got per_cell 0"):
        PrototypeBank(4, 3, per_cell=0)
