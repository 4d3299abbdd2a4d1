"""A data set of chest phantoms on disk, for trials of everything that reads pictures and data lists."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import whole_file, write_text
from afire_monai.phantom.chest import PHANTOM_LABELS, ChestPhantom, Mask, PhantomSample


def write_phantom_dataset(folder: Path, normal: int = 200, abnormal: int = 40, size: int = 160, seed: int = 0) -> Path:
    """Write a data set of phantoms: 8-bit grey PNG pictures and masks and the data list that names them.

    Seven in ten normal pictures are for training, the others are shared between validation and test. Of abnormal
    pictures half are for training (of a classifier; pre-training takes normal ones alone), a quarter each for the
    others. Each picture is a patient of its own. The data list is written last, so it never names a missing file.

    Args:
        folder: made if needed; gets images/, masks/ and datalist.json.
        normal: number of normal pictures, at least 10.
        abnormal: number of abnormal pictures, the findings taking turns.
        size: side of the pictures in pixels.
        seed: decides all of it.

    Returns:
        Path of the data list. Its items carry `image`, `label` (one 0 or 1 per label), `group` and, if abnormal,
        `mask` (255 where the finding is) and `boxes` ([x, y, width, height, name]).

    Raises:
        AfireError: the numbers are out of range.
        DataListError: the folder holds the data list of another data set.
    """
    if normal < 10 or abnormal < 0 or seed < 0:
        raise AfireError(
            f"normal={normal}, abnormal={abnormal}, seed={seed}: give at least 10 normal pictures and nothing negative."
        )
    folder = Path(folder)
    datalist = folder / "datalist.json"
    _give_way(datalist)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    phantom = ChestPhantom(size)
    # a step larger than any number of pictures keeps the patients of two data sets apart
    first = seed * 1_000_000
    splits: dict[str, list[dict[str, object]]] = {"training": [], "validation": [], "test": []}
    order = [_split_of_normal(i, normal) for i in range(normal)]
    plan: list[tuple[str, str | None]] = [(split, None) for split in order]
    plan += [
        (("validation", "test", "training", "training")[i // 4 % 4], phantom.findings[i % 4]) for i in range(abnormal)
    ]
    for number, (split, finding) in enumerate(plan):
        splits[split].append(_write_item(folder, f"p{number + 1:04d}", phantom(first + number, finding)))
    content = {"name": "phantom", "labels": list(PHANTOM_LABELS), **splits}
    write_text(datalist, json.dumps(content, indent=1) + "\n")
    return datalist


def _split_of_normal(index: int, normal: int) -> str:
    share = index / normal
    return "training" if share < 0.7 else "validation" if share < 0.85 else "test"


def _give_way(datalist: Path) -> None:
    """Remove an earlier phantom's data list: it does not fit while its pictures are rewritten."""
    if not datalist.exists():
        return
    try:
        name = json.loads(datalist.read_text(encoding="utf-8")).get("name")
    except (ValueError, AttributeError):
        name = None
    if name != "phantom":
        raise DataListError(
            f"{datalist}: belongs to another data set (name {name!r}, not 'phantom'); choose another folder."
        )
    datalist.unlink()


def _write_item(folder: Path, group: str, sample: PhantomSample) -> dict[str, object]:
    item: dict[str, object] = {
        "image": f"images/{group}.png",
        "label": [sample.label[name] for name in PHANTOM_LABELS],
        "group": group,
    }
    _write_png(folder / f"images/{group}.png", np.round(sample.image[0] * 255).astype(np.uint8))
    if any(sample.label.values()):
        _write_png(folder / f"masks/{group}.png", sample.mask[0] * np.uint8(255))
        item |= {"mask": f"masks/{group}.png", "boxes": [list(box) for box in sample.boxes]}
    return item


def _write_png(path: Path, pixels: Mask) -> None:
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")
