"""Phantoms as a small hospital archive: DICOM files of invented patients, and a spreadsheet of findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file, write_rows
from afire_monai.phantom.chest import PHANTOM_LABELS, ChestPhantom

FINDINGS_FILE = "findings.csv"


def write_phantom_archive(folder: Path, normal: int = 200, abnormal: int = 40, size: int = 256, seed: int = 0) -> Path:
    """Write phantoms as DX objects, one patient and examination each, with a line a patient in ``findings.csv``.

    Args:
        folder: folder to write; created if absent; gets ``dicom/`` and ``findings.csv``.
        normal: number of normal radiographs.
        abnormal: number of abnormal ones, with the findings in turn.
        size: side of the pictures in pixels.
        seed: seed that decides everything.

    Returns:
        Path of the spreadsheet: ``AccessionNumber``, ``Normal`` and a column for each of ``PHANTOM_LABELS``, 0 or 1.

    Raises:
        AfireError: if a number is out of range.
    """
    if normal < 0 or abnormal < 0 or seed < 0 or not normal + abnormal:
        raise AfireError(f"normal={normal}, abnormal={abnormal}, seed={seed}: at least one radiograph is expected")
    phantom, first = ChestPhantom(size), seed * 1_000_000
    (folder / "dicom").mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = [["AccessionNumber", "Normal", *PHANTOM_LABELS]]
    for number in range(normal + abnormal):
        finding = phantom.findings[(number - normal) % len(phantom.findings)] if number >= normal else None
        sample = phantom(first + number, finding)
        item = _object(sample.image[0], first + number)
        with whole_file(folder / "dicom" / f"{number:05d}.dcm") as part:
            item.save_as(part, enforce_file_format=True)
        present = [sample.label[name] for name in PHANTOM_LABELS]
        rows.append([item.AccessionNumber, int(not any(present)), *present])
    write_rows(folder / FINDINGS_FILE, rows)
    return folder / FINDINGS_FILE


def _object(picture: np.ndarray, number: int) -> FileDataset:
    """Return a DX object of a picture (H, W) in 0…1, with 12 bits and an invented patient."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID = meta.MediaStorageSOPClassUID
    item.SOPInstanceUID, item.SeriesInstanceUID, item.StudyInstanceUID = (
        generate_uid(entropy_srcs=["afire-monai phantom", kind, str(number)]) for kind in ("image", "series", "study")
    )
    meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    item.PatientName, item.PatientID, item.AccessionNumber = f"Phantom^{number}", f"PHANTOM{number}", f"ACC{number}"
    item.PatientBirthDate, item.PatientSex, item.PatientAge = "19500101", "FM"[number % 2], f"{30 + number % 50:03d}Y"
    item.StudyDate, item.StudyTime, item.StudyID, item.SeriesNumber, item.InstanceNumber = "20240102", "0800", "1", 1, 1
    item.ReferringPhysicianName, item.Manufacturer, item.PatientOrientation = "", "afire-monai phantom", ["L", "F"]
    item.Modality, item.BodyPartExamined, item.ViewPosition, item.ImageLaterality = "DX", "CHEST", "PA", "U"
    item.PresentationIntentType, item.BurnedInAnnotation = "FOR PRESENTATION", "NO"
    item.ImageType, item.ImagerPixelSpacing = ["ORIGINAL", "PRIMARY"], [400 / len(picture)] * 2
    item.PhotometricInterpretation, item.PresentationLUTShape = "MONOCHROME2", "IDENTITY"
    item.Rows, item.Columns = picture.shape
    item.SamplesPerPixel, item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 1, 16, 12, 11, 0
    item.WindowCenter, item.WindowWidth, item.RescaleIntercept, item.RescaleSlope = 2048, 4096, 0, 1
    item.RescaleType, item.PixelIntensityRelationship, item.PixelIntensityRelationshipSign = "US", "LOG", 1
    item.PixelData = np.round(picture * 4095).astype(np.uint16).tobytes()
    return item
