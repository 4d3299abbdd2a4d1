"""A label map as a binary segmentation on the source's pixel grid."""

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
        model: what identifies the model that drew it; None for a map that a person saved.
        seed: see `NewUids`; None outside tests.

    Returns:
        The file.

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
    segments = [_segment(place + 1, name, source, model, uids) for place, name in enumerate(drawn)]
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
        # unknown is empty: the standard wants the attribute where there is no orientation in space
        segmentation.PatientOrientation = source.header.get("PatientOrientation")
        return write_new(segmentation, character_set(source, facts), out_dir)


def _segment(
    number: int, name: str, source: SourceImage, model: Mapping[str, Any] | None, uids: NewUids
) -> SegmentDescription:
    kind = SegmentAlgorithmTypeValues.SEMIAUTOMATIC if model is None else SegmentAlgorithmTypeValues.AUTOMATIC
    # a person may have corrected what the model drew: the standard then wants the model named as well
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
