"""Which images of a series are kept: one, each once; and why the others are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

RAW = "raw, and there is a processed image"
ANOTHER = "another image of the series"
DUPLICATE = "duplicate"
TEXT_SEEN = "text seen near the border"
NO_DATE = "no date to split by"
NO_SITE = "no site to split by"
EXCLUDED = "excluded by hand"


@dataclass(frozen=True)
class Candidate:
    """A file that may be kept, as far as choosing among the images of a series needs it.

    Attributes:
        number: of the file.
        image: hash of its SOPInstanceUID.
        series: hash or UID of its series; what stands for it in files without.
        study: likewise.
        lateral: see `judgement.Verdict`.
        raw: see `judgement.Verdict`.
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
