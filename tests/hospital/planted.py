"""Radiographs in DICOM files whose patients do not exist, and whose names must not turn up elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

SECRETS = ("Geheimniskraemer", "Zwiebelturm", "PAT-4711", "19540317", "ACC-0815-", "Sankt-Nirgendwo", "Oberarztin")
"""What is planted: names, the start of patient IDs, a birth date, accession numbers, institution, physician."""


def radiograph(number: int, pixels: np.ndarray[Any, Any], modality: str = "CR", **elements: Any) -> Dataset:
    """A frontal chest radiograph (CR or DX) of planted patient `number`, valid enough for any archive.

    Args:
        number: decides patient, study and UIDs; the same number is the same file.
        pixels: (H, W) in 0…1, bright = dense; stored with 12 bits.
        modality: CR or DX.
        elements: further elements by keyword, or others in place of what is written here.
    """
    kind = ComputedRadiographyImageStorage if modality == "CR" else DigitalXRayImageStorageForPresentation
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.SOPClassUID = kind
    for level in ("Study", "Series", "SOP"):
        setattr(dataset, f"{level}InstanceUID", generate_uid(entropy_srcs=[level, str(number), modality]))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientName, dataset.PatientID = f"Geheimniskraemer^Zwiebelturm {number}", f"PAT-4711-{number}"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19540317", "FM"[number % 2], "066Y"
    dataset.AccessionNumber, dataset.StudyID = f"ACC-0815-{number}", str(number)
    dataset.InstitutionName, dataset.ReferringPhysicianName = "Sankt-Nirgendwo", "Oberarztin^Eva"
    dataset.StudyDate = dataset.ContentDate = dataset.AcquisitionDate = f"2021{number % 12 + 1:02}15"
    dataset.StudyTime = dataset.ContentTime = dataset.AcquisitionTime = "101500"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = modality, "CHEST", "PA"
    dataset.StudyDescription, dataset.SeriesDescription = "Röntgen Thorax", "Thorax PA"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Phantom", "Phantom 1"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.PatientOrientation, dataset.BurnedInAnnotation = ["L", "F"], "NO"
    if modality == "DX":
        dataset.PresentationIntentType, dataset.ImageLaterality = "FOR PRESENTATION", "U"
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
        dataset.PresentationLUTShape, dataset.RescaleType = "IDENTITY", "US"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.LossyImageCompression = 1, 0, "00"
        dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
        dataset.DetectorType, dataset.PositionerType, dataset.AcquisitionContextSequence = "DIRECT", "NONE", []
        chest = Dataset()
        chest.CodeValue, chest.CodingSchemeDesignator, chest.CodeMeaning = "51185008", "SCT", "Chest"
        dataset.AnatomicRegionSequence = [chest]
    dataset.ImagerPixelSpacing = [2.0, 2.0]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.round(pixels * 4095).astype("<u2").tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write(dataset: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def small(number: int, modality: str = "CR", **elements: Any) -> Dataset:
    """A radiograph of 24 x 20 pixels that shows nothing."""
    return radiograph(number, np.random.default_rng(number).random((24, 20)), modality, **elements)
