from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from afire_monai.predictions.anomaly.normals import CellNeighbours, fit_neighbours

CANVAS = (3, 4)


def tokens_of(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 12, 5), already of float16's precision."""
    return torch.randn(count, 12, 5, generator=torch.Generator().manual_seed(seed)).half().float()


def mean_cosine_distance(normal: torch.Tensor, tokens: torch.Tensor, nearest: int) -> np.ndarray:
    """Of each of tokens (b, d) to its nearest of normal (n, d)."""
    model = NearestNeighbors(n_neighbors=nearest, metric="cosine").fit(normal.numpy())
    return model.kneighbors(tokens.numpy())[0].mean(1)


@pytest.mark.parametrize("nearest", [1, 3])
def test_distance_is_that_of_scikit_learn_in_each_cell(nearest):
    normal, tokens = tokens_of(15), tokens_of(6, seed=1)
    found = CellNeighbours(normal.transpose(0, 1), CANVAS, nearest).distance(tokens)
    expected = [mean_cosine_distance(normal[:, cell], tokens[:, cell], nearest) for cell in range(12)]
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-3)


@pytest.mark.parametrize("window", [1, 2])
def test_window_adds_the_tokens_of_cells_around(window):
    normal, tokens = tokens_of(8), tokens_of(5, seed=1)
    found = CellNeighbours(normal.transpose(0, 1), CANVAS, 3, window).distance(tokens)
    for cell in range(12):
        row, column = divmod(cell, 4)
        around = [
            4 * r + c
            for r in range(max(0, row - window), min(3, row + window + 1))
            for c in range(max(0, column - window), min(4, column + window + 1))
        ]
        expected = mean_cosine_distance(normal[:, around].flatten(0, 1), tokens[:, cell], 3)
        np.testing.assert_allclose(found[:, cell], expected, atol=1e-3)


def test_normal_radiographs_are_compared_with_other_patients_alone():
    normal, patients = tokens_of(20), torch.arange(20) // 2
    normal[1::2] = normal[::2]  # both of a patient are the same, so that they would be at distance 0
    _, distances = fit_neighbours(normal.half(), patients, CANVAS, most=100)
    for image in range(20):
        others = normal[patients != patients[image]]
        expected = [mean_cosine_distance(others[:, c], normal[image, c][None], 3)[0] for c in range(12)]
        np.testing.assert_allclose(distances[image], expected, atol=1e-3)


def test_kept_are_as_many_patients_as_there_can_be_spread_over_the_list():
    normal = tokens_of(12)
    patients = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7])

    def kept(most: int) -> list[int]:
        model, _ = fit_neighbours(normal.half(), patients, CANVAS, most)
        unit = torch.nn.functional.normalize(normal, dim=-1).transpose(0, 1)
        return [int((unit - token).abs().sum((0, 2)).argmin()) for token in model.bank.transpose(0, 1).unsqueeze(2)]

    assert kept(4) == [0, 6, 8, 10]  # every second of the patients 0 to 7
    assert kept(8) == [0, 4, 6, 7, 8, 9, 10, 11]
    assert kept(9) == [0, 1, 4, 6, 7, 8, 9, 10, 11]
    assert kept(50) == list(range(12))


def test_a_patient_with_nearly_all_radiographs_has_fewer_neighbours():
    patients = torch.tensor([0] * 8 + [1, 2])
    model, distances = fit_neighbours(tokens_of(10).half(), patients, CANVAS, most=100)
    assert model.nearest == 2
    assert distances.isfinite().all()


@pytest.mark.parametrize(
    ("bank", "nearest"), [(torch.ones(11, 5, 4), 3), (torch.ones(12, 2, 4), 3), (torch.ones(12, 5), 3)]
)
def test_banks_that_do_not_fit_are_refused(bank, nearest):
    with pytest.raises(ValueError, match=r"in a canvas of \(3, 4\) cells"):
        CellNeighbours(bank, CANVAS, nearest)
