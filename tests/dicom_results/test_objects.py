from __future__ import annotations

import csv
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from hospital_files import validator_errors

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import (
    KINDS,
    ImagePrediction,
    write_capture,
    write_heatmap,
    write_report,
    write_results,
)
from afire_monai.dicom_results.capture import score_lines
from afire_monai.dicom_results.objects import write_new
from afire_monai.dicom_results.source import open_source
from afire_monai.predictions.results import overlay
from afire_monai.radiographs.dicom import read_dicom

SHAPE = (48, 64)
HEAT = (np.arange(48 * 64, dtype=np.float32) / (48 * 64 - 1)).reshape(SHAPE)
PREDICTION = ImagePrediction(
    {"Edema": 0.25, "Pleural_Thickening": 0.75, "Effusion": 0.5},
    {"Edema": 0.3, "Effusion": 0.5},
    97.5,
    HEAT,
    model={"afire": "1.0", "weights": {"classifier": "ab" * 32}},
)


def groups_of(path: Path) -> dict[str, object]:
    report = hd.sr.srread(path)
    groups = report.content.get_image_measurement_groups()
    return {group.finding_type.meaning: group for group in groups}


def test_report_holds_each_finding_with_probability_threshold_and_comparison(write_source, tmp_path):
    groups = groups_of(write_report(write_source(), PREDICTION, tmp_path / "out"))
    assert [(g.finding_type.value, g.finding_type.scheme_designator) for g in groups.values()][::2] == [
        ("19242006", "SCT"),
        ("60046008", "SCT"),
    ]
    said = {}
    for meaning, group in groups.items():
        numbers = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
        answers = [e.value.meaning for e in group.get_qualitative_evaluations()]
        said[meaning] = (numbers, answers)
        assert [str(image.referenced_sop_instance_uid) for image in group.source_images] == ["1.2.3.4.1"]
    assert said == {
        "Pulmonary edema": ({"Probability": (0.25, "{ratio}"), "Threshold Value": (0.3, "{ratio}")}, ["No"]),
        "Pleural_Thickening": ({"Probability": (0.75, "{ratio}")}, []),
        "Pleural effusion": ({"Probability": (0.5, "{ratio}"), "Threshold Value": (0.5, "{ratio}")}, ["Yes"]),
        "Deviation from normal radiographs": ({"Percentile Ranking of measurement": (97.5, "%")}, []),
    }


def test_report_names_the_model_its_device_and_that_it_is_research(write_source, tmp_path):
    path = write_report(write_source(), PREDICTION, tmp_path / "out")
    report = pydicom.dcmread(path)
    text = report.to_json()
    for expected in ("Research use only", "classifier=" + "ab" * 32, "Device Observer UID", "Algorithm Version"):
        assert expected in text
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.1"


