from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import smooth_images, tiny_afire
from scipy import ndimage
from scipy.stats import ks_2samp

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.restorer import AnomalyNetwork
from afire_monai.predictions.anomaly.build_reference import build_reference
from afire_monai.predictions.anomaly.combination import pool
from afire_monai.predictions.anomaly.detector import AnomalyDetector, AnomalyFeatures
from afire_monai.predictions.anomaly.normals import fit_images, fit_tokens
from afire_monai.predictions.anomaly.reference import NormalReference


class Told:
    """Stands in for a detector: "images" are its features, 3 cells, tokens of width 2 first, then the residual."""

    parts = ("tokens", "residual")
    canvas = SimpleNamespace(canvas_grid=(1, 3))

    def features(self, images, parts=None, restore=False, layers=()):
        return AnomalyFeatures(images[..., :2], (1, 3), {"residual": images[..., 2]}, class_token=images[:, 0])


class Wide(Told):
    """Stands in for a detector of 20 cells: "images" are its tokens, whose first one is also the class token."""

    canvas = SimpleNamespace(canvas_grid=(4, 5))

    def features(self, images, parts=None, restore=False, layers=()):
        layers = dict.fromkeys(layers, images**3)
        return AnomalyFeatures(images, (4, 5), class_token=images[:, 0], layers=layers, middle=images**3)


def normals(count=40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 3, generator=generator) * torch.tensor([1.0, 3.0, 0.2]) + torch.arange(3.0)[:, None]


def patients(count=40) -> list[str]:
    return [f"patient {i // 2}" for i in range(count)]


def slow(values: torch.Tensor, groups: list[str], test: torch.Tensor):
    """Score of normals and of a test picture, step by step in numpy; values (n, 3, 3)."""
    x = values.half().double().numpy()[..., :2]
    order = list(dict.fromkeys(groups))
    fold = np.array([order.index(g) % 10 for g in groups])

    def distances(fit, apply):
        mean = fit.mean(0)
        residuals = (fit - mean).reshape(-1, 2)
        covariance = residuals.T @ residuals / (len(residuals) - 3)  # a mean for each of 3 cells
        covariance += 0.01 * np.trace(covariance) / 2 * np.eye(2)
        inverse = np.linalg.inv(covariance)
        return np.array([[np.sqrt((t - m) @ inverse @ (t - m)) for t, m in zip(a, mean, strict=True)] for a in apply])

    d = np.zeros((len(x), 3))
    for k in range(10):
        d[fold == k] = distances(x[fold != k], x[fold == k])
    raw = np.stack([d, values[..., 2].double().numpy()], 1)
    mean, std = raw.mean(0), raw.std(0, ddof=1)
    combined = ((raw - mean) / std).mean(1)
    spread = combined.std(0, ddof=1)
    t = test.double().numpy()
    told = np.stack([distances(x, t[..., :2]), t[..., 2]], 1)
    return (combined / spread).mean(1), ((told - mean) / std).mean(1) / spread


def test_scores_are_those_of_a_slow_reference():
    test = normals(7) * 1.5
    reference = build_reference(Told(), normals().split(7), patients(), Told.parts)
    scores, cells = slow(normals(), patients(), test)
    np.testing.assert_allclose(reference.scores, np.sort(scores), atol=2e-3)
    found = reference.judge(Told().features(test), (4, 12))
    np.testing.assert_allclose(found.cells["combined"], cells, atol=5e-3)
    np.testing.assert_allclose(found.score, cells.mean(1), atol=5e-3)
    for score, percentile in zip(found.score.tolist(), found.percentile.tolist(), strict=True):
        assert percentile == pytest.approx(100 * np.mean(reference.scores.numpy() < score))


