"""Build data lists from a CSV manifest."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.age_sex import parse_sex
from afire_monai.core.errors import DataListError
from afire_monai.datalists.build import assemble
from afire_monai.datalists.cells import (
    FACTS,
    different_columns,
    facts_of,
    is_not_known,
    look_alikes,
    padding_hint,
    parse_label,
    parse_numbers,
    split_names,
)
from afire_monai.datalists.csv_table import Row, one_row_each, read_table
from afire_monai.datalists.file import DataList, StrPath, save_datalist
from afire_monai.datalists.normal import find_normal
from afire_monai.radiographs.decode import checked_options

logger = logging.getLogger(__name__)

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
    normal_label: str | None = None,
    name: str | None = None,
    label_columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = KEEP_PRESENT,
    delimiter: str | None = None,
    encoding: str | None = None,
    reader: Mapping[str, Any] | None = None,
) -> DataList | dict[str, DataList]:
    """Build a data list, or one list per source, from a CSV manifest with a header line (see `read_table`).

    Rows whose image is missing are left out; their number is ``meta.skipped.missing_image``, that of masks which are
    named but missing ``missing_mask``, of rows that repeat another ``repeated_row``, of boxes of images that are not
    in the list ``box_without_image``; ``meta.unusable`` counts sexes and ages that make no sense. Cells such as ``nan``
    and names that differ from a label in case or blanks only count as not known, and are named in the log.

    Args:
        path: the CSV file, with a header line.
        out: JSON file to write, or with ``by_source`` a folder for ``<source>.json``; without it, the list is only
            returned.
        image_column: column of image paths.
        group_column: column of patients; if it is None or a cell is empty, the image is its own patient.
        labels_column: column of label names; None if there is none. An empty cell is "not known" for each label.
        label_separator: separator between several names in one cell.
        source_column: column of sources; needed for ``source`` and ``by_source`` only.
        source: keep the rows of this source, or of several with commas between them.
        by_source: one list for each source, so that sources are never mixed by accident.
        mask_column: column of mask paths.
        boxes_csv: CSV with the columns path, label, x, y, width, height, where path is as in ``image_column``.
        base_dir: folder that paths in the CSV start from; the CSV's own folder unless given.
        fractions: shares of training, validation and test.
        seed: seed of the split.
        normal_label: the label that means "no finding"; unless given, Normal or No Finding.
        name: name of the list; the source or the name of the CSV unless given. With ``by_source``, a prefix.
        label_columns: instead of ``labels_column``: columns of one label each, with 1, 0, -1 (uncertain) or nothing
            (not known); they are the list's labels, in this order.
        keep: facts for subgroup results, from ``sex``, ``age``, ``view``, ``source``, each alone or as
            ``sex=column``; auto: those that have a column of that name; none: no facts.
        delimiter: separator between the cells of both tables: , ; or tab; detected unless given.
        encoding: encoding of both tables: utf-8, utf-16, cp1252, …; detected unless given.
        reader: how the images are to be read (see `reader_options`); kept in ``meta.reader``.

    Returns:
        The list with absolute paths, also written if ``out`` is given; with ``by_source`` a dictionary from
        source to list.

    Raises:
        DataListError: if there is no file, a column is missing (the present ones are named), two rows of an image or a
            patient disagree, a label column has another value, no row is left, the fractions are wrong, or there is no
            such normal label.
    """
    if not label_separator:
        raise DataListError("label_separator is empty; the text between two names in a cell is expected, such as |")
    wanted = {source} if isinstance(source, str) else None if source is None else set(source)
    needs_source = by_source or wanted is not None
    if needs_source and source_column is None:
        raise DataListError(f"{path}: source_column is None, but by_source or source needs it. Name the column")
    facts = _fact_columns(keep)
    singles = different_columns(label_columns) if label_columns is not None else []
    several = labels_column if label_columns is None else None
    named = [image_column, group_column, several, mask_column, source_column if needs_source else None, *singles]
    columns = [column for column in named if column is not None]
    asked = [*columns, *([] if keep == KEEP_PRESENT else facts.values())]
    rows = read_table(Path(path), asked, delimiter=delimiter, encoding=encoding)
    if wanted is not None and source_column is not None:
        rows = _keep_sources(rows, source_column, wanted, path)
    facts = {fact: column for fact, column in facts.items() if rows and column in rows[0]}
    base = Path(os.path.abspath(base_dir if base_dir is not None else Path(path).parent))
    boxes = _read_boxes(Path(boxes_csv), base, delimiter, encoding) if boxes_csv is not None else {}
    manifest = _Manifest(
        path, base, image_column, group_column, mask_column, several, label_separator, singles, facts, boxes,
        fractions, seed, checked_options(reader or {}),
    )  # fmt: skip
    _say_not_known(path, rows, columns, label_separator)
    rows = manifest.one_row_an_image(rows, [*columns, *facts.values()])
    manifest.find_labels(rows, normal_label)
    if not by_source:
        only = next(iter(wanted)) if wanted is not None and len(wanted) == 1 else Path(path).stem
        datalist = manifest.build(rows, name or only)
        if out is not None:
            save_datalist(datalist, out)
        return datalist
    return manifest.build_each(rows, source_column, name, out)


@dataclass
class _Manifest:
    """Turns the rows of a manifest into lists, and counts rows, masks and boxes that could not be used."""

    path: StrPath
    base: Path
    image_column: str
    group_column: str | None
    mask_column: str | None
    names_column: str | None
    separator: str
    singles: list[str]
    facts: Mapping[str, str]
    boxes: dict[str, list[list[Any]]]
    fractions: Sequence[float]
    seed: int
    reader: Mapping[str, Any]
    repeated: int = 0
    normal: str = ""
    alike: dict[str, str] = field(default_factory=dict)

    def one_row_an_image(self, rows: list[Row], used: Sequence[str]) -> list[Row]:
        """Leave out rows that repeat another; refuse those that contradict one about an image or a patient's sex."""
        for row in rows:
            for column in filter(None, (self.image_column, self.mask_column)):
                if _cell(row, column):
                    row[column] = _spelled(row[column], self.base)
            if re.fullmatch(r"\d[.,]\d+E\+\d\d", _cell(row, self.group_column)):
                raise DataListError(
                    f"{row.where(self.group_column or '')}: a spreadsheet has shortened a long number to one such as "
                    "1.23E+12, which several patients may share. Format the column as text, and save the table again"
                )
        here = [row for row in rows if _cell(row, self.image_column)]
        single = list(one_row_each(here, self.image_column, used).values())
        self.repeated = len(here) - len(single)
        self._refuse_other_language(single)
        sexes = [row for row in single if "sex" in self.facts and _cell(row, self.group_column)]
        sexes = [Row({**row, "sex": sex}.items(), row.path, row.line, row.decimal_comma)
                 for row in sexes if (sex := parse_sex(row[self.facts["sex"]]))]  # fmt: skip
        one_row_each(sexes, self.group_column or "", ["sex"])
        return single + [row for row in rows if not _cell(row, self.image_column)]

    def _refuse_other_language(self, rows: Sequence[Row]) -> None:
        """Refuse sexes in Spanish: beside H, hombre, and without F, M is mujer, a woman."""
        column = self.facts.get("sex")
        words = {row[column].strip().upper() for row in rows} if column else set()
        if "M" in words and "F" not in words and not words.isdisjoint(("H", "HOMBRE", "MUJER")):
            raise DataListError(
                f"{self.path}: column {column!r} has M beside H, hombre or mujer, so that M may mean a woman. Write F "
                "and M, or leave the column out with --keep none"
            )

    def find_labels(self, rows: Sequence[Row], normal: str | None) -> None:
        """Find out which labels there are, which spellings look alike, and which label means normal."""
        cells = [split_names(row[self.names_column], self.separator) for row in rows] if self.names_column else []
        names = [name for cell in cells for name in cell]
        if odd := next((name for name in names if not any(map(str.isalnum, name))), None):
            raise DataListError(
                f"{self.path}: column {self.names_column!r}: {odd!r} would be a label; write the name for no finding, "
                "such as Normal, or nothing where it is not known"
            )
        self.alike = look_alikes(names, [normal] if normal else [])
        for other, name in self.alike.items():
            logger.warning(
                "%s: %d rows say %r, which looks like %r: %r counts as not known there. Write both alike if they are",
                self.path, names.count(other), other, name, name,
            )  # fmt: skip
        if several := next((name for name in names if re.search("[,;|]", name)), None):
            logger.warning("%s: %r counts as one label. If it is several, name what divides them with "
                           "--label-separator", self.path, several)  # fmt: skip
        self.normal = find_normal(sorted(set(names) - set(self.alike)) or self.singles, normal)

    def build(self, rows: list[Row], name: str) -> DataList:
        """Return the list of some rows."""
        skipped, unusable = Counter(missing_image=0, missing_mask=0), Counter[str]()
        made = [(row, item) for row in rows if (item := self._item(row, skipped, unusable)) is not None]
        self._say_missing(rows, len(made), name, skipped["missing_image"])
        labels, strata = self._label(made)
        used = {row[self.image_column] for row, _ in made}
        unused = sum(len(boxes) for image, boxes in self.boxes.items() if image not in used)
        skipped += Counter(repeated_row=self.repeated, box_without_image=unused)
        kinds = {"missing_image": 0, "missing_mask": 0, **skipped}
        meta: dict[str, Any] = {"source": name, "csv": Path(self.path).name, "skipped": kinds}
        meta |= {key: dict(value) for key, value in (("unusable", unusable), ("reader", self.reader)) if value}
        items = [item for _, item in made]
        return assemble(name, items, strata, self.fractions, self.seed, self.normal, meta, labels)

    def build_each(
        self, rows: Sequence[Row], source_column: str | None, prefix: str | None, out: StrPath | None
    ) -> dict[str, DataList]:
        """Return a list for each source, also written into a folder if one is given."""
        parts: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            parts[_cell(row, source_column) or "unnamed"].append(row)
        files = _file_names(parts)
        lists = {key: self.build(part, f"{prefix}_{key}" if prefix else key) for key, part in sorted(parts.items())}
        for key, datalist in lists.items():
            if out is not None:
                save_datalist(datalist, Path(out) / files[key])
        return lists

    def _item(self, row: Row, skipped: Counter[str], unusable: Counter[str]) -> dict[str, Any] | None:
        """Return an item without its label, or None where the image is missing."""
        named = _cell(row, self.image_column)
        image = os.path.join(self.base, named)
        if not named or not os.path.isfile(image):
            skipped["missing_image"] += 1
            return None
        item: dict[str, Any] = {"image": image, "group": _cell(row, self.group_column) or named}
        if mask := _cell(row, self.mask_column):
            if os.path.isfile(os.path.join(self.base, mask)):
                item["mask"] = os.path.join(self.base, mask)
            else:
                skipped["missing_mask"] += 1
        if boxes := self.boxes.get(named):
            item["boxes"] = boxes
        facts = facts_of(**{fact: row[column] for fact, column in self.facts.items()})
        unusable.update(fact for fact in ("sex", "age") if fact not in facts and _cell(row, self.facts.get(fact)))
        return item | facts

    def _label(self, made: Sequence[tuple[Row, dict[str, Any]]]) -> tuple[list[str], Sequence[tuple[str, ...]]]:
        """Add label vectors to items; return the labels, and the names that each item is stratified by."""
        if self.names_column is None:
            for row, item in made if self.singles else []:
                item["label"] = [parse_label(row, column) for column in self.singles]
        else:
            cells = [split_names(row[self.names_column], self.separator) for row, _ in made]
            known = {name for cell in cells for name in cell} - set(self.alike)
            labels = [*([self.normal] if self.normal in known else []), *sorted(known - {self.normal})]
            for cell, (_, item) in zip(cells, made, strict=True):
                unsure = {self.alike[name] for name in cell if name in self.alike}
                item["label"] = [
                    None if not cell or (name in unsure and name not in cell) else int(name in cell) for name in labels
                ]
            if not labels:
                for _, item in made:
                    del item["label"]
            return labels, cells
        values = [zip(self.singles, item.get("label", ()), strict=False) for _, item in made]
        return self.singles, [tuple(name for name, value in pairs if value == 1) for pairs in values]

    def _say_missing(self, rows: Sequence[Row], found: int, name: str, missing: int) -> None:
        hint = self._padding_hint(rows) if missing else ""
        if not found:
            raise DataListError(
                f"{self.path}: no image of {name!r} was found below {self.base} ({missing} rows). "
                f"{hint or 'Give the folder that the paths start from as base_dir'}"
            )
        if hint:
            logger.warning("%s: %d images are missing: %s", self.path, missing, hint)

    def _padding_hint(self, rows: Sequence[Row]) -> str:
        """Compare names of missing images with the files in their folders."""
        paths = [os.path.join(self.base, row[self.image_column]) for row in rows]
        wanted = [os.path.split(path) for path in paths if not os.path.isfile(path)][:1000]
        there = [name for folder in {folder for folder, _ in wanted} if os.path.isdir(folder)
                 for name in os.listdir(folder)]  # fmt: skip
        return padding_hint((name for _, name in wanted), there)


