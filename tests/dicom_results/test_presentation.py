from __future__ import annotations

import copy
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hospital_files import validator_errors
from PIL import Image
from skimage.draw import polygon2mask

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import ImagePrediction, write_presentation, write_results
from afire_monai.dicom_results.presentation import LONGEST_TEXT, MOST_OUTLINES, MOST_POINTS, scores_text
from afire_monai.radiographs.dicom import read_dicom

HEAT = (np.arange(48 * 64, dtype=np.float32) / (48 * 64 - 1)).reshape(48, 64)
PREDICTION = ImagePrediction(
    {"Edema": 0.25, "Pleural_Thickening": 0.75, "Effusion": 0.5}, {"Edema": 0.3, "Effusion": 0.5}, 97.5, HEAT
)


def drawn(state: pydicom.Dataset) -> list[np.ndarray]:
    """The outlines as (n, 2) column and row."""
    (annotation,) = state.GraphicAnnotationSequence
    objects = annotation.get("GraphicObjectSequence") or []
    assert {(o.GraphicType, o.GraphicAnnotationUnits) for o in objects} <= {("POLYLINE", "PIXEL")}
    assert all(o.NumberOfGraphicPoints * 2 == len(o.GraphicData) for o in objects)
    return [np.reshape(o.GraphicData, (-1, 2)) for o in objects]


def inside(lines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels have their centres inside an odd number of outlines; (0, 0) is the corner of the first pixel."""
    filled = np.zeros(shape, bool)
    for line in lines:
        filled ^= polygon2mask(shape, line[:, ::-1] - 0.5)
    return filled


def blobs(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Smooth hills, of which some touch the border, and one has a hole."""
    small = np.random.default_rng(seed).random((9, 12)).astype(np.float32)
    heat = np.asarray(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC)).copy()
    heat[10:40, 10:40] = 0.9
    heat[20:30, 20:30] = 0.1
    return np.clip(heat, 0, 1)


def test_the_outline_encloses_the_pixels_of_at_least_half_the_scale_and_no_others(write_source, tmp_path):
    shape = (96, 128)
    source = write_source(pixels=np.arange(96 * 128, dtype=np.uint16).reshape(shape))
    heat = blobs(shape)
    state = pydicom.dcmread(write_presentation(source, replace(PREDICTION, heatmap=heat), tmp_path / "out"))
    lines = drawn(state)
    assert len(lines) > 3
    for line in lines:
        np.testing.assert_array_equal(line[0], line[-1])
        assert line.min() >= 0
        assert (line <= [128, 96]).all()
    np.testing.assert_array_equal(inside(lines, shape), heat >= 0.5)


def test_the_outline_of_a_coarse_heatmap_lies_on_the_radiographs_pixels(write_source, tmp_path):
    source = write_source(pixels=np.zeros((480, 640), np.uint16))
    coarse = np.zeros((12, 16), np.float32)
    coarse[3:6, 5:9] = 1
    prediction = ImagePrediction(heatmap=coarse, heatmap_kind="gradcam")
    (line,) = drawn(pydicom.dcmread(write_presentation(source, prediction, tmp_path / "out")))
    # a cell has 40 pixels; the half between 1 and 0 is on the edge of the cells, cut at the corners
    assert line.min(0).tolist() == [200, 120]
    assert line.max(0).tolist() == [360, 240]
    area = inside([line], (480, 640)).sum()
    assert 160 * 120 - 4 * 400 <= area <= 160 * 120


def test_the_text_has_warning_scores_what_they_rest_on_and_what_is_outlined(write_source, tmp_path):
    prediction = replace(PREDICTION, rests_on={"Effusion": "calibrated on 246 images"}, judgement="lateral")
    state = pydicom.dcmread(write_presentation(write_source(), prediction, tmp_path / "out"))
    (text,) = state.GraphicAnnotationSequence[0].TextObjectSequence
    lines = text.UnformattedTextValue.split("\r\n")
    assert lines[0] == "RESEARCH USE ONLY"
    assert "not to be a frontal chest radiograph (lateral)" in lines[1]
    assert lines[2:] == [
        "Pleural_Thickening: 0.75",
        "Effusion: 0.50  (at or above threshold 0.50); calibrated on 246 images",
        "Edema: 0.25  (below threshold 0.30)",
        "More unusual than 97.5 % of normal radiographs",
        "Outlined where it is 0.5 or more: anomaly, relative scale",
        "afire-monai, not a medical device, not a diagnosis",
    ]
    assert "RESEARCH USE ONLY" in state.SeriesDescription
    assert state.ContentQualification == "RESEARCH"


