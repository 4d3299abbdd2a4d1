"""Scores as a structured report: TID 1500 with a measurement group for each finding, all of the whole image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.dicom_results import codes
from afire_monai.dicom_results.codes import new_uid
from afire_monai.dicom_results.objects import (
    MAKER,
    building,
    character_set,
    common,
    model_digest,
    model_parameters,
    model_uid,
    note,
    write_new,
)
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import SourceImage, open_source

DIGITS = 9
"""Digits after the point: a number in a report has room for 16 characters."""


def write_report(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
) -> Path:
    """Write the scores of one radiograph as a Comprehensive SR of its study.

    Each label has a measurement group (TID 1501) of the whole image with the finding, its probability and, if there is
    a threshold, the threshold and whether the probability reaches it. One more group holds the percentile among normal
    radiographs. Raises RadiographError if the source cannot carry results; AfireError if there is nothing to report, or
    the file cannot be written.
    """
    source = open_source(source)
    if not prediction.probabilities and prediction.anomaly_percentile is None:
        raise AfireError("nothing to report: no label has a probability, and there is no anomaly percentile")
    with building("structured report"):
        report = ComprehensiveSR(
            evidence=[source.header],
            content=_content(source, prediction, seed)[0],
            is_complete=True,
            is_final=False,
            coding_schemes=codes.coding_schemes(),
            **common("sr", source, prediction, seed, "AFiRe report"),
        )
        return write_new(report, character_set(source, prediction), out_dir)


def _content(source: SourceImage, prediction: ImagePrediction, seed: str | None) -> MeasurementReport:
    header = source.header
    image = SourceImageForMeasurementGroup(str(header.SOPClassUID), str(header.SOPInstanceUID))
    algorithm = AlgorithmIdentification(
        MAKER, __version__, [f"{k}={v}" for k, v in model_parameters(prediction.model).items()], manufacturer=MAKER
    )

    def group(
        name: str,
        finding: CodedConcept,
        measurements: Sequence[Measurement],
        evaluations: Sequence[QualitativeEvaluation] = (),
    ) -> MeasurementsAndQualitativeEvaluations:
        tracking = TrackingIdentifier(new_uid(seed, str(header.SOPInstanceUID), "tracking", name), codes.meaning(name))
        return MeasurementsAndQualitativeEvaluations(
            tracking,
            finding_type=finding,
            algorithm_id=algorithm,
            measurements=measurements,
            qualitative_evaluations=evaluations,
            source_images=[image],
        )

    groups = [
        group(label, codes.finding_code(label), *_of_label(probability, prediction.thresholds.get(label)))
        for label, probability in prediction.probabilities.items()
    ]
    if prediction.anomaly_percentile is not None:
        rank = Measurement(codes.PERCENTILE, round(prediction.anomaly_percentile, 3), codes.PERCENT)
        groups.append(group("Anomaly percentile", codes.ANOMALY, [rank]))
    report = MeasurementReport(_observer(prediction), codes.RADIOGRAPHY, groups)
    known = [label for label in prediction.probabilities if label in prediction.rests_on]
    rests_on = [f"{codes.meaning(label)}: {prediction.rests_on[label]}." for label in known]
    _add_note(report, " ".join([note(prediction), *rests_on]))
    return report


def _of_label(probability: float, threshold: float | None) -> tuple[list[Measurement], list[QualitativeEvaluation]]:
    measurements = [Measurement(codes.PROBABILITY, round(float(probability), DIGITS), codes.RATIO)]
    if threshold is None:
        return measurements, []
    measurements.append(Measurement(codes.THRESHOLD, round(float(threshold), DIGITS), codes.RATIO))
    above = codes.YES if probability >= threshold else codes.NO
    return measurements, [QualitativeEvaluation(codes.ABOVE_THRESHOLD, above)]


def _observer(prediction: ImagePrediction) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        model_uid(prediction.model),
        name=MAKER,
        manufacturer_name=MAKER,
        model_name=f"{MAKER} {__version__}",
        serial_number=model_digest(prediction.model),
    )
    return ObservationContext(observer_device_context=ObserverContext(codes.DEVICE, device))


def _add_note(report: MeasurementReport, text: str) -> None:
    """Add the text that this is research, where TID 1500 has room for text: under its qualitative evaluations."""
    container = ContainerContentItem(codes.QUALITATIVE, relationship_type=RelationshipTypeValues.CONTAINS)
    item: Any = TextContentItem(codes.COMMENT, text, relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence([item])
    report[0].ContentSequence.append(container)
