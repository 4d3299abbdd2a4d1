"""The DICOM header values that are needed to select, name, split and describe an image, and no others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from afire_monai.core.age_sex import OLDEST, parse_age, parse_sex
from afire_monai.core.quiet import quiet
from afire_monai.radiographs.dicom import integer, looks_like_dicom
from afire_monai.radiographs.dicom_open import in_words, open_dataset
from afire_monai.radiographs.picture import refusal

SERIES_TEXTS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "PerformedProcedureStepDescription",
)
STUDY_TEXTS = ("StudyDescription", "RequestedProcedureDescription")
_REGION_CODES, _VIEW_CODES = "AnatomicRegionSequence", "ViewCodeSequence"
_TEXTS = {
    "modality": "Modality",
    "image_type": "ImageType",
    "sop_class": "SOPClassUID",
    "sop_uid": "SOPInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "study_uid": "StudyInstanceUID",
    "patient_id": "PatientID",
    "issuer": "IssuerOfPatientID",
    "accession": "AccessionNumber",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "intent": "PresentationIntentType",
    "conversion": "ConversionType",
    "burned_in": "BurnedInAnnotation",
    "photometric": "PhotometricInterpretation",
    "species": "PatientSpeciesDescription",
    "maker": "Manufacturer",
    "model": "ManufacturerModelName",
    "institution": "InstitutionName",
    "station": "StationName",
}
_DATES = ("AcquisitionDate", "StudyDate", "SeriesDate", "ContentDate")
_OTHERS = ("PatientOrientation", "PatientSex", "PatientAge", "PatientBirthDate", "AcquisitionDateTime")
_NUMBERS = {"rows": "Rows", "columns": "Columns", "samples": "SamplesPerPixel", "frames": "NumberOfFrames"}
_TAGS = (
    *_TEXTS.values(), *_DATES, *_OTHERS, *_NUMBERS.values(), *SERIES_TEXTS, *STUDY_TEXTS, _REGION_CODES, _VIEW_CODES,
    "SpecificCharacterSet",
)  # fmt: skip
_LONGEST = 256


@dataclass(frozen=True)
class Header:
    r"""Facts of one file's header; texts are "" and numbers 0 where the file is silent. It identifies a patient.

    Defined terms are in capitals; several values have backslashes between them, as ``DERIVED\SECONDARY``. Texts of the
    series are the device's descriptions, those of the study the order's; codes come with their meanings. The age is
    in years, -1 where not known, the date YYYYMMDD.
    """

    modality: str = ""
    image_type: str = ""
    sop_class: str = ""
    sop_uid: str = ""
    series_uid: str = ""
    study_uid: str = ""
    patient_id: str = ""
    issuer: str = ""
    accession: str = ""
    body_part: str = ""
    view: str = ""
    intent: str = ""
    conversion: str = ""
    burned_in: str = ""
    photometric: str = ""
    species: str = ""
    maker: str = ""
    model: str = ""
    institution: str = ""
    station: str = ""
    series_texts: tuple[str, ...] = ()
    study_texts: tuple[str, ...] = ()
    region_codes: tuple[str, ...] = ()
    view_codes: tuple[str, ...] = ()
    orientation: str = ""
    rows: int = 0
    columns: int = 0
    samples: int = 1
    frames: int = 1
    sex: str = ""
    age: float = -1.0
    date: str = ""

    def as_values(self) -> dict[str, Any]:
        """Return the facts that are there as plain values, for `from_values`."""
        defaults = _DEFAULTS
        return {name: value for name, value in vars(self).items() if value != defaults[name]}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Header:
        """Build a header from the result of `as_values`, also after a passage through JSON.

        Raises TypeError for an unknown fact, or one of another type.
        """
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, value in plain.items():
            default = _DEFAULTS.get(name)
            wanted = (int, float) if isinstance(default, float) else type(default)
            texts = value if isinstance(value, tuple) else ()
            if not isinstance(value, wanted) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{name} of a header is of type {type(value).__name__}")
        return cls(**plain)


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Header)}
_CAPITALS = (
    "modality", "image_type", "body_part", "view", "intent", "conversion", "burned_in", "photometric", "species",
)  # fmt: skip


@quiet()
def read_header(path: Path) -> Header:
    """Read the header of a DICOM file; elements that are damaged count as absent.

    Raises RadiographError if the file is not DICOM, not readable, or broken before the first element that is needed.
    """
    with in_words(path), path.open("rb") as file:
        check_start(path, file.read(132))
    return header_of(path, open_dataset(path, header_only=True, tags=_TAGS))


def header_of(path: Path, dataset: Any) -> Header:
    """Take the facts from a data set that has been read; elements that are damaged count as absent.

    Raises RadiographError if nothing in it says that it is an image.
    """
    texts = {name: _text(dataset, keyword) for name, keyword in _TEXTS.items()}
    for name in _CAPITALS:
        texts[name] = texts[name].upper()
    numbers = {name: integer(dataset, keyword, _DEFAULTS[name]) for name, keyword in _NUMBERS.items()}
    values: dict[str, Any] = {**texts, **numbers}
    if not any(values[name] for name in ("modality", "sop_class", "sop_uid", "rows")):
        raise refusal(path, "not an image", "it has no SOP class, modality or size; a DICOM radiograph has all three")
    when = next((found for found in (_date(_text(dataset, keyword)) for keyword in _DATES) if found), "")
    return Header(
        **values,
        series_texts=_filled(_text(dataset, keyword) for keyword in SERIES_TEXTS),
        study_texts=_filled(_text(dataset, keyword) for keyword in STUDY_TEXTS),
        region_codes=_codes(dataset, _REGION_CODES),
        view_codes=_codes(dataset, _VIEW_CODES),
        orientation=_text(dataset, "PatientOrientation").upper(),
        sex=parse_sex(_text(dataset, "PatientSex")) or "",
        age=_age(dataset, when),
        date=when or _date(_text(dataset, "AcquisitionDateTime")[:8]),
    )


def check_start(path: Path, head: bytes) -> None:
    """Refuse a file that does not start as DICOM does."""
    if not head:
        raise refusal(path, "empty file", "it has 0 bytes. Copy it again from its source")
    if not looks_like_dicom(head):
        raise refusal(path, "not DICOM", "it does not start as a DICOM file does")


def _text(dataset: Any, keyword: str) -> str:
    """Value as text, several values with backslashes between them; "" if it cannot be converted."""
    try:
        value = dataset.get(keyword)
        if value is None:
            return ""
        several = not isinstance(value, str) and hasattr(value, "__iter__")
        text = "\\".join(str(part) for part in value) if several else str(value)
    except Exception:  # pydicom raises many unrelated types on damaged elements
        return ""
    return text.replace("\x00", "").strip()[:_LONGEST]


def _codes(dataset: Any, keyword: str) -> tuple[str, ...]:
    try:
        items = list(dataset.get(keyword) or [])[:8]
    except Exception:  # as above
        return ()
    return _filled(_text(item, name) for item in items for name in ("CodeValue", "CodeMeaning"))


def _filled(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text)


def _date(text: str) -> str:
    """YYYYMMDD from a DICOM date, also as YYYY.MM.DD; "" for anything that is not a day."""
    digits = re.sub(r"[.\-/]", "", text.strip())
    try:
        return digits if len(digits) == 8 and digits.isdecimal() and date.fromisoformat(digits) else ""
    except ValueError:
        return ""


def _age(dataset: Any, when: str) -> float:
    """Years from PatientAge, else from the birth date on the day of the picture; -1 where neither is known.

    An age of 0, which devices write where they know none, counts only without a birth date.
    """
    stated = parse_age(_text(dataset, "PatientAge"))
    birth = _date(_text(dataset, "PatientBirthDate"))
    if not stated and birth and when:
        years = (date.fromisoformat(when) - date.fromisoformat(birth)).days / 365.2425
        if 0 <= years <= OLDEST:
            return round(years, 2)
    return -1.0 if stated is None else stated
