"""Kinds of people in a data list: by sex, age, view and source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from afire_monai.core.age_sex import age_band
from afire_monai.core.errors import DataListError

#: how items are told apart: the value of each fact as text, ages in bands; None if an item does not state it
KINDS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "sex": lambda item: item.get("sex"),
    "age": lambda item: age_band(item.get("age")),
    "view": lambda item: item.get("view"),
    "source": lambda item: item.get("source"),
}


def number_populations(items: Sequence[Mapping[str, Any]], facts: Sequence[str]) -> list[int]:
    """Number the kinds of people in a data list.

    Args:
        items: data-list items.
        facts: those of sex, age, view and source that tell kinds apart. Not stated is a value of its own.

    Returns:
        The kind of each item, 0…M − 1, in the order of their values.

    Raises:
        DataListError: for an unknown fact, or if all items are of one kind.
    """
    if unknown := [fact for fact in facts if fact not in KINDS]:
        raise DataListError(f"{unknown[0]!r} does not tell people apart; {', '.join(KINDS)} do")
    values = [tuple(str(KINDS[fact](item) or "") for fact in facts) for item in items]
    numbers = {value: number for number, value in enumerate(sorted(set(values)))}
    if len(numbers) < 2:
        raise DataListError(
            f"all {len(values)} images are of one kind by {', '.join(facts)}. Build the list with more "
            f"(`afire datalist from-csv … --keep {','.join(facts)}`)"
        )
    return [numbers[value] for value in values]
