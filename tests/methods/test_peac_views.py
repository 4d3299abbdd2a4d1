"""PEAC's views: cells that are called a match show the same pixels, and order labels say where patches came from."""

from __future__ import annotations

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.methods.peac import OverlappingViews
from afire_monai.networks.prototypes import match_cells
from afire_monai.transforms.perturb import AppearancePerturbation, permute_patches


def make_views(grid: tuple[int, int] = (8, 8), patch: int = 4, shift: int = 2, keep: float = 0.5) -> OverlappingViews:
    return OverlappingViews(grid, patch, shift, AppearancePerturbation(), keep)


def uniforms(batch: int, views: OverlappingViews, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, views.draws, generator=torch.Generator().manual_seed(seed))


def coordinates(batch: int, views: OverlappingViews) -> torch.Tensor:
    """A canvas whose pixels say where they are: its two channels are row and column."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in views.canvas_size)
    canvas = torch.stack([rows[:, None].expand(-1, len(columns)), columns.expand(len(rows), -1)])
    return canvas.expand(batch, -1, -1, -1) / 1024


def cells_of(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Return the pixels (B, L, C, P, P) of each cell."""
    return images.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


# the laptop's, the paper's, and one that is not square
@pytest.mark.parametrize(("grid", "patch", "shift"), [((8, 8), 4, 2), ((14, 14), 2, 4), ((5, 3), 3, 1), ((4, 4), 4, 0)])
def test_all_matched_cells_show_the_same_pixels_and_no_cell_is_forgotten(grid, patch, shift):
    views = make_views(grid, patch, shift)
    v = views(coordinates(300, views), uniforms(300, views))
    first, second = cells_of(v.clean, patch), cells_of(v.second, patch)
    there = second.gather(1, v.match[:, :, None, None, None].expand_as(first))
    same = (first == there).flatten(2).all(2)
    assert same[v.matched].float().mean().item() == 1.0
    # by the coordinates of their first pixels: which cells of view 1 does view 2 show at all?
    here, other = first[:, :, :, 0, 0], second[:, :, :, 0, 0]
    shown = (here[:, :, None] == other[:, None]).all(-1).any(2)
    assert torch.equal(shown, v.matched)
    assert v.matched.sum(1).min() >= (grid[0] - shift) * (grid[1] - shift)


def test_smallest_overlap_of_the_paper_is_ten_by_ten():
    first = torch.tensor([[0, 0], [4, 4], [0, 4], [2, 1], [3, 3]])
    second = torch.tensor([[4, 4], [0, 0], [4, 0], [2, 1], [3, 1]])
    match, matched = match_cells(first - second, (14, 14), (14, 14))
    assert matched.sum(1).tolist() == [100, 100, 100, 196, 14 * 12]
    # by hand: the first crop starts 4 rows and columns before the second, so its cell (4, 4) is the other's (0, 0)
    assert matched[0, 4 * 14 + 4]
    assert match[0, 4 * 14 + 4] == 0
    assert not matched[0, 4 * 14 + 3]
    # it starts 4 rows before and 4 columns after it: its cell (4, 0) is the other's (0, 4)
    assert match[2, 4 * 14] == 4
    assert match[3].tolist() == list(range(196))


def test_the_grid_starts_at_any_pixel_of_a_cell_and_the_views_at_any_cell():
    views = make_views(patch=4, shift=2)
    v = views(coordinates(4000, views), uniforms(4000, views))
    starts = (torch.cat([v.clean[:, :, 0, 0], v.second[:, :, 0, 0]], 1) * 1024).long()
    first, second = starts[:, :2], starts[:, 2:]
    assert torch.equal(first % 4, second % 4)
    assert {tuple(pair) for pair in (first % 4).tolist()} == {(a, b) for a in range(4) for b in range(4)}
    pairs = {(*a, *b) for a, b in zip((first // 4).tolist(), (second // 4).tolist(), strict=True)}
    assert len(pairs) == 3**4
    last = (torch.stack([v.clean[:, :, -1, -1], v.second[:, :, -1, -1]]) * 1024).max()
    assert last < views.canvas_size[0]


def test_order_says_which_patch_each_place_shows():
    views = make_views((3, 4), 2, 1)
    # cells of one grey level each, on a grid that starts at the canvas' corner
    levels = torch.arange(5 * 6, dtype=torch.float32).view(1, 1, 5, 6) / 30
    canvas = levels.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(50, -1, -1, -1)
    u = views.coins(uniforms(50, views), keep=False)
    u[:, :2] = 0
    v = views(canvas, u)
    assert not v.kept.any()
    patch_level = v.clean[:, 0, ::2, ::2].flatten(1)
    assert torch.equal(v.first[:, 0, ::2, ::2].flatten(1), patch_level.gather(1, v.order))
    assert torch.equal(v.order.sort(1).values, torch.arange(12).expand(50, -1))
    assert len(v.order.unique(dim=0)) == 50


def test_the_inverse_puts_patches_back():
    images = torch.rand(4, 2, 6, 12, generator=torch.Generator().manual_seed(0))
    order = torch.rand(4, 8, generator=torch.Generator().manual_seed(1)).argsort(1)
    mixed = permute_patches(images, order, (2, 4))
    # the first place of the first image by hand
    row, column = divmod(int(order[0, 0]), 4)
    assert torch.equal(mixed[0, :, :3, :3], images[0, :, row * 3 : row * 3 + 3, column * 3 : column * 3 + 3])
    assert torch.equal(permute_patches(mixed, order.argsort(1), (2, 4)), images)


def test_a_view_is_perturbed_in_order_or_plain_and_permuted():
    views = make_views()
    images, u = torch.rand(200, 1, *views.canvas_size), uniforms(200, views)
    v = views(images, u)
    assert 0.4 < v.kept.float().mean() < 0.6
    kept, mixed = v.kept, ~v.kept
    assert torch.equal(v.order[kept], torch.arange(64).expand(int(kept.sum()), -1))
    assert torch.equal(v.first[kept], views.perturbation(v.clean, u[:, -views.perturbation.draws :])[kept])
    assert (v.first != v.clean).flatten(1).any(1)[kept].all()
    assert torch.equal(permute_patches(v.first, v.order.argsort(1), (8, 8))[mixed], v.clean[mixed])
    assert (v.order[mixed] != torch.arange(64)).any(1).all()
    assert torch.equal(views(images[3:5], u[3:5]).first, v.first[3:5])


@pytest.mark.parametrize(("keep", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_probability_may_be_extreme_and_coins_overrule_it(keep, share):
    views = make_views(keep=keep)
    images, u = torch.rand(20, 1, *views.canvas_size), uniforms(20, views)
    assert views(images, u).kept.float().mean() == share
    assert views(images, views.coins(u, keep=True)).kept.all()
    assert not views(images, views.coins(u, keep=False)).kept.any()


def test_settings_and_images_that_do_not_fit_are_refused():
    with pytest.raises(AfireError, match="always overlap; got 8"):
        make_views(shift=8)
    with pytest.raises(AfireError, match="got -1"):
        make_views(shift=-1)
    with pytest.raises(AfireError, match="keep_probability"):
        make_views(keep=1.5)
    views = make_views()
    with pytest.raises(AfireError, match="must be 44 x 44 pixels"):
        views(torch.zeros(2, 1, 32, 32), uniforms(2, views))
