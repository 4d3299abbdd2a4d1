"""Find the label of a list that means "no finding"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import means_normal
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, normal_label, normal_of, present_sections


def find_normal(labels: Sequence[str], given: str | None = None) -> str:
    """Return the label that means "no finding".

    ``given`` is the name that the user gave; without it Normal or No Finding is looked for.

    Returns:
        Its name; "Normal" if there is none among the labels.

    Raises:
        DataListError: if the given name is not among the labels, or several mean "no finding".
    """
    if given is not None:
        if labels and given not in labels:
            near = difflib.get_close_matches(given, labels, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataListError(f"no label {given!r} to be the normal one{hint}. The labels are {', '.join(labels)}")
        return given
    found = [name for name in labels if means_normal(name)]
    if len(found) > 1:
        raise DataListError(
            f"the labels {' and '.join(map(repr, found))} both mean that nothing was found. Choose one with "
            "--normal-label, or use one spelling"
        )
    return found[0] if found else DEFAULT_NORMAL


def normal_in_words(datalist: DataList) -> str:
    """Say how many images of a list are known to be normal, and how to name the label if none is.

    Returns:
        One line; "" for a list without labels, all of whose images count as normal.
    """
    labels = [str(name) for name in datalist.get("labels") or []]
    if not labels:
        return ""
    normal = normal_label(datalist)
    count = sum(len(normal_of(datalist, section)) for section in present_sections(datalist))
    if normal in labels:
        reason = f"{normal!r} is 1 and nothing else"
    else:
        reason = "all labels are 0, as none is named Normal or No Finding"
    line = f"known to be normal: {count} images ({reason})"
    if count:
        return line
    return f"{line}. The labels are {', '.join(labels)}: --normal-label NAME says which one means no finding"
