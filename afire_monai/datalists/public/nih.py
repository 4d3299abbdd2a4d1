"""NIH ChestX-ray14 (Wang et al., CVPR 2017)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of, parse_numbers
from afire_monai.datalists.csv_table import Row, one_row_each, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import Gathered, find_files, finish, first_file, optional_file, read_names
from afire_monai.radiographs.decode import picture_size

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
ORIGINAL_SIDE = 1024
"""Side of the published pictures in pixels, which boxes refer to."""


def datalist_from_nih(
    folder: StrPath,
    out: StrPath | None = None,
    validation: float = 0.1,
    seed: int = 0,
    train_list: str = "train_val_list.txt",
    test_list: str = "test_list.txt",
) -> DataList:
    """Build the list of NIH ChestX-ray14: 14 findings from reports, boxes, official test images.

    Read are ``Data_Entry_2017*.csv``, the two lists, ``BBox_List_2017.csv`` where it is there, and the pictures in
    ``images_001/images`` … or ``images``, of any size (boxes are scaled).

    Args:
        folder: folder that holds Data_Entry_2017*.csv, the two lists and the images.
        validation: share of the images of ``train_list`` that goes to validation, by patient, stratified.
        seed: seed of that choice.
        train_list: names of training and validation images, one a line.
        test_list: names of test images. The official lists share no patient and give 25,596 test images; lists of other
            names are refused if they share patients.
    """
    root = Path(folder)
    table = first_file(root, "Data_Entry_2017*.csv")
    columns = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"]
    rows = read_table(table, columns, {"Patient Gender": ["Patient Sex"]})
    lists = {"training": read_names(root, train_list), "test": read_names(root, test_list)}
    if lists["training"] & lists["test"]:
        both = len(lists["training"] & lists["test"])
        raise DataListError(f"{root}: {both} images are in both {train_list} and {test_list}; each must be in one")
    files = find_files(root, (".png", ".jpg", ".jpeg"))
    boxes = _boxes(optional_file(root, "BBox_List_2017*.csv"))
    gathered = Gathered([DEFAULT_NORMAL, *FINDINGS])
    for name, row in one_row_each(rows, "Image Index").items():
        section = next((s for s, names in lists.items() if name in names), None)
        if section is None or name not in files:
            gathered.skipped["missing_image" if section else "in_no_list"] += 1
            continue
        label, facts = _label(row), facts_of(row["Patient Gender"], row["Patient Age"], row["View Position"])
        found = _scaled(boxes[name], files[name]) if name in boxes else None
        gathered.add(section, files[name], row["Patient ID"], label, **facts, boxes=found)
    gathered.hold_out(validation, seed)
    standard = (train_list, test_list) == ("train_val_list.txt", "test_list.txt")
    gathered.facts["split"] = "official test images" if standard else f"test images of {Path(test_list).name}"
    return finish("nih", gathered, root, out, official=("test",) if standard else ())


def _label(row: Row) -> list[int]:
    cell = row["Finding Labels"]
    names = {"Pleural_Thickening" if name == "Pleural Thickening" else name for name in cell.split("|")}
    unknown = sorted(names - {"No Finding", *FINDINGS})
    if unknown:
        raise DataListError(
            f"{row.where('Finding Labels')}: {', '.join(map(repr, unknown))}; No Finding or names out of "
            f"{', '.join(FINDINGS)}, with | between them, are expected"
        )
    return [int("No Finding" in names), *(int(finding in names) for finding in FINDINGS)]


def _boxes(path: Path | None) -> dict[str, list[list[Any]]]:
    """Boxes by picture, in pixels of the published size; the header names one column for the four numbers."""
    boxes: dict[str, list[list[Any]]] = defaultdict(list)
    if path is None:
        return boxes
    for row in read_table(path, ["Image Index", "Finding Label"]):
        columns = list(row)[2:6]
        if len(columns) < 4:
            raise DataListError(f"{path}: {len(row)} columns; image, finding, x, y, width and height are expected")
        numbers = parse_numbers(row, columns, "x, y, width, height")
        name = "Infiltration" if row["Finding Label"] == "Infiltrate" else row["Finding Label"]
        boxes[row["Image Index"]].append([*numbers, name])
    return boxes


def _scaled(boxes: list[list[Any]], image: Path) -> list[list[Any]]:
    down, across = (length / ORIGINAL_SIDE for length in picture_size(image))
    return [[x * across, y * down, width * across, height * down, name] for x, y, width, height, name in boxes]