def test_too_many_findings_for_a_text_lose_the_least_probable_and_no_warning():
    words = "calibrated on 246 images; AUROC 0.84 (0.79 to 0.88) in its own test of 120 images"
    scores = {f"Finding {number:02}": number / 40 for number in range(30)}
    text = scores_text(ImagePrediction(scores, rests_on=dict.fromkeys(scores, words), anomaly_percentile=50.0))
    lines = text.split("\r\n")
    assert len(text) <= LONGEST_TEXT
    assert lines[0] == "RESEARCH USE ONLY"
    assert lines[1].startswith("Finding 29: 0.72")
    assert lines[-3:] == [
        "More unusual than 50.0 % of normal radiographs",
        f"{30 - (len(lines) - 4)} less probable: see the report",
        "afire-monai, not a medical device, not a diagnosis",
    ]


def test_it_refers_to_the_radiograph_shows_all_of_it_and_belongs_to_its_study(write_source, tmp_path):
    source = write_source(BodyPartExamined="HAND", Laterality="L")
    state = pydicom.dcmread(write_presentation(source, PREDICTION, tmp_path / "out"))
    assert (state.Modality, state.SOPClassUID.name) == ("PR", "Grayscale Softcopy Presentation State Storage")
    assert (state.StudyInstanceUID, state.PatientID, state.PatientName) == ("1.2.3.4.2", "ID-4711", "Sample^Secret")
    (series,) = state.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.3.4.3"
    for images in (series, state.GraphicAnnotationSequence[0]):
        assert [str(i.ReferencedSOPInstanceUID) for i in images.ReferencedImageSequence] == ["1.2.3.4.1"]
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [64, 48]
    assert state.GraphicAnnotationSequence[0].GraphicLayer == state.GraphicLayerSequence[0].GraphicLayer
    assert (state.BodyPartExamined, state.Laterality) == ("HAND", "L")
    assert validator_errors(Path(state.filename)) == []


@pytest.mark.parametrize(
    ("changes", "aspect"),
    [
        ({}, [1, 1]),
        ({"PixelSpacing": [0.2, 0.1]}, [2, 1]),
        ({"ImagerPixelSpacing": ["0.14", "0.175"]}, [4, 5]),
        ({"PixelSpacing": [0.1, 0.1], "ImagerPixelSpacing": [0.2, 0.1]}, [1, 1]),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [3, 2]}, [3, 2]),
        ({"PixelSpacing": "", "PixelAspectRatio": [1, 0]}, [1, 1]),
        ({"PixelSpacing": [1e9, 1e-9]}, [1, 1]),
    ],
)
def test_pixels_that_are_not_square_are_shown_so(changes, aspect, write_source, tmp_path):
    state = pydicom.dcmread(write_presentation(write_source(**changes), PREDICTION, tmp_path / "out"))
    (area,) = state.DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == aspect
    assert validator_errors(Path(state.filename)) == []


def test_a_heatmap_that_is_low_everywhere_is_said_to_be_outlined_nowhere(write_source, tmp_path):
    low = replace(PREDICTION, heatmap=np.full_like(HEAT, 0.49))
    state = pydicom.dcmread(write_presentation(write_source(), low, tmp_path / "out"))
    assert drawn(state) == []
    (text,) = state.GraphicAnnotationSequence[0].TextObjectSequence
    assert "\r\nNowhere 0.5 or more: anomaly, relative scale\r\n" in text.UnformattedTextValue
    assert validator_errors(Path(state.filename)) == []


def test_anomalies_without_a_reference_of_normals_are_not_outlined(write_source, tmp_path):
    path = write_presentation(write_source(), replace(PREDICTION, anomaly_percentile=None), tmp_path / "out")
    state = pydicom.dcmread(path)
    assert drawn(state) == []
    (text,) = state.GraphicAnnotationSequence[0].TextObjectSequence
    assert "\r\nNot outlined, as its scale has no level: anomaly, relative scale\r\n" in text.UnformattedTextValue
    assert validator_errors(path) == []


