"""Join data lists of several sources into one, for pre-training on all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import (
    SECTIONS,
    DataList,
    StrPath,
    datalist_hash,
    load_datalist,
    normal_label,
    patient_of,
    reader_options,
    save_datalist,
)


def merge_datalists(paths: Sequence[StrPath], out: StrPath | None = None, name: str = "merged") -> DataList:
    """Join lists section by section; an image keeps the section that its own list gave it.

    Label names are those of all lists in order of appearance; a label that a list does not know is null for its
    images, except that an image known to be normal has none of the others' findings. Without ``out`` the list is only
    returned.

    Args:
        paths: the data lists, at least one.
        out: JSON file to write.
        name: name of the joined list.

    Raises:
        DataListError: if there is no list, a patient is in the training images of one list and the validation or test
            images of another, or the lists' images are read in different ways; or as ``load_datalist``.
    """
    if not paths:
        raise DataListError("no data list to merge: give the paths of at least one")
    lists = [load_datalist(path) for path in paths]
    labels = list(dict.fromkeys(label for datalist in lists for label in datalist.get("labels", [])))
    merged: DataList = {"name": name, "labels": labels}
    for section in SECTIONS:
        merged[section] = [_relabel(item, d, labels) for d in lists for item in d.get(section, [])]
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
    if readers[0]:
        merged["meta"]["reader"] = readers[0]
    if out is not None:
        save_datalist(merged, out)
    return merged


def _relabel(item: dict[str, Any], datalist: DataList, labels: list[str]) -> dict[str, Any]:
    own = datalist.get("labels", [])
    if not item.get("label") or len(item["label"]) != len(own):
        return item
    values = dict(zip(own, item["label"], strict=True))
    normal = values.get(normal_label(datalist)) == 1
    return {**item, "label": [values.get(label, 0 if normal else None) for label in labels]}


def _refuse_shared(merged: DataList) -> None:
    patients = {section: {patient_of(item) for item in merged[section]} for section in SECTIONS}
    images = Counter(item["image"] for section in SECTIONS for item in merged[section])
    if twice := [image for image, count in images.items() if count > 1]:
        raise DataListError(f"{len(twice)} images are in two of the lists, for instance {twice[0]}; keep one of each")
    for section in ("validation", "test"):
        shared = patients["training"] & patients[section]
        if shared:
            raise DataListError(
                f"{len(shared)} patients are in the training images of one list and the {section} images of another; "
                "build one list from all of them, so that patients are split together"
            )
