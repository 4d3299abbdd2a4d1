from __future__ import annotations

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.losses import TokenMatchLoss
from afire_monai.losses.token_match import teacher_tokens


def test_loss_equals_a_loop_over_matched_tokens():
    generator = torch.Generator().manual_seed(0)
    student, teacher, prototypes = (torch.rand(3, 4, 5, generator=generator) * 2 - 1 for _ in range(3))
    matched = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    terms = []
    for i, j in matched.nonzero().tolist():
        target = torch.softmax((teacher[i, j] - prototypes[i, j]) / 0.04, dim=0)
        log_q = torch.log_softmax((student[i, j] - prototypes[i, j]) / 0.1, dim=0)
        terms.append(-(target * log_q).sum())
    found = TokenMatchLoss(0.1, 0.04)(student, teacher, prototypes, matched)
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_no_match_gives_zero_and_a_gradient_of_zero():
    student = torch.rand(2, 3, 4, requires_grad=True)
    loss = TokenMatchLoss()(student, torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


def test_what_all_patients_share_is_no_target():
    shared = torch.rand(1, 2, 4).expand(3, -1, -1)
    matched = torch.ones(3, 2, dtype=torch.bool)
    loss = TokenMatchLoss()(shared, shared, shared, matched)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(4.0)).item())  # nothing is left: a uniform target


def test_tokens_are_arranged_by_the_cell_that_both_crops_show():
    grid, canvas = (3, 4), (5, 6)
    cells = torch.arange(canvas[0] * canvas[1], dtype=torch.float32).view(canvas)
    student, teacher = torch.tensor([[0, 0], [2, 1], [1, 2]]), torch.tensor([[0, 0], [0, 2], [2, 0]])

    def crop(offset: list[int]) -> torch.Tensor:
        return cells[offset[0] : offset[0] + grid[0], offset[1] : offset[1] + grid[1]].flatten()

    taught = torch.stack([crop(o) for o in teacher.tolist()])[..., None]
    shown, inside = teacher_tokens(taught, student - teacher, grid)
    for place, offset in enumerate(student.tolist()):
        wanted = crop(offset)
        in_both = torch.isin(wanted, taught[place, :, 0])
        assert torch.equal(inside[place], in_both)
        assert torch.equal(shown[place, :, 0][in_both], wanted[in_both])


def test_shapes_and_temperatures_that_do_not_fit_are_refused():
    with pytest.raises(AfireError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        TokenMatchLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), torch.ones(1, 2).bool())
    with pytest.raises(AfireError, match="teacher_temperature 0"):
        TokenMatchLoss(teacher_temperature=0)