LUT = pydicom.Dataset()
LUT.LUTDescriptor, LUT.LUTData = [4096, 0, 12], (np.arange(4096) ** 2 // 4096).astype("<u2").tobytes()
MODALITY = pydicom.Dataset()
MODALITY.LUTDescriptor, MODALITY.ModalityLUTType = [3000, 0, 16], "US"
MODALITY.LUTData = (65535 - 16 * np.arange(3000)).astype("<u2").tobytes()
INTENSITIES = {
    "window": {"WindowCenter": 1000, "WindowWidth": 500},
    "several windows": {"WindowCenter": [1000, 40], "WindowWidth": [500, 400]},
    "sigmoid": {"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"},
    "rescale": {"WindowCenter": 0, "WindowWidth": 500, "RescaleSlope": 2, "RescaleIntercept": -2000},
    "intercept alone": {"WindowCenter": 500, "WindowWidth": 500, "RescaleIntercept": -500},
    "inverted": {"WindowCenter": 1000, "WindowWidth": 500, "PhotometricInterpretation": "MONOCHROME1"},
    "table": {"VOILUTSequence": [LUT]},
    "table and window": {"ModalityLUTSequence": [MODALITY], "WindowCenter": 40000, "WindowWidth": 50000},
}


@pytest.mark.skipif(shutil.which("dcmp2pgm") is None, reason="dcmp2pgm (dcmtk) is not installed")
@pytest.mark.parametrize("name", [name for name in INTENSITIES if name != "sigmoid"])  # which dcmp2pgm takes for linear
def test_dcmtk_shows_the_radiograph_as_this_package_does(name, write_source, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 3000, (48, 64)).astype(np.uint16)
    source = write_source(pixels=pixels, **INTENSITIES[name])
    state = write_presentation(source, PREDICTION, tmp_path / "out")
    command = ["dcmp2pgm", "-p", str(state), str(source), str(tmp_path / "shown.pgm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = np.asarray(Image.open(tmp_path / "shown.pgm"))
    np.testing.assert_allclose(shown / 255, read_dicom(source).pixels, atol=2 / 255)


@pytest.mark.parametrize("changes", INTENSITIES.values(), ids=INTENSITIES)
def test_the_validator_finds_no_error(changes, write_source, tmp_path):
    for number, prediction in enumerate((PREDICTION, replace(PREDICTION, heatmap=None))):
        path = write_presentation(write_source(**changes), prediction, tmp_path / str(number))
        assert validator_errors(path) == []
    assert pydicom.dcmread(path).GraphicAnnotationSequence[0].get("GraphicObjectSequence") is None


@pytest.mark.parametrize("kind", [None, ""])
def test_a_modality_lut_that_does_not_say_what_it_gives_is_of_unspecified_units(kind, write_source, tmp_path):
    table = copy.deepcopy(MODALITY)
    del table.ModalityLUTType
    if kind is not None:
        table.ModalityLUTType = kind
    path = write_presentation(write_source(ModalityLUTSequence=[table]), PREDICTION, tmp_path / "out")
    assert pydicom.dcmread(path).ModalityLUTSequence[0].ModalityLUTType == "US"
    assert validator_errors(path) == []


def test_windows_that_are_none_are_left_out(write_source, tmp_path):
    source = write_source(WindowCenter=100, WindowWidth=-5, RescaleSlope="1", RescaleIntercept="0")
    state = pydicom.dcmread(write_presentation(source, PREDICTION, tmp_path / "out"))
    assert "SoftcopyVOILUTSequence" not in state
    assert (state.RescaleSlope, state.RescaleIntercept, state.RescaleType) == (1, 0, "US")
    assert validator_errors(Path(state.filename)) == []


def test_ragged_heatmaps_stay_within_what_a_file_can_hold(write_source, tmp_path):
    shape = (400, 400)
    source = write_source(pixels=np.zeros(shape, np.uint16))
    comb = np.zeros(shape, np.float32)
    comb[1:399, ::2], comb[200] = 1, 1
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    for number, heat in enumerate((comb, noise)):
        path = write_presentation(source, replace(PREDICTION, heatmap=heat), tmp_path / str(number))
        lines = drawn(pydicom.dcmread(path))
        assert 1 <= len(lines) <= MOST_OUTLINES
        assert max(map(len, lines)) <= MOST_POINTS
        assert validator_errors(path) == []


def test_it_is_written_where_it_is_named_and_only_there(write_source, tmp_path):
    source = write_source()
    assert len(write_results(source, PREDICTION, tmp_path / "a")) == 3
    (path,) = write_results(source, PREDICTION, tmp_path / "b", ("gsps",), seed="s")
    assert pydicom.dcmread(path).Modality == "PR"
    (again,) = write_results(source, PREDICTION, tmp_path / "c", ("gsps",), seed="s")
    assert path.name == again.name
    with pytest.raises(AfireError, match="10 rows and 64 columns"):
        write_presentation(source, ImagePrediction(heatmap=HEAT[:10]), tmp_path / "out")
    with pytest.raises(AfireError, match="nothing to show"):
        write_presentation(source, ImagePrediction(), tmp_path / "out")
