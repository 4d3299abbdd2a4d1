"""VinDr-CXR (Nguyen et al., Scientific Data 2022)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import parse_label, parse_numbers
from afire_monai.datalists.csv_table import Row, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import (
    Gathered,
    by_stem,
    find_files,
    finish,
    first_file,
    header_facts,
    optional_file,
)

NO_FINDING = "No finding"
CORNERS = ["x_min", "y_min", "x_max", "y_max"]
# the two tables spell it differently
SPELLING = {"Other disease": "Other diseases"}


def datalist_from_vindr(
    folder: StrPath, out: StrPath | None = None, validation: float = 0.1, seed: int = 0, read_headers: bool = False
) -> DataList:
    """Build the list of VinDr-CXR: 28 findings (majority of three readers), boxes, published test images.

    Training images were read by three radiologists each: a label is present where most of them say so, and boxes of all
    of them are kept for the labels that are present. Test labels are the published consensus. "No finding" becomes
    "Normal". The data set tells no patients, so each image counts as one.

    Args:
        folder: folder that holds ``annotations`` (or its tables), ``train`` and ``test`` (``.dicom``, ``.dcm`` or
            pictures of the original size).
        validation: share of the training images that goes to validation, stratified.
        seed: seed of that choice.
    """
    root = Path(folder)
    tables = root / "annotations" if (root / "annotations").is_dir() else root
    votes = {part: _votes(first_file(tables, f"image_labels_{part}.csv")) for part in ("train", "test")}
    names = list(votes["train"][0])
    if set(names) != set(votes["test"][0]):
        odd = sorted(set(names) ^ set(votes["test"][0]))
        raise DataListError(f"{root}: the labels of its two tables differ in {', '.join(odd)}; fetch them again")
    gathered = Gathered([DEFAULT_NORMAL if name == NO_FINDING else name for name in names])
    for part, section in (("train", "training"), ("test", "test")):
        files = by_stem(find_files(root / part, (".dicom", ".dcm", ".png", ".jpg")))
        boxes = _boxes(optional_file(root / "annotations", f"annotations_{part}.csv"))
        columns = [votes[part][0].index(name) for name in names]
        for image, readings in votes[part][1].items():
            if image not in files:
                gathered.skipped["missing_image"] += 1
                continue
            share = np.mean(readings, axis=0)[columns]
            label = [int(value > 0.5) for value in share]
            present = {name for name, value in zip(names, label, strict=True) if value}
            kept = [box for box in boxes[image] if box[4] in present]
            facts = header_facts(files[image]) if read_headers else {}
            gathered.add(section, files[image], image, label, boxes=kept, **facts)
    gathered.hold_out(validation, seed)
    return finish("vindr-cxr", gathered, root, out, official=("test",))


def _votes(path: Path) -> tuple[list[str], dict[str, list[list[int]]]]:
    """Label names, and for each image the values that each reader gave."""
    rows = read_table(path, ["image_id", NO_FINDING])
    columns = [name for name in (rows[0] if rows else {}) if name not in ("image_id", "rad_id", "")]
    votes: dict[str, list[list[int]]] = defaultdict(list)
    for row in rows:
        votes[row["image_id"]].append([_vote(row, name) for name in columns])
    if not votes:
        raise DataListError(f"{path}: it has no rows; one for each image and reader is expected. Fetch it again")
    return [SPELLING.get(name, name) for name in columns], votes


def _vote(row: Row, name: str) -> int:
    value = parse_label(row, name, blank=0)
    if value not in (0, 1):
        raise DataListError(f"{row.where(name)}: {value}; 1 or 0 is expected")
    return value


def _boxes(path: Path | None) -> dict[str, list[list[Any]]]:
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    rows = [] if path is None else read_table(path, ["image_id", "class_name", *CORNERS])
    for row in rows:
        if row["class_name"] == NO_FINDING or not row["x_min"]:
            continue
        left, top, right, bottom = parse_numbers(row, CORNERS, "box")
        if right > left and bottom > top:
            name = SPELLING.get(row["class_name"], row["class_name"])
            boxes[row["image_id"]].append([left, top, right - left, bottom - top, name])
    return boxes
