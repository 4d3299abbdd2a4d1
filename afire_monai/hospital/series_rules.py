"""Which images are kept: frontal chest radiographs, one a series, each once; everything else has a reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from afire_monai.hospital.header import Header
from afire_monai.hospital.words import CHEST_CODES, FRONTAL_CODES, LATERAL_CODES, OBLIQUE_CODES, body_of, view_of
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES

NOT_RADIOGRAPH = "not a radiograph"
NOT_CHEST = "not a chest"
UNCLEAR_BODY = "body parts contradict each other"
LATERAL = "lateral"
OBLIQUE = "oblique or decubitus"
RAW = "raw, and there is a processed image"
ANOTHER = "another image of the series"
DUPLICATE = "duplicate"
BURNED_IN = "burned-in text declared"
SCREEN = "picture of a screen"
TEXT_SEEN = "text seen near the border"
SEVERAL_FRAMES = "several frames"
COLOUR = "colour"
NOT_HUMAN = "not a human"
LOOKS_OTHER = "no lung fields side by side, and the tags do not say what it is"
NO_DATE = "no date to split by"
NO_SITE = "no site to split by"

DIGITISED = ("SC", "OT")
_SCREEN_TYPES = ("SCREENSAVE", "SCREENSHOT", "SCREENCAPTURE", "SCREENGRAB")
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


@dataclass(frozen=True)
class Candidate:
    """A file that may be kept, as far as choosing among the images of a series needs it.

    Attributes:
        number: of the file.
        image: hash of its SOPInstanceUID.
        series: hash or UID of its series; what stands for it in files without.
        study: likewise.
        lateral: see `Verdict`.
        raw: see `Verdict`.
        pixels: rows × columns.
        place: of the file in the order of paths.
    """

    number: int
    image: str
    series: str
    study: str
    lateral: bool
    raw: bool
    pixels: int
    place: int


def judge(header: Header, include_laterals: bool = False) -> Verdict:
    """Judge a header alone. Where tags contradict each other an image is left out.

    Secondary captures ("SC", "OT") are radiographs only if they are digitised film (ConversionType DF) of a chest that
    the tags name: most are pictures of screens.

    Args:
        header: what `read_header` gives.
        include_laterals: keep lateral views as well.
    """
    reason, stated = _kind(header), True
    if not reason:
        reason, stated = _body(header)
        if header.modality in DIGITISED and not stated:
            reason = reason or NOT_RADIOGRAPH
    if reason:
        return Verdict(reason)
    side, view = _view(header)
    if side == "oblique" or (side == "lateral" and not include_laterals):
        return Verdict(OBLIQUE if side == "oblique" else LATERAL)
    raw = header.intent == "FOR PROCESSING" or header.sop_class in _RAW_CLASSES
    return Verdict("", side == "lateral", view, stated and side != "", raw)


def choose_per_series(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Put candidates in the order in which they are to be tried, one list for each image that is to be kept.

    A list holds the images of one series (frontal and lateral ones apart): for presentation before raw, large before
    small, and all copies of one SOP instance one after the other, in the order of their paths. Lists that hold
    nothing but raw images come last. The first of a list that can be used is kept.
    """
    copies: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: c.place):
        copies[candidate.image].append(candidate)
    slots: dict[tuple[str, bool], list[list[Candidate]]] = defaultdict(list)
    for group in copies.values():
        slots[group[0].series, group[0].lateral].append(group)
    ordered = []
    for groups in slots.values():
        groups.sort(key=lambda group: (group[0].raw, -group[0].pixels, group[0].place))
        ordered.append([candidate for group in groups for candidate in group])
    return sorted(ordered, key=lambda slot: slot[0].raw)


def _kind(header: Header) -> str:
    if header.modality not in RADIOGRAPHY_MODALITIES and not (
        header.modality in DIGITISED and header.conversion == _FILM
    ):
        return NOT_RADIOGRAPH
    if header.species and not any(word in header.species for word in ("HUMAN", "HOMO")):
        return NOT_HUMAN
    if header.frames > 1:
        return SEVERAL_FRAMES
    if header.samples > 1 or (header.photometric and not header.photometric.startswith("MONOCHROME")):
        return COLOUR
    if any(name in re.sub(r"[^A-Z]", "", header.image_type) for name in _SCREEN_TYPES):
        return SCREEN
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
