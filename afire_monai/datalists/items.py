"""Check single items of a data list: labels, boxes, metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from afire_monai.core.age_sex import OLDEST
from afire_monai.datalists.file import DataList

LABEL_VALUES = (0, 1, -1, None)
SEXES = ("F", "M")
_NO_BOXES: list[Any] = []

Entry = tuple[str, str, dict[str, Any]]
"""Section, place in words, item."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    ``severity`` is "error", or "warning" if training can continue.
    """

    kind: str
    where: str
    seen: str
    advice: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.where}: {self.seen}. {self.advice}"


def label_problems(datalist: DataList, entries: Iterable[Entry]) -> Iterator[Problem]:
    """Label vectors and boxes that do not fit the list's labels."""
    names = datalist.get("labels", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield Problem("unknown label", "labels", type(names).__name__, "A list of label names is expected")
        names = []
    if len(set(names)) < len(names):
        yield Problem("unknown label", "labels", str(names), "Every label name may occur once")
    unknown: Counter[str] = Counter()
    sound: set[int] = set()  # vectors that many items share, by identity
    for _, where, item in entries:
        if "label" in item and id(item["label"]) not in sound:
            found = list(_label_vector_problems(item["label"], len(names), where))
            yield from found
            if not found:
                sound.add(id(item["label"]))
        boxes = item.get("boxes", _NO_BOXES)
        for box in boxes if isinstance(boxes, list) else [boxes]:
            if not is_box(box):
                yield Problem("wrong box", where, str(box), "[x, y, width, height, name] is expected")
            elif names and box[4] not in names:
                unknown[box[4]] += 1
    for name, count in unknown.items():
        advice = (
            f"The labels of the list are {', '.join(names)}; correct the name unless the boxes have names of their own"
        )
        yield Problem("unknown label", "boxes", f"{name!r} in {count} boxes", advice, "warning")


def _label_vector_problems(label: Any, length: int, where: str) -> Iterator[Problem]:
    if not isinstance(label, list):
        yield Problem(
            "unknown label", where, repr(label), "A list of 1, 0, -1 or null in the order of `labels` is expected"
        )
    elif len(label) != length:
        advice = f"The list has {length} labels; give one value for each"
        yield Problem("label length", where, f"{len(label)} values", advice)
    elif any(isinstance(value, bool) or value not in LABEL_VALUES for value in label):
        advice = "Values are 1 (present), 0 (absent), -1 (uncertain) and null (not known)"
        yield Problem("unknown label", where, str(label), advice)


def fact_problems(entries: Iterable[Entry]) -> Iterator[Problem]:
    """Sex, age, view and source that subgroup tables could not use."""
    for _, where, item in entries:
        if item.get("sex") not in (None, *SEXES):
            yield Problem("wrong fact", where, f"sex {item['sex']!r}", "F or M is expected; leave it out if not known")
        age = item.get("age")
        if age is not None and not (isinstance(age, int | float) and not isinstance(age, bool) and 0 <= age <= OLDEST):
            advice = f"Years from 0 to {OLDEST} as a number are expected; leave it out if not known"
            yield Problem("wrong fact", where, f"age {age!r}", advice)
        for key in ("view", "source"):
            if not isinstance(item.get(key, ""), str | None):
                yield Problem("wrong fact", where, f"{key} {item[key]!r}", "A word is expected")


def outside(box: Any, shape: tuple[int, int]) -> bool:
    """Whether the centre of a box lies outside a picture of these rows and columns, as where it is of another size."""
    left, top, width, height = box[:4]
    return not (0 <= left + width / 2 <= shape[1] and 0 <= top + height / 2 <= shape[0])


def is_box(box: Any) -> bool:
    """Whether something is a box: ``[x, y, width, height, name]``, numbers within ±10⁹ and a size above 0."""
    if not isinstance(box, list) or len(box) != 5 or not isinstance(box[4], str):
        return False
    kinds = all(isinstance(value, int | float) and not isinstance(value, bool) for value in box[:4])
    return kinds and all(-1e9 < value < 1e9 for value in box[:4]) and min(box[2:4]) > 0