def test_segmentation_is_the_heatmap_pixel_for_pixel_on_the_sources_grid(write_source, tmp_path):
    path = write_heatmap(write_source(PixelSpacing=[0.2, 0.3]), PREDICTION, tmp_path / "out")
    segmentation = hd.seg.segread(path)
    assert (segmentation.SegmentationType, segmentation.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert (segmentation.Rows, segmentation.Columns, segmentation.MaximumFractionalValue) == (48, 64, 255)
    shown = segmentation.get_pixels_by_source_instance(["1.2.3.4.1"], segment_numbers=[1])[0, ..., 0]
    np.testing.assert_allclose(shown, HEAT, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array.reshape(SHAPE), np.round(HEAT * 255))


def test_small_heatmap_is_stretched_over_the_whole_source(write_source, tmp_path):
    corner = np.zeros((12, 16), np.float32)
    corner[0, 15] = 1
    prediction = ImagePrediction(heatmap=corner)
    pixels = pydicom.dcmread(write_heatmap(write_source(), prediction, tmp_path / "out")).pixel_array
    assert pixels.shape == SHAPE
    assert pixels[0, 63] == 255
    assert pixels[8:, :].max() == pixels[:, :56].max() == 0


def test_long_names_are_cut_but_never_the_warning(write_source, tmp_path):
    prediction = ImagePrediction({"b" * 80: 0.5, "line\nbreak\x1b": 0.5}, heatmap=HEAT, heatmap_kind="long " * 20)
    report, heatmap, capture = (pydicom.dcmread(p) for p in write_results(write_source(), prediction, tmp_path / "out"))
    assert len(heatmap.SeriesDescription) == 64
    for text in (*(o.SeriesDescription for o in (report, heatmap, capture)), heatmap.ContentDescription):
        assert text.endswith("RESEARCH USE ONLY")
    assert "line break" in report.to_json()


def test_probability_just_below_its_threshold_is_not_rounded_onto_it(write_source, tmp_path):
    prediction = ImagePrediction({"Edema": 0.4999999}, {"Edema": 0.5})
    group = groups_of(write_report(write_source(), prediction, tmp_path / "out"))["Pulmonary edema"]
    assert [m.value for m in group.get_measurements()] == [0.4999999, 0.5]
    assert [e.value.meaning for e in group.get_qualitative_evaluations()] == ["No"]


def test_empty_heatmap_is_still_written(write_source, tmp_path):
    path = write_heatmap(write_source(), ImagePrediction(heatmap=np.zeros(SHAPE, np.float32)), tmp_path / "out")
    assert pydicom.dcmread(path).pixel_array.shape == SHAPE


def test_overlay_is_grey_without_heat_and_reddest_where_heat_is_highest():
    picture = np.array([[0.0, 1.0], [0.4, 0.4]], np.float32)
    heat = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)
    pixels = overlay(torch.from_numpy(picture), torch.from_numpy(heat))
    # red 0.4 · 0.3 + 0.7 = 0.82, green and blue 0.4 · 0.3 = 0.12, of 255
    np.testing.assert_array_equal(pixels, [[[0] * 3, [255] * 3], [[102] * 3, [209, 31, 31]]])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_capture_shows_the_radiograph_upright_bright_where_dense_between_banner_and_scores(
    write_source, tmp_path, photometric
):
    rows, columns = 600, 520
    dense = np.linspace(0, 4095, rows * columns).astype(np.uint16).reshape(rows, columns)
    dense[:40, :60] = 4095
    stored = 4095 - dense if photometric == "MONOCHROME1" else dense
    source = write_source(pixels=stored, PhotometricInterpretation=photometric)
    capture = pydicom.dcmread(write_capture(source, ImagePrediction({"Edema": 0.25}), tmp_path / "out"))
    pixels = capture.pixel_array
    assert capture.PhotometricInterpretation == "RGB"
    assert pixels.shape[1:] == (columns, 3)
    below_banner = next(row for row in range(len(pixels)) if not (pixels[row, 0] == pixels[0, 0]).all())
    shown = pixels[below_banner : below_banner + rows]
    for channel in range(3):
        np.testing.assert_allclose(shown[..., channel], dense / 4095 * 255, atol=0.51)
    assert len(pixels) > below_banner + rows
    # letters in white on the banner, and in light grey below the radiograph
    assert (pixels[:below_banner] == 255).all(-1).any()
    assert (pixels[below_banner + rows :] > 200).all(-1).any()


def test_large_and_small_radiographs_become_pictures_one_can_look_at(write_source, tmp_path):
    prediction = ImagePrediction({"Edema": 0.5})
    large = write_source("l.dcm", pixels=np.arange(2000 * 1000, dtype=np.uint32).astype(np.uint16).reshape(2000, 1000))
    small = write_source("s.dcm", pixels=np.arange(16 * 8, dtype=np.uint16).reshape(16, 8))
    large_shape, small_shape = (
        pydicom.dcmread(write_capture(source, prediction, tmp_path / "out")).pixel_array.shape
        for source in (large, small)
    )
    assert large_shape[1] == 768
    assert 1536 < large_shape[0] < 2000
    assert small_shape[1] == 256
    assert small_shape[0] > 512


