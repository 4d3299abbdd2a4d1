"""A picture of heatmap and scores as a Secondary Capture, for viewers that show neither segmentations nor reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from highdicom.sc import SCImage
from pydicom.dataset import Dataset

from afire_monai.dicom_results import codes
from afire_monai.dicom_results.drawing import draw
from afire_monai.dicom_results.objects import WARNING, building, character_set, common, write_new
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import MODALITIES, SourceImage, open_source, quiet
from afire_monai.dicom_results.uids import NewUids
from afire_monai.radiographs.dicom import read_dicom

_TAKEN_BY_CONSTRUCTOR = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate",
    "patient_sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_id": "StudyID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "referring_physician_name": "ReferringPhysicianName",
    "study_instance_uid": "StudyInstanceUID",
}
_UNPAIRED = ("CHEST", "ABDOMEN", "PELVIS", "HEAD", "SKULL", "NECK", "SPINE", "CSPINE", "TSPINE", "LSPINE", "HEART")
"""Body parts that a side must not be named for."""


def write_capture(
    source: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction,
    out_dir: str | os.PathLike[str],
    seed: str | None = None,
) -> Path:
    """Write the radiograph with the heatmap in red, a banner and the scores as an RGB Secondary Capture of its study.

    The radiograph is shown as a viewer shows it, with its window, MONOCHROME1 the right way round.

    Args:
        source: the radiograph.
        prediction: with whatever there is to show.
        out_dir: folder for the file, which is named after its UID.
        seed: see `NewUids`; None outside tests.

    Returns:
        The file.

    Raises:
        RadiographError: if the source cannot carry results, or its pixels cannot be decoded.
        AfireError: if there is nothing to show, the heatmap does not fit, or the file cannot be written.
    """
    source = source if isinstance(source, SourceImage) else open_source(source)
    prediction.check_any()
    with quiet():
        picture = read_dicom(source.path, MODALITIES)
    pixels = draw(picture.pixels, prediction)
    header, uids = source.header, NewUids(seed)
    with building("secondary capture"):
        capture: Any = SCImage(
            pixel_array=pixels,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            **{name: header.get(keyword) for name, keyword in _TAKEN_BY_CONSTRUCTOR.items()},
            **common("sc", source, prediction, uids, "AFiRe overlay"),
        )
        capture.copy_patient_and_study_information(header)
        # the constructor wants an orientation; a source without one has none to give
        capture.PatientOrientation = header.get("PatientOrientation")
        if header.get("BodyPartExamined") not in _UNPAIRED:
            capture.Laterality = header.get("Laterality")
        _describe(capture, header)
        return write_new(capture, character_set(source, prediction), out_dir)


def _describe(capture: Any, header: Any) -> None:
    """Say what the picture was made from and that it is derived."""
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
    # what is drawn names nobody; what is in the source's own pixels only its own header can say
    if "BurnedInAnnotation" in header:
        capture.BurnedInAnnotation = header.BurnedInAnnotation
    if header.get("BodyPartExamined"):
        capture.BodyPartExamined = header.BodyPartExamined
