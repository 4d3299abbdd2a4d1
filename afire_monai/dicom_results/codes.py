"""Codes for findings and for statements about them: published ones if they surely mean the same, else private."""

from __future__ import annotations

import hashlib
import re
import uuid

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.uid import generate_uid

PRIVATE_SCHEME = "99AFIRE"
"""Coding scheme of names that have no published code here; 99 marks private ones (DICOM PS3.16 section 8.2)."""

FINDINGS: dict[str, tuple[str, str, str]] = {
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "covid-19": ("840539006", "SCT", "COVID-19"),
    "edema": ("19242006", "SCT", "Pulmonary edema"),
    "effusion": ("60046008", "SCT", "Pleural effusion"),
    "emphysema": ("87433001", "SCT", "Pulmonary emphysema"),
    "fibrosis": ("51615001", "SCT", "Fibrosis of lung"),
    "fracture": ("125605004", "SCT", "Fracture of bone"),
    "infiltration": ("112121", "DCM", "Infiltrate"),
    "lung opacity": ("112001", "DCM", "Opacity"),
    "mass": ("4147007", "SCT", "Mass"),
    "nodule": ("27925004", "SCT", "Nodule"),
    "normal": ("17621005", "SCT", "Normal"),
    "pleural effusion": ("60046008", "SCT", "Pleural effusion"),
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
    "pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "tuberculosis": ("56717001", "SCT", "Tuberculosis"),
}
"""Maps labels of ChestX-ray14, CheXpert and the other public lists, in lower case, to value, scheme and meaning. Some
labels are left out on purpose, because a code would say more or less than the label: Hernia (of what), Pleural
Thickening, Pleural Other, Lung Lesion, Enlarged Cardiomediastinum, Support Devices, No Finding."""

PROBABILITY = CodedConcept("122157", "DCM", "Probability")
THRESHOLD = CodedConcept("122411", "DCM", "Threshold Value")
PERCENTILE = CodedConcept("121415", "DCM", "Percentile Ranking of measurement")
COMMENT = CodedConcept("121106", "DCM", "Comment")
QUALITATIVE = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
DEVICE = CodedConcept("121007", "DCM", "Device")
YES = CodedConcept("373066001", "SCT", "Yes")
NO = CodedConcept("373067005", "SCT", "No")
RATIO = CodedConcept("{ratio}", "UCUM", "ratio")
PERCENT = CodedConcept("%", "UCUM", "Percent")
RADIOGRAPHY = CodedConcept("363680008", "SCT", "Radiographic imaging procedure")
ABNORMAL_STRUCTURE = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMY = CodedConcept("123037004", "SCT", "Anatomical Structure")
LUNG = CodedConcept("39607008", "SCT", "Lung")
HEART = CodedConcept("80891009", "SCT", "Heart")
LESION = CodedConcept("52988006", "SCT", "Lesion")
SPATIAL = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
ARTIFICIAL_INTELLIGENCE = CodedConcept("123110", "DCM", "Artificial Intelligence")
SOURCE_IMAGE = CodedConcept("121322", "DCM", "Source image for image processing operation")
ABOVE_THRESHOLD = CodedConcept("ABOVE-THRESHOLD", PRIVATE_SCHEME, "Probability at or above threshold")
ANOMALY = CodedConcept("ANOMALY", PRIVATE_SCHEME, "Deviation from normal radiographs")
EXPLANATION = CodedConcept("EXPLANATION", PRIVATE_SCHEME, "Part of the image that the result rests on")


def finding_code(label: str) -> CodedConcept:
    """Return the code of a label: a published one, or one of the private scheme with the label as its meaning.

    Args:
        label: as the model names it; capitals and underscores do not matter for published codes.
    """
    known = FINDINGS.get(label.strip().lower().replace("_", " "))
    return CodedConcept(*known) if known else CodedConcept(_private_value(label), PRIVATE_SCHEME, meaning(label))


def segment_code(name: str) -> CodedConcept:
    """Return the code of a segment's content: an organ or a lesion if that is certain, else the finding."""
    organs = {"lung": LUNG, "lungs": LUNG, "heart": HEART, "lesion": LESION}
    return organs.get(name.strip().lower()) or finding_code(name)


def is_finding(name: str) -> bool:
    """Whether a class is something abnormal, as far as its name is known; others are taken for anatomy."""
    plain = name.strip().lower().replace("_", " ")
    return plain == "lesion" or (plain in FINDINGS and plain != "normal")


def meaning(label: str) -> str:
    """Make a label fit for a code meaning: one line of at most 64 characters without a backslash."""
    text = "".join(c if c.isprintable() else " " for c in label.replace("\\", "/"))
    text = " ".join(text.split())
    return text if len(text) <= 64 else text[:61] + "..."


def coding_schemes() -> list[CodingSchemeIdentificationItem]:
    """Describe the private coding scheme, for objects that use it."""
    return [
        CodingSchemeIdentificationItem(
            PRIVATE_SCHEME, "Names of findings and results of afire-monai", responsible_organization="afire-monai"
        )
    ]


def _private_value(label: str) -> str:
    """Make a code value of at most 16 characters that no other label has: the label itself, or a part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,16}", label):
        return label
    digest = hashlib.sha256(label.encode("utf-8")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]', '', label)[:7]}-{digest}"


_NAMESPACE = uuid.UUID("5b1c9c2e-8f0d-5a44-9d53-6f2a1f3e7c10")


def new_uid(seed: str | None, *purpose: str) -> str:
    """Make a UID under 2.25, the root for UUIDs (DICOM PS3.5 B.2), so that no registered root is needed.

    Args:
        seed: None for a random UID, as every delivery should have. With a seed the same source and purpose give the
            same UID again: a PACS takes two objects with one UID for the same object.
        purpose: source and use of the UID.
    """
    return str(generate_uid(prefix=None)) if seed is None else named_uid(seed, *purpose)


def named_uid(*names: str) -> str:
    """Make the UID that belongs to these names, always the same."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(repr, names))).int}"
