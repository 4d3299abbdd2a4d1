from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hospital_files import validator_errors

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import write_masks

SHAPE = (48, 64)
MASK = np.zeros(SHAPE, np.uint8)
MASK[2:9, 40:61] = 1
MASK[30:44, 5:12] = 3
CLASSES = {"lung": 1, "heart": 2, "Effusion": 3}


@pytest.mark.parametrize("model", [None, {"version": "ab12"}])
def test_each_class_that_is_drawn_is_a_binary_segment_on_the_sources_pixels(model, write_source, tmp_path):
    path = write_masks(write_source(), MASK, CLASSES, tmp_path / "out", model)
    segmentation = hd.seg.segread(path)
    assert segmentation.SegmentationType == "BINARY"
    assert [s.SegmentLabel for s in segmentation.SegmentSequence] == ["lung", "Effusion"]
    shown = segmentation.get_pixels_by_source_instance(["1.2.3.4.1"])[0]
    assert (shown[..., 0] == (MASK == 1)).all()
    assert (shown[..., 1] == (MASK == 3)).all()
    lung, effusion = segmentation.SegmentSequence
    assert lung.SegmentedPropertyTypeCodeSequence[0].CodeValue == "39607008"
    assert lung.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"  # anatomy
    assert effusion.SegmentedPropertyTypeCodeSequence[0].CodeValue == "60046008"
    assert effusion.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"  # abnormal
    assert lung.SegmentAlgorithmType == ("SEMIAUTOMATIC" if model is None else "AUTOMATIC")
    found = pydicom.dcmread(path)
    assert (found.StudyInstanceUID, found.PatientID) == ("1.2.3.4.2", "ID-4711")
    assert found.SeriesInstanceUID != "1.2.3.4.3"
    assert found.SeriesDescription.endswith("RESEARCH USE ONLY")


def test_the_validator_finds_no_error(write_source, tmp_path):
    path = write_masks(write_source(), MASK, {**CLASSES, "a class of our own": 2}, tmp_path / "out")
    assert validator_errors(path) == []


@pytest.mark.parametrize(
    ("mask", "words"),
    [(MASK.T, "shape"), (np.zeros(SHAPE, np.uint8), "empty"), (np.full(SHAPE, 9, np.uint8), "no or several classes")],
)
def test_masks_that_do_not_fit_are_refused(mask, words, write_source, tmp_path):
    with pytest.raises(AfireError, match=words):
        write_masks(write_source(), mask, CLASSES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
