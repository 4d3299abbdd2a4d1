"""Heatmaps and masks as DICOM segmentations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import codes
from afire_monai.dicom_results.codes import new_uid
from afire_monai.dicom_results.objects import (
    MAKER,
    building,
    character_set,
    common,
    model_parameters,
    with_warning,
    write_new,
)
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import SourceImage, open_source


def write_heatmap(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
) -> Path:
    """Write the heatmap of one radiograph as a Segmentation (FRACTIONAL, PROBABILITY, 8 bit) of its study.

    Pixel (row, column) lies on the source's pixel (row, column); 255 stands for 1. DICOM knows fractions only as
    probability or occupancy; the description says that these have a scale of their own and are not a calibrated
    probability. Raises RadiographError if the source cannot carry results; AfireError if there is no heatmap or it does
    not fit the source, or the file cannot be written.
    """
    source = open_source(source)
    heat, kind = prediction.fitted(source.shape), codes.meaning(prediction.heatmap_kind)
    anomaly = prediction.heatmap_kind == "anomaly"
    about = (codes.ABNORMAL_STRUCTURE, codes.ANOMALY) if anomaly else (codes.SPATIAL, codes.EXPLANATION)
    label = f"AFiRe {prediction.heatmap_kind} {prediction.heatmap_label}"
    return _written(
        source, prediction, [(label, *about, "AUTOMATIC", model_parameters(prediction.model), "tracking")],
        f"AFiRe heatmap ({kind})", out_dir, seed, pixel_array=np.ascontiguousarray(heat),
        segmentation_type="FRACTIONAL", content_label="AFIRE_HEATMAP",
        content_description=with_warning(f"{kind} heatmap, relative scale"),
    )  # fmt: skip


def write_masks(
    source: SourceImage | str | os.PathLike[str],
    mask: NDArray[np.integer[Any]],
    classes: Mapping[str, int],
    out_dir: str | os.PathLike[str],
    model: Mapping[str, Any] | None = None,
    seed: str | None = None,
) -> Path:
    """Write a label map of one radiograph as a Segmentation (BINARY, a segment for each class) of its study.

    Args:
        source: the radiograph.
        mask: (rows, columns) of the source, 0 for background.
        classes: value of each class in the mask; those that are not in the mask get no segment.
        out_dir: folder for the file, which is named after its UID.
        model: values that identify the model that drew it; None for a map that a person saved.
        seed: see `new_uid`.

    Raises:
        RadiographError: if the source cannot carry results.
        AfireError: if the mask does not fit the source or is empty, or the file cannot be written.
    """
    source = open_source(source)
    if mask.shape != source.shape:
        raise AfireError(f"the mask has the shape {mask.shape}, the source {source.shape}; both must be the same")
    drawn = {name: value for name, value in classes.items() if (mask == value).any()}
    if not drawn or len(set(drawn.values())) < len(drawn) or set(np.unique(mask)) - {0, *drawn.values()}:
        raise AfireError("an empty mask, or one with values of no or several classes, makes no segmentation")
    facts = ImagePrediction(dict.fromkeys(drawn, 1.0), model=model or {})
    title, by, drawer = ("AFiRe segmentation", "AUTOMATIC", "model")
    if model is None:
        title, by, drawer = ("AFiRe label", "SEMIAUTOMATIC", "person")
    # a person may have corrected a mask that a model drew: the standard then requires the model's name as well
    parameters = model_parameters(facts.model) or None
    category = {True: codes.ABNORMAL_STRUCTURE, False: codes.ANATOMY}
    return _written(
        source, facts,
        [(n, category[codes.is_finding(n)], codes.segment_code(n), by, parameters, f"tracking {n}") for n in drawn],
        title, out_dir, seed, segmentation_type="BINARY", content_label="AFIRE_MASK",
        pixel_array=np.stack([mask == value for value in drawn.values()], -1)[None].astype(np.uint8),
        content_description=with_warning(f"outlines of a {drawer}"),
    )  # fmt: skip


def _written(
    source: SourceImage, prediction: ImagePrediction, segments: Iterable[tuple[Any, ...]], title: str,
    out_dir: str | os.PathLike[str], seed: str | None, **about: Any,
) -> Path:  # fmt: skip
    """Write a segmentation; of each segment: label, category, type, algorithm's type and settings, use of its UID."""
    with building("segmentation"):
        descriptions = [
            SegmentDescription(
                segment_number=number,
                segment_label=codes.meaning(label),
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=algorithm,
                algorithm_identification=AlgorithmIdentificationSequence(
                    MAKER, codes.ARTIFICIAL_INTELLIGENCE, __version__, MAKER, parameters
                ),
                tracking_id=codes.meaning(label),
                tracking_uid=new_uid(seed, str(source.header.SOPInstanceUID), "seg", use),
            )
            for number, (label, category, kind, algorithm, parameters, use) in enumerate(segments, 1)
        ]
        segmentation = Segmentation(
            source_images=[source.header],
            segment_descriptions=descriptions,
            max_fractional_value=255,
            omit_empty_frames=False,
            coding_schemes=codes.coding_schemes(),
            **about,
            **common("seg", source, prediction, seed, title),
        )
        # empty if unknown: the standard requires the attribute if there is no orientation in space
        segmentation.PatientOrientation = source.header.get("PatientOrientation")
        return write_new(segmentation, character_set(source, prediction), out_dir)