def test_all_objects_belong_to_the_sources_study_and_patient_in_series_of_their_own(write_source, tmp_path):
    source = write_source()
    objects = [pydicom.dcmread(path) for path in write_results(source, PREDICTION, tmp_path / "out")]
    assert [o.Modality for o in objects] == ["SR", "SEG", "OT"]
    original = pydicom.dcmread(source)
    for made in objects:
        for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate"):
            assert made[keyword].value == original[keyword].value
        assert "RESEARCH USE ONLY" in made.SeriesDescription
        assert made.ContentQualification == "RESEARCH"
        assert made.Manufacturer == made.ManufacturerModelName == "afire-monai"
        assert made.SoftwareVersions
    assert len({o.SeriesInstanceUID for o in objects} | {original.SeriesInstanceUID}) == 4
    assert len({o.SOPInstanceUID for o in objects} | {original.SOPInstanceUID}) == 4
    for made in objects[1:]:
        assert made.ImageType[0] == "DERIVED"
    assert objects[1].ContentLabel == "AFIRE_HEATMAP"
    assert objects[2].SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID


def test_files_are_named_by_new_uids_and_only_their_owner_can_read_them(write_source, tmp_path):
    out = tmp_path / "a" / "out"
    paths = write_results(write_source(), PREDICTION, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for path in paths:
        assert path.stem == str(pydicom.dcmread(path).SOPInstanceUID)
        assert path.stem.startswith("2.25.")
        assert len(path.stem) <= 64
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(out.iterdir()) == sorted(paths)


def test_two_deliveries_never_share_uids_unless_seeded(write_source, tmp_path):
    source = write_source()
    first, second = (write_results(source, PREDICTION, tmp_path / name) for name in "ab")
    assert not {p.name for p in first} & {p.name for p in second}
    same = [write_results(source, PREDICTION, tmp_path / name, seed="s") for name in "cd"]
    assert [p.name for p in same[0]] == [p.name for p in same[1]]
    other = write_results(source, PREDICTION, tmp_path / "e", seed="t")
    assert not {p.name for p in same[0]} & {p.name for p in other}


def test_existing_file_is_never_written_over(write_source, tmp_path):
    source = write_source()
    paths = write_results(source, PREDICTION, tmp_path / "out", seed="s")
    before = [path.read_bytes() for path in paths]
    with pytest.raises(AfireError, match="exists"):
        write_results(source, PREDICTION, tmp_path / "out", seed="s")
    assert [path.read_bytes() for path in paths] == before
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)


def test_failure_of_one_object_takes_the_others_away(write_source, tmp_path):
    wide = ImagePrediction({"Edema": 0.5}, heatmap=np.zeros((10, 64), np.float32))
    with pytest.raises(AfireError, match="10 rows and 64 columns"):
        write_results(write_source(), wide, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_kind_without_anything_to_write_is_refused(write_source, tmp_path):
    source, nothing = write_source(), ImagePrediction()
    with pytest.raises(AfireError, match="nothing to report"):
        write_report(source, nothing, tmp_path / "out")
    with pytest.raises(AfireError, match="no heatmap"):
        write_heatmap(source, ImagePrediction({"Edema": 0.5}), tmp_path / "out")
    with pytest.raises(AfireError, match="nothing to show"):
        write_capture(source, nothing, tmp_path / "out")
    for kinds in ((), ("pdf",), ("sr", "sr"), "sr"):
        with pytest.raises(AfireError, match="kinds"):
            write_results(source, PREDICTION, tmp_path / "out", kinds)


def test_folder_that_cannot_be_made_is_an_error_that_says_so(write_source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AfireError, match=r"cannot be written|exists"):
        write_results(write_source(), PREDICTION, tmp_path / "file" / "out")


def test_only_uids_become_names_of_files(tmp_path):
    dataset = pydicom.Dataset()
    for uid in ("../../evil", "1.2.3", "2.25.01", "2.25." + "9" * 60):
        dataset.SOPInstanceUID = uid
        with pytest.raises(AfireError, match="not a UID of a new object"):
            write_new(dataset, None, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1", "PixelSpacing": [0.1, 0.2]},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "PatientOrientation": ["L", "F"]},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BodyPartExamined": None, "FrameOfReferenceUID": "1.2.3.9"},
        {
            "PatientSex": "w",
            "PatientAge": "80",
            "StudyDate": "x",
            "PixelSpacing": [0.0, 0.0],
            "PatientOrientation": "L",
        },
        dict.fromkeys(["PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyID", "AccessionNumber"]),
    ],
)
def test_validator_finds_no_error(write_source, tmp_path, changes):
    found = {
        kind: validator_errors(path)
        for kind, path in zip(KINDS, write_results(write_source(**changes), PREDICTION, tmp_path / "out"), strict=True)
    }
    assert found == {kind: [] for kind in KINDS}


