"""Decide from header and picture whether a file is a frontal chest radiograph; give a reason if it is not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import RadiographError
from afire_monai.radiographs.body_view_words import (
    CHEST_CODES,
    FRONTAL_CODES,
    LATERAL_CODES,
    OBLIQUE_CODES,
    body_of,
    view_of,
)
from afire_monai.radiographs.decode import is_dicom, read_picture
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES
from afire_monai.radiographs.frontal_look import looks_frontal
from afire_monai.radiographs.header import Header, read_header

NOT_RADIOGRAPH = "not a radiograph"
NOT_CHEST = "not a chest"
UNCLEAR_BODY = "body parts contradict each other"
LATERAL = "lateral"
OBLIQUE = "oblique or decubitus"
BURNED_IN = "burned-in text declared"
SCREEN = "picture of a screen"
SEVERAL_FRAMES = "several frames"
COLOUR = "colour"
NOT_HUMAN = "not a human"
RAW_ALONE = "raw (for processing, not for presentation)"
LOOKS_OTHER = "does not look like a frontal chest radiograph, and the tags do not say what it is"
NOT_SEEN = "the tags do not say what it is, and its pixels cannot be read"
FIT = "frontal chest radiograph"
READABLE = frozenset(
    (NOT_CHEST, UNCLEAR_BODY, LATERAL, OBLIQUE, BURNED_IN, SCREEN, NOT_HUMAN, RAW_ALONE, LOOKS_OTHER, NOT_SEEN)
)
"""Reasons to leave out what could be read all the same."""

DIGITISED = ("SC", "OT")
_SCREEN_TYPES = ("SCREENSAVE", "SCREENSHOT", "SCREENCAPTURE", "SCREENGRAB")
_RAW_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.1.1",)
_FILM = "DF"
_FRONTAL_POSITIONS = ("PA", "AP")
_LATERAL_POSITIONS = ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT", "L LAT", "R LAT")


@dataclass(frozen=True)
class Verdict:
    """A header's verdict on an image."""

    reason: str = ""  #: reason for leaving the image out; "" if nothing in the header speaks against it
    lateral: bool = False  #: the image is a lateral view, and lateral views were requested
    view: str = ""  #: ``PA``, ``AP``, ``LATERAL`` or ""
    stated: bool = False  #: the tags name the chest and a view; if they do not, the picture has to show it
    raw: bool = False  #: the image is for processing, not for presentation

    @property
    def needs_look(self) -> bool:
        """Whether the picture itself must be looked at, since the tags leave it open."""
        return not self.stated and not self.lateral


def judge(
    header: Header, include_laterals: bool = False, modalities: Collection[str] | None = RADIOGRAPHY_MODALITIES
) -> Verdict:
    """Judge a header alone. Where tags contradict each other an image is left out.

    Secondary captures ("SC", "OT") are radiographs only if they are digitised film (ConversionType DF) of a chest that
    the tags name: most are pictures of screens.

    Args:
        header: result of `read_header`.
        include_laterals: keep lateral views as well.
        modalities: modalities of radiographs; None for any.
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


def judge_file(path: Path, modalities: Collection[str] | None = RADIOGRAPHY_MODALITIES) -> Verdict:
    """Judge the header of one DICOM file, with no series to choose from: a raw image is left out.

    Raises RadiographError as `read_header`.
    """
    verdict = judge(read_header(path), modalities=modalities)
    return replace(verdict, reason=verdict.reason or (RAW_ALONE if verdict.raw else ""))


def reason_with_look(verdict: Verdict, picture: NDArray[np.float32]) -> str:
    """Return why an image is left out, where the tags are silent by its look; "" for a frontal chest radiograph.

    Args:
        verdict: verdict on its header.
        picture: (H, W) in 0…1, bright = dense.
    """
    looks_other = verdict.needs_look and not looks_frontal(picture)
    return verdict.reason or (LOOKS_OTHER if looks_other else "")


def reason_of_file(path: str | PathLike[str]) -> str:
    """Return why a DICOM file is left out, "" for a frontal chest radiograph; of other formats nothing is known.

    Raises RadiographError as `read_header`.
    """
    path = Path(path)
    verdict = judge_file(path) if is_dicom(path) else Verdict(stated=True)
    if verdict.reason or verdict.stated:
        return verdict.reason
    try:
        return reason_with_look(verdict, read_picture(path, modalities=None).pixels)
    except RadiographError:
        return NOT_SEEN


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
    if any(name in re.sub(r"[^A-Z]", "", header.image_type) for name in _SCREEN_TYPES):
        return SCREEN
    # devices write Y for YES; any value that is not a clear no may be a yes
    return "" if header.burned_in in ("", "NO", "N") else BURNED_IN


def _levels(header: Header) -> Iterator[tuple[bool, bool]]:
    """Return the body part (chest, other) named for the image, by the device, and by the order."""
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
    if order[0] and order[1]:  # an examination of several parts, and the image does not name its own
        return UNCLEAR_BODY, False
    return (NOT_CHEST, False) if order[1] else ("", order[0])


def _view(header: Header) -> tuple[str, str]:
    """``frontal``, ``lateral``, ``oblique`` or "" where the tags are silent; and PA, AP, LATERAL or ""."""
    described = view_of([*header.view_codes, *header.series_texts])
    position = header.view.replace("-", "").replace(".", "")
    codes = header.view_codes
    if "oblique" in described or view_of([position]) == {"oblique"} or OBLIQUE_CODES.intersection(codes):
        return "oblique", ""
    lateral = position in _LATERAL_POSITIONS or bool(LATERAL_CODES.intersection(codes)) or described == {"lateral"}
    rows = header.orientation.partition("\\")[0][:1]
    if lateral or rows in ("A", "P"):
        return "lateral", "LATERAL"
    named = [FRONTAL_CODES[code] for code in codes if code in FRONTAL_CODES]
    view = position if position in _FRONTAL_POSITIONS else next((name for name in named if name), "")
    if view or named or described == {"frontal"} or rows in ("L", "R"):
        return "frontal", view
    if described:  # both are named: the description is that of the examination
        return "", ""
    order = view_of(header.study_texts)
    if order == {"lateral"}:
        return "lateral", "LATERAL"
    return ("frontal" if order == {"frontal"} else ""), ""
