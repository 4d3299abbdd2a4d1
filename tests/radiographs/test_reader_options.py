"""What the reader does with unfit files, its defaults, and the affine to the last number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hospital_files import chest, write
from monai.data import ImageReader
from PIL import Image

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs import reader as reader_module
from afire_monai.radiographs.decode import checked_options
from afire_monai.radiographs.picture import Picture
from afire_monai.radiographs.reader import RadiographReader


def get(path: Path, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    reader = RadiographReader(**options)
    return reader.get_data(reader.read(path))


@pytest.fixture
def lateral(tmp_path: Path) -> Path:
    return write(tmp_path / "lateral.dcm", ViewPosition="LL")


@pytest.fixture
def frontal(tmp_path: Path) -> Path:
    return write(tmp_path / "frontal.dcm", seed=1)


def test_unfit_file_is_read_noted_or_refused_and_a_fit_one_always_read(lateral: Path, frontal: Path) -> None:
    assert get(lateral)[1]["unfit"] == ""
    assert get(lateral, unfit="note")[1]["unfit"] == "lateral"
    with pytest.raises(RadiographError, match=r"lateral.*frontal chest radiograph for presentation is expected"):
        get(lateral, unfit="refuse")
    for unfit in ("read", "note", "refuse"):
        assert get(frontal, unfit=unfit)[1]["unfit"] == ""


def test_file_that_is_refused_by_its_header_is_not_decoded(lateral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "read_picture", lambda *_: pytest.fail("decoded"))
    with pytest.raises(RadiographError, match="lateral"):
        get(lateral, unfit="refuse")


def test_file_whose_tags_are_silent_is_judged_by_its_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {"ViewPosition": "", "BodyPartExamined": "", "SeriesDescription": "", "StudyDescription": ""}
    path = write(tmp_path / "a.dcm", **silent)
    monkeypatch.setattr("afire_monai.radiographs.judgement.looks_frontal", lambda _: False)
    assert "does not look like" in get(path, unfit="note")[1]["unfit"]
    with pytest.raises(RadiographError, match="does not look like"):
        get(path, unfit="refuse")
    assert get(path)[1]["unfit"] == ""
    # a PNG says nothing of itself and is always read
    Image.fromarray(chest(0)).save(tmp_path / "a.png")
    for unfit in ("read", "note", "refuse"):
        assert get(tmp_path / "a.png", unfit=unfit)[1]["unfit"] == ""


def test_where_the_decoder_has_better_words_it_says_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", Modality="US")
    with pytest.raises(RadiographError) as decoded:
        get(path)
    with pytest.raises(RadiographError) as judged:
        get(path, unfit="refuse")
    assert str(judged.value) == str(decoded.value)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    pixels = np.array([[0.0, 1.0], [0.5, wrong]], np.float32)
    monkeypatch.setattr(reader_module, "read_picture", lambda *_: Picture(pixels, "PNG", "as stored", 8))
    with pytest.raises(RadiographError, match="not finite"):
        get(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("spacing", "row", "column"), [((0.2, 0.1), 0.2, 0.1), ((0.0, np.nan), 1, 1), ((-1.0, 0.5), 1, 0.5)]
)
def test_affine_turns_both_axes_and_counts_what_is_unknown_as_a_millimetre(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: tuple[float, float], row: float, column: float
) -> None:
    pixels = np.zeros((3, 5), np.float32)
    picture = Picture(pixels, "PNG", "as stored", 8, spacing)
    monkeypatch.setattr(reader_module, "read_picture", lambda *_: picture)
    array, metadata = get(tmp_path / "a.png")
    assert array.shape == (1, 3, 5)
    expected = [[0, -column, 0, 0], [-row, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(metadata["affine"], expected)
    np.testing.assert_array_equal(metadata["original_affine"], expected)
    assert metadata["affine"] is not metadata["original_affine"]
    assert metadata["spatial_shape"].tolist() == [3, 5]
    assert metadata["original_channel_dim"] == 0
    np.testing.assert_array_equal(metadata["spacing"], spacing)


def test_defaults_and_suffixes() -> None:
    reader = RadiographReader()
    assert isinstance(reader, ImageReader)
    assert (reader.window_index, reader.png16_max, reader.unfit) == (0, "dtype", "read")
    assert "CR" in (reader.modalities or ())
    assert RadiographReader(modalities=None).modalities is None
    assert reader.verify_suffix(["a.PNG", "b.dcm"]) is True
    assert reader.verify_suffix(["a.png", "b.txt"]) is False
    assert reader.verify_suffix("b.txt") is False


@pytest.mark.parametrize("modalities", ["", [], ["CR", ""], 3])
def test_modalities_without_a_name_are_refused(modalities: Any) -> None:
    with pytest.raises(RadiographError, match=r"modalities is .*; names such as CR,DX, or null for any is expected"):
        checked_options({"modalities": modalities})
    assert checked_options({"modalities": "cr"}) == {"modalities": "cr"}
