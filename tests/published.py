"""Small copies of public data sets, in the format that their publishers use."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from afire_monai.datalists.file import SECTIONS


def write(path: Path, text: str, bom: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    return path


def picture(path: Path, size: tuple[int, int] = (8, 8), value: int | None = None) -> Path:
    """A picture of random grey, or of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1]
    draw = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = draw.integers(0, 255, shape) if value is None else np.full(shape, value)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def dicom(path: Path, sex: str = "F", age: str = "045Y", view: str = "PA") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    file = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = meta.MediaStorageSOPClassUID, generate_uid(), "CR"
    file.PatientName, file.PatientID = "Planted^Name", "PLANTED-ID"
    file.PatientSex, file.PatientAge, file.ViewPosition = sex, age, view
    file.Rows, file.Columns, file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 8, 8, 7
    file.SamplesPerPixel, file.PixelRepresentation, file.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    file.PixelData = bytes(64)
    file.save_as(path, enforce_file_format=True)
    return path


def items(datalist: dict[str, Any], sections: Sequence[str] = SECTIONS) -> dict[str, dict[str, Any]]:
    """Items of a list by the name of their picture without suffix."""
    return {Path(item["image"]).stem: item for section in sections for item in datalist.get(section, [])}


def groups(datalist: dict[str, Any], section: str) -> set[str]:
    return {item["group"] for item in datalist.get(section, [])}


def labels_of(datalist: dict[str, Any], item: dict[str, Any]) -> dict[str, int | None]:
    return dict(zip(datalist["labels"], item["label"], strict=True))
