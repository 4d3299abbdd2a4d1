from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import smooth_images, tiny_afire

from afire_monai.errors import AfireError, CheckpointError
from afire_monai.inference import AnomalyDetector, AnomalyNetwork, NormalReference, build_reference
from afire_monai.inference.anomaly import AnomalyFeatures
from afire_monai.inference.gaussian import Moments
from afire_monai.inference.reference import pool


class Told:
    """Stands in for a detector: "images" are its features, 3 cells, tokens of width 2 first, then the residual."""

    parts = default_parts = ("tokens", "residual")

    def features(self, images, parts=None):
        return AnomalyFeatures(images[..., :2], {"residual": images[..., 2]})


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
    reference = build_reference(Told(), normals().split(7), patients())
    scores, cells = slow(normals(), patients(), test)
    np.testing.assert_allclose(reference.scores, np.sort(scores), atol=2e-3)
    found = reference.judge(Told().features(test), (1, 3), (4, 12))
    np.testing.assert_allclose(found.cells["combined"], cells, atol=5e-3)
    np.testing.assert_allclose(found.score, cells.mean(1), atol=5e-3)
    for score, percentile in zip(found.score.tolist(), found.percentile.tolist(), strict=True):
        assert percentile == pytest.approx(100 * np.mean(reference.scores.numpy() < score))


def test_the_order_of_batches_does_not_matter_and_ties_count_half():
    whole = build_reference(Told(), [normals()], patients())
    parts = build_reference(Told(), normals().split(3), patients())
    torch.testing.assert_close(whole.scores, parts.scores)
    whole.scores = torch.tensor([1.0, 2.0, 2.0, 3.0])
    found = whole.judge(Told().features(normals(1)), (1, 3), (4, 12))
    below = sum(s < found.score.item() for s in (1, 2, 2, 3))
    assert found.percentile.item() == 25 * below


@torch.no_grad()
def test_new_normals_are_spread_over_the_percentiles():
    """Without cross-fitting they would seem unusual: tokens of few normals fit themselves too well."""
    generator = torch.Generator().manual_seed(0)

    class Wide(Told):
        def features(self, images, parts=None):
            return AnomalyFeatures(images, {})

    values = torch.randn(200, 20, 60, generator=generator)
    reference = build_reference(Wide(), [values[:60]], [str(i) for i in range(60)], ("tokens",))
    found = reference.judge(Wide().features(values[60:]), (4, 5), (8, 10))
    assert 40 < found.percentile.mean() < 60


def test_moments_are_those_of_the_tokens_without_the_others():
    tokens = torch.randn(9, 4, 3)
    split = Moments.sum([Moments.of(tokens[:4]), Moments.of(tokens[4:])]) - Moments.of(tokens[:4])
    alone = Moments.of(tokens[4:])
    torch.testing.assert_close(split.fit().whitening, alone.fit().whitening)
    torch.testing.assert_close(alone.fit().mean, tokens[4:].mean(0))


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


def test_unknown_pooling_and_no_parts_are_refused():
    for options in ({"pooling": "sum"}, {"parts": ()}):
        with pytest.raises(AfireError, match="pooling must be mean, top or max"):
            build_reference(Told(), [normals()], patients(), **options)


def test_cells_that_are_the_same_in_all_normals_stay_finite():
    values = normals()
    values[:, 0, 2] = 0.0  # a black corner
    reference = build_reference(Told(), [values], patients())
    found = reference.judge(Told().features(values[:1] + 0.001), (1, 3), (4, 12))
    assert found.score.isfinite().all()
    assert found.cells["residual"][0, 0] < 1


def test_pooling_takes_mean_top_or_largest_cells():
    cells = torch.arange(40.0)[None]
    assert pool(cells, "mean").item() == 19.5
    assert pool(cells, "top").item() == 38.5  # two of forty
    assert pool(cells, "max").item() == 39


@pytest.mark.parametrize(("percentile", "said"), [(97.6, "97 % of"), (98.7, "98 % of"), (100, "all"), (0, "0 % of")])
def test_percentile_in_words_never_says_more_than_was_counted(percentile, said):
    reference = build_reference(Told(), [normals()], patients())
    assert reference.in_words(percentile)["meaning"] == f"more unusual than {said} 40 normal radiographs"


def real_reference(tmp_path):
    student = tiny_afire(2).student.eval()
    detector = AnomalyDetector(student.encoder, 2, AnomalyNetwork(student.encoder, student.decoder)).eval()
    facts = {"section": "training", "datalist_sha256": "ab" * 32, "model_sha256": {"restorer": "cd"}}
    groups = [str(i) for i in range(20)]
    reference = build_reference(detector, smooth_images(20, (48, 48)).split(6), groups, facts=facts)
    return detector, reference, reference.save(tmp_path)


def test_saved_reference_judges_as_before(tmp_path):
    detector, reference, path = real_reference(tmp_path)
    features = detector.features(smooth_images(2, (48, 48), seed=1))
    before = reference.judge(features, (6, 6), (48, 48))
    loaded = NormalReference.load(tmp_path)
    after = loaded.judge(features, (6, 6), (48, 48))
    assert torch.equal(before.score, after.score)
    assert torch.equal(before.heat, after.heat)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert (description["count"], description["resolution_percent"], description["section"]) == (20, 5.0, "training")
    assert description["datalist_sha256"] == "ab" * 32
    loaded.check(detector, {"restorer": "cd", "detector": "other"})


def test_reference_of_other_weights_or_parts_is_refused(tmp_path):
    detector, _, _ = real_reference(tmp_path)
    loaded = NormalReference.load(tmp_path)
    with pytest.raises(CheckpointError, match="made with other restorer weights"):
        loaded.check(detector, {"restorer": "ef"})
    with pytest.raises(CheckpointError, match="made with another detector"):
        loaded.check(AnomalyDetector(detector.encoder, 2), {"restorer": "cd"})


def test_damaged_reference_is_told(tmp_path):
    _, _, path = real_reference(tmp_path)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps({**description, "parts": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="make them again"):
        NormalReference.load(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="must both be there and whole"):
        NormalReference.load(path)
