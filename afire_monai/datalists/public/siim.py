"""SIIM-ACR pneumothorax segmentation (2019 challenge; pictures from NIH ChestX-ray14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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

EMPTY = "-1"
"""Run lengths of an empty mask."""

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
        folder: folder that holds train-rle.csv and the DICOM files.
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
        drawn = [decode_relative_rle(text, SIDE, SIDE, f"{table}: {image}") for text in positive]
        facts = header_facts(files[image]) if read_headers else {}
        mask = write_mask(np.logical_or.reduce(drawn), target / f"{image}.png") if drawn and target else None
        gathered.add("training", files[image], image, [int(bool(drawn))], mask=mask, **facts)
    gathered.divide(fractions, seed)
    return finish("siim-acr", gathered, root, out)


def decode_relative_rle(text: str, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """Decode pairs "gap length gap length …", where a gap counts pixels since the end of the run before.

    Pixels are counted from 0, down the first column, then down the second. (Other challenges give starts from the
    beginning of the picture, counted from 1.)

    Args:
        text: the pairs; "-1" for an empty mask.
        height: rows.
        width: columns.
        where: origin of the pairs, for messages.

    Returns:
        (H, W) bool.
    """
    mask = np.zeros(height * width, dtype=bool)
    if text.strip() == EMPTY:
        return mask.reshape(height, width)
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(0, dtype=np.int64)
    if len(numbers) == 0 or len(numbers) % 2 or (numbers < 0).any():
        raise DataListError(f"{where}: {text[:40]!r}; pairs of gap and length, or -1, are expected")
    ends = np.cumsum(numbers[0::2] + numbers[1::2])
    if ends[-1] > mask.size:
        raise DataListError(
            f"{where}: the runs end at pixel {ends[-1]} of {mask.size}; gaps counted from the run before are expected"
        )
    for end, length in zip(ends, numbers[1::2], strict=True):
        mask[end - length : end] = True
    return mask.reshape(width, height).T
