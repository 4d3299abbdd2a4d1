"""Outline and scores as a Grayscale Softcopy Presentation State: drawn by the viewer on the radiograph itself."""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.pr import (
    AnnotationUnitsValues,
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GraphicTypeValues,
    GrayscaleSoftcopyPresentationState,
    TextJustificationValues,
    TextObject,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from skimage.measure import approximate_polygon, find_contours

from afire_monai.dicom_results import codes
from afire_monai.dicom_results.capture import score_lines
from afire_monai.dicom_results.objects import (
    WARNING,
    building,
    character_set,
    common,
    keep_side,
    with_warning,
    write_new,
)
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import SourceImage, open_source
from afire_monai.radiographs.dicom import drop_unusable
from afire_monai.radiographs.dicom_open import open_dataset
from afire_monai.radiographs.dicom_pixels import lut_of, window_of

LEVEL = 0.5
"""The heatmap is outlined where it is at least this: 3 standard deviations above normal, or half of Grad-CAM's highest
value."""
MOST_POINTS = 8191
"""Most points of an outline: a value of this representation (FL) has at most 65,535 bytes."""
MOST_OUTLINES = 100
LONGEST_TEXT = 1024
"""Most letters of a text object (ST)."""
LAYER = "AFIRE"
OUTLINED, NOWHERE = f"Outlined where it is {LEVEL} or more", f"Nowhere {LEVEL} or more"
WITHOUT_LEVEL = "Not outlined, as its scale has no level"


def write_presentation(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
) -> Path:
    """Write a presentation state (GSPS) of one radiograph: the outline of its heatmap, and one text with the scores.

    It refers to the radiograph, shows all of it, and has its window or VOI LUT (the first if there are several), its
    modality LUT, its polarity and the aspect of its pixels; outline and text lie in a layer of their own. A heatmap of
    anomalies without a reference of normals (no percentile) is not outlined. Raises RadiographError if the source
    cannot carry results; AfireError if there is nothing to show, the heatmap does not fit, or the file cannot be
    written.
    """
    source = open_source(source)
    prediction.check_any()
    heat = None if prediction.heatmap is None else prediction.grid(source.shape)
    # without a reference of normals, which gives the percentile, anomalies are differences of grey levels
    has_level = prediction.heatmap_kind != "anomaly" or prediction.anomaly_percentile is not None
    lines = outlines(heat, source.shape) if heat is not None and has_level else []
    shown = OUTLINED if lines else NOWHERE if has_level else WITHOUT_LEVEL
    header = copy.copy(source.header)
    header.SamplesPerPixel = 1
    with building("presentation state"):
        layer = GraphicLayer(LAYER, 1, "Outline and scores of a model")
        text = TextObject(
            scores_text(prediction, shown),
            AnnotationUnitsValues.DISPLAY,
            bounding_box=(0.0, 0.0, 0.5, 0.25),
            text_justification=TextJustificationValues.LEFT,
        )
        drawn = [GraphicObject(GraphicTypeValues.POLYLINE, line, AnnotationUnitsValues.PIXEL) for line in lines]
        state: Any = GrayscaleSoftcopyPresentationState(
            referenced_images=[header],
            content_label="AFIRE_OUTLINE",
            content_description=with_warning("outline and scores of a model"),
            graphic_layers=[layer],
            graphic_annotations=[GraphicAnnotation([header], layer, graphic_objects=drawn, text_objects=[text])],
            concept_name=codes.EXPLANATION,
            **common("gsps", source, prediction, seed, "AFiRe outline"),
        )
        keep_side(state, header)
        state.CodingSchemeIdentificationSequence = codes.coding_schemes()
        original = open_dataset(source.path, header_only=True)
        drop_unusable(source.path, original)
        _copy_intensity(original, state)
        state.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio = _aspect(original)
        return write_new(state, character_set(source, prediction), out_dir)


def outlines(heat: NDArray[np.floating[Any]], shape: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the closed outlines of where a heatmap is at least `LEVEL`, the longest first, at most `MOST_OUTLINES`.

    Args:
        heat: (h, w) in 0…1.
        shape: rows and columns of the radiograph that it lies on.

    Returns:
        For each outline, including those of holes, (n, 2) column and row; the last point equals the first. 0 is the
        outer edge of the first pixel (DICOM PS3.3 C.10.5), so that the centre of a pixel is inside if its heat is at
        least the level.
    """
    around = np.pad(heat.astype(np.float64), 1)
    scale = np.array([shape[1] / heat.shape[1], shape[0] / heat.shape[0]])
    found = sorted(find_contours(around, np.nextafter(LEVEL, 0)), key=len, reverse=True)[:MOST_OUTLINES]
    return [_bounded(np.clip((line[:, ::-1] - 0.5) * scale, 0, shape[::-1])) for line in found]


def _bounded(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take points out of an outline until it has at most `MOST_POINTS`."""
    tolerance, kept = 0.0, line
    while len(kept) > MOST_POINTS:
        kept = approximate_polygon(line, tolerance)
        tolerance = max(2 * tolerance, 0.25)
    return kept


def scores_text(prediction: ImagePrediction, shown: str = OUTLINED) -> str:
    """Return lines with the warning, the scores, and ``shown``, which says where the heatmap is to be seen.

    The least probable findings are left out if they are too many.
    """
    ranked = sorted(prediction.probabilities.items(), key=lambda entry: entry[1])
    for left_out in range(len(ranked) + 1):
        kept = replace(prediction, probabilities=dict(ranked[left_out:]))
        lines = [WARNING, *(line for line, _ in score_lines(kept, shown))]
        if left_out:
            lines.insert(-1, f"{left_out} less probable: see the report")
        text = "\r\n".join(lines)
        if len(text) <= LONGEST_TEXT:
            break
    return text


def _aspect(shown: Any) -> list[int]:
    """Return height and width of a pixel, in no unit; both 1 where the header says nothing that can be."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):  # absent, not two numbers, or zero
            height, width = (Fraction(str(value)) for value in shown.get(keyword))
            aspect = (height / width).limit_denominator(1000)
            if 0.1 <= aspect <= 10:
                return [aspect.numerator, aspect.denominator]
    return [1, 1]


def _copy_intensity(shown: Any, state: Any) -> None:
    """Take over how the radiograph's stored values are shown, as far as this package can apply it, too."""
    if shown.get("ModalityLUTSequence"):
        state.ModalityLUTSequence = [table := copy.deepcopy(shown.ModalityLUTSequence[0])]
        table.ModalityLUTType = table.get("ModalityLUTType") or "US"
    elif "RescaleSlope" in shown or "RescaleIntercept" in shown:
        slope = shown.get("RescaleSlope")
        state.RescaleSlope, state.RescaleIntercept = 1 if slope is None else slope, shown.get("RescaleIntercept") or 0
        state.RescaleType = shown.get("RescaleType") or "US"
    voi = Dataset()
    with contextlib.suppress(Exception):  # errors of pydicom for a damaged table; the window is used then
        if shown.get("VOILUTSequence"):
            voi.VOILUTSequence = [_deep_lut(shown.VOILUTSequence[0], shown)]
    if not len(voi) and (window := window_of(shown)) is not None:
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = window
    if len(voi):
        state.SoftcopyVOILUTSequence = [voi]
    if str(shown.get("PhotometricInterpretation") or "").strip().upper() == "MONOCHROME1":
        state.PresentationLUTShape = "INVERSE"


def _deep_lut(item: Any, shown: Any) -> Dataset:
    """Return a VOI LUT with entries of 16 bits, as presentation states have them, of which the largest is white."""
    entries, white, _ = lut_of(item, shown)
    deep = Dataset()
    deep.LUTDescriptor = [*list(item.LUTDescriptor)[:2], 16]
    deep["LUTDescriptor"].VR = item["LUTDescriptor"].VR
    deep.add_new("LUTData", "OW", np.rint(entries * (65535 / white)).astype("<u2").tobytes())
    return deep
