from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.predictions.format import Predictions, PredictionsWriter, load_predictions, save_predictions

FACTS = {"section": "test", "datalist_sha256": "ab" * 32, "model": {"kind": "classifier"}, "thresholds": {"A": 0.5}}


def two(**changes):
    scores = {"A": np.array([0.25, np.nan]), "B, b": np.array([1.0, 1 / 3])}
    return Predictions(**{"index": np.array([0, 3]), "scores": scores, "facts": FACTS, **changes})


def test_what_is_saved_is_loaded_again(tmp_path):
    saved = two(anomaly_percentile=np.array([97.5, np.nan]))
    heatmaps = [np.linspace(0, 1, 12).reshape(3, 4), None]
    masks = [None, np.array([[0, 127], [255, 1]])]
    loaded = load_predictions(save_predictions(saved, tmp_path / "new" / "p", heatmaps, masks))
    assert loaded.labels == ("A", "B, b")
    assert loaded.facts == FACTS
    assert (loaded.section, loaded.datalist_sha256, loaded.thresholds) == ("test", "ab" * 32, {"A": 0.5})
    np.testing.assert_array_equal(loaded.index, [0, 3])
    for name in saved.labels:
        np.testing.assert_array_equal(loaded.scores[name], saved.scores[name])
    np.testing.assert_array_equal(loaded.anomaly_percentile, [97.5, np.nan])
    np.testing.assert_allclose(loaded.heatmap(0), heatmaps[0], atol=1 / 65535)
    assert loaded.heatmap(3) is None
    assert loaded.mask(0) is None
    np.testing.assert_array_equal(loaded.mask(3), masks[1])


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_predictions(tmp_path):
    save_predictions(two(), tmp_path)

    def interrupted():
        with PredictionsWriter(tmp_path, ["A"], FACTS) as writer:
            writer.add(0, {"A": 0.5}, heatmap=np.zeros((2, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(AfireError, match="an interrupted run leaves none"):
        load_predictions(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_writing_again_leaves_no_picture_of_the_earlier_run(tmp_path):
    save_predictions(two(), tmp_path, heatmaps=[np.ones((2, 2))] * 2)
    save_predictions(two(), tmp_path)
    assert load_predictions(tmp_path).heatmap(0) is None


def test_the_writer_takes_missing_scores_as_unknown(tmp_path):
    with PredictionsWriter(tmp_path, ["A", "B"], {}, anomaly=True) as writer:
        writer.add(2, {"B": 0.5}, 10)
        writer.add(1)
    loaded = load_predictions(tmp_path)
    np.testing.assert_array_equal(loaded.index, [2, 1])
    np.testing.assert_array_equal(loaded.scores["A"], [np.nan, np.nan])
    np.testing.assert_array_equal(loaded.anomaly_percentile, [10, np.nan])
    assert (loaded.section, loaded.datalist_sha256, loaded.thresholds) == ("", "", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": 0, "scores": {"A": 1.5}}, "image 0: A is 1.5; 0 to 1"),
        ({"index": 0, "scores": {"C": 0.5}}, "no column for 'C'; columns are A"),
        ({"index": -1}, "counts from 0"),
        ({"index": 0, "heatmap": np.zeros((2, 2, 1))}, r"heatmap has shape \(2, 2, 1\)"),
        ({"index": 0, "heatmap": np.full((2, 2), np.nan)}, "heatmap has values nan"),
        ({"index": 0, "mask": np.full((2, 2), 256)}, "mask has values 256 to 256"),
    ],
)
def test_the_writer_refuses_what_cannot_be_read_again(tmp_path, arguments, message):
    with PredictionsWriter(tmp_path, ["A"], {}) as writer, pytest.raises(AfireError, match=message):
        writer.add(**arguments)


def test_names_that_cannot_be_columns_are_refused(tmp_path):
    for labels in (["index"], ["A", "A"], [""]):
        with pytest.raises(AfireError, match="label names must be different"):
            PredictionsWriter(tmp_path, labels, {})


def test_too_few_heatmaps_are_refused(tmp_path):
    with pytest.raises(AfireError, match="2 images need as many heatmaps"):
        save_predictions(two(), tmp_path, heatmaps=[np.zeros((2, 2))])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "columns are none; index, A, B, b are expected"),
        ("index,A\n0,1\n", "columns are index, A; "),
        ('index,A,"B, b"\n0,x,1\n1,,\n', "column 'A': .*'x'"),
        ('index,A,"B, b"\n0,1\n', "line 2 has 2 cells, not 3"),
        ('index,A,"B, b"\n0,1,1\n', "1 rows; predictions.json says 2"),
        ('index,A,"B, b"\n0,1,1\n0,1,1\n', "each place from 0 on once"),
        ('index,A,"B, b"\n0,1,1\n,1,1\n', "not a whole number"),
        ('index,A,"B, b"\n0,1,1\n1.5,1,1\n', "not a whole number"),
        ('index,A,"B, b"\n0,1,1\n1,inf,1\n', "column 'A' has values 1 to inf"),
    ],
)
def test_a_damaged_table_is_refused_with_file_and_column(tmp_path, table, message):
    save_predictions(two(), tmp_path)
    (tmp_path / "predictions.csv").write_text(table)
    with pytest.raises(AfireError, match=r"predictions.csv: .*" + message):
        load_predictions(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format 'other'"),
        ({"count": "two"}, "'count'"),
        ({"thresholds": {"A": "x"}}, "'thresholds' must give a number"),
        ({"thresholds": {"A": 50}}, "'thresholds' must give a number from 0 to 1 for each label"),
        ({"mask_values": {"lung": None, "heart": 2}}, "'mask_values' must give a whole number from 0 to 255"),
        ({"mask_values": {"lung": 1.5, "heart": 2}}, "'mask_values' must give a whole number from 0 to 255"),
        ({"labels": ["A", 3]}, r"predictions.json: label names must be different"),
    ],
)
def test_damaged_facts_are_refused(tmp_path, changes, message):
    save_predictions(two(), tmp_path)
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(AfireError, match=message):
        load_predictions(tmp_path)
    path.write_text("{")
    with pytest.raises(AfireError, match="not JSON"):
        load_predictions(tmp_path)


