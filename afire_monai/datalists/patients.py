"""Find the patient of an item, and patients who are in two sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def patient_of(item: Mapping[str, Any]) -> str:
    """Return an item's patient: its ``group``, or its image where that is missing, null, NaN or blank."""
    group = item.get("group")
    return ("" if group is None or group != group else str(group).strip()) or str(item["image"])


def shared_patients(sections: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[tuple[str, str], set[str]]:
    """Return the patients who are in two sections, for each pair of sections that shares any."""
    patients = {section: {patient_of(item) for item in items} for section, items in sections.items()}
    names = list(patients)
    pairs = [(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    return {(one, other): shared for one, other in pairs if (shared := patients[one] & patients[other])}
