"""SIIM-ACR pneumothorax segmentation (2019 challenge; pictures from NIH ChestX-ray14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.csv_table import read_table
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
from afire_monai.datalists.public.masks import output_folder, write_mask
from afire_monai.datalists.public.rle import EMPTY, union_of_runs

SIDE = 1024
PUBLISHED = ("dicom-images-train", "stage_2_images", "png_images")
"""Folders of the images: of the challenge's first and second stage, and of the PNG copy on Kaggle."""


def datalist_from_siim(
    folder: StrPath,
    out: StrPath | None = None,
    masks: StrPath | None = None,
    fractions: Sequence[float] = RANDOM_FRACTIONS,
    seed: int = 0,
    read_headers: bool = False,
) -> DataList:
    """Build the list of SIIM-ACR pneumothorax: masks from run lengths, written as PNG, random split.

    Read are ``train-rle.csv`` (or ``stage_2_train.csv``; several rows a picture are joined) and the DICOM or PNG
    files of 1024 x 1024. The challenge's test masks were never published with its files, so training images are divided
    at random. A picture without pneumothorax gets label 0 and no mask file; it may well show other disease.

    Args:
        folder: that holds train-rle.csv and the DICOM files.
        out: JSON file to write.
        masks: folder to write masks into; ``<list>_masks`` beside ``out`` unless given.
        fractions: shares of training, validation and test.
        seed: of the split.
        read_headers: take sex, age and view from the DICOM headers (reads every file once).

    Raises:
        DataListError: a file or column is missing, run lengths that cannot be, no image.
    """
    root = Path(folder)
    target = output_folder(masks, out)
    table = first_file(root, "train-rle.csv", "stage_2_train.csv", "*/train-rle.csv", "*/stage_2_train.csv")
    runs: dict[str, list[str]] = defaultdict(list)
    for row in read_table(table, ["ImageId", "EncodedPixels"]):
        runs[row["ImageId"]].append(row["EncodedPixels"])
    files = by_stem(find_files(root, (".dcm", ".png"), PUBLISHED, target))
    gathered = Gathered(["Pneumothorax"])
    for image, texts in runs.items():
        if image not in files:
            gathered.skipped["missing_image"] += 1
            continue
        positive = [text for text in texts if text != EMPTY]
        if positive and len(positive) < len(texts):
            raise DataListError(f"{table}: {image} has both a mask and -1; one or the other is expected")
        item = {"image": str(files[image].absolute()), "group": image, "label": [int(bool(positive))]}
        if positive:
            mask = union_of_runs(positive, SIDE, SIDE, f"{table}: {image}")
            if target is not None:
                item["mask"] = write_mask(mask, target / f"{image}.png")
        gathered.sections["training"].append(item | (header_facts(files[image]) if read_headers else {}))
    gathered.divide(fractions, seed)
    return finish("siim-acr", gathered, root, out)
