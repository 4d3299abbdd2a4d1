"""Sources that are made up: small radiographs in DICOM with made-up patients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

# the extra "dicom" of this package brings it
collect_ignore_glob = [] if importlib.util.find_spec("highdicom") else ["test_*.py"]

CR = "1.2.840.10008.5.1.4.1.1.1"
WriteSource = Callable[..., Path]


def asymmetric(rows: int = 48, columns: int = 64) -> NDArray[np.uint16]:
    """Every pixel is different: its place, counted along rows."""
    return np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)


@pytest.fixture
def write_source(tmp_path: Path) -> WriteSource:
    """Write a CR file; keywords replace or (None) remove attributes."""

    def write(name: str = "source.dcm", pixels: NDArray[np.uint16] | None = None, **changes: Any) -> Path:
        stored = asymmetric() if pixels is None else pixels
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CR, "1.2.3.4.1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4.2", "1.2.3.4.3"
        dataset.PatientName, dataset.PatientID, dataset.PatientSex = "Sample^Secret", "ID-4711", "F"
        dataset.PatientBirthDate, dataset.PatientAge = "19440301", "080Y"
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = (
            "20240102",
            "030405",
            "S1",
            "A1",
        )
        dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
        dataset.Rows, dataset.Columns = stored.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = stored.tobytes()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        settings = pydicom.config.settings
        before = settings.reading_validation_mode, settings.writing_validation_mode
        settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
        try:
            for keyword, value in changes.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)
            dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CR)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
            dataset.save_as(tmp_path / name, enforce_file_format=True)
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = before
        return tmp_path / name

    return write
