"""What to ask a DICOMweb server for, and what it says of a series."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afire_monai.hospital.dicomweb.access import DicomWebError

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class SeriesReference:
    """A series on a server.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
    """

    study: str
    series: str


@dataclass(frozen=True)
class Query:
    """Which series are wanted.

    Attributes:
        modalities: any of them.
        first: earliest study date, YYYYMMDD; "" for any.
        last: latest study date; "" for any.
        words: any of them must be in the description of the study or the series, whatever the case; none for all.
    """

    modalities: tuple[str, ...] = ("CR", "DX")
    first: str = ""
    last: str = ""
    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, modalities: Sequence[str] = ("CR", "DX"), date: str | None = None, words: Sequence[str] = ()) -> Query:
        """Check what was typed.

        Args:
            modalities: codes of up to 16 capitals, digits, _ or blanks.
            date: YYYYMMDD, YYYYMMDD-YYYYMMDD, YYYYMMDD- or -YYYYMMDD.
            words: see the class.

        Raises:
            DicomWebError: for anything else.
        """
        names = tuple(dict.fromkeys(name.strip().upper() for name in modalities))
        if not names or not all(re.fullmatch(r"[A-Z0-9_ ]{1,16}", name) for name in names):
            raise DicomWebError("--modality takes codes with commas between them, for example CR,DX")
        first, last = _range(date)
        return cls(names, first, last, tuple(word.strip().casefold() for word in words if word.strip()))

    def wants(self, found: Mapping[str, Any]) -> bool:
        """Whether a series that a server found is meant; servers may leave out filters that they do not know."""
        modality, date = value(found, "00080060"), value(found, "00080020").replace(".", "")  # old form of dates
        if modality and modality.upper() not in self.modalities:
            return False
        if date and ((self.first and date < self.first) or (self.last and date > self.last)):
            return False
        text = f"{value(found, '00081030')}\n{value(found, '0008103E')}".casefold()
        return not self.words or any(word in text for word in self.words)


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID, and so can be part of an address or a file name."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def value(entry: Mapping[str, Any], tag: str) -> str:
    """First value of an element in DICOM JSON as text; "" where there is none."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]).strip(" \0") if isinstance(values, list) and values and values[0] is not None else ""


def _range(date: str | None) -> tuple[str, str]:
    if date is None:
        return "", ""
    first, dash, last = date.strip().partition("-")
    last = last if dash else first
    for day in (first, last):
        try:
            if day and (len(day) != 8 or not day.isdigit()):
                raise ValueError
            if day:
                time.strptime(day, "%Y%m%d")
        except ValueError:
            raise DicomWebError("--date takes YYYYMMDD, YYYYMMDD-YYYYMMDD, YYYYMMDD- or -YYYYMMDD") from None
    if not (first or last) or (first and last and first > last):
        raise DicomWebError("--date needs a first day that is not after the last one, as YYYYMMDD-YYYYMMDD")
    return first, last