def readable_radiographs(folder: Path) -> list[Path]:
    with (folder / "dicom" / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] in ("chest", "other CR")]
    return [folder / row["path"] for row in rows if row["modality"] in ("CR", "DX")]


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what pydicom says of the sources in this test's own reading
def test_real_radiographs_get_objects_that_validate_and_can_be_read(real_data, tmp_path):
    tested = 0
    for number, source in enumerate(readable_radiographs(real_data)):
        try:
            read_dicom(source)
        except AfireError:
            continue  # codecs that nothing here decodes
        image = open_source(source)
        heat = np.random.default_rng(number).random(image.shape).astype(np.float32)
        prediction = ImagePrediction({"Edema": 0.25, "Hernia": 0.5}, {"Edema": 0.5}, 50.0, heat)
        paths = dict(zip(KINDS, write_results(source, prediction, tmp_path / str(number)), strict=True))
        assert len(groups_of(paths["sr"])) == 3
        uid = str(image.header.SOPInstanceUID)
        pixels = hd.seg.segread(paths["seg"]).get_pixels_by_source_instance([uid], segment_numbers=[1])
        np.testing.assert_allclose(pixels[0, ..., 0], heat, atol=0.5 / 255 + 1e-6)
        assert pydicom.dcmread(paths["sc"]).pixel_array.ndim == 3
        for kind, path in paths.items():
            errors = validator_errors(path)
            if not pydicom.uid.UID(uid).is_valid:
                # the objects must name the source by the UID that it has
                errors = [e for e in errors if uid not in e and "invalid data values for Value Repr" not in e]
            assert errors == [], (source.name, kind)
            if shutil.which("dcmdump"):
                assert subprocess.run(["dcmdump", "-q", str(path)], capture_output=True, check=False).returncode == 0
        tested += 1
    assert tested >= 10


def test_capture_with_a_heatmap_shows_the_radiograph_beside_itself_and_a_scale_bar_of_the_right_length(
    write_source, tmp_path
):
    rows, columns = 600, 500
    dense = np.full((rows, columns), 2048, np.uint16)
    dense[0, 0], dense[0, 1] = 0, 4095
    heat = np.zeros((6, 5), np.float32)
    heat[3, 2] = 1
    prediction = ImagePrediction({"Edema": 0.5}, heatmap=heat, heatmap_kind="gradcam", heatmap_label="Edema")
    # 0.4 mm: a third of the width is 66.7 mm, so the bar has 50 mm, that is 125 pixels
    source = write_source(pixels=dense, ImagerPixelSpacing=["0.4", "0.4"])
    pixels = pydicom.dcmread(write_capture(source, prediction, tmp_path / "out")).pixel_array.astype(int)
    assert pixels.shape[1] == 2 * columns + 8
    top = next(row for row in range(len(pixels)) if not (pixels[row, 0] == pixels[0, 0]).all())
    left, right = pixels[top : top + rows, :columns], pixels[top : top + rows, columns + 8 :]
    assert np.ptp(left, axis=-1).max() == 0  # grey
    np.testing.assert_array_equal(left[:100], right[:100])
    assert right[350, 250, 0] > right[350, 250, 1] == right[350, 250, 2]
    under = pixels[top + rows :]
    lengths = [np.flatnonzero((row[:columns] > 200).all(-1)) for row in under[:20]]
    line = next(found for found in lengths if len(found) > 100)
    run = line[: np.flatnonzero(np.diff(np.append(line, 10**6)) > 1)[0] + 1]
    assert 125 <= len(run) <= 127


