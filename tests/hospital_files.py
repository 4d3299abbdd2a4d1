"""DICOM files with planted names, numbers and dates; and work that misbehaves, importable by other processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CR, DX, DX_RAW, SC = (
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1", "7")
)  # computed, digital for presentation, digital for processing, secondary capture
NAME, PATIENT, BIRTH, ACCESSION, PLACE = "Zyxwolski^Anna", "PAT7734421", "19431107", "ACC5550193", "St Quirinus Clinic"
PLANTED = ("Zyxwolski", PATIENT, BIRTH, ACCESSION, "Quirinus", "1943-11-07")


def chest(seed: int, side: int = 64) -> np.ndarray:
    """(side, side) uint16 of 12 bits: two dark fields beside something bright, and noise that differs by seed."""
    y, x = np.mgrid[:side, :side] / side
    fields = np.exp(-(((x - 0.28) / 0.12) ** 2 + ((y - 0.5) / 0.3) ** 2)) + np.exp(
        -(((x - 0.72) / 0.12) ** 2 + ((y - 0.5) / 0.3) ** 2)
    )
    noise = np.random.default_rng(seed).integers(0, 200, (side, side))
    return (3000 * (1 - 0.8 * fields) + noise).astype(np.uint16)


def radiograph(seed: int = 0, pixels: np.ndarray | None = None, **elements: Any) -> FileDataset:
    """A frontal chest radiograph of a patient of its own; elements replace or (None) remove what is there."""
    values = chest(seed) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    item.SOPClassUID, item.SOPInstanceUID = DX, generate_uid(entropy_srcs=["image", str(seed)])
    item.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(seed)])
    item.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(seed)])
    item.PatientName, item.PatientID, item.PatientBirthDate = NAME, f"{PATIENT}{seed}", BIRTH
    item.AccessionNumber, item.InstitutionName, item.StudyDate = f"{ACCESSION}{seed}", PLACE, "20210304"
    item.PatientSex, item.PatientAge = ("F", "M")[seed % 2], "077Y"
    item.Manufacturer, item.ManufacturerModelName = "Acme", "Ray 5"
    item.Modality, item.PhotometricInterpretation = "DX", "MONOCHROME2"
    item.BodyPartExamined, item.ViewPosition = "CHEST", "PA"
    item.Rows, item.Columns = values.shape
    item.SamplesPerPixel, item.BitsAllocated, item.BitsStored, item.HighBit = 1, 16, 12, 11
    item.PixelRepresentation = 0
    item.PixelData = values.tobytes()
    for keyword, value in elements.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    meta.MediaStorageSOPClassUID = item.get("SOPClassUID", DX)
    meta.MediaStorageSOPInstanceUID = item.get("SOPInstanceUID", "1.2.3")
    return item


def write(path: Path, seed: int = 0, pixels: np.ndarray | None = None, **elements: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    radiograph(seed, pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def coded(value: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return [item]


def misbehave(task: str) -> str:
    """Hang, crash, ask for all memory, raise, or do as told."""
    if task == "hang":
        time.sleep(1000)
    if task == "crash":
        os.abort()
    if task == "memory":
        return str(len(bytearray(1 << 33)))
    if task == "raise":
        raise KeyError("PAT7734421")
    return task.upper()


def validator_errors(path: Path) -> list[str]:
    """What dciodvfy says is wrong with a DICOM file; skips the test where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
