"""Landmarks of the lungs: where they are put, which tokens are taken for them, and what is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_afire
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.datalists.file import save_datalist
from afire_monai.figures.landmarks import NAMES, LandmarkTokens, landmark_retrieval, landmark_tokens, lung_landmarks
from afire_monai.figures.run import draw_figures
from afire_monai.figures.study import Settings
from afire_monai.methods.grid_shift import GridShift
from afire_monai.models.folder import export_encoder


def lungs(side: int = 40, top: int = 10, bottom: int = 30) -> np.ndarray:
    mask = np.zeros((side, side), np.float32)
    mask[top : bottom + 1, 5:16] = 1
    mask[top : bottom + 1, 24:35] = 1
    return mask


def test_landmarks_of_two_boxes_are_their_corners_and_sides() -> None:
    found = lung_landmarks(lungs())
    assert found is not None
    left, right = found[:5].tolist(), found[5:].tolist()
    assert left == [[10, 10], [20, 5], [20, 15], [30, 5], [30, 15]]
    assert right == [[10, 29], [20, 34], [20, 24], [30, 34], [30, 24]]


def test_masks_that_do_not_show_two_lungs_have_no_landmarks() -> None:
    one = lungs()
    one[:, 20:] = 0
    small = lungs()
    small[:, 20:] = 0
    small[0:3, 30:33] = 1
    above = np.zeros((40, 40), np.float32)
    above[2:12, 10:30] = above[25:35, 12:32] = 1
    unknown = np.full((40, 40), np.nan, np.float32)
    for mask in (np.zeros((40, 40), np.float32), one, small, above, unknown):
        assert lung_landmarks(mask) is None


def test_tokens_are_those_of_the_cells_that_hold_the_landmarks() -> None:
    shift = GridShift((4, 4), 8, 1)
    # each token holds the number of the canvas cell that it shows
    first, second = (shift.cells(torch.tensor([[o, o]])).float().expand(6, -1)[..., None] for o in (0, 1))
    points = [lung_landmarks(lungs())] * 6
    points[2] = None
    found = landmark_tokens((first, second), points, shift, seed=0)
    assert set(found.image.tolist()) == {0, 1, 3, 4, 5}
    assert sorted(np.bincount([found.crop[found.image == i][0] for i in (0, 1, 3, 4, 5)]).tolist()) == [2, 3]
    assert points[0] is not None
    for token, landmark, crop in zip(found.tokens[:, 0].tolist(), found.landmark, found.crop, strict=True):
        row, column = points[0][landmark] // 8
        assert token == row * 5 + column
        # the crop does not show the canvas' last (first) row and column
        assert (row < 4 and column < 4) if crop == 0 else (row > 0 and column > 0)
    per_image = [int((found.image == i).sum()) for i in (0, 1, 3, 4, 5)]
    expected = {
        0: sum(r // 8 < 4 and c // 8 < 4 for r, c in points[0].tolist()),
        1: sum(r // 8 > 0 and c // 8 > 0 for r, c in points[0].tolist()),
    }
    assert per_image == [expected[int(found.crop[found.image == i][0])] for i in (0, 1, 3, 4, 5)]
    with pytest.raises(AfireError, match="1 have some"):
        landmark_tokens((first, second), [points[0], None], shift, seed=0)


def test_planted_landmarks_are_found_and_the_other_crop_alone_is_asked() -> None:
    images, names = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    crop = images % 2
    generator = torch.Generator().manual_seed(0)
    planted = torch.eye(5).repeat(8, 1) + 0.01 * torch.randn(40, 5, generator=generator)
    each, chance = landmark_retrieval(LandmarkTokens(planted, names, images, crop))
    assert each.tolist() == [1.0] * 8
    assert chance == pytest.approx(1 / 5)
    # tokens that tell their landmark within a crop only are of no use
    moved = torch.eye(5)[(names + crop) % 5]
    each, _ = landmark_retrieval(LandmarkTokens(moved, names, images, crop))
    assert each.tolist() == [0.0] * 8
    with pytest.raises(AfireError, match="one of the two crops"):
        landmark_retrieval(LandmarkTokens(planted, names, images, np.zeros(40, np.int64)))


def test_figures_show_landmarks_where_masks_show_lungs(tmp_path: Path) -> None:
    export_encoder(tiny_afire(shift=1).export_encoder, tmp_path / "models", shift=1)
    items = []
    for i in range(12):
        mask = lungs(top=6 + i % 4, bottom=28 + i % 3)
        shade = np.random.default_rng(i).integers(0, 60, (40, 40))
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / f"mask{i}.png")
        Image.fromarray((shade + 150 * mask).astype(np.uint8)).save(tmp_path / f"{i}.png")
        item = {"image": str(tmp_path / f"{i}.png"), "group": f"p{i}", "label": [i % 2]}
        items.append({**item, "mask": str(tmp_path / f"mask{i}.png")})
    listed = save_datalist({"name": "lungs", "labels": ["Mass"], "test": items}, tmp_path / "list.json")
    page, numbers = draw_figures(tmp_path / "models", listed, tmp_path / "f", Settings(clusters=2))
    found = numbers["landmarks"]
    assert found["images"] == 12
    assert found["names"] == list(NAMES)
    assert set(found["views"]) == {"your encoder", "random encoder", "raw pixels"}
    assert 0.05 < found["views"]["raw pixels"]["found"]["chance"] < 0.3
    assert (tmp_path / "f" / "tsne_landmarks.png").is_file()
    assert "Tokens by landmark" in page.read_text()
    assert "landmarks need" not in page.read_text()