def test_the_order_of_batches_does_not_matter_and_ties_count_half():
    whole = build_reference(Told(), [normals()], patients(), Told.parts)
    parts = build_reference(Told(), normals().split(3), patients(), Told.parts)
    torch.testing.assert_close(whole.scores, parts.scores)
    whole.scores = torch.tensor([1.0, 2.0, 2.0, 3.0])
    found = whole.judge(Told().features(normals(1)), (4, 12))
    below = sum(s < found.score.item() for s in (1, 2, 2, 3))
    assert found.percentile.item() == 25 * below


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (("tokens",), {}),
        (("neighbours",), {}),
        (("neighbours",), {"window": 1, "layers": (0,), "scales": (1, 3)}),
        (("density",), {}),
        (("class_density",), {}),
        (("tokens", "neighbours", "density"), {"pooling": "top"}),
    ],
)
def test_new_normals_are_spread_evenly_over_the_percentiles(parts, options):
    """Without cross-fitting they would seem unusual: tokens of few normals fit themselves, or their patient, too well.

    Patients differ, and have two images each.
    """
    generator = torch.Generator().manual_seed(0)
    patients = torch.randn(400, 20, 60, generator=generator).repeat_interleave(2, 0)
    values = patients + 0.3 * torch.randn(800, 20, 60, generator=generator)
    groups = [str(i // 2) for i in range(200)]
    reference = build_reference(Wide(), values[:200].split(64), groups, parts, **options)
    found = reference.judge(Wide().features(values[200:], layers=reference.layers), (8, 10))
    # of two samples that differ by chance alone this is exceeded once in a thousand times: 1.95 sqrt(1/100 + 1/300)
    assert ks_2samp(reference.scores, found.score).statistic < 0.225
    assert 42 < found.percentile.mean() < 58


def test_parts_of_cells_and_of_images_are_added_up_as_in_a_slow_reference():
    """Step by step in numpy: mean of cells for the map, which counts for both of its parts, then the density."""
    values, test, groups = normals(), normals(7) * 1.5, patients()
    parts = ("neighbours", "residual", "density")
    found = build_reference(Told(), values.split(7), groups, parts).judge(Told().features(test), (4, 12))

    def measured(x, excluded):
        x, bank = x.half().double().numpy(), values.half().double().numpy()[..., :2]
        unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x[..., :2], bank)]
        cosine = np.where(excluded[:, :, None], -2, np.einsum("bnd,mnd->bmn", *unit))
        return np.stack([1 - np.sort(cosine, 1)[:, -3:].mean(1), x[..., 2]], 1)

    same = np.array([[a == b for b in groups] for a in groups])
    raw, new = measured(values, same), measured(test, np.zeros((7, 40), bool))
    mean, std = raw.mean(0), raw.std(0, ddof=1)
    cells = ((raw - mean) / std).mean(1)
    maps = [((v - mean) / std).mean(1) / cells.std(0, ddof=1) for v in (raw, new)]
    pooled = [m.mean(1) for m in maps]
    model, density = fit_images(values[..., :2].mean(1, keepdim=True), torch.arange(40) // 2)
    densities = [density[:, 0].numpy(), model.distance(test[..., :2].mean(1, keepdim=True))[:, 0].numpy()]
    z = [(pair[1] - pair[0].mean()) / pair[0].std(ddof=1) for pair in (pooled, densities)]
    np.testing.assert_allclose(found.cells["combined"], maps[1], atol=0.03)
    np.testing.assert_allclose(found.parts["density"], z[1], atol=1e-3)
    np.testing.assert_allclose(found.parts["residual"], ((new - mean) / std)[:, 1].mean(1), atol=0.02)
    np.testing.assert_allclose(found.score, (2 * z[0] + z[1]) / 3, atol=0.02)


def test_places_draw_the_map_and_do_not_count_in_the_score():
    """Distances of the middle tokens less their mean over cells, in a cell's standard deviations, smoothed by SciPy."""
    values = torch.randn(60, 20, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.8, 1.2, 20)[:, None]
    groups = [str(i // 2) for i in range(50)]
    features = Wide().features(values[50:])
    drawn = build_reference(Wide(), [values[:50]], groups, ("tokens", "density", "places")).judge(features, (8, 10))
    without = build_reference(Wide(), [values[:50]], groups, ("tokens", "density")).judge(features, (8, 10))
    torch.testing.assert_close(drawn.score, without.score)
    torch.testing.assert_close(drawn.percentile, without.percentile)
    assert {*drawn.parts} == {"tokens", "density"}

    model, normal = fit_tokens((values[:50] ** 3).half(), torch.arange(50) // 2 % 10)
    normal, new = normal.double().numpy(), model.distance(values[50:] ** 3).double().numpy()
    standard = ((new - normal.mean()) / normal.std(0, ddof=1)).reshape(10, 4, 5)
    smooth = np.stack([ndimage.gaussian_filter(one, 1, mode="nearest") for one in standard])
    z = F.interpolate(torch.from_numpy(smooth)[:, None], (8, 10), mode="bilinear")[:, 0].clamp_min(0)
    torch.testing.assert_close(drawn.heat.double(), z / (z + 3), atol=1e-4, rtol=0)


def test_places_alone_give_no_score():
    with pytest.raises(AfireError, match="places draws the map and gives no score"):
        build_reference(Wide(), [torch.randn(40, 20, 6)], patients(), ("places",))
    reference = build_reference(Wide(), [torch.randn(40, 20, 6)], patients(), ("density", "places"))
    assert reference.judge(Wide().features(torch.randn(2, 20, 6)), (4, 5)).heat.shape == (2, 4, 5)


def test_layers_of_a_part_count_as_one():
    values = torch.randn(40, 20, 6, generator=torch.Generator().manual_seed(1))
    reference = build_reference(Wide(), [values], patients(), ("tokens", "neighbours"), layers=(0, 2))
    found = reference.judge(Wide().features(2 * values[:3], layers=(0, 2)), (4, 5))
    means = [torch.stack([found.cells[f"{p}{at}"] for at in ("", "@0", "@2")]).mean(0) for p in reference.parts]
    expected = (means[0] + means[1]) / 2 / reference.combination.combined_std
    torch.testing.assert_close(found.cells["combined"], expected)
    torch.testing.assert_close(found.parts["tokens"], means[0].mean(1))


def test_scales_of_a_part_count_as_one_and_compare_tokens_averaged_over_squares():
    values = torch.randn(40, 20, 6, generator=torch.Generator().manual_seed(1))

    def averaged(tokens):
        means = torch.zeros_like(tokens)
        for row in range(4):
            for column in range(5):
                near = [5 * r + c for r in range(4) for c in range(5) if abs(r - row) < 2 and abs(c - column) < 2]
                means[:, 5 * row + column] = tokens[:, near].mean(1)
        return means

    reference = build_reference(Wide(), [values], patients(), ("tokens", "density"), scales=(1, 3))
    found = reference.judge(Wide().features(2 * values[:3]), (4, 5))
    assert [*found.cells] == ["tokens", "tokensx3", "combined"]
    smooth = build_reference(Wide(), [averaged(values)], patients(), ("tokens",))
    expected = smooth.judge(Wide().features(averaged(2 * values[:3])), (4, 5))
    torch.testing.assert_close(found.cells["tokensx3"], expected.cells["tokens"], atol=1e-3, rtol=1e-3)
    both = (found.cells["tokens"] + found.cells["tokensx3"]) / 2
    torch.testing.assert_close(found.parts["tokens"], both.mean(1))
    with pytest.raises(AfireError, match=r"odd numbers of cells, such as 1,3; got \[2\]"):
        build_reference(Wide(), [values], patients(), ("tokens",), scales=(2,))


def test_parts_of_whole_images_give_a_score_and_no_map():
    reference = build_reference(Told(), [normals()], patients(), ("density", "class_density"))
    found = reference.judge(Told().features(normals(5)), (4, 12))
    assert not reference.has_map
    assert found.heat is None
    torch.testing.assert_close(found.score, (found.parts["density"] + found.parts["class_density"]) / 2)


def test_reference_file_stays_below_20_megabytes(tmp_path):
    values = torch.randn(60, 256, 900, generator=torch.Generator().manual_seed(1))
    wide = Wide()
    wide.canvas = SimpleNamespace(canvas_grid=(16, 16))
    groups = [str(i) for i in range(60)]
    reference = build_reference(wide, values.split(20), groups, ("tokens", "neighbours", "density"))
    path = reference.save(tmp_path)
    assert 19_000_000 < path.stat().st_size < 20_000_000
    # each radiograph's tokens have 256 · 900 numbers of two bytes
    assert 20 < reference.models["neighbours"].bank.shape[1] < 60


@pytest.mark.parametrize(
    ("count", "groups", "said"),
    [
        (19, None, "19 normal radiographs are too few"),
        (40, ["one"] * 40, "of one patient"),
        (40, ["a", "b"], "2 groups do not fit 40"),
    ],
)
def test_too_few_normals_or_patients_are_refused(count, groups, said):
    with pytest.raises(AfireError, match=said):
        build_reference(Told(), [normals(count)], groups or [str(i) for i in range(count)])
    with pytest.raises(AfireError, match="at least 0 cells, at most 3, got -1"):
        build_reference(Told(), [normals()], patients(), ("neighbours",), window=-1)


def test_unknown_pooling_and_no_parts_are_refused():
    for options in ({"pooling": "sum"}, {"parts": ()}):
        with pytest.raises(AfireError, match="pooling must be mean, top or max"):
            build_reference(Told(), [normals()], patients(), **options)


def test_cells_that_are_the_same_in_all_normals_stay_finite():
    values = normals()
    values[:, 0, 2] = 0.0  # a black corner
    reference = build_reference(Told(), [values], patients(), Told.parts)
    found = reference.judge(Told().features(values[:1] + 0.001), (4, 12))
    assert found.score.isfinite().all()
    assert found.cells["residual"][0, 0] < 1


def test_pooling_takes_mean_top_or_largest_cells():
    cells = torch.arange(40.0)[None]
    assert pool(cells, "mean").item() == 19.5
    assert pool(cells, "top").item() == 38.5  # two of forty
    assert pool(cells, "max").item() == 39


@pytest.mark.parametrize(("percentile", "said"), [(97.6, "97 % of"), (98.7, "98 % of"), (100, "all"), (0, "0 % of")])
def test_percentile_in_words_never_says_more_than_was_counted(percentile, said):
    reference = build_reference(Told(), [normals()], patients(), Told.parts)
    assert reference.in_words(percentile)["meaning"] == f"more unusual than {said} 40 normal radiographs"


def real_reference(tmp_path, **options):
    student = tiny_afire(2).student.eval()
    detector = AnomalyDetector(student.encoder, 2, AnomalyNetwork(student.encoder, student.decoder)).eval()
    facts = {"section": "training", "datalist_sha256": "ab" * 32, "model_sha256": {"restorer": "cd"}}
    groups = [str(i) for i in range(20)]
    reference = build_reference(detector, smooth_images(20, (48, 48)).split(6), groups, facts=facts, **options)
    return detector, reference, reference.save(tmp_path)


EVERYTHING = {
    "parts": ("tokens", "neighbours", "residual", "density", "class_density", "places"),
    "layers": (0, -1),
    "scales": (1, 3),
    "window": 1,
    "pooling": "top",
}


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"parts": ("density",)}, {"parts": ("density", "places")}])
def test_saved_reference_judges_as_before(options, tmp_path):
    detector, reference, path = real_reference(tmp_path, **options)
    features = detector.features(smooth_images(2, (48, 48), seed=1), layers=reference.layers)
    before = reference.judge(features, (48, 48))
    loaded = NormalReference.load(tmp_path)
    after = loaded.judge(features, (48, 48))
    assert torch.equal(before.score, after.score)
    assert (before.heat is None and after.heat is None) or torch.equal(before.heat, after.heat)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (description["count"], description["resolution_percent"], description["section"]) == (20, 5.0, "training")
    assert description["datalist_sha256"] == "ab" * 32
    loaded.check(detector, {"restorer": "cd", "detector": "other"})


def test_reference_of_other_weights_or_parts_is_refused(tmp_path):
    detector, _, _ = real_reference(tmp_path, parts=("tokens", "residual"))
    loaded = NormalReference.load(tmp_path)
    with pytest.raises(CheckpointError, match="made with other restorer weights"):
        loaded.check(detector, {"restorer": "ef"})
    with pytest.raises(CheckpointError, match="made with another detector"):
        loaded.check(AnomalyDetector(detector.encoder, 2), {"restorer": "cd"})


@pytest.mark.parametrize(
    "change",
    [
        {"parts": None},
        {"canvas": [5, 7]},
        {"layers": [0]},
        {"scales": [1]},
        {"scales": [2]},
        {"scales": "x"},
        {"pooling": "sum"},
        {"neighbours": {"nearest": 30, "window": 1}},
        {"neighbours": None},
        {"neighbours": {"nearest": 3, "window": 7}},
    ],
)
def test_damaged_reference_is_told(change, tmp_path):
    _, _, path = real_reference(tmp_path, **EVERYTHING)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps({**description, **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="make them again"):
        NormalReference.load(tmp_path)


def test_cut_off_reference_and_one_of_an_earlier_version_are_told(tmp_path):
    _, _, path = real_reference(tmp_path)
    path.with_suffix(".json").write_text('{"format": "afire-monai reference 1"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'afire-monai reference 1', .* make it again with `afire reference`"):
        NormalReference.load(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="must both be there and whole"):
        NormalReference.load(path)


@pytest.mark.parametrize(
    "change", [{"canvas": [2**31, 2**31]}, {"neighbours": {"nearest": 3, "window": 10**9}}, {"canvas": [-6, -6]}]
)
def test_sizes_that_a_references_tensors_do_not_bear_are_refused_before_it_is_built(change, tmp_path, monkeypatch):
    _, _, path = real_reference(tmp_path, **EVERYTHING)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps({**description, **change}), encoding="utf-8")
    monkeypatch.setattr("afire_monai.predictions.anomaly.reference._built", lambda *_: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=r"reference.json: .* does not fit the weights"):
        NormalReference.load(tmp_path)


def test_reference_that_changed_since_it_was_written_is_refused(tmp_path):
    _, _, path = real_reference(tmp_path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"reference.safetensors has changed since it was written"):
        NormalReference.load(tmp_path)
