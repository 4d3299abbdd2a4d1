"""Build a data list from a folder, and assemble any list: label vectors, patient-level split, metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import loose, means_normal
from afire_monai.datalists.file import DEFAULT_NORMAL, SECTIONS, DataList, StrPath, save_datalist
from afire_monai.datalists.normal import find_normal
from afire_monai.datalists.splits import split_by_group
from afire_monai.radiographs.decode import checked_options, list_images
from afire_monai.radiographs.masks import MASK_SUFFIXES, mask_folders


def datalist_from_folder(
    folder: StrPath,
    out: StrPath | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    group_pattern: str | None = None,
    labels_from_folders: bool = False,
    normal_label: str | None = None,
    name: str | None = None,
    masks: StrPath | None = None,
    reader: Mapping[str, Any] | None = None,
) -> DataList:
    r"""Build a data list of all radiographs below a folder.

    Args:
        folder: folder to search, with its sub-folders.
        out: JSON file to write.
        fractions: shares of training, validation and test.
        seed: seed of the split.
        group_pattern: regular expression that finds the patient in each path below ``folder``: its first group, or the
            whole match, for instance ``person(\d+)_``. Without it, each image counts as a patient.
        labels_from_folders: the folder that directly holds an image is its label.
        normal_label: the label that means "no finding"; unless given, Normal or No Finding, in any case.
        name: name of the list; the folder's name unless given.
        masks: folder of masks, named as the images are (1.png or 1_mask.png for 1.png); it may be inside ``folder``.
            Images without mask are kept and counted.
        reader: how the images are to be read (see `reader_options`); kept in ``meta.reader``.

    Returns:
        The list with absolute paths, which is also written if ``out`` is given.

    Raises:
        DataListError: if there is no radiograph, the pattern is wrong or does not match every file, or the fractions
            are wrong.
    """
    root = Path(folder).absolute()
    mask_root = None if masks is None else Path(os.path.abspath(masks))
    paths = [path for path in list_images(root) if mask_root is None or not path.is_relative_to(mask_root)]
    if not paths:
        raise DataListError(f"{folder}: no PNG, JPEG, NIfTI or DICOM file in it or below. Check the path")
    if found := mask_folders(paths):
        raise DataListError(
            f"{found[0]}: each of its pictures has only two values, like a mask. If they are masks, give "
            f"--masks {found[0]}; if not, move them out of {root}"
        )
    below = [path.relative_to(root).as_posix() for path in paths]
    groups = below if group_pattern is None else _match_groups(below, group_pattern)
    items: list[dict[str, Any]] = [
        {"image": str(path), "group": group} for path, group in zip(paths, groups, strict=True)
    ]
    names: list[tuple[str, ...] | None] = [None] * len(items)
    if labels_from_folders:
        names = [(name,) for name in _folder_labels([path.parent.name for path in paths], normal_label)]
    normal = normal_label or DEFAULT_NORMAL
    meta: dict[str, Any] = {"source": root.name, "group_pattern": group_pattern}
    if reader:
        meta["reader"] = checked_options(reader)
    if mask_root is not None:
        meta["skipped"] = {"mask_without_image": add_masks(items, root, mask_root),
                           "no_mask_but_kept": sum("mask" not in item for item in items)}  # fmt: skip
    datalist = assemble(name or root.name, items, names, fractions, seed, normal, meta)
    if out is not None:
        save_datalist(datalist, out)
    return datalist


def assemble(
    name: str,
    items: list[dict[str, Any]],
    names: Sequence[tuple[str, ...] | None],
    fractions: Sequence[float],
    seed: int,
    normal: str,
    meta: dict[str, Any],
    vocabulary: Sequence[str] | None = None,
) -> DataList:
    """Add label vectors to items, split the items by patient, and assemble the list.

    Args:
        name: name of the list.
        items: items with ``group``, and with ``label`` too if ``vocabulary`` is given.
        names: labels of each item, by which the split is stratified; () for an item whose labels are not known, None
            for an item that gets no label vector.
        fractions: shares of training, validation and test; a section with share 0 is left out.
        seed: seed of the split.
        normal: the label that means "no finding"; it comes first.
        meta: facts to keep.
        vocabulary: names of the labels whose values the items hold already; None to make the vectors from ``names``.

    Raises:
        DataListError: for wrong fractions.
    """
    if len(fractions) != len(SECTIONS):
        raise DataListError(f"fractions are {tuple(fractions)}; three, for {', '.join(SECTIONS)}, are expected")
    if vocabulary is None:
        known = {label for labels in names if labels for label in labels}
        vocabulary = [*([normal] if normal in known else []), *sorted(known - {normal})]
        for item, labels in zip(items, names, strict=True):
            if vocabulary and labels is not None:
                item["label"] = [int(label in labels) if labels else None for label in vocabulary]
    strata = ["|".join(sorted(labels or ())) for labels in names]
    split = split_by_group([item["group"] for item in items], strata, fractions, seed)
    datalist: DataList = {"name": name}
    if vocabulary:
        datalist["labels"] = list(vocabulary)
    datalist["meta"] = {**meta, "fractions": [float(f) for f in fractions], "seed": seed, "normal_label": normal}
    for index, section in enumerate(SECTIONS):
        if fractions[index] > 0:
            datalist[section] = [item for item, part in zip(items, split, strict=True) if part == index]
    return datalist


def _folder_labels(parents: list[str], normal_label: str | None) -> list[str]:
    """Return the label of each folder: its name, or the normal label where it is a spelling of that."""
    wanted = loose(normal_label) if normal_label is not None else None
    normal = {name for name in parents if (means_normal(name) if wanted is None else loose(name) == wanted)}
    labels = [(normal_label or DEFAULT_NORMAL) if name in normal else name for name in parents]
    find_normal(sorted(set(labels)), normal_label)
    return labels


def _match_groups(names: list[str], pattern: str) -> list[str]:
    try:
        matches = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise DataListError(f"group_pattern {pattern!r} is not a regular expression: {error}") from error
    groups = [(match[1] if match.re.groups else match[0]) or "" if match else "" for match in matches]
    if missed := [name for name, group in zip(names, groups, strict=True) if not group.strip()]:
        raise DataListError(
            f"group_pattern {pattern!r} finds no patient in {len(missed)} of {len(names)} files, for instance "
            f"{missed[0]}. It must find one in every name"
        )
    return groups


def add_masks(items: Sequence[dict[str, Any]], root: Path, masks: Path) -> int:
    """Add to items the masks with their names; return how many masks have no image.

    Raises DataListError if there is no folder, two masks or two images have one name, or no image has a mask.
    """
    if not masks.is_dir():
        raise DataListError(f"{masks}: no such folder. Give the folder of the masks")
    images: dict[str, dict[str, Any]] = {}
    for item in items:
        if (other := images.setdefault(Path(item["image"]).stem, item)) is not item:
            raise DataListError(
                f"{item['image']} and {other['image']} have one name, so a mask of that name fits both. Rename one"
            )
    unused = 0
    for path in sorted(p for p in masks.rglob("*") if p.suffix.lower() in MASK_SUFFIXES and p.name[0] != "."):
        stem = path.stem if path.stem in images else re.sub("(?i)[_-](mask|seg|label)s?$", "", path.stem)
        if stem not in images:
            unused += 1
        elif "mask" in images[stem]:
            raise DataListError(f"{path} and {images[stem]['mask']} could both be the mask of {images[stem]['image']}")
        else:
            images[stem]["mask"] = str(path)
    if not any("mask" in item for item in items):
        raise DataListError(
            f"{masks}: none of its {unused} pictures is named as an image below {root} is (1.png or 1_mask.png)"
        )
    return unused
