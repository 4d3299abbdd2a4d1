from __future__ import annotations

import json
import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_afire
from PIL import Image
from sklearn.metrics import silhouette_samples

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.datalists.file import save_datalist
from afire_monai.evaluation.overlap import dice
from afire_monai.figures.page import verdicts
from afire_monai.figures.pictures import build_atlas
from afire_monai.figures.representation import (
    best_union,
    by_cells,
    cell_retrieval,
    centred_unit,
    cluster_tokens,
    distance_ratio,
    mean_mask,
    silhouette,
)
from afire_monai.figures.run import draw_figures
from afire_monai.figures.study import Settings, interval_of
from afire_monai.figures.views import choose_items, corner_cells, corner_crops, pixel_tokens
from afire_monai.methods.grid_shift import GridShift
from afire_monai.models.folder import export_encoder
from afire_monai.predictions.anomaly.detector import load_detector
from afire_monai.training.finish import export_detector, export_restorer

GRID, SIDE = (4, 4), 8
CELLS = torch.arange(16)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anatomy(images: int, cells: torch.Tensor, noise: float = 0.1, seed: int = 0) -> torch.Tensor:
    """Tokens (n, L, 32) that say which cell they show, with some noise of their own."""
    codes = draw(64, 32, seed=99)
    return codes[cells][None] + noise * draw(images, len(cells), 32, seed=seed)


# ---- retrieval


def test_tokens_that_encode_their_cell_are_always_found_and_random_ones_by_chance() -> None:
    patients = np.arange(30)
    planted = anatomy(30, CELLS)
    result = cell_retrieval(planted, planted, patients, CELLS, CELLS, 4)
    assert result.found.tolist() == [1] * 30
    assert result.nearby.tolist() == [1] * 30
    np.testing.assert_allclose(result.distance, 0, atol=1e-6)
    noise = draw(60, 16, 32)
    result = cell_retrieval(noise, noise, np.arange(60), CELLS, CELLS, 4)
    assert result.chance_found == 1 / 16
    assert result.found.mean() == pytest.approx(1 / 16, abs=0.03)
    assert result.distance.mean() == pytest.approx(result.chance_distance, abs=0.05)
    assert result.nearby.mean() == pytest.approx(result.chance_nearby, abs=0.06)


def test_in_moved_pictures_anatomy_is_found_and_knowledge_of_places_is_not() -> None:
    shift = GridShift((4, 4), 8, 1)
    first, second = corner_cells(shift)
    patients = np.arange(20)
    seeing = cell_retrieval(anatomy(20, first), anatomy(20, second, seed=1), patients, first, second, 5)
    assert seeing.found.mean() == 1
    assert seeing.same_place.mean() == 0
    placed = cell_retrieval(anatomy(20, CELLS), anatomy(20, CELLS, seed=1), patients, first, second, 5)
    assert placed.found.mean() == 0
    assert placed.same_place.mean() == 1
    np.testing.assert_allclose(placed.distance, math.sqrt(2), atol=1e-5)


def test_retrieval_equals_a_slow_reference_and_skips_the_own_patient() -> None:
    queries, gallery = draw(5, 6, 4, seed=1), draw(5, 6, 4, seed=2)
    patients = ["a", "b", "a", "c", "d"]
    asked, shown = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([2, 3, 4, 5, 6, 7])
    result = cell_retrieval(queries, gallery, patients, asked, shown, 2)
    q, g = centred_unit(queries), centred_unit(gallery)
    for i in range(5):
        found, distances = [], []
        for a in range(2, 6):
            best, where = -2.0, -1
            for j in range(5):
                if patients[j] == patients[i]:
                    continue
                scores = [float(q[i, a] @ g[j, b]) for b in range(6)]
                match = int(np.argmax(scores))
                distances.append(math.dist(divmod(a, 2), divmod(int(shown[match]), 2)))
                if scores[match] > best:
                    best, where = scores[match], int(shown[match])
            found.append(where == a)
        assert result.found[i] == pytest.approx(np.mean(found))
        assert result.distance[i] == pytest.approx(np.mean(distances), abs=1e-5)


def test_a_copy_in_the_own_patient_is_no_answer() -> None:
    tokens = draw(4, 16, 32)
    tokens[1] = tokens[0]
    alone = cell_retrieval(tokens, tokens, ["p", "p", "q", "r"], CELLS, CELLS, 4)
    free = cell_retrieval(tokens, tokens, ["p", "o", "q", "r"], CELLS, CELLS, 4)
    assert free.found[0] == 1
    assert alone.found[0] < 0.5


