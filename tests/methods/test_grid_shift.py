from __future__ import annotations

import pytest
import torch
from helpers import PATCH, tiny_afire

from afire_monai.core.errors import AfireError
from afire_monai.methods.grid_shift import GridShift

GRID, P, SHIFT = (2, 3), 4, 3
CANVAS = (5, 6)  # cells


def painted(batch: int, grid: tuple[int, int] = CANVAS, patch: int = P) -> torch.Tensor:
    """Canvases whose every pixel holds the number of its cell, counted row by row."""
    numbers = torch.arange(grid[0] * grid[1], dtype=torch.float32).view(1, 1, *grid)
    return numbers.repeat_interleave(patch, 2).repeat_interleave(patch, 3).repeat(batch, 1, 1, 1)


def every_offset() -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(SHIFT + 1), torch.arange(SHIFT + 1))


def test_each_token_shows_the_canvas_cell_that_its_index_names():
    shift = GridShift(GRID, P, SHIFT)
    offsets = every_offset()
    crops = shift.crop(painted(len(offsets)), offsets)
    cells = shift.cells(offsets)
    for image in range(len(offsets)):
        for token in range(GRID[0] * GRID[1]):
            row, column = divmod(token, GRID[1])
            pixels = crops[image, 0, row * P : (row + 1) * P, column * P : (column + 1) * P]
            assert (pixels == cells[image, token]).all()


def test_crop_is_the_slice_at_each_pictures_own_offset():
    shift = GridShift(GRID, P, SHIFT)
    offsets = every_offset()
    canvas = torch.rand(len(offsets), 2, CANVAS[0] * P, CANVAS[1] * P)
    crops = shift.crop(canvas, offsets)
    for image, (row, column) in enumerate(offsets.tolist()):
        expected = canvas[image, :, row * P : row * P + 2 * P, column * P : column * P + 3 * P]
        assert torch.equal(crops[image], expected)


def test_crops_stay_inside_the_canvas_and_reach_its_last_cell():
    shift = GridShift(GRID, P, SHIFT)
    cells = shift.cells(every_offset())
    assert cells.min() == 0
    assert cells.max() == shift.canvas_cells - 1 == 29
    # neighbours in the crop are neighbours on the canvas: nothing wraps from one edge to the other
    rows, columns = (cells // CANVAS[1]).view(-1, *GRID), (cells % CANVAS[1]).view(-1, *GRID)
    assert (rows.diff(dim=1) == 1).all()
    assert (rows.diff(dim=2) == 0).all()
    assert (columns.diff(dim=2) == 1).all()
    assert (columns.diff(dim=1) == 0).all()


def test_offsets_are_uniform_and_those_of_student_and_teacher_independent():
    shift = GridShift(GRID, P, SHIFT)
    steps = torch.arange(400) / 400  # evenly spaced in 0…1, so the counts are exact
    student, teacher = shift.offsets(torch.stack([steps, steps.flip(0), steps, torch.zeros(400)], dim=1))
    assert student[:, 0].bincount().tolist() == [100] * 4
    assert student[:, 1].bincount().tolist() == [100] * 4
    assert torch.equal(teacher[:, 0], student[:, 0])
    assert torch.equal(teacher[:, 1], torch.zeros(400, dtype=torch.int64))


def test_the_ends_of_the_unit_interval_give_the_first_and_last_offset():
    shift = GridShift(GRID, P, SHIFT)
    student, teacher = shift.offsets(torch.tensor([[0.0, 1.0, 1 - 2**-24, 2**-24]]))
    assert student.tolist() == [[0, 3]]
    assert teacher.tolist() == [[3, 0]]


def test_sizes_of_the_canvas_are_grid_plus_shift():
    shift = GridShift(GRID, P, SHIFT)
    assert shift.canvas_grid == CANVAS
    assert shift.canvas_size == (20, 24)
    assert shift.draws == 4
    unshifted = GridShift(GRID, P, 0)
    assert unshifted.canvas_size == (8, 12)
    assert unshifted.draws == 0


def test_negative_shift_is_refused():
    with pytest.raises(AfireError, match="got -1"):
        GridShift(GRID, P, -1)


def test_student_and_teacher_of_the_method_see_the_cells_that_their_indices_name():
    method = tiny_afire(shift=2)
    canvas = painted(32, (6, 6), PATCH) / 100
    views = method.views(canvas, torch.rand(32, method.draws, generator=torch.Generator().manual_seed(0)))
    for picture, cells in ((views.clean, views.cells), (views.normal, views.teacher_cells)):
        assert cells is not None
        middle = picture[:, 0, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1)
        assert torch.equal((middle * 100).round().long(), cells)
    assert views.cells is not None
    assert not torch.equal(views.cells, views.teacher_cells)
