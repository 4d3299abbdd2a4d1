"""Join labels from the hospital's own table to images, without passing on other values of either."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import different_columns, padding_hint, parse_label, split_names
from afire_monai.datalists.csv_table import Row, read_table
from afire_monai.radiographs.header import Header

logger = logging.getLogger(__name__)

Values = tuple[int | None, ...]

JOINS = {
    "accession": ("AccessionNumber", "accession_number", "accession"),
    "patient": ("PatientID", "patient_id", "patient"),
    "study": ("StudyInstanceUID", "study_instance_uid", "study_uid", "study"),
    "file": ("file", "filename", "file_name", "path", "image"),
}
"""Keys that can join labels to images, and the column names recognised for each."""
MOST_LABELS = 200
_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass
class JoinedLabels:
    """Labels of images, and the rows that could not be joined."""

    names: tuple[str, ...]  #: names of the labels
    rows: int = 0  #: lines of the table that hold labels
    by_image: dict[str, Values] = field(default_factory=dict)  #: values of each image that has any
    #: lines (numbered as in an editor) with at least one image that is kept
    matched: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)  #: lines that only belong to images that were left out
    unmatched: list[int] = field(default_factory=list)  #: lines that belong to no file
    #: lines that have the same key but different labels; none of them is used
    contradicting: list[int] = field(default_factory=list)
    #: lines whose file name fits several images, or whose other key several patients have; not used
    ambiguous: list[int] = field(default_factory=list)
    without: int = 0  #: images that have no label


@dataclass(frozen=True)
class Subject:
    """An image to find labels for: its hash ("" if it was left out), header, path, and patient ("" if not known)."""

    image: str
    header: Header
    path: str
    group: str = ""


def join_labels(
    table: LabelTable,
    subjects: Iterable[Subject],
    roots: Sequence[str] = (),
    detail: list[tuple[int, str]] | None = None,
) -> JoinedLabels:
    """Find the labels of images.

    A line may belong to several images of a patient (all of an accession), but a file name belongs to only one.

    Args:
        table: the label table.
        subjects: images that are kept, and images that were left out, so that lines of the latter can be recognised.
        roots: folders that paths in the table may start from.
        detail: list that receives the line numbers and values that were not used; they are private.
    """
    images: dict[str, list[str]] = defaultdict(list)
    owners: dict[str, set[str]] = defaultdict(set)
    known: set[str] = set()
    there: set[str] = set()
    kept = 0
    for subject in subjects:
        kept += subject.image != ""
        keys = table.keys_of(subject, roots)
        there |= keys
        for key in keys:
            if key in table.lines:
                known.add(key)
                if subject.image:
                    images[key].append(subject.image)
                    owners[key].add(subject.image if table.join == "file" else subject.group)
    joined = JoinedLabels(table.names, sum(map(len, table.lines.values())))
    for key, lines in table.lines.items():
        numbers = [number for number, _ in lines]
        if key not in known:
            where = joined.unmatched
        elif len({values for _, values in lines}) > 1:
            where = joined.contradicting
        elif key not in images:
            where = joined.left_out
        elif len(owners[key] - {""}) > 1:
            where = joined.ambiguous
        else:
            where = joined.matched
            for image in images[key]:
                joined.by_image.setdefault(image, lines[0][1])
        where += numbers
        if detail is not None and where is not joined.matched:
            detail += [(number, key) for number in numbers]
    if hint := padding_hint(table.lines.keys() - known, there):
        logger.warning("%s: labels of some lines match no image: %s", table.path, hint)
    joined.without = kept - len(joined.by_image)
    for numbers in (joined.matched, joined.left_out, joined.unmatched, joined.contradicting, joined.ambiguous):
        numbers.sort()
    return joined


class LabelTable:
    """A CSV of labels, by the key that joins it to images.

    Arguments are as for `ingest.ingest`. Raises DataListError if the file is not a table, a column is missing, a value
    is not a label, or there are too many labels for a column of findings. No cell is quoted: it could be a patient's.
    """

    def __init__(
        self,
        path: Path,
        join: str = "accession",
        join_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        labels_column: str | None = None,
        separator: str = "|",
        normal: str = "Normal",
        delimiter: str | None = None,
        encoding: str | None = None,
    ) -> None:
        if join not in JOINS:
            raise DataListError(f"join is {join!r}; one of {', '.join(JOINS)} is expected")
        if (label_columns is None) == (labels_column is None):
            raise DataListError(
                "labels are in columns of one finding each (--label-columns A,B,C) or in one column of names "
                "(--labels-column NAME): name one of the two"
            )
        self.path, self.join = path, join
        several = None if join_column else {JOINS[join][0]: JOINS[join][1:]}
        column = join_column or JOINS[join][0]
        wanted = [*(label_columns or ()), *([labels_column] if labels_column else [])]
        rows = read_table(path, [*wanted, *([join_column] if join_column else [])], several, delimiter, encoding)
        numbered = [row for row in rows if row[column]]
        if label_columns is not None:
            self.names = tuple(different_columns(label_columns))
            values = [self._one_each(row) for row in numbered]
        else:
            self.names, values = self._from_names([row[str(labels_column)] for row in numbered], separator, normal)
        self.lines: dict[str, list[tuple[int, Values]]] = defaultdict(list)
        for row, labels in zip(numbered, values, strict=True):
            self.lines[_file_key(row[column]) if join == "file" else row[column]].append((row.line, labels))
        self.lines = dict(self.lines)

    def keys_of(self, subject: Subject, roots: Sequence[str] = ()) -> set[str]:
        """Under which keys an image could be in the table."""
        header = subject.header
        if self.join != "file":
            key = {"accession": header.accession, "patient": header.patient_id, "study": header.study_uid}[self.join]
            return {key} if key else set()
        return file_keys(subject.path, roots)

    def _one_each(self, row: Row) -> Values:
        values = []
        for name in self.names:
            try:
                values.append(parse_label(row, name))
            except DataListError:
                raise DataListError(
                    f"{row.where(name)}: 1 (present), 0 (absent), -1 (uncertain) or nothing "
                    "is expected; what is there is not shown, as it could be a patient's"
                ) from None
        return tuple(values)

    def _from_names(self, cells: list[str], separator: str, normal: str) -> tuple[tuple[str, ...], list[Values]]:
        sets = [set(split_names(cell, separator)) for cell in cells]
        known = set().union(*sets)
        if len(known) > MOST_LABELS:
            raise DataListError(
                f"{self.path}: {len(known)} different names in the column of labels; at most {MOST_LABELS} are "
                "findings. Name the right column with --labels-column, and the separator with --label-separator"
            )
        names = (*([normal] if normal in known else []), *sorted(known - {normal}))
        return names, [tuple(int(name in found) if found else None for name in names) for found in sets]


def file_keys(path: str, roots: Sequence[str] = ()) -> set[str]:
    """Return the names that a table may use for a file: path, name, and path from each root; without suffix."""
    below = [os.path.relpath(path, root) for root in roots if path.startswith(root + os.sep)]
    return {_file_key(name) for name in (path, os.path.basename(path), *below)}


def _file_key(name: str) -> str:
    """Name of a file with forward slashes and without the suffix of DICOM files."""
    plain = name.replace("\\", "/").removeprefix("./")
    suffix = PurePath(plain).suffix
    return plain[: -len(suffix)] if suffix.lower() in _SUFFIXES else plain