@pytest.mark.parametrize(
    ("patients", "cells", "message"),
    [(["p", "p"], CELLS, "at least 2 patients"), (["p"], CELLS, "2 patients"), (["p", "q"], CELLS + 50, "in common")],
)
def test_retrieval_without_an_answer_is_refused(patients: list[str], cells: torch.Tensor, message: str) -> None:
    with pytest.raises(AfireError, match=message):
        cell_retrieval(draw(2, 16, 4), draw(2, 16, 4), patients, CELLS, cells, 4)


# ---- cohesion


def test_distance_ratio_equals_all_pairs_listed() -> None:
    features, labels = draw(12, 5).numpy() + 3, np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3])
    unit = features - features.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    within: list[float] = []
    between: list[float] = []
    for i, j in combinations(range(12), 2):
        (within if labels[i] == labels[j] else between).append(1 - unit[i] @ unit[j])
    assert distance_ratio(features, labels) == pytest.approx(np.mean(within) / np.mean(between), rel=1e-5)


def test_planted_groups_hold_together_and_shuffled_ones_do_not() -> None:
    labels = np.tile(np.arange(16), 20)
    planted = anatomy(20, CELLS).flatten(0, 1).numpy()
    shuffled = np.random.default_rng(0).permutation(labels)
    assert (silhouette(planted, labels) or 0) > 0.8
    assert (distance_ratio(planted, labels) or 1) < 0.1
    assert abs(silhouette(planted, shuffled) or 0) < 0.2
    assert distance_ratio(planted, shuffled) == pytest.approx(1, abs=0.05)


def test_silhouette_is_that_of_centred_cosines() -> None:
    features, labels = draw(40, 6).numpy() + 2, np.arange(40) % 3
    expected = silhouette_samples(features - features.mean(0), labels, metric="cosine").mean()
    assert silhouette(features, labels) == pytest.approx(expected, rel=1e-5)


def test_figures_that_cannot_be_are_none() -> None:
    assert silhouette(draw(4, 3), [0, 0, 0, 0]) is None
    assert silhouette(draw(4, 3), [0, 1, 2, 3]) is None
    assert distance_ratio(draw(4, 3), [0, 0, 0, 0]) is None
    assert distance_ratio(draw(4, 3), [0, 1, 2, 3]) is None


def test_interval_holds_the_mean_and_narrows_with_patients() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    few, many = (list(interval_of(some, 0).values()) for some in (values[:20], values))
    assert few[1] < few[0] < few[2]
    assert many[2] - many[1] == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert few[2] - few[1] > many[2] - many[1]
    assert interval_of([3.0, 3.0], 0) == {"value": 3, "low": 3, "high": 3}


# ---- segments


def test_clusters_of_planted_tokens_are_the_planted_regions() -> None:
    region = torch.tensor([0] * 8 + [1] * 6 + [2] * 2)
    segments = cluster_tokens(anatomy(6, region), GRID, (32, 32), 3)
    assert segments.shape == (6, 32, 32)
    # the middle of each cell, numbered by size
    np.testing.assert_array_equal(segments[:, 4::8, 4::8].reshape(6, 16), region.expand(6, -1).numpy())
    np.testing.assert_array_equal(segments, cluster_tokens(anatomy(6, region), GRID, (32, 32), 3))


def test_best_union_is_that_of_all_unions_by_slow_dice() -> None:
    draws = np.random.default_rng(1)
    segments = draws.integers(0, 4, (5, 6, 6))
    masks = (draws.random((5, 6, 6)) < 0.4 + 0.3 * (segments == 2)).astype(np.float32)
    masks[draws.random(masks.shape) < 0.1] = np.nan

    def slow(union: tuple[int, ...]) -> float:
        scores = []
        for clusters, mask in zip(segments, masks, strict=True):
            a = {p for p in product(range(6), range(6)) if clusters[p] in union and not np.isnan(mask[p])}
            b = {p for p in product(range(6), range(6)) if mask[p] == 1}
            scores.append(2 * len(a & b) / (len(a) + len(b)))
        return float(np.mean(scores))

    unions = [u for size in range(1, 5) for u in combinations(range(4), size)]
    best = max(unions, key=slow)
    assert tuple(best_union(segments, masks, 4)) == best
    assert dice(np.isin(segments, best), masks).mean() == pytest.approx(slow(best))