def _cell(row: Row, column: str | None) -> str:
    """Return a cell, "" where there is no such column, or the cell is ``-`` or says that nothing is known."""
    text = row[column] if column is not None else ""
    return "" if is_not_known(text) or not any(map(str.isalnum, text)) else text


def _spelled(cell: str, base: Path) -> str:
    r"""Return the one spelling of a path: ``./a.png`` and ``/base/a.png`` are ``a.png``, as ``b\a.png`` is ``b/a.png``.

    Tables that were made on Windows have backslashes.
    """
    path = os.path.normpath(os.path.join(base, cell))
    if os.sep != "\\" and "\\" in cell and not os.path.exists(path):
        path = os.path.normpath(os.path.join(base, cell.replace("\\", "/")))
    return path.removeprefix(os.path.join(base, ""))


def _say_not_known(path: StrPath, rows: Sequence[Row], columns: Sequence[str], separator: str) -> None:
    """Name, once for each column, the cells that count as not known."""
    for column in columns:
        cells = Counter(cell.strip() for row in rows for cell in row[column].split(separator) if is_not_known(cell))
        if cells:
            words = ", ".join(f"{cell!r} ({count} rows)" for cell, count in cells.most_common(5))
            logger.warning("%s: column %r: %s: counts as not known", path, column, words)


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


