"""Heatmaps and masks as DICOM segmentations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import codes
from afire_monai.dicom_results.codes import NewUids
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
    source = source if isinstance(source, SourceImage) else open_source(source)
    heat = prediction.fitted(source.shape)
    uids = NewUids(seed)
    kind = codes.meaning(prediction.heatmap_kind)
    with building("segmentation"):
        segmentation = Segmentation(
            source_images=[source.header],
            pixel_array=np.ascontiguousarray(heat),
            segmentation_type=SegmentationTypeValues.FRACTIONAL,
            segment_descriptions=[_segment(source, prediction, uids)],
            max_fractional_value=255,
            content_label="AFIRE_HEATMAP",
            content_description=with_warning(f"{kind} heatmap, relative scale"),
            omit_empty_frames=False,
            coding_schemes=codes.coding_schemes(),
            **common("seg", source, prediction, uids, f"AFiRe heatmap ({kind})"),
        )
        # empty if unknown: the standard requires the attribute if there is no orientation in space
        segmentation.PatientOrientation = source.header.get("PatientOrientation")
        return write_new(segmentation, character_set(source, prediction), out_dir)


def _segment(source: SourceImage, prediction: ImagePrediction, uids: NewUids) -> SegmentDescription:
    anomaly = prediction.heatmap_kind == "anomaly"
    label = f"{prediction.heatmap_kind} {prediction.heatmap_label}".strip()
    algorithm = AlgorithmIdentificationSequence(
        MAKER, codes.ARTIFICIAL_INTELLIGENCE, __version__, MAKER, model_parameters(prediction.model)
    )
    return SegmentDescription(
        segment_number=1,
        segment_label=codes.meaning(f"AFiRe {label}"),
        segmented_property_category=codes.ABNORMAL_STRUCTURE if anomaly else codes.SPATIAL,
        segmented_property_type=codes.ANOMALY if anomaly else codes.EXPLANATION,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_id=codes.meaning(f"AFiRe {label}"),
        tracking_uid=uids.new(str(source.header.SOPInstanceUID), "seg", "tracking"),
    )


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
        seed: see `NewUids`; None outside tests.

    Raises:
        RadiographError: if the source cannot carry results.
        AfireError: if the mask does not fit the source or is empty, or the file cannot be written.
    """
    source = source if isinstance(source, SourceImage) else open_source(source)
    if mask.shape != source.shape:
        raise AfireError(f"the mask has the shape {mask.shape}, the source {source.shape}; both must be the same")
    drawn = {name: value for name, value in classes.items() if (mask == value).any()}
    if not drawn or len(set(drawn.values())) < len(drawn) or set(np.unique(mask)) - {0, *drawn.values()}:
        raise AfireError("an empty mask, or one with values of no or several classes, makes no segmentation")
    uids, facts = NewUids(seed), ImagePrediction(dict.fromkeys(drawn, 1.0), model=model or {})
    frames = np.stack([mask == value for value in drawn.values()], -1)[None].astype(np.uint8)
    segments = [_mask_segment(place + 1, name, source, model, uids) for place, name in enumerate(drawn)]
    with building("segmentation"):
        segmentation = Segmentation(
            source_images=[source.header],
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            content_label="AFIRE_MASK",
            content_description=with_warning("outlines of a person" if model is None else "outlines of a model"),
            omit_empty_frames=False,
            coding_schemes=codes.coding_schemes(),
            **common("seg", source, facts, uids, "AFiRe label" if model is None else "AFiRe segmentation"),
        )
        # empty if unknown: the standard requires the attribute if there is no orientation in space
        segmentation.PatientOrientation = source.header.get("PatientOrientation")
        return write_new(segmentation, character_set(source, facts), out_dir)


def _mask_segment(
    number: int, name: str, source: SourceImage, model: Mapping[str, Any] | None, uids: NewUids
) -> SegmentDescription:
    kind = SegmentAlgorithmTypeValues.SEMIAUTOMATIC if model is None else SegmentAlgorithmTypeValues.AUTOMATIC
    # a person may have corrected a mask that a model drew: the standard then requires the model's name as well
    algorithm = AlgorithmIdentificationSequence(
        MAKER, codes.ARTIFICIAL_INTELLIGENCE, __version__, MAKER, model_parameters(model or {}) or None
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=codes.meaning(name),
        segmented_property_category=codes.ABNORMAL_STRUCTURE if codes.is_finding(name) else codes.ANATOMY,
        segmented_property_type=codes.segment_code(name),
        algorithm_type=kind,
        algorithm_identification=algorithm,
        tracking_id=codes.meaning(name),
        tracking_uid=uids.new(str(source.header.SOPInstanceUID), "seg", f"tracking {name}"),
    )
