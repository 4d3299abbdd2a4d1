"""Check the masks of a data list."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.core.pool import threads
from afire_monai.datalists.items import Entry, Problem
from afire_monai.radiographs.decode import picture_size
from afire_monai.radiographs.masks import read_mask

Found = tuple[str, str, tuple[int, ...] | Problem]
"""Place in words, path of the mask, its values but 0 or what is wrong."""


def mask_problems(
    entries: Iterable[Entry], classes: Mapping[str, Sequence[int]] | None = None, ignore: int | None = None
) -> Iterator[Problem]:
    """Open the masks of items, and list their problems.

    Args:
        entries: items with their places; those without mask are skipped.
        classes: name of each class and the mask values that mean it (none: all but 0); None if that is not known.
        ignore: the value of pixels to leave out.

    Yields:
        Errors: a mask that cannot be read, in colour, of another size than its image; a class that no mask has.
        Warnings: an empty mask, values that no class names, masks of one value that differs from the usual one.
    """
    masked = [(f"{where}.mask", i) for _, where, i in entries if i.get("mask") and os.path.isfile(i["mask"])]
    with ThreadPoolExecutor(threads()) as pool:
        found = list(pool.map(_examine, masked))
    values: dict[tuple[int, ...], list[Found]] = defaultdict(list)
    for one in found:
        if isinstance(one[2], Problem):
            yield one[2]
        else:
            values[tuple(value for value in one[2] if value != ignore)].append(one)
    for where, path, _ in values.get((), []):
        yield Problem("empty mask", where, path, "It has no pixel of a class; take it out if that is wrong", "warning")
    present = Counter({value: 0 for key in values for value in key})
    for key, ones in values.items():
        present.update(dict.fromkeys(key, len(ones)))
    yield from _class_problems(present, classes, ignore) if classes else _value_problems(values)


def refuse_wrong_masks(
    items: Sequence[Mapping[str, Any]], classes: Mapping[str, Sequence[int]], ignore: int | None = None
) -> None:
    """Refuse items whose masks would spoil a training, before it starts."""
    entries: list[Entry] = [("", str(place), dict(item)) for place, item in enumerate(items)]
    errors = [p for p in mask_problems(entries, classes, ignore) if p.severity == "error"]
    if errors:
        named = "; ".join(f"{p.kind}: {p.seen}. {p.advice}" for p in errors[:3])
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        raise DataListError(f"{named}{more}. `afire check LIST --classes NAME=VALUE` names all of them")


def _examine(masked: tuple[str, Mapping[str, Any]]) -> Found:
    where, item = masked
    path = str(item["mask"])
    try:
        mask = read_mask(path)
    except RadiographError as error:
        return where, path, Problem(error.kind, where, path, error.detail)
    try:
        size = picture_size(item["image"])
    except RadiographError:  # reported where images are read
        size = mask.shape
    if mask.shape != size:
        seen = f"{path} has {mask.shape[0]} × {mask.shape[1]} pixels, its image {size[0]} × {size[1]}"
        return where, path, Problem("mask of another size", where, seen, "Draw or export it at the image's size")
    return where, path, tuple(int(value) for value in np.unique(mask) if value)


def _class_problems(
    present: Counter[int], classes: Mapping[str, Sequence[int]], ignore: int | None
) -> Iterator[Problem]:
    seen = f"the masks have the values 0, {_values(present)}" if present else "no mask has a pixel but 0"
    for name, wanted in classes.items():
        if not any(present[value] for value in wanted) if wanted else not present:
            asked = f"{name!r} is {_values(wanted)}" if wanted else f"{name!r} is every value but 0"
            example = {name: [present.most_common(1)[0][0] if present else 255]}
            advice = f'Name the values that mean the class, for example --classes "{example}"'
            yield Problem("class that no mask has", "masks", f"{asked}, but {seen}", advice)
    outside = set(present) - {value for wanted in classes.values() for value in wanted} - {ignore}
    if outside and all(classes.values()):
        advice = "They count as background; name them if they are a class"
        yield Problem("values outside the classes", "masks", _values(outside), advice, "warning")


def _value_problems(values: Mapping[tuple[int, ...], list[Found]]) -> Iterator[Problem]:
    """Masks of one value where most others have another one: 0/1 among 0/255 are two ways to draw the same thing."""
    single = {key[0]: ones for key, ones in values.items() if len(key) == 1}
    usual = max(single, key=lambda value: len(single[value]), default=0)
    for value, ones in single.items():
        for where, path, _ in ones if value != usual else []:
            seen = f"{path} is drawn with {value}, {len(single[usual])} others with {usual}"
            yield Problem("another mask value", where, seen, "Draw the same thing with one value", "warning")


def _values(values: Iterable[int]) -> str:
    listed = sorted(values)
    return ", ".join(map(str, listed[:10])) + (f", … ({len(listed)} values)" if len(listed) > 10 else "")
