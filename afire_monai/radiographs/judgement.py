"""What is a frontal chest radiograph, by its header and its look; everything else has a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from afire_monai.radiographs.body_view_words import (
    CHEST_CODES,
    FRONTAL_CODES,
    LATERAL_CODES,
    OBLIQUE_CODES,
    body_of,
    view_of,
)
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES
from afire_monai.radiographs.header import Header

NOT_RADIOGRAPH = "not a radiograph"
NOT_CHEST = "not a chest"
UNCLEAR_BODY = "body parts contradict each other"
LATERAL = "lateral"
OBLIQUE = "oblique or decubitus"
BURNED_IN = "burned-in text declared"
SEVERAL_FRAMES = "several frames"
COLOUR = "colour"
NOT_HUMAN = "not a human"
RAW_ALONE = "raw (for processing, not for presentation)"
LOOKS_OTHER = "no lung fields side by side, and the tags do not say what it is"

DIGITISED = ("SC", "OT")
_RAW_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.1.1",)
_FILM = "DF"
_FRONTAL_POSITIONS = ("PA", "AP")
_LATERAL_POSITIONS = ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "L LAT", "R LAT")


@dataclass(frozen=True)
class Verdict:
    """What a header says of an image.

    Attributes:
        reason: why it is left out; "" if nothing in the header speaks against it.
        lateral: it is a lateral view that was asked for.
        view: ``PA``, ``AP``, ``LATERAL`` or "".
        stated: the tags name the chest and a view; where they do not, the picture has to show it.
        raw: for processing, not for presentation.
    """

    reason: str = ""
    lateral: bool = False
    view: str = ""
    stated: bool = False
    raw: bool = False


def judge(
    header: Header, include_laterals: bool = False, modalities: Collection[str] | None = RADIOGRAPHY_MODALITIES
) -> Verdict:
    """Judge a header alone. Where tags contradict each other an image is left out.

    Secondary captures ("SC", "OT") are radiographs only if they are digitised film (ConversionType DF) of a chest that
    the tags name: most are pictures of screens.

    Args:
        header: what `read_header` gives.
        include_laterals: keep lateral views as well.
        modalities: of radiographs; None for any.
    """
    reason, stated = _kind(header, modalities), True
    if not reason:
        reason, stated = _body(header)
        if not _is_listed(header, modalities) and not stated:
            reason = reason or NOT_RADIOGRAPH
    if reason:
        return Verdict(reason)
    side, view = _view(header)
    if side == "oblique" or (side == "lateral" and not include_laterals):
        return Verdict(OBLIQUE if side == "oblique" else LATERAL)
    raw = header.intent == "FOR PROCESSING" or header.sop_class in _RAW_CLASSES
    return Verdict("", side == "lateral", view, stated and side != "", raw)


def _is_listed(header: Header, modalities: Collection[str] | None) -> bool:
    return modalities is None or header.modality in modalities


def _kind(header: Header, modalities: Collection[str] | None) -> str:
    if not _is_listed(header, modalities) and not (header.modality in DIGITISED and header.conversion == _FILM):
        return NOT_RADIOGRAPH
    if header.species and not any(word in header.species for word in ("HUMAN", "HOMO")):
        return NOT_HUMAN
    if header.frames > 1:
        return SEVERAL_FRAMES
    if header.samples > 1 or (header.photometric and not header.photometric.startswith("MONOCHROME")):
        return COLOUR
    # devices write Y for YES; whatever is not a clear no may be a yes
    return "" if header.burned_in in ("", "NO", "N") else BURNED_IN


def _levels(header: Header) -> Iterator[tuple[bool, bool]]:
    """What is said of the body part (chest, other): about the image, by the device, and by the order."""
    chest, other = body_of([header.body_part, *header.region_codes])
    yield chest or bool(CHEST_CODES.intersection(header.region_codes)), other
    yield body_of(header.series_texts)
    yield body_of(header.study_texts)


def _body(header: Header) -> tuple[str, bool]:
    """Reason to leave it out, or "" and whether the tags name the chest."""
    image, device, order = _levels(header)
    chest, other = image[0] or device[0], image[1] or device[1]
    if chest and other:
        return UNCLEAR_BODY, False
    if other:
        return NOT_CHEST, False
    if chest:
        return "", True
    if order[0] and order[1]:  # an examination of several parts, and the image does not say of which it is
        return UNCLEAR_BODY, False
    return (NOT_CHEST, False) if order[1] else ("", order[0])


def _view(header: Header) -> tuple[str, str]:
    """``frontal``, ``lateral``, ``oblique`` or "" where the tags are silent; and PA, AP, LATERAL or ""."""
    said = view_of([*header.view_codes, *header.series_texts])
    position = header.view.replace("-", "").replace(".", "")
    codes = header.view_codes
    if "oblique" in said or view_of([position]) == {"oblique"} or OBLIQUE_CODES.intersection(codes):
        return "oblique", ""
    lateral = position in _LATERAL_POSITIONS or bool(LATERAL_CODES.intersection(codes)) or said == {"lateral"}
    rows = header.orientation.partition("\\")[0][:1]
    if lateral or rows in ("A", "P"):
        return "lateral", "LATERAL"
    named = [FRONTAL_CODES[code] for code in codes if code in FRONTAL_CODES]
    view = position if position in _FRONTAL_POSITIONS else next((name for name in named if name), "")
    if view or named or said == {"frontal"} or rows in ("L", "R"):
        return "frontal", view
    if said:  # both are named: the description is that of the examination
        return "", ""
    order = view_of(header.study_texts)
    if order == {"lateral"}:
        return "lateral", "LATERAL"
    return ("frontal" if order == {"frontal"} else ""), ""
