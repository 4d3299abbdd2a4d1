"""The radiograph that results belong to, and the part of its header that new objects may copy."""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.quiet import quiet
from afire_monai.predictions.results import KEY
from afire_monai.radiographs.dicom import RADIOGRAPH_CLASSES, RADIOGRAPHY_MODALITIES, integer, looks_like_dicom
from afire_monai.radiographs.picture import check_size, refusal

MODALITIES = (*RADIOGRAPHY_MODALITIES, "OT", "SC")
"""Radiographs, and other single grey frames that were predicted as radiographs, such as digitised films."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID")
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_TYPE_3 = (
    *("PatientBirthTime", "PatientAge", "PatientSize", "PatientWeight", "EthnicGroup", "OtherPatientIDs"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "BodyPartExamined"),
    *("PatientSpeciesDescription", "PatientBreedDescription", "ResponsiblePerson", "ResponsibleOrganization"),
)
_SEQUENCES = (
    *("IssuerOfPatientIDQualifiersSequence", "OtherPatientIDsSequence", "IssuerOfAccessionNumberSequence"),
    *("DeidentificationMethodCodeSequence", "PatientSpeciesCodeSequence", "PatientBreedCodeSequence"),
    "BreedRegistrationSequence",
)
_LOSSY = {
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), "ISO_10918_1"),
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}
_SPACINGS = (0.01, 10.0)
_ORIENTATIONS = frozenset("APRLHF")


@dataclass(frozen=True)
class SourceImage:
    """A radiograph's header, cleaned."""

    path: Path  #: the file; only ever opened for reading
    #: pydicom data set with the attributes that new objects may copy: the identity of patient and study as it is, other
    #: attributes if valid, and required attributes that are missing as empty ones. It has no pixels
    header: Any
    shape: tuple[int, int]  #: rows and columns
    #: millimetres from column to column, and whether that is in the patient (PixelSpacing) rather than at the detector
    #: (ImagerPixelSpacing), where everything is larger; None if neither is given
    spacing: tuple[float, bool] | None = None


def open_source(path: SourceImage | str | os.PathLike[str]) -> SourceImage:
    """Read the header of a radiograph that results are to be attached to; one that was read already stays as it is.

    Identity (patient name and ID with issuer, accession number, study ID, UIDs) is copied letter by letter, valid or
    not, because a PACS files by it. Other attributes whose values their type forbids are left out, or emptied if the
    standard demands them. Raises RadiographError if the file is not DICOM, broken, not one grey radiograph, or without
    a UID that the new objects must name.
    """
    if isinstance(path, SourceImage):
        return path
    path = Path(path)
    with quiet():
        dataset = _read(path)
        _check(path, dataset)
        try:
            header = _cleaned(dataset)
        except Exception as error:  # pydicom raises many types when it converts a damaged element
            kind = type(error).__name__
            raise refusal(path, "damaged header", f"a value cannot be read ({kind}). Export the file again") from None
        spacing = _spacing(dataset)
    return SourceImage(path, header, (int(header.Rows), int(header.Columns)), spacing)


