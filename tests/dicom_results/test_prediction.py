from __future__ import annotations

import numpy as np
import pytest

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import ImagePrediction
from afire_monai.predictions.format import Predictions, load_predictions, save_predictions


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), "0.5", None, True])
def test_probability_outside_0_to_1_is_refused_by_name(value):
    with pytest.raises(AfireError, match="probability of 'Edema'"):
        ImagePrediction({"Edema": value})
    with pytest.raises(AfireError, match="threshold of 'Edema'"):
        ImagePrediction({"Edema": 0.5}, {"Edema": value})


@pytest.mark.parametrize("value", [-1, 101, float("nan")])
def test_percentile_outside_0_to_100_is_refused(value):
    with pytest.raises(AfireError, match="anomaly percentile"):
        ImagePrediction(anomaly_percentile=value)


@pytest.mark.parametrize(
    "heatmap",
    [
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), 1.5, np.float32),
        np.full((4, 4), -0.1, np.float32),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((4, 4), np.uint8),
        [[0.0]],
    ],
)
def test_heatmap_that_is_none_is_refused(heatmap):
    with pytest.raises(AfireError, match="heatmap"):
        ImagePrediction(heatmap=heatmap)


def test_label_without_a_name_is_refused():
    with pytest.raises(AfireError, match="no name"):
        ImagePrediction({" ": 0.5})


def test_heatmap_of_the_sources_shape_stays_as_it_is():
    heat = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(ImagePrediction(heatmap=heat).fitted((5, 7)), heat)


def test_heatmap_is_stretched_by_linear_interpolation_between_pixel_centres():
    heat = np.array([[0.0, 1.0]], dtype=np.float32)
    large = ImagePrediction(heatmap=heat).fitted((2, 4))
    # centres of the four pixels lie at -0.25, 0.25, 0.75, 1.25 of the two, clamped at the border
    np.testing.assert_allclose(large, [[0, 0.25, 0.75, 1]] * 2, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 48), (48, 48), (49, 63)])
def test_heatmap_of_another_aspect_is_refused_with_both_sizes(shape):
    with pytest.raises(AfireError, match=r"heatmap has 48 rows and 64 columns, the source"):
        ImagePrediction(heatmap=np.zeros((48, 64), np.float32)).fitted(shape)


@pytest.mark.parametrize("shape", [(2500, 2048), (1955, 1841), (169, 211), (3000, 17), (16, 16)])
def test_heatmaps_as_predict_reduces_them_fit_their_source(shape):
    from afire_monai.predictions.reading import display_size
    from afire_monai.predictions.results import MAP_SIDE

    small = np.zeros(display_size(shape, MAP_SIDE), np.float32)
    assert ImagePrediction(heatmap=small).fitted(shape).shape == shape


def test_record_of_predict_is_understood():
    record = {
        "labels": {
            "Edema": {"probability": 0.25, "threshold": 0.5, "above_threshold": False},
            "Mass": {"probability": 0.75, "threshold": None, "above_threshold": None},
            "Hernia": None,
        },
        "anomaly": {"score": 3.0, "percentile": 90.0},
        "heatmap": {"kind": "gradcam", "label": "Mass"},
        "model": {"version": "1"},
    }
    made = ImagePrediction.from_record(record)
    assert made.probabilities == {"Edema": 0.25, "Mass": 0.75}
    assert made.thresholds == {"Edema": 0.5}
    assert (made.anomaly_percentile, made.heatmap_kind, made.heatmap_label) == (90.0, "gradcam", "Mass")


@pytest.mark.parametrize("record", [{}, {"labels": None}, {"labels": {"Edema": {}}}, {"labels": {"Edema": 0.5}}])
def test_record_of_something_else_is_refused(record):
    with pytest.raises(AfireError, match="record of a prediction"):
        ImagePrediction.from_record(record)


def test_row_of_a_folder_becomes_a_prediction_without_what_is_not_known(tmp_path):
    heat = np.zeros((3, 4), np.float32)
    heat[1, 2] = 1
    table = Predictions(
        np.array([5, 2]),
        {"Edema": np.array([0.25, np.nan]), "Mass": np.array([0.5, 0.75])},
        np.array([np.nan, 12.0]),
        {"section": "", "datalist_sha256": "", "model": {"v": 1}, "thresholds": {"Edema": 0.5}, "heatmap": "rollout"},
    )
    save_predictions(table, tmp_path / "p", [None, heat])
    loaded = load_predictions(tmp_path / "p")
    first, second = (ImagePrediction.from_predictions(loaded, index) for index in (5, 2))
    assert (first.probabilities, first.thresholds) == ({"Edema": 0.25, "Mass": 0.5}, {"Edema": 0.5})
    assert first.anomaly_percentile is None
    assert first.heatmap is None
    assert (second.probabilities, second.thresholds, second.anomaly_percentile) == ({"Mass": 0.75}, {}, 12.0)
    np.testing.assert_array_equal(second.heatmap, heat)
    assert second.heatmap_kind == "rollout"
    with pytest.raises(AfireError, match="image 3"):
        ImagePrediction.from_predictions(loaded, 3)