def test_dice_of_two_empty_masks_is_one_and_pixels_to_ignore_do_not_count() -> None:
    prediction = np.array([[[True, True]], [[False, False]]])
    masks = np.array([[[1, np.nan]], [[0, 0]]], dtype=np.float32)
    assert dice(prediction, masks).tolist() == [1, 1]
    assert dice(~prediction, masks).tolist() == [0, 0]


def test_mean_mask_is_what_most_masks_hold() -> None:
    masks = np.array([[[1, 1, 0]], [[1, 0, np.nan]], [[1, 0, 1]]], dtype=np.float32)
    assert mean_mask(masks).tolist() == [[True, False, False]]


@pytest.mark.parametrize("clusters", [1, 13])
def test_a_number_of_clusters_that_cannot_be_is_refused(clusters: int) -> None:
    with pytest.raises(AfireError, match=f"clusters is {clusters}; from 2 to 12"):
        cluster_tokens(draw(2, 16, 4), GRID, (8, 8), clusters)


# ---- views and atlas


def test_one_image_a_patient_is_drawn_and_that_with_a_mask_is_preferred() -> None:
    # as a list is loaded in which some images have a mask
    items = [{"image": f"{i}", "group": f"p{i // 3}", "mask": "m" if i % 3 == 1 else ""} for i in range(30)]
    chosen = choose_items(items, 6, seed=0)
    assert len({item["group"] for item in chosen}) == 6
    assert all(item["mask"] for item in chosen)
    assert chosen == choose_items(items, 6, seed=0)
    assert chosen != choose_items(items, 6, seed=1)
    assert len(choose_items(items, 100, seed=0)) == 10
    with pytest.raises(DataListError, match="images of 1 patients"):
        choose_items(items[:3], 6, seed=0)


def test_crops_show_the_cells_that_are_said() -> None:
    shift = GridShift((2, 3), 2, 1)
    # each pixel holds the number of its canvas cell
    cells = torch.arange(12.0).view(1, 1, 3, 4)
    canvas = torch.nn.functional.interpolate(cells, scale_factor=2)
    for crop, named in zip(corner_crops(canvas, shift), corner_cells(shift), strict=True):
        assert pixel_tokens(crop, 2)[0, :, 0].tolist() == named.tolist()


def test_atlas_shows_the_mean_patch_of_those_that_chose_each_prototype(tmp_path: Path) -> None:
    method = tiny_afire(shift=1)
    export_encoder(method.export_encoder, tmp_path)
    export_restorer(method, tmp_path, shift=1)
    method.prototypes.prototypes.copy_(draw(25, 16))
    export_detector(method, tmp_path, shift=1)
    detector = load_detector(tmp_path)
    grey = torch.full((3, 1, 40, 40), 0.25)
    atlas = build_atlas(detector, grey)
    assert atlas.strongest.shape == atlas.share.shape == (5, 5)
    assert atlas.mosaic.shape == (40, 40)
    np.testing.assert_allclose(atlas.mosaic[~np.isnan(atlas.mosaic)], 0.25, atol=1e-6)
    assert 0 <= atlas.found <= 1
    np.testing.assert_array_equal(atlas.strongest.ravel(), detector.assignment.argmax(1))


