"""Identifiers that C-FIND, C-GET and C-MOVE are asked with, and what comes back."""

from __future__ import annotations

from typing import Any

from afire_monai.hospital.dicomweb.client import Query, SeriesReference


def study_query(query: Query, modality: str) -> Any:
    """Return the identifier that finds the studies of a query with a modality."""
    dataset = _dataset("STUDY", StudyInstanceUID="", ModalitiesInStudy=modality, StudyDescription="", StudyDate="")
    if query.first or query.last:
        dataset.StudyDate = query.first if query.first == query.last else f"{query.first}-{query.last}"
    return dataset


def series_query(study: str, modality: str) -> Any:
    """Return the identifier that finds the series of a modality in a study."""
    return _dataset("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality=modality, SeriesDescription="")


def level_query(level: str, series: SeriesReference, instance: str) -> Any:
    """Return the identifier of objects of a series: one of them, or all with "" for the instance."""
    return _dataset(level, StudyInstanceUID=series.study, SeriesInstanceUID=series.series, SOPInstanceUID=instance)


def _dataset(level: str, **elements: str) -> Any:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def text_of(entry: Any, keyword: str) -> str:
    """Return an element of an answer as text, "" where there is none."""
    return str(entry.get(keyword) or "").strip(" \0")


def as_json(entry: Any) -> dict[str, Any]:
    """Return what a query looks at as DICOM JSON."""
    tags = {
        "00080060": "Modality",
        "00080020": "StudyDate",
        "00081030": "StudyDescription",
        "0008103E": "SeriesDescription",
    }
    return {tag: {"Value": [text]} for tag, keyword in tags.items() if (text := text_of(entry, keyword))}
