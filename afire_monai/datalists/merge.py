"""Join data lists of several sources into one, for pre-training on all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import (
    DEFAULT_NORMAL,
    SECTIONS,
    DataList,
    StrPath,
    datalist_hash,
    is_normal,
    load_datalist,
    normal_label,
    reader_options,
    save_datalist,
)
from afire_monai.datalists.patients import shared_patients


def merge_datalists(paths: Sequence[StrPath], out: StrPath | None = None, name: str = "merged") -> DataList:
    """Join lists section by section; an image keeps the section that its own list gave it.

    Label names are those of all lists in order of appearance; the label that means "no finding" has the name that the
    first list with one gives it. An image that is normal in its own list, as `normal_of` says, is so in the joined one.
    A label that a list does not know is null for its images, except that an image whose list names it normal has none
    of the others' findings. Without ``out`` the list is only returned.

    Args:
        paths: the data lists, at least one.
        out: JSON file to write.
        name: name of the joined list.

    Raises:
        DataListError: if there is no list, a patient is in different sections of the lists, the lists' images are read
            in different ways, or two labels of a list mean that nothing was found; or as ``load_datalist``.
    """
    if not paths:
        raise DataListError("no data list to merge: give the paths of at least one")
    lists = [load_datalist(path) for path in paths]
    normal = next((own for d in lists if (own := normal_label(d)) in d.get("labels", [])), DEFAULT_NORMAL)
    names = [[normal if label == normal_label(d) else label for label in d.get("labels", [])] for d in lists]
    # never the first, whose own name is used
    if twice := next((place for place, own in enumerate(names) if own.count(normal) > 1), 0):
        both = f"{normal_label(lists[twice])!r} and {normal!r}"
        raise DataListError(f"{paths[twice]}: both {both} mean that nothing was found; keep one of these labels")
    labels = list(dict.fromkeys(label for own in names for label in own))
    merged: DataList = {"name": name, "labels": labels}
    for section in SECTIONS:
        merged[section] = [
            _relabel(item, datalist, own, labels, normal)
            for datalist, own in zip(lists, names, strict=True)
            for item in datalist.get(section, [])
        ]
    _refuse_shared(merged)
    readers = [reader_options(datalist) for datalist in lists]
    if other := next((place for place, reader in enumerate(readers) if reader != readers[0]), 0):
        raise DataListError(
            f"{paths[0]} is read with {readers[0] or 'standard options'}, {paths[other]} with "
            f"{readers[other] or 'standard options'}; all images of a list must be read in the same way. Convert "
            "the pictures of one"
        )
    merged["meta"] = {"merged": [{"name": d.get("name", Path(p).stem), "sha256": datalist_hash(d)}
                                 for d, p in zip(lists, paths, strict=True)]}  # fmt: skip
    if normal in labels:
        merged["meta"]["normal_label"] = normal
    if readers[0]:
        merged["meta"]["reader"] = readers[0]
    if out is not None:
        save_datalist(merged, out)
    return merged


def _relabel(
    item: dict[str, Any], datalist: DataList, own: list[str], labels: list[str], normal: str
) -> dict[str, Any]:
    known = item.get("label") or []
    if not labels or not isinstance(known, list) or len(known) != len(own):
        return item
    values, absent = dict(zip(own, known, strict=True)), None
    if not own or is_normal(item, datalist["labels"], normal_label(datalist)):
        absent = 0 if normal in own or normal not in labels else None
        values[normal] = 1
    return {**item, "label": [values.get(label, absent) for label in labels]}


def _refuse_shared(merged: DataList) -> None:
    images = Counter(item["image"] for section in SECTIONS for item in merged[section])
    if twice := [image for image, count in images.items() if count > 1]:
        raise DataListError(f"{len(twice)} images are in two of the lists, for instance {twice[0]}; keep one of each")
    for (one, other), shared in shared_patients({section: merged[section] for section in SECTIONS}).items():
        raise DataListError(
            f"{len(shared)} patients are in the {one} images of one list and the {other} images of another; "
            "build one list from all of them, so that patients are split together. If different people have one "
            "number, give them other groups first"
        )