def _spacing(dataset: Any) -> tuple[float, bool] | None:
    """Return the spacing of columns, where both spacings are numbers that a radiograph can have."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            _, columns = (float(value) for value in dataset.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if _SPACINGS[0] <= columns <= _SPACINGS[1]:  # false for NaN
            imager = dataset.get("ImagerPixelSpacing")
            # some devices copy the detector's spacing, which is then not a measure in the patient
            return columns, keyword == "PixelSpacing" and dataset.get(keyword) != imager
    return None


def _read(path: Path) -> Any:
    import pydicom

    try:
        with path.open("rb") as file:
            head = file.read(352)
        if not looks_like_dicom(head):
            advice = "results belong to a DICOM radiograph; --index says which one a picture was made from"
            raise refusal(path, "not DICOM", advice)
        dataset = pydicom.dcmread(path, force=True)
        for keyword in (*_UIDS, *_TYPE_2, *_TYPE_3, "PixelData"):
            dataset.get(keyword)  # elements are converted when first asked for: a damaged one shows here
        return dataset
    except OSError as error:
        raise refusal(path, "not readable", f"{error.strerror or type(error).__name__}. Check the path") from error
    except RadiographError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise refusal(path, "broken or truncated", f"not a readable DICOM file ({kind})") from None


def _check(path: Path, dataset: Any) -> None:
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality not in MODALITIES:
        known = ", ".join(MODALITIES)
        raise refusal(path, f"modality {modality[:16] or 'absent'}", f"results are written for {known}")
    if str(dataset.get("SOPClassUID") or "") not in RADIOGRAPH_CLASSES:
        raise refusal(path, "not a radiograph's SOP class", "CR, DX or Secondary Capture image storage is expected")
    for keyword in _UIDS:
        value = str(dataset.get(keyword) or "")
        if not value or value.strip("0123456789."):
            seen = "no" if not value else "an invalid"
            advice = "results can only be filed with a study if it is known; export the file from the PACS again"
            raise refusal(path, f"{seen} {keyword}", advice)
    if "PixelData" not in dataset:
        raise refusal(path, "no pixels", "it has no PixelData: not an image, or cut off before it")
    if integer(dataset, "NumberOfFrames", 1) > 1 or integer(dataset, "SamplesPerPixel", 1) != 1:
        raise refusal(path, "not one grey frame", "results are written for single-frame grey images")
    check_size(path, integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))


def _cleaned(dataset: Any) -> Any:
    from pydicom.dataset import Dataset

    header = Dataset()
    header.Rows, header.Columns = int(dataset.Rows), int(dataset.Columns)
    header.Modality = str(dataset.Modality).strip().upper()
    if _character_set_known(dataset):
        header.SpecificCharacterSet = dataset.SpecificCharacterSet
    for keyword in (*_UIDS, *_IDENTITY):
        if keyword in dataset:
            header[keyword] = copy.deepcopy(dataset[keyword])
    for keyword in (*_TYPE_2, *_TYPE_3):
        if keyword not in header and keyword in dataset and _is_valid(dataset[keyword]):
            header[keyword] = copy.deepcopy(dataset[keyword])
    for keyword in _SEQUENCES:
        if dataset.get(keyword):
            header[keyword] = copy.deepcopy(dataset[keyword])
    if header.get("PatientSex") not in ("M", "F", "O", ""):
        header.PatientSex = ""
    for keyword in _TYPE_2:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    _copy_geometry(dataset, header)
    _copy_lossy(dataset, header)
    if dataset.get("BurnedInAnnotation") in ("YES", "NO"):
        header.BurnedInAnnotation = dataset.BurnedInAnnotation
    return header


def _character_set_known(dataset: Any) -> bool:
    from pydicom.charset import python_encoding

    names = dataset.get("SpecificCharacterSet")
    if not names:
        return False
    return all(name in python_encoding for name in ([names] if isinstance(names, str) else names))


def _is_valid(element: Any) -> bool:
    """Whether a value is one that its value representation allows; values that should be single must be."""
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    if element.VM > 1 and element.keyword not in ("OtherPatientIDs", "DeidentificationMethod"):
        return False
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, str(value) if value is not None else "", RAISE)
    except Exception:  # the checks of a strange value raise many types
        return False
    return True


def _copy_geometry(dataset: Any, header: Any) -> None:
    """Copy orientation and side if they are plausible.

    Spacing is left out: results lie on the source's pixels, and highdicom cannot read a segmentation that has a spacing
    but no slice thickness, which a radiograph does not have.
    """
    try:
        orientation = [str(value) for value in dataset.get("PatientOrientation") or ()]
    except TypeError:
        orientation = []
    if len(orientation) == 2 and all(value and set(value) <= _ORIENTATIONS for value in orientation):
        header.PatientOrientation = orientation
    if dataset.get("Laterality") in ("R", "L"):
        header.Laterality = dataset.Laterality


def _copy_lossy(dataset: Any, header: Any) -> None:
    """Say whether pixels were ever compressed with loss; derived objects must go on saying so.

    If the ratio is missing, it is that of this file; the method follows from its transfer syntax.
    """
    meta = getattr(dataset, "file_meta", None)
    method = _LOSSY.get(str(meta.get("TransferSyntaxUID", "")) if meta is not None else "")
    if dataset.get("LossyImageCompression") != "01" and method is None:
        header.LossyImageCompression = "00"
        return
    header.LossyImageCompression = "01"
    try:
        ratios = dataset.get("LossyImageCompressionRatio")
        given = [float(value) for value in (ratios if hasattr(ratios, "__iter__") else [ratios])]
    except (TypeError, ValueError):
        given = []
    if not given and method is not None:
        raw = header.Rows * header.Columns * max(integer(dataset, "BitsAllocated", 8), 8) / 8
        given = [max(raw / max(len(dataset.PixelData), 1), 1.0)]
    if given:
        header.LossyImageCompressionRatio = [f"{ratio:.6g}" for ratio in given]
    methods = dataset.get("LossyImageCompressionMethod")
    named = [methods] if isinstance(methods, str) else [str(value) for value in methods or ()]
    named = [name for name in named if name] or ([method] if method else [])
    if named and len(named) == max(len(given), 1):
        header.LossyImageCompressionMethod = named


T = TypeVar("T")
_INDEX, _FILE, _IMAGE, _UID = "index", "file", "image", "sop_uid"


@dataclass(frozen=True)
class SourceFile:
    """A source file and how to know that it is still the same."""

    file: str  #: path
    sop_instance_uid: str = ""  #: UID that it must have; "" if the table does not say
    ingested: bool = False  #: the table is that of an ingest, which judged the file


def source_files(
    predictions: str | os.PathLike[str], index: str | os.PathLike[str] | None = None
) -> dict[int, SourceFile]:
    """Find the source file of each predicted image.

    Args:
        predictions: folder of ``afire predict``.
        index: None for predictions of DICOM files, whose own ``index.csv`` names them; a table with the columns
            ``index`` and ``file``; or ``private/index.csv`` of ``afire ingest`` for predictions of its data list, whose
            rows are found by the hashes that its images are named after (columns ``image``, ``file``, ``sop_uid``).

    Returns:
        Source file by index; images that the table does not hold are left out.

    Raises:
        AfireError: if a table is missing, cannot be read, or has other columns.
    """
    own = Path(predictions) / KEY
    where = own if index is None else Path(index)
    rows = _rows(where, (_FILE,))
    if _INDEX in rows[0]:
        return _once(((_number(row[_INDEX], where), _found(row, where)) for row in rows), where)
    if _IMAGE not in rows[0]:
        raise AfireError(
            f"{where}: columns {', '.join(rows[0])}; {_INDEX} and {_FILE}, or {_IMAGE} and {_FILE}, are expected "
            "(private/index.csv of `afire ingest`)"
        )
    known = _once(((row[_IMAGE], replace(_found(row, where), ingested=True)) for row in rows), where)
    images = {_number(row[_INDEX], own): Path(row[_FILE]).stem for row in _rows(own, (_INDEX, _FILE))}
    return {number: known[name] for number, name in images.items() if name in known}


def _once(found: Iterable[tuple[T, SourceFile]], table: Path) -> dict[T, SourceFile]:
    """Return source files by image; an image with two files could be filed with the wrong patient."""
    files: dict[T, SourceFile] = {}
    for number, (image, file) in enumerate(found, 1):
        if files.setdefault(image, file) != file:
            raise AfireError(f"{table}: row {number} names another file for the image of an earlier row; keep one")
    return files


def _found(row: dict[str, str], table: Path) -> SourceFile:
    return SourceFile(str(table.parent / row[_FILE]), row.get(_UID, ""))


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        # names of files need not be valid text in any encoding
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            rows = [dict(zip(head, row, strict=True)) for row in reader if row]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a table of equally long rows"
        raise AfireError(f"{path}: {reason}; give the table that says which file an image is with --index") from error
    missing = [name for name in needed if name not in head]
    if missing or not rows:
        seen = f"no column {missing[0]}" if missing else "no row"
        raise AfireError(f"{path}: {seen}; a table with a row for each image is expected. Predict or ingest again")
    return rows


def _number(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise AfireError(f"{path}: column index holds something other than a whole number; 0, 1, … are expected")
    return int(text)