def test_the_picture_of_a_finding_has_its_line_and_its_own_heatmap_only_and_validates(write_source, tmp_path):
    prediction = replace(PREDICTION, heatmap_kind="gradcam", heatmap_label="Effusion", thresholds={"Effusion": 0.5,
                         "Pleural_Thickening": 0.7, "Edema": 0.3}, judgement="lateral")  # fmt: skip
    assert prediction.findings == ["Pleural_Thickening", "Effusion"]
    source = write_source()
    files = write_results(source, prediction, tmp_path / "out", ("sc",), seed="s", per_finding=True)
    whole, other, its = (pydicom.dcmread(path) for path in files)
    assert other.SeriesDescription == "AFiRe Pleural_Thickening, UNFIT IMAGE - RESEARCH USE ONLY"
    assert its.Columns == whole.Columns > 1.9 * other.Columns  # the radiograph beside itself, and alone
    texts = [line for line, _ in score_lines(prediction.only("Effusion"))]
    assert [line.split(":")[0] for line in texts[1:3]] == ["Effusion", "Right, in red"]
    assert (
        len({o.SOPInstanceUID for o in (whole, other, its)})
        == len({o.SeriesInstanceUID for o in (whole, other, its)})
        == 3
    )
    assert {o.StudyInstanceUID for o in (whole, other, its)} == {"1.2.3.4.2"}
    again = write_results(source, prediction, tmp_path / "again", ("sc",), seed="s", per_finding=True)
    assert [path.name for path in again] == [path.name for path in files]
    assert [validator_errors(path) for path in files] == [[], [], []]


def test_the_name_of_a_finding_never_pushes_the_warnings_out(write_source, tmp_path):
    label = "Verdichtung, unscharf begrenzt, beidseits in den Unterfeldern " * 2
    prediction = ImagePrediction({label: 0.9}, {label: 0.5}, judgement="lateral")
    (_, path) = write_results(write_source(), prediction, tmp_path / "out", ("sr",), per_finding=True)
    written = pydicom.dcmread(path).SeriesDescription
    assert written == "AFiRe Verdichtung, unscharf be, UNFIT IMAGE - RESEARCH USE ONLY"
    assert validator_errors(path) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"ImagerPixelSpacing": ["0.2", "0.1"]}, (0.1, False)),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.2", "0.2"]}, (0.2, False)),
        ({"ImagerPixelSpacing": ["0.2", "0.2"], "PixelSpacing": ["0.18", "0.18"]}, (0.18, True)),
        ({"PixelSpacing": ["0", "0"]}, None),
    ],
)
def test_spacing_is_told_apart_where_it_is_measured(changes, expected, write_source):
    assert open_source(write_source(**changes)).spacing == expected


def test_report_and_picture_say_what_a_probability_rests_on(write_source, tmp_path):
    words = "calibrated on 246 images; AUROC 0.84 (0.79 to 0.88) in its own test of 120 images"
    prediction = ImagePrediction({"Edema": 0.5, "Mass": 0.25}, rests_on={"Edema": words, "Mass": "not calibrated"})
    report = pydicom.dcmread(write_report(write_source(), prediction, tmp_path / "out"))
    texts = " ".join(str(element.value) for element in report.iterall() if element.keyword == "TextValue")
    assert f"Edema: {words}. Mass: not calibrated." in texts
    lines = [line for line, _ in score_lines(prediction)]
    assert lines[:2] == [f"Edema: 0.50; {words}", "Mass: 0.25; not calibrated"]
