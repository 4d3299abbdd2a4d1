"""Build data lists from a folder or from a CSV manifest."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from afire_monai.data.datalist_file import DEFAULT_NORMAL, SECTIONS, DataList, StrPath, save_datalist
from afire_monai.data.decode import list_images
from afire_monai.data.splits import split_by_group
from afire_monai.errors import DataListError

Row = dict[str, str]
LABEL_UNKNOWN = -1


def datalist_from_folder(
    folder: StrPath,
    out: StrPath | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    group_pattern: str | None = None,
    labels_from_folders: bool = False,
    normal_label: str = DEFAULT_NORMAL,
    name: str | None = None,
) -> DataList:
    r"""Build a data list of all radiographs below a folder.

    Args:
        folder: searched with its sub-folders, see `list_images`.
        out: JSON file to write; None to only return the list.
        fractions: shares of training, validation and test.
        seed: of the split.
        group_pattern: regular expression searched in the path below ``folder``; its first group (or the whole match) is
            the patient, for instance ``r"person(\d+)_"``. None: every image is its own patient.
        labels_from_folders: the folder that directly holds an image is its label.
        normal_label: the label that means "no finding"; it is matched to folders in any case (``NORMAL``).
        name: name of the list; None for the folder's name.

    Returns:
        The list, with absolute paths.

    Raises:
        DataListError: no radiograph found, a pattern that is wrong or does not match every file, wrong fractions.
    """
    root = Path(folder).absolute()
    paths = list_images(root)
    if not paths:
        raise DataListError(f"{folder}: no PNG, JPEG, NIfTI or DICOM file in it or below. Check the path")
    below = [path.relative_to(root).as_posix() for path in paths]
    groups = below if group_pattern is None else _match_groups(below, group_pattern)
    items: list[dict[str, Any]] = [
        {"image": str(path), "group": group} for path, group in zip(paths, groups, strict=True)
    ]
    names: list[tuple[str, ...] | None] = [None] * len(items)
    if labels_from_folders:
        parents = [path.parent.name for path in paths]
        names = [(normal_label if parent.lower() == normal_label.lower() else parent,) for parent in parents]
    meta = {"source": root.name, "group_pattern": group_pattern}
    datalist = _assemble(name or root.name, items, names, fractions, seed, normal_label, meta)
    if out is not None:
        save_datalist(datalist, out)
    return datalist


def datalist_from_csv(
    path: StrPath,
    out: StrPath | None = None,
    image_column: str = "path",
    group_column: str | None = "group",
    labels_column: str | None = "labels",
    label_separator: str = "|",
    source_column: str | None = "source",
    source: str | Collection[str] | None = None,
    by_source: bool = False,
    mask_column: str | None = None,
    boxes_csv: StrPath | None = None,
    base_dir: StrPath | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    normal_label: str = DEFAULT_NORMAL,
    name: str | None = None,
) -> DataList | dict[str, DataList]:
    """Build a data list, or one list per source, from a CSV manifest with a header line.

    Rows whose image is missing are left out; their number is ``meta.skipped.missing_image``, that of masks which are
    named but missing ``meta.skipped.missing_mask``.

    Args:
        path: the CSV file.
        out: JSON file to write, with ``by_source`` a folder for ``<source>.json``; None to only return.
        image_column: column of image paths.
        group_column: column of patients; None, or an empty cell: the image is its own patient.
        labels_column: column of label names; None for a list without labels. An empty cell is "unknown" for each label.
        label_separator: between several names in one cell.
        source_column: column of sources; needed for ``source`` and ``by_source`` only.
        source: keep the rows of this source, or of these.
        by_source: one list for each source, so that sources are never mixed by accident.
        mask_column: column of mask paths.
        boxes_csv: CSV with the columns path, label, x, y, width, height, where path is as in ``image_column``.
        base_dir: folder that paths in the CSV start from; None for the folder of the CSV.
        fractions: shares of training, validation and test.
        seed: of the split.
        normal_label: the label that means "no finding".
        name: name of the list; None for the source or the name of the CSV. With ``by_source`` a prefix.

    Returns:
        The list with absolute paths; with ``by_source`` a dictionary from source to list.

    Raises:
        DataListError: no file, a missing column (the present ones are named), no row left, wrong fractions.
    """
    wanted = {source} if isinstance(source, str) else None if source is None else set(source)
    needs_source = by_source or wanted is not None
    if needs_source and source_column is None:
        raise DataListError(f"{path}: source_column is None, but by_source or source needs it. Name the column")
    columns = [image_column, group_column, labels_column, mask_column, source_column if needs_source else None]
    rows = _read_csv(Path(path), [column for column in columns if column is not None])
    if wanted is not None and source_column is not None:
        rows = _keep_sources(rows, source_column, wanted, path)
    base = Path(base_dir).absolute() if base_dir is not None else Path(path).absolute().parent
    boxes = _read_boxes(Path(boxes_csv)) if boxes_csv is not None else {}

    def build(rows: list[Row], list_name: str) -> DataList:
        items, names, skipped = [], [], {"missing_image": 0, "missing_mask": 0}
        for row in rows:
            item = _item_from_row(row, base, image_column, group_column, mask_column, boxes, skipped)
            if item is not None:
                items.append(item)
                names.append(_split_labels(row[labels_column], label_separator) if labels_column else None)
        if not items:
            raise DataListError(
                f"{path}: no image of {list_name!r} was found below {base} ({skipped['missing_image']} rows). "
                "Give the folder that the paths start from as base_dir"
            )
        meta = {"source": list_name, "csv": Path(path).name, "skipped": skipped}
        return _assemble(list_name, items, names, fractions, seed, normal_label, meta)

    if not by_source:
        only = next(iter(wanted)) if wanted is not None and len(wanted) == 1 else Path(path).stem
        datalist = build(rows, name or only)
        if out is not None:
            save_datalist(datalist, out)
        return datalist
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[row[str(source_column)] or "unnamed"].append(row)
    lists = {key: build(part, f"{name}_{key}" if name else key) for key, part in sorted(parts.items())}
    for key, datalist in lists.items():
        if out is not None:
            save_datalist(datalist, Path(out) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', key)}.json")
    return lists


def _assemble(
    name: str,
    items: list[dict[str, Any]],
    names: list[tuple[str, ...] | None],
    fractions: Sequence[float],
    seed: int,
    normal: str,
    meta: dict[str, Any],
) -> DataList:
    """Give items their label vectors, split them, and put the list together."""
    if len(fractions) != len(SECTIONS):
        raise DataListError(f"fractions are {tuple(fractions)}; three, for {', '.join(SECTIONS)}, are expected")
    known = {label for labels in names if labels for label in labels}
    vocabulary = sorted(known - {normal})
    if normal in known:
        vocabulary.insert(0, normal)
    for item, labels in zip(items, names, strict=True):
        if vocabulary and labels is not None:
            item["label"] = [int(label in labels) if labels else LABEL_UNKNOWN for label in vocabulary]
    strata = ["|".join(sorted(labels or ())) for labels in names]
    split = split_by_group([item["group"] for item in items], strata, fractions, seed)
    datalist: DataList = {"name": name}
    if vocabulary:
        datalist["labels"] = vocabulary
    datalist["meta"] = {**meta, "fractions": [float(f) for f in fractions], "seed": seed, "normal_label": normal}
    for index, section in enumerate(SECTIONS):
        if fractions[index] > 0:
            datalist[section] = [item for item, part in zip(items, split, strict=True) if part == index]
    return datalist


def _match_groups(names: list[str], pattern: str) -> list[str]:
    try:
        matches = [re.search(pattern, name) for name in names]
    except re.error as error:
        raise DataListError(f"group_pattern {pattern!r} is not a regular expression: {error}") from error
    missed = [name for name, match in zip(names, matches, strict=True) if match is None]
    if missed:
        raise DataListError(
            f"group_pattern {pattern!r} does not match {len(missed)} of {len(names)} files, for instance {missed[0]}. "
            "It must find the patient in every name"
        )
    return [(match.group(1) if match.re.groups else match.group(0)) or "" for match in matches if match is not None]


def _read_csv(path: Path, columns: list[str]) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            present = list(reader.fieldnames or [])
            missing = [column for column in columns if column not in present]
            if missing:
                raise DataListError(
                    f"{path}: no column {', '.join(repr(m) for m in missing)}; "
                    f"its columns are {', '.join(present) or 'none'}. "
                    "Name the right one, or give None for a column that you do not have"
                )
            return [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataListError(f"{path}: not a readable CSV file ({error})") from error


def _keep_sources(rows: list[Row], column: str, wanted: set[str], path: StrPath) -> list[Row]:
    present = sorted({row[column] for row in rows})
    missing = sorted(wanted - set(present))
    if missing:
        raise DataListError(f"{path}: no source {', '.join(missing)} in column {column!r}; it has {', '.join(present)}")
    return [row for row in rows if row[column] in wanted]


def _read_boxes(path: Path) -> dict[str, list[list[Any]]]:
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    for number, row in enumerate(_read_csv(path, ["path", "label", "x", "y", "width", "height"]), start=2):
        try:
            numbers = [float(row[key]) for key in ("x", "y", "width", "height")]
        except ValueError as error:
            raise DataListError(f"{path}: line {number}: {error}; x, y, width and height are numbers") from error
        boxes[row["path"]].append([*numbers, row["label"]])
    return boxes


def _item_from_row(
    row: Row,
    base: Path,
    image_column: str,
    group_column: str | None,
    mask_column: str | None,
    boxes: dict[str, list[list[Any]]],
    skipped: dict[str, int],
) -> dict[str, Any] | None:
    """One item, or None where the image is missing; counts what was missing into ``skipped``."""
    named = row[image_column]
    image = base / named
    if not named or not image.is_file():
        skipped["missing_image"] += 1
        return None
    item: dict[str, Any] = {"image": str(image), "group": (row[group_column] if group_column else "") or named}
    if mask_column and row[mask_column]:
        if (base / row[mask_column]).is_file():
            item["mask"] = str(base / row[mask_column])
        else:
            skipped["missing_mask"] += 1
    if named in boxes:
        item["boxes"] = boxes[named]
    return item


def _split_labels(cell: str, separator: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in cell.split(separator) if label.strip())
