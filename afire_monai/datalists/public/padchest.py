"""PadChest (Bustos et al., Medical Image Analysis 2020)."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of, is_not_known
from afire_monai.datalists.csv_table import Row, one_row_each, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import RANDOM_FRACTIONS, Gathered, finish, first_file
from afire_monai.radiographs.decode import checked_options

FRONTAL = ("PA", "AP", "AP_horizontal")
NO_FINDINGS = ("unchanged", "suboptimal study", "")
"""Entries of a report's labels that name no finding."""
COLUMNS = ["ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
           "MethodLabel", "Labels"]  # fmt: skip


def datalist_from_padchest(
    folder: StrPath,
    out: StrPath | None = None,
    at_least: int = 50,
    physicians_only: bool = False,
    views: tuple[str, ...] = FRONTAL,
    fractions: Sequence[float] = RANDOM_FRACTIONS,
    seed: int = 0,
    reader: Mapping[str, Any] | None = None,
) -> DataList:
    """Build the list of PadChest: findings that are frequent enough, random split by patient.

    Read are ``PADCHEST_chest_x_ray_images_labels_160K*.csv`` (or ``.csv.gz``) and the PNG files of its archives,
    unpacked into the folders ``0`` … ``54`` that the table names, or all into one. "normal" becomes the label "Normal".
    Images whose labels are missing or say "exclude" are left out.

    Args:
        folder: folder that holds the table and the unpacked images.
        at_least: a finding becomes a label if at least so many of the found images have it.
        physicians_only: leave out labels that a network read from the reports.
        views: values of ``Projection`` to take.
        reader: how the images are to be read (see `reader_options`), such as ``{"png16_max": 4095}``; kept in
            ``meta.reader``.
    """
    root = Path(folder)
    table = first_file(root, "PADCHEST*160K*.csv", "PADCHEST*160K*.csv.gz", "*/PADCHEST*160K*.csv*")
    places = _places(root)
    gathered = Gathered([])
    found: list[tuple[dict[str, Any], set[str]]] = []
    for row in one_row_each(read_table(table, COLUMNS, only=True), "ImageID").values():
        findings = _findings(row)
        reason = _left_out(row, findings, physicians_only, views)
        image = None if reason else _image(places, row)
        if image is None:
            gathered.skipped[reason or "missing_image"] += 1
        else:
            found.append(({"image": str(image.absolute()), "group": row["PatientID"]} | _facts(row), findings))
    counts = Counter(name for _, findings in found for name in findings - {"normal"})
    wanted = ["normal", *sorted(name for name, count in counts.items() if count >= at_least)]
    gathered.labels = [DEFAULT_NORMAL, *wanted[1:]]
    for item, findings in found:
        # a rare finding has no label of its own, but its image is not normal
        normal = findings == {"normal"}
        item["label"] = [int(normal), *(int(name in findings) for name in wanted[1:])]
        gathered.sections["training"].append(item)
    gathered.divide(fractions, seed)
    if reader:
        gathered.facts["reader"] = checked_options(reader)
    return finish("padchest", gathered, root, out)


def _left_out(row: Row, findings: set[str], physicians_only: bool, views: tuple[str, ...]) -> str:
    """Return why a row is not wanted; "" if it is."""
    if row["Projection"] not in views:
        return "other_view"
    if physicians_only and row["MethodLabel"] != "Physician":
        return "not_read_by_physician"
    if "exclude" in findings:
        return "excluded"
    return "" if findings else "no_report_label"


def _findings(row: Row) -> set[str]:
    """Return the labels of a report, written like ``['pleural effusion', 'cardiomegaly ']``."""
    text = row["Labels"]
    if not text or is_not_known(text):
        return set()
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataListError(f"{row.where('Labels')}: a list such as ['normal'] is expected. Fetch the table again")
    return {name.strip().lower() for name in names} - set(NO_FINDINGS)


def _places(root: Path) -> list[Path]:
    """Return the folders that the archives may have been unpacked into: this one, those in it and its images folder."""
    inside = [path for path in sorted(root.glob("*")) if path.is_dir() and path.name.lower().startswith(("image", "png",
              "bimcv", "padchest"))]  # fmt: skip
    return [root, *inside]


def _image(places: list[Path], row: Row) -> Path | None:
    """Find an image in the folder that the table names, or without it."""
    directory = row["ImageDir"].removesuffix(".0")
    choices = [path for place in places for path in (place / directory / row["ImageID"], place / row["ImageID"])]
    found = list({os.path.realpath(path): path for path in choices if path.is_file()}.values())
    if len(found) > 1:
        raise DataListError(f"{found[0]} and {found[1]} could both be {row['ImageID']!r}. Keep one, or move one away")
    return found[0] if found else None


def _facts(row: Row) -> dict[str, str | float]:
    born, studied = row["PatientBirth"].removesuffix(".0"), row["StudyDate_DICOM"][:4]
    age = str(int(studied) - int(born)) if born.isdecimal() and studied.isdecimal() else ""
    return facts_of(row["PatientSex_DICOM"], age, row["Projection"])
