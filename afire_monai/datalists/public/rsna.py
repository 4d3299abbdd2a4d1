"""RSNA pneumonia detection (2018 challenge; pictures from NIH ChestX-ray14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import parse_numbers
from afire_monai.datalists.csv_table import one_row_each, read_table
from afire_monai.datalists.file import DataList, StrPath
from afire_monai.datalists.public.common import (
    RANDOM_FRACTIONS,
    Gathered,
    by_stem,
    find_files,
    finish,
    first_file,
    header_facts,
)

CLASSES = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")
BOX_COLUMNS = ["x", "y", "width", "height"]


def datalist_from_rsna(
    folder: StrPath,
    out: StrPath | None = None,
    fractions: Sequence[float] = RANDOM_FRACTIONS,
    seed: int = 0,
    read_headers: bool = False,
) -> DataList:
    """Build the list of RSNA pneumonia: three classes, boxes of opacity, random split.

    Read are ``stage_2_train_labels.csv``, ``stage_2_detailed_class_info.csv`` and ``stage_2_train_images/*.dcm`` (or
    pictures of the original size). The challenge's test labels were not published, so training images are divided at
    random; its ``patientId`` is one for each image, so patients with several images cannot be recognised.

    Args:
        folder: folder that holds stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images.
    """
    root = Path(folder)
    boxes = _boxes(first_file(root, "stage_2_train_labels.csv"))
    table = first_file(root, "stage_2_detailed_class_info.csv")
    classes: dict[str, str] = {}
    for image, row in one_row_each(read_table(table, ["patientId", "class"]), "patientId").items():
        if row["class"] not in CLASSES:
            raise DataListError(f"{row.where('class')}: {row['class']!r}; one of {', '.join(CLASSES)} is expected")
        classes[image] = row["class"]
    files = by_stem(find_files(root, (".dcm", ".png", ".jpg"), ("stage_2_train_images",)))
    gathered = Gathered(list(CLASSES))
    for image, name in classes.items():
        if image not in files:
            gathered.skipped["missing_image"] += 1
            continue
        label, facts = [int(name == known) for known in CLASSES], header_facts(files[image]) if read_headers else {}
        gathered.add("training", files[image], image, label, boxes=boxes.get(image), **facts)
    gathered.divide(fractions, seed)
    return finish("rsna-pneumonia", gathered, root, out)


def _boxes(path: Path) -> dict[str, list[list[Any]]]:
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    for row in read_table(path, ["patientId", *BOX_COLUMNS, "Target"]):
        if row["Target"] not in ("0", "1"):
            raise DataListError(f"{row.where('Target')}: {row['Target']!r}; 0 or 1 is expected")
        if row["Target"] == "1":
            numbers = parse_numbers(row, BOX_COLUMNS, "box")
            boxes[row["patientId"]].append([*numbers, "Lung Opacity"])
    return boxes