def _keep_sources(rows: Sequence[Row], column: str, wanted: set[str], path: StrPath) -> list[Row]:
    present = sorted({row[column] for row in rows})
    missing = sorted(wanted - set(present))
    if missing:
        more = f", … ({len(present)} sources)" if len(present) > 20 else ""
        seen = ", ".join(present[:20]) + more
        raise DataListError(f"{path}: no source {', '.join(missing)} in column {column!r}; it has {seen}")
    return [row for row in rows if row[column] in wanted]


def _file_names(sources: Iterable[str]) -> dict[str, str]:
    """Return a file name for each source, different even where the sources differ in odd characters only."""
    names: dict[str, str] = {}
    for source in sorted(sources):
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", source).lstrip(".")[:100] or "_"
        taken = {name.lower() for name in names.values()}
        choices = (f"{plain}{number}.json" for number in ("", *map("_{}".format, range(2, len(names) + 3))))
        names[source] = next(choice for choice in choices if choice.lower() not in taken)
    return names


def _read_boxes(path: Path, base: Path, delimiter: str | None, encoding: str | None) -> dict[str, list[list[Any]]]:
    """Return the boxes of each image, by its path as `_spelled`."""
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    columns = ["x", "y", "width", "height"]
    for row in read_table(path, ["path", "label", *columns], delimiter=delimiter, encoding=encoding):
        boxes[_spelled(row["path"], base)].append([*parse_numbers(row, columns, "box"), row["label"]])
    return boxes