# ---- the command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    method = tiny_afire(shift=1)
    export_encoder(method.export_encoder, tmp_path / "models", shift=1)
    return tmp_path / "models"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Twenty patients, half of them with a bright square, all with a mask of the left half."""
    items = []
    half = np.zeros((40, 40), dtype=np.uint8)
    half[:, :20] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 120, (40, 40)).astype(np.uint8)
        pixels[:, 20:] //= 4
        pixels[10:20, 10:20] += 100 * (i % 2)
        path = tmp_path / f"Planted_Name_{i}.png"
        Image.fromarray(pixels).save(path)
        item = {"image": str(path), "group": f"PLANTED-{i}", "label": [i % 2]}
        items.append({**item, "mask": str(tmp_path / "mask.png")})
    return save_datalist({"name": "planted", "labels": ["Mass"], "test": items}, tmp_path / "list.json")


def test_figures_are_written_with_numbers_and_name_nobody(model: Path, listed: Path, tmp_path: Path) -> None:
    places = ["--encoder", str(model), "--datalist", str(listed), "--out", str(tmp_path / "f")]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "atlas.png").touch()  # of an earlier run with another model
    assert run(["figures", *places, "--clusters", "3"]) == 0
    files = {path.name for path in (tmp_path / "f").iterdir()}
    pictures = {"correspondence.png", "segments.png", "tsne_cells.png", "tsne_disease.png"}
    assert files == pictures | {"figures.json", "figures.html"}
    numbers = json.loads((tmp_path / "f" / "figures.json").read_text())
    assert numbers["images"] == 20
    assert numbers["canvas_shift"] == 1
    assert numbers["disease"]["present"] == numbers["disease"]["absent"] == 10
    assert set(numbers["cells"]) == {"your encoder", "random encoder", "raw pixels"}
    # the mask is the same for everyone
    assert numbers["segmentation"]["dice"]["mean mask"]["value"] == 1
    assert (numbers["segmentation"]["chosen_on"], numbers["segmentation"]["judged_on"]) == (10, 10)
    assert any("holds no detector" in note for note in numbers["notes"])
    page = (tmp_path / "f" / "figures.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "lanted_" not in page + json.dumps(numbers)
    assert "PLANTED" not in page + json.dumps(numbers)
    assert str(tmp_path) not in page + json.dumps(numbers)


def test_the_folder_of_a_run_has_the_atlas_too_and_a_label_may_hold_signs_of_a_formula(
    model: Path, listed: Path, tmp_path: Path
) -> None:
    method = tiny_afire(shift=1)
    export_restorer(method, model, shift=1)
    export_detector(method, model, shift=1)
    listed.write_text(listed.read_text().replace("Mass", "a$_$b"))
    _, numbers = draw_figures(model.parent, listed, tmp_path / "f", Settings(images=6, clusters=2))
    assert numbers["disease"]["label"] == "a$_$b"
    assert "atlas" in numbers


def test_the_seed_decides_all_numbers(model: Path, listed: Path, tmp_path: Path) -> None:
    small = {"images": 8, "clusters": 2}
    _, one = draw_figures(model, listed, tmp_path / "a", Settings(**small, seed=3))
    _, same = draw_figures(model, listed, tmp_path / "b", Settings(**small, seed=3))
    assert one == same
    _, other = draw_figures(model, listed, tmp_path / "c", Settings(**small, seed=4))
    assert one["cells"] != other["cells"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "Mas"}, "no label 'Mas'; the nearest are Mass"),
        ({"images": 1}, "images is 1"),
        ({"shift": 4}, "shift is 4; a whole number of cells from 1 to 3"),
        ({"shift": 0}, "shift is 0"),
        ({"section": "training"}, "no section 'training'"),
        ({"clusters": 1}, "clusters is 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    model: Path, listed: Path, tmp_path: Path, settings: dict, message: str  # type: ignore[type-arg]
) -> None:  # fmt: skip
    with pytest.raises(AfireError, match=message):
        draw_figures(model, listed, tmp_path / "f", Settings(**{"images": 6, **settings}))
    assert not (tmp_path / "f").exists()


def test_unreadable_files_are_left_out_and_counted(model: Path, listed: Path, tmp_path: Path) -> None:
    (tmp_path / "Planted_Name_3.png").write_bytes(b"rubbish")
    _, numbers = draw_figures(model, listed, tmp_path / "f", Settings(clusters=2))
    assert numbers["images"] == 19
    assert "1 files cannot be used" in (tmp_path / "f" / "figures.html").read_text()


def test_masks_by_cells_keep_what_fills_whole_cells() -> None:
    mask = np.zeros((1, 16, 16), dtype=np.float32)
    mask[0, :, :8] = 1
    np.testing.assert_array_equal(by_cells(mask, (4, 4)), mask == 1)
    # what fills a quarter of a cell is lost
    mask[0, :4, 15] = 1
    assert not by_cells(mask, (4, 4))[0, :, 8:].any()


def score(value: float, chance: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "chance": chance}


@pytest.mark.parametrize(
    ("near", "exact", "kinds"),
    [((0.9, 0.3, 0.4), (0.8, 0.1, 0.2), ["good"]), ((0.9, 0.3, 0.4), (0.2, 0.1, 0.3), ["good", "note"]),
     ((0.4, 0.3, 0.4), (0.2, 0.1, 0.3), ["bad", "note"])],
)  # fmt: skip
def test_the_page_praises_only_what_is_clearly_above_the_floors(
    near: tuple[float, ...], exact: tuple[float, ...], kinds: list[str]
) -> None:
    views = ("your encoder", "random encoder", "raw pixels")
    pairs = zip(views, near, exact, strict=True)
    cells = {name: {"moved": {"nearby": score(n), "same_cell": score(e)}} for name, n, e in pairs}
    assert [kind for kind, _ in verdicts({"cells": cells})] == kinds
