from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from afire_monai.predictions.anomaly.normals import CellGaussian, Moments, fit_images


def test_moments_are_those_of_the_tokens_without_the_others():
    tokens = torch.randn(9, 4, 3)
    split = Moments.sum([Moments.of(tokens[:4]), Moments.of(tokens[4:])]) - Moments.of(tokens[:4])
    alone = Moments.of(tokens[4:])
    torch.testing.assert_close(split.fit().whitening, alone.fit().whitening)
    torch.testing.assert_close(alone.fit().mean, tokens[4:].mean(0))


def images_of(count: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 1, width, generator=generator) * torch.linspace(0.1, 3, width)


@pytest.mark.parametrize("count", [10, 60])
def test_distance_of_images_is_mahalanobis_of_ledoit_and_wolf(count):
    """Also with fewer images than dimensions."""
    normal, other = images_of(count, 12), images_of(7, 12) * 2 + 1
    model, _ = fit_images(normal, torch.arange(count))
    fitted = LedoitWolf().fit(normal[:, 0].numpy())
    expected = [mahalanobis(x, fitted.location_, fitted.precision_) for x in other[:, 0].numpy()]
    np.testing.assert_allclose(model.distance(other)[:, 0], expected, rtol=1e-4)


def test_normal_images_are_judged_without_their_patient():
    """Against fits to the others, one patient after the other, with the shrinkage of all."""
    normal = images_of(30, 12)
    patients = torch.tensor([0] * 6 + [1] * 2 + list(range(2, 24)))
    _, distances = fit_images(normal, patients)
    x = normal[:, 0].double().numpy()
    shrinkage = LedoitWolf().fit(x).shrinkage_
    target = np.trace(np.cov(x.T, bias=True)) / 12 * np.eye(12)
    for patient in range(24):
        own = patients.numpy() == patient
        rest = x[~own]
        covariance = (1 - shrinkage) * np.cov(rest.T, bias=True) + shrinkage * target * 30 / len(rest)
        expected = [mahalanobis(v, rest.mean(0), np.linalg.inv(covariance)) for v in x[own]]
        np.testing.assert_allclose(distances[own, 0], expected, rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(5, 5\)"):
        CellGaussian(torch.zeros(3, 4), torch.zeros(5, 5))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4, 4\)"):
        CellGaussian(torch.zeros(3, 4), torch.zeros(4, 4), cells=1)