def test_a_damaged_heatmap_is_refused_when_it_is_read(tmp_path):
    save_predictions(two(), tmp_path, heatmaps=[np.zeros((2, 2))] * 2)
    (tmp_path / "heatmaps" / "00000.png").write_bytes(b"no picture")
    loaded = load_predictions(tmp_path)
    assert loaded.heatmap(3) is not None
    with pytest.raises(AfireError, match=r"00000\.png: cannot be read"):
        loaded.heatmap(0)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGB"])
def test_a_picture_that_is_not_grey_is_refused(tmp_path, mode):
    save_predictions(two(), tmp_path, heatmaps=[np.zeros((2, 2))] * 2, masks=[np.ones((2, 2))] * 2)
    loaded = load_predictions(tmp_path)
    for kind, read in (("heatmaps", loaded.heatmap), ("masks", loaded.mask)):
        Image.new("L", (2, 2)).convert(mode).save(tmp_path / kind / "00000.png")
        with pytest.raises(AfireError, match=f"00000\\.png: a picture of mode {mode}; grey of 8 or 16 bits"):
            read(0)


def test_a_heatmap_of_a_size_that_no_radiograph_has_is_refused_undecoded(tmp_path, monkeypatch):
    save_predictions(two(), tmp_path, heatmaps=[np.zeros((2, 2))] * 2)
    monkeypatch.setattr("afire_monai.radiographs.picture.MAX_SIDE", 1)
    with pytest.raises(AfireError, match=r"00000\.png: image too large"):
        load_predictions(tmp_path).heatmap(0)


def test_a_heatmap_that_asks_for_all_memory_is_refused(tmp_path, monkeypatch):
    save_predictions(two(), tmp_path, heatmaps=[np.zeros((2, 2))] * 2)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", _no_memory)
    with pytest.raises(AfireError, match=r"00000\.png: cannot be read"):
        load_predictions(tmp_path).heatmap(0)


def _no_memory(*_):
    raise MemoryError
