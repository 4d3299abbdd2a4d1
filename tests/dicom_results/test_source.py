from __future__ import annotations

import logging
import warnings

import numpy as np
import pydicom
import pytest
from PIL import Image

from afire_monai.core.errors import RadiographError
from afire_monai.dicom_results import ImagePrediction, write_report, write_results
from afire_monai.dicom_results.source import open_source

PREDICTION = ImagePrediction({"Edema": 0.25}, heatmap=np.zeros((48, 64), np.float32))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_missing_uid_is_refused_by_its_name(write_source, keyword):
    with pytest.raises(RadiographError, match=keyword if keyword != "SOPClassUID" else "SOP class"):
        open_source(write_source(**{keyword: None}))


def test_uid_that_is_none_is_refused(write_source):
    with pytest.raises(RadiographError, match="invalid StudyInstanceUID"):
        open_source(write_source(StudyInstanceUID="../etc"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": None}, "modality absent"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "SOP class"),
        ({"PixelData": None}, "no pixels"),
        ({"NumberOfFrames": 2}, "grey frame"),
        ({"SamplesPerPixel": 3}, "grey frame"),
        ({"Rows": None}, "empty image"),
    ],
)
def test_what_is_not_one_grey_radiograph_is_refused(write_source, changes, reason):
    with pytest.raises(RadiographError, match=reason):
        open_source(write_source(**changes))


def test_what_is_not_dicom_is_refused(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(b"")
    (tmp_path / "c.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    for name, reason in (("a.png", "not DICOM"), ("b.dcm", "not DICOM"), ("c.dcm", "."), ("d.dcm", "not readable")):
        with pytest.raises(RadiographError, match=reason):
            open_source(tmp_path / name)


def test_source_file_is_not_touched(write_source, tmp_path):
    source = write_source()
    source.chmod(0o400)
    before = (source.read_bytes(), source.stat().st_mtime_ns)
    write_results(source, PREDICTION, tmp_path / "out")
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before


def test_missing_patient_attributes_become_empty_ones(write_source, tmp_path):
    gone = ["PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID"]
    source = write_source(**dict.fromkeys([*gone, "AccessionNumber"]))
    for path in write_results(source, PREDICTION, tmp_path / "out"):
        written = pydicom.dcmread(path)
        assert all(keyword in written and not written[keyword].value for keyword in (*gone, "ReferringPhysicianName"))


def test_values_that_are_not_allowed_are_emptied_or_left_out_but_identity_stays(write_source, tmp_path):
    long_id = "X" * 70
    source = write_source(
        PatientID=long_id,
        PatientSex="female",
        PatientAge="80",
        PatientBirthDate="1.3.1944",
        StudyDate="2024",
        StudyTime="x",
    )
    for path in write_results(source, PREDICTION, tmp_path / "out"):
        written = pydicom.dcmread(path)
        assert written.PatientID == long_id
        assert not any(written[k].value for k in ("PatientSex", "PatientBirthDate", "StudyDate", "StudyTime"))
        assert "PatientAge" not in written


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "王^小東"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 144", "Люкceмбypг"),
    ],
)
@pytest.mark.parametrize("label", ["Edema", "Erguß 影"])
def test_names_in_other_alphabets_come_back_and_labels_too(write_source, tmp_path, charset, name, label):
    source = write_source(SpecificCharacterSet=charset, PatientName=name)
    assert str(pydicom.dcmread(source).PatientName) == name
    prediction = ImagePrediction(
        {label: 0.5}, heatmap=np.zeros((48, 64), np.float32), heatmap_kind="gradcam", heatmap_label=label
    )
    paths = write_results(source, prediction, tmp_path / "out")
    assert [str(pydicom.dcmread(path).PatientName) for path in paths] == [name] * 3
    assert label in str(pydicom.dcmread(paths[0]))
    assert label in pydicom.dcmread(paths[1]).SegmentSequence[0].SegmentLabel


def test_unknown_character_set_is_no_reason_to_fail(write_source, tmp_path):
    source = write_source(SpecificCharacterSet="NONSENSE")
    assert len(write_results(source, PREDICTION, tmp_path / "out")) == 3


def test_nothing_of_the_patient_is_said_by_logs_warnings_or_errors(write_source, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    # no caret: highdicom warns of such a name and quotes it
    odd = {"PatientName": "SECRETNAME", "PatientID": "SECRETID" * 9, "StudyDate": "SECRETDATE", "PatientAge": "SECRET"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = write_source("good.dcm", **odd, StudyTime="SECRETTIME")
        bad = write_source("bad.dcm", **odd, SOPInstanceUID="SECRETUID")
    caplog.clear()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_results(good, PREDICTION, tmp_path / "out")
        with pytest.raises(RadiographError) as error:
            write_report(bad, PREDICTION, tmp_path / "out")
    captured = capfd.readouterr()
    texts = [*(str(w.message) for w in said), caplog.text, captured.out, captured.err, str(error.value)]
    assert not any("SECRET" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("00", None, None)),
        ({"LossyImageCompression": "01", "LossyImageCompressionRatio": "10"}, ("01", 10.0, None)),
        (
            {
                "LossyImageCompression": "01",
                "LossyImageCompressionRatio": ["10", "3"],
                "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
            },
            ("01", [10.0, 3.0], ["ISO_10918_1", "ISO_15444_1"]),
        ),
    ],
)
def test_loss_of_the_source_is_passed_on(write_source, tmp_path, changes, expected):
    source = write_source(**changes)
    for kind in ("seg", "sc"):
        written = pydicom.dcmread(write_results(source, PREDICTION, tmp_path / kind, (kind,))[0])
        found = [written.get(f"LossyImageCompression{end}") for end in ("", "Ratio", "Method")]
        assert tuple(list(v) if isinstance(v, pydicom.multival.MultiValue) else v for v in found) == expected
