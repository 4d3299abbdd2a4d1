"""A picture of heatmap and scores as a Secondary Capture, for viewers that show neither segmentations nor reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from afire_monai.core.quiet import quiet
from afire_monai.dicom_results import codes
from afire_monai.dicom_results.codes import meaning
from afire_monai.dicom_results.objects import WARNING, building, character_set, common, keep_side, unfit_note, write_new
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import MODALITIES, SourceImage, open_source
from afire_monai.predictions.results import overlay
from afire_monai.radiographs.dicom import read_dicom

LONGEST, SHORTEST = 1536, 512
"""Bounds for the longest side of the radiograph in the picture: sharp enough to look at, small enough to send."""
LONGEST_OF_TWO = 1024
"""The longest side if the radiograph is there twice, without and with the heatmap."""
GAP = 8
"""Pixels between the two radiographs."""
BARS = (200, 100, 50, 20, 10, 5)
"""Lengths of the scale bar in millimetres; the largest that is at most a third of the radiograph's width is drawn."""
LONGEST_NAME = 24
"""Most letters of a finding in the description of its series: 64 are allowed, and the warnings must be in it."""
BANNER, PAPER, INK, STRONG = (176, 0, 0), (16, 16, 16), (235, 235, 235), (255, 170, 60)


def draw(
    picture: NDArray[np.float32], prediction: ImagePrediction, spacing: tuple[float, bool] | None = None
) -> NDArray[np.uint8]:
    """Draw the picture; banner, scale bar and scores lie outside the radiograph and hide nothing of it.

    Args:
        picture: (H, W) in 0…1, bright = dense.
        prediction: prediction with a heatmap of this shape's aspect, or without one.
        spacing: see `SourceImage`; no scale bar unless given.

    Returns:
        (rows, columns, 3) uint8. Below the banner lies the radiograph and, if there is a heatmap, to the right of it
        the radiograph with the heatmap; below them the scale bar, then the scores.
    """
    picture = np.ascontiguousarray(np.clip(picture, 0, 1), dtype=np.float32)
    panels, scale = _panels(picture, prediction)
    size = (sum(panel.width for panel in panels) + GAP * (len(panels) - 1), panels[0].height)
    font = ImageFont.load_default(max(14, max(panels[0].size) // 48))
    lines = score_lines(prediction)
    width = max(size[0], SHORTEST // 2)
    wrapped = [part for line, strong in lines for part in _wrap(line, strong, font, width - 16)]
    height = round(font.getbbox("Ag")[3] * 1.3)
    bar = _bar(picture.shape[1], spacing)
    under = size[1] + height * 2
    below = under + (height if bar else 0)
    canvas = Image.new("RGB", (width, below + height * (len(wrapped) + 1)), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.rectangle([0, 0, width, height * 2 - 1], fill=BANNER)
    pen.text((width / 2, height), WARNING, fill=(255, 255, 255), font=font, anchor="mm")
    left = (width - size[0]) // 2
    for place, panel in enumerate(panels):
        canvas.paste(panel, (left + place * (panel.width + GAP), height * 2))
    if bar:
        _draw_bar(pen, (left + GAP, under + height // 2), bar, scale, font)
    for row, (text, strong) in enumerate(wrapped):
        pen.text((8, below + height * (row + 0.5)), text, fill=STRONG if strong else INK, font=font)
    return np.asarray(canvas)


def _panels(picture: NDArray[np.float32], prediction: ImagePrediction) -> tuple[list[Image.Image], float]:
    """Return the radiograph and, if there is a heatmap, the radiograph with it; and pixels of these to one of it."""
    shape = (picture.shape[0], picture.shape[1])
    plain = torch.from_numpy(picture)
    heats = [np.zeros(shape, np.float32)] + ([] if prediction.heatmap is None else [prediction.fitted(shape)])
    images = [Image.fromarray(overlay(plain, torch.from_numpy(heat))) for heat in heats]
    longest = LONGEST if len(images) == 1 else LONGEST_OF_TWO
    scale = min(longest / max(shape), max(1.0, SHORTEST / max(shape)))
    size = (max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale)))
    how = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
    return [image.resize(size, how) for image in images], scale


def _bar(columns: int, spacing: tuple[float, bool] | None) -> tuple[float, str] | None:
    """Return the length of the scale bar in the radiograph's pixels and its words; None if there is none."""
    if spacing is None:
        return None
    distance, in_patient = spacing
    length = next((length for length in BARS if length / distance <= columns / 3), None)
    if length is None:
        return None
    return length / distance, f"{length} mm" + ("" if in_patient else " at the detector")


def _draw_bar(
    pen: ImageDraw.ImageDraw,
    start: tuple[int, int],
    bar: tuple[float, str],
    scale: float,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Draw a scale bar to the right of a point, and its length behind it."""
    (x, y), (length, words) = start, bar
    end = x + round(length * scale)
    pen.line([(x, y), (end, y)], fill=INK, width=2)
    for tick in (x, end):
        pen.line([(tick, y - 4), (tick, y + 4)], fill=INK, width=2)
    pen.text((end + GAP, y), words, fill=INK, font=font, anchor="lm")


def score_lines(prediction: ImagePrediction, shown: str = "Right, in red") -> list[tuple[str, bool]]:
    """Return the lines of text, most probable first, and whether each is to stand out.

    ``shown`` says where and how the heatmap is shown.
    """
    lines = [(unfit_note(prediction), True)] if prediction.unfit else []
    for label, value in sorted(prediction.probabilities.items(), key=lambda entry: -entry[1]):
        threshold = prediction.thresholds.get(label)
        above = threshold is not None and value >= threshold
        compared = "" if threshold is None else f"  ({'at or above' if above else 'below'} threshold {threshold:.2f})"
        basis = f"; {prediction.rests_on[label]}" if label in prediction.rests_on else ""
        lines.append((f"{meaning(label)}: {value:.2f}{compared}{basis}", above))
    if prediction.anomaly_percentile is not None:
        lines.append((f"More unusual than {prediction.anomaly_percentile:.1f} % of normal radiographs", False))
    if prediction.heatmap is not None:
        of = f" for {meaning(prediction.heatmap_label)}" if prediction.heatmap_label else ""
        lines.append((f"{shown}: {meaning(prediction.heatmap_kind)}{of}, relative scale", False))
    return [*lines, ("afire-monai, not a medical device, not a diagnosis", False)]


def _wrap(
    line: str, strong: bool, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[tuple[str, bool]]:
    parts = [""]
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}".strip()
        if parts[-1] and font.getlength(longer) > width:
            parts.append(word)
        else:
            parts[-1] = longer
    return [(part, strong) for part in parts]


def write_capture(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
    finding: str | None = None,
) -> Path:
    """Write the radiograph beside itself with the heatmap in red, banner, scale bar and scores: an RGB capture.

    With a ``finding``, the capture shows its label alone and is named after it; it has the heatmap only if that belongs
    to the label.

    The radiograph is shown as a viewer shows it, with its window, MONOCHROME1 the right way round. Raises
    RadiographError if the source cannot carry results, or its pixels cannot be decoded; AfireError if there is nothing
    to show, the heatmap does not fit, or the file cannot be written.
    """
    source = open_source(source)
    prediction.check_any()
    kind, title, *of = ("sc", "AFiRe overlay")
    if finding is not None:
        prediction = prediction.only(finding)
        kind, title, of = "finding", f"AFiRe {meaning(finding)[:LONGEST_NAME]}", [finding]
    with quiet():
        picture = read_dicom(source.path, MODALITIES)
    same = picture.pixels.shape == source.shape
    pixels = draw(picture.pixels, prediction, source.spacing if same else None)
    header = source.header
    with building("secondary capture"):
        capture: Any = SCImage.from_ref_dataset(
            header,
            pixel_array=pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **common(kind, source, prediction, seed, title, *of),
        )
        capture.copy_patient_and_study_information(header)
        # the constructor requires an orientation, but a source may have none
        capture.PatientOrientation = header.get("PatientOrientation")
        keep_side(capture, header)
        _describe(capture, header)
        return write_new(capture, character_set(source, prediction), out_dir)


def _describe(capture: Any, header: Any) -> None:
    """Record that the picture is derived, and from which image."""
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    capture.DerivationDescription = f"Radiograph with heatmap and scores of a model drawn on it. {WARNING}"
    capture.ImageComments = WARNING
    reference = Dataset()
    reference.ReferencedSOPClassUID = header.SOPClassUID
    reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [codes.SOURCE_IMAGE]
    capture.SourceImageSequence = [reference]
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if keyword in header:
            setattr(capture, keyword, header[keyword].value)
    # the drawn parts name nobody; only the source's header can say whether its own pixels do
    if "BurnedInAnnotation" in header:
        capture.BurnedInAnnotation = header.BurnedInAnnotation
