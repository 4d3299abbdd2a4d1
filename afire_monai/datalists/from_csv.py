"""Build data lists from a CSV manifest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.build import assemble
from afire_monai.datalists.csv_table import FACTS, Row, facts_of, parse_label, parse_numbers, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath, save_datalist

KEEP_PRESENT = ("auto",)
"""``keep``: those of sex, age, view and source that the CSV has a column of that very name for."""


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
    label_columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = KEEP_PRESENT,
) -> DataList | dict[str, DataList]:
    """Build a data list, or one list per source, from a CSV manifest with a header line (also gzipped).

    Rows whose image is missing are left out; their number is ``meta.skipped.missing_image``, that of masks which are
    named but missing ``meta.skipped.missing_mask``, and that of sexes and ages that make no sense
    ``meta.skipped.unusable_sex`` and ``unusable_age``.

    Args:
        path: the CSV file.
        out: JSON file to write, with ``by_source`` a folder for ``<source>.json``; None to only return.
        image_column: column of image paths.
        group_column: column of patients; None, or an empty cell: the image is its own patient.
        labels_column: column of label names; None for a list without labels. An empty cell is "not known" for each
            label.
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
        label_columns: columns of one label each, with 1, 0, -1 (uncertain) or nothing (not known); they are the list's
            labels, in this order, and ``labels_column`` is not read.
        keep: facts to put into the items: ``sex``, ``age``, ``view``, ``source``, each alone or as ``fact=column``;
            "auto" for those that have a column of their own name; None for none.

    Returns:
        The list with absolute paths; with ``by_source`` a dictionary from source to list.

    Raises:
        DataListError: no file, a missing column (the present ones are named), another value in a label column, no row
            left, wrong fractions.
    """
    wanted = {source} if isinstance(source, str) else None if source is None else set(source)
    needs_source = by_source or wanted is not None
    if needs_source and source_column is None:
        raise DataListError(f"{path}: source_column is None, but by_source or source needs it. Name the column")
    facts = _fact_columns(keep)
    singles = _checked_labels(label_columns) if label_columns is not None else []
    several = labels_column if label_columns is None else None
    columns = [image_column, group_column, several, mask_column, source_column if needs_source else None]
    columns += [*singles, *([] if keep == KEEP_PRESENT else facts.values())]
    rows = read_table(Path(path), [column for column in columns if column is not None])
    numbered = list(enumerate(rows, start=2))
    if wanted is not None and source_column is not None:
        numbered = _keep_sources(numbered, source_column, wanted, path)
    base = Path(base_dir).absolute() if base_dir is not None else Path(path).absolute().parent
    boxes = _read_boxes(Path(boxes_csv)) if boxes_csv is not None else {}
    present = rows[0] if rows else {}
    facts = {fact: column for fact, column in facts.items() if column in present}
    maker = _ItemMaker(base, image_column, group_column, mask_column, boxes, facts)

    def build(part: list[tuple[int, Row]], list_name: str) -> DataList:
        items: list[dict[str, Any]] = []
        names: list[tuple[str, ...] | None] = []
        maker.skipped = Counter(missing_image=0, missing_mask=0)
        for number, row in part:
            item = maker.make(row)
            if item is None:
                continue
            if singles:
                item["label"] = [parse_label(row[c], f"{path}: line {number}, column {c!r}") for c in singles]
                names.append(tuple(c for c, v in zip(singles, item["label"], strict=True) if v == 1))
            else:
                names.append(_split_labels(row[several], label_separator) if several else None)
            items.append(item)
        if not items:
            raise DataListError(
                f"{path}: no image of {list_name!r} was found below {base} ({maker.skipped['missing_image']} rows). "
                "Give the folder that the paths start from as base_dir"
            )
        meta = {"source": list_name, "csv": Path(path).name, "skipped": dict(maker.skipped)}
        return assemble(list_name, items, names, fractions, seed, normal_label, meta, singles or None)

    if not by_source:
        only = next(iter(wanted)) if wanted is not None and len(wanted) == 1 else Path(path).stem
        datalist = build(numbered, name or only)
        if out is not None:
            save_datalist(datalist, out)
        return datalist
    parts: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for number, row in numbered:
        parts[row[str(source_column)] or "unnamed"].append((number, row))
    lists = {key: build(part, f"{name}_{key}" if name else key) for key, part in sorted(parts.items())}
    for key, datalist in lists.items():
        if out is not None:
            save_datalist(datalist, Path(out) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', key)}.json")
    return lists


@dataclass
class _ItemMaker:
    """Turns rows into items, and counts what was missing."""

    base: Path
    image_column: str
    group_column: str | None
    mask_column: str | None
    boxes: dict[str, list[list[Any]]]
    facts: dict[str, str]
    skipped: Counter[str] = field(default_factory=Counter)

    def make(self, row: Row) -> dict[str, Any] | None:
        """One item, or None where the image is missing."""
        named = row[self.image_column]
        image = self.base / named
        if not named or not image.is_file():
            self.skipped["missing_image"] += 1
            return None
        item: dict[str, Any] = {"image": str(image)}
        item["group"] = (row[self.group_column] if self.group_column else "") or named
        if self.mask_column and row[self.mask_column]:
            if (self.base / row[self.mask_column]).is_file():
                item["mask"] = str(self.base / row[self.mask_column])
            else:
                self.skipped["missing_mask"] += 1
        if named in self.boxes:
            item["boxes"] = self.boxes[named]
        facts = facts_of(**{fact: row[column] for fact, column in self.facts.items()})
        for fact in ("sex", "age"):
            if fact in self.facts and row[self.facts[fact]] and fact not in facts:
                self.skipped[f"unusable_{fact}"] += 1
        return item | facts


def _fact_columns(keep: Sequence[str] | None) -> dict[str, str]:
    if keep is None:
        return {}
    if isinstance(keep, str) or ("auto" in keep and tuple(keep) != KEEP_PRESENT):
        raise DataListError(f"keep is {keep!r}; 'auto' alone, or names out of {', '.join(FACTS)}, are expected")
    if tuple(keep) == KEEP_PRESENT:
        return {fact: fact for fact in FACTS}
    columns: dict[str, str] = {}
    for entry in keep:
        fact, _, column = entry.partition("=")
        if fact not in FACTS:
            raise DataListError(
                f"keep names {fact!r}; {', '.join(FACTS)} can be kept, as `sex` or `sex=name of the column`"
            )
        columns[fact] = column or fact
    return columns


def _checked_labels(columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str) or not columns or len(set(columns)) < len(columns):
        raise DataListError(f"label_columns are {columns!r}; different names of columns, at least one, are expected")
    return list(columns)


def _keep_sources(rows: list[tuple[int, Row]], column: str, wanted: set[str], path: StrPath) -> list[tuple[int, Row]]:
    present = sorted({row[column] for _, row in rows})
    missing = sorted(wanted - set(present))
    if missing:
        raise DataListError(f"{path}: no source {', '.join(missing)} in column {column!r}; it has {', '.join(present)}")
    return [(number, row) for number, row in rows if row[column] in wanted]


def _read_boxes(path: Path) -> dict[str, list[list[Any]]]:
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    for number, row in enumerate(read_table(path, ["path", "label", "x", "y", "width", "height"]), start=2):
        numbers = parse_numbers([row[key] for key in ("x", "y", "width", "height")], f"{path}: line {number}: box")
        boxes[row["path"]].append([*numbers, row["label"]])
    return boxes


def _split_labels(cell: str, separator: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in cell.split(separator) if label.strip())
