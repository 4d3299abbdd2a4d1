"""A heatmap as a fractional segmentation on the source's pixel grid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

from afire_monai import __version__
from afire_monai.dicom_results import codes
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
from afire_monai.dicom_results.uids import NewUids


def write_heatmap(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
) -> Path:
    """Write the heatmap of one radiograph as a Segmentation (FRACTIONAL, PROBABILITY, 8 bit) of its study.

    Pixel (row, column) lies on the source's pixel (row, column); 255 stands for 1. DICOM knows fractions only as
    probability or occupancy; the description says that these are a scale of their own and no calibrated probability.

    Args:
        source: the radiograph.
        prediction: with a heatmap.
        out_dir: folder for the file, which is named after its UID.
        seed: see `NewUids`; None outside tests.

    Returns:
        The file.

    Raises:
        RadiographError: if the source cannot carry results.
        AfireError: if there is no heatmap or it does not fit the source, or the file cannot be written.
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
        # unknown is empty: the standard wants the attribute where there is no orientation in space
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
