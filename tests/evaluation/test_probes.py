from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from afire_monai.core.errors import AfireError
from afire_monai.evaluation import probes
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe, raw_pixels
from afire_monai.networks import ViTEncoder


@pytest.fixture
def encoder() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(32, 4, embed_dim=16, depth=1, num_heads=2)


def clouds(n: int, seed: int, distance: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.5).astype(int)
    features = generator.normal(size=(n, 6))
    features[:, 0] += distance * labels
    return features, labels


def test_features_are_means_of_patch_tokens_the_class_token_or_regions(encoder):
    images = torch.rand(5, 1, 32, 32)
    with torch.no_grad():
        tokens = encoder.eval()(images)
    np.testing.assert_allclose(extract_features(encoder, images), tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extract_features(encoder, images, "class"), tokens[:, 0], rtol=1e-5, atol=1e-6)
    both = extract_features(encoder, images, "class_mean")
    np.testing.assert_allclose(both, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        summary = encoder.summary(images)
    np.testing.assert_allclose(extract_features(encoder, images, "summary"), summary, rtol=1e-5, atol=1e-6)
    regions = extract_features(encoder, images, "regions").reshape(5, 16, 4, 4)
    grid = tokens[:, 1:].view(5, 8, 8, 16)
    for row in range(4):
        for column in range(4):
            block = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            np.testing.assert_allclose(regions[:, :, row, column], block, rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_how_many_images_go_at_a_time(encoder):
    images = torch.rand(7, 1, 32, 32)
    np.testing.assert_allclose(
        extract_features(encoder, images, batch_size=3), extract_features(encoder, images), rtol=1e-5, atol=1e-6
    )


def test_unknown_pooling_is_refused_with_the_known_ones(encoder):
    with pytest.raises(AfireError, match="mean, class, class_mean, regions or summary, got 'max'"):
        extract_features(encoder, torch.rand(1, 1, 32, 32), "max")  # type: ignore[arg-type]


def test_raw_pixels_are_area_means():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert raw_pixels(images, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]


@pytest.mark.parametrize("k", [1, 7, 20])
def test_knn_scores_equal_scikit_learns_neighbours_with_the_same_weights(k):
    train, labels = clouds(80, 0)
    test, _ = clouds(30, 1)
    scaler = StandardScaler().fit(train)
    # cosine distance is one minus the similarity
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    reference.fit(scaler.transform(train), labels)
    expected = reference.predict_proba(scaler.transform(test))[:, 1]
    np.testing.assert_allclose(knn_probe(train, labels, test, k), expected, atol=1e-6)


def test_knn_with_more_neighbours_than_cases_takes_them_all():
    train, labels = clouds(10, 0)
    scores = knn_probe(train, labels, train[:3], k=50)
    np.testing.assert_allclose(scores, knn_probe(train, labels, train[:3], k=10))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_knn_does_not_depend_on_the_scale_of_a_feature():
    train, labels = clouds(60, 0)
    test, _ = clouds(20, 1)
    scale = np.array([1, 100, 0.01, 5, 1, 1])
    scaled = knn_probe(train * scale, labels, test * scale)
    np.testing.assert_allclose(scaled, knn_probe(train, labels, test), atol=1e-9)


@pytest.mark.parametrize("probe", ["knn", "linear"])
def test_probes_find_a_signal_and_find_none_where_there_is_none(probe):
    def score(distance: float) -> float:
        train, labels = clouds(240, 0, distance)
        test, truth = clouds(240, 1, distance)
        scores = knn_probe(train, labels, test) if probe == "knn" else linear_probe(train, labels, test, np.arange(240))
        return roc_auc_score(truth, scores)

    assert score(3.0) > 0.93
    assert abs(score(0.0) - 0.5) < 0.1


def test_strength_of_the_linear_probe_is_chosen_with_whole_patients_and_both_classes_in_each_fold(monkeypatch):
    folds = []

    class Watched(StratifiedGroupKFold):
        def split(self, features, labels=None, groups=None):
            for fold in super().split(features, labels, groups):
                folds.append(fold)
                yield fold

    monkeypatch.setattr(probes, "StratifiedGroupKFold", Watched)
    features, labels = clouds(60, 0)
    groups = np.random.default_rng(0).integers(0, 25, 60)
    linear_probe(features, labels, features, groups)
    assert len(folds) == 5
    for inside, outside in folds:
        assert not set(groups[inside]) & set(groups[outside])
        assert set(labels[outside]) == {0, 1}
    assert sorted(np.concatenate([outside for _, outside in folds])) == list(range(60))


def test_linear_probe_of_a_rare_label_has_as_many_folds_as_patients_with_it():
    rng = np.random.default_rng(0)
    labels = np.zeros(100, int)
    labels[:3] = 1
    features = rng.normal(0, 1, (100, 4)) + 3 * labels[:, None]
    with pytest.raises(AfireError, match="1 patients have the rarer label"):
        linear_probe(features[2:], labels[2:], features, np.arange(98))
    scores = linear_probe(features, labels, features, np.arange(100))
    assert np.isfinite(scores).all()
    assert scores[:3].min() > np.sort(scores[3:])[-5]


def test_linear_probe_gives_the_same_scores_for_the_same_seed():
    train, labels = clouds(60, 0)
    groups = np.arange(60) // 2
    first, again = (linear_probe(train, labels, train, groups, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
