"""JSRT nodule and non-nodule radiographs (Shiraishi et al., 2000) with SCR outlines (van Ginneken et al., 2006)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of
from afire_monai.datalists.file import DataList, StrPath
from afire_monai.datalists.public.common import RANDOM_FRACTIONS, Files, Gathered, find_files, finish, optional_file
from afire_monai.datalists.public.masks import output_folder, union_of_pictures, write_mask
from afire_monai.radiographs.decode import picture_size

LABELS = ("Normal", "Nodule")
SIDE = 2048
PIXEL = 0.175
"""Side of a pixel of the 2048 x 2048 films in mm."""
LUNGS = ("left lung", "right lung")
# name, subtlety 1 to 5, diameter in mm, age, sex, x and y of the centre; between them tabs, blanks or commas, and the
# last word of a line may run into the next name
NODULE = re.compile(
    r"(JPCLN\d{3})\.IMG[\s,]+\d[\s,]+(\d+(?:\.\d+)?)[\s,]+(\d+|\?)[\s,]+(\w+)[\s,]+(\d+)[\s,]+(\d+)", re.IGNORECASE
)
NORMAL = re.compile(r"(JPCNN\d{3})\.IMG[\s,]+(\d+|\?)[\s,]+(\w+)", re.IGNORECASE)


def datalist_from_jsrt(
    folder: StrPath,
    out: StrPath | None = None,
    masks: StrPath | None = None,
    fractions: Sequence[float] = RANDOM_FRACTIONS,
    seed: int = 0,
) -> DataList:
    """Build the list of JSRT with SCR outlines: nodule boxes, lung masks, random split, each picture a patient.

    Read are pictures named ``JPCLNnnn`` (nodule) and ``JPCNNnnn`` (none) as PNG or JPEG of any size, anywhere below the
    folder; ``CLNDAT_EN.txt`` and ``CNNDAT_EN.txt`` (age, sex, centre and diameter of the nodule: boxes are squares of
    the diameter, scaled to the picture); and SCR's ``left lung`` and ``right lung`` folders of masks. The films as
    published (``.IMG``, 2048 x 2048, 12 bit big-endian, no header) have to be converted first.

    Args:
        folder: folder that holds the pictures as PNG, CLNDAT_EN.txt, CNNDAT_EN.txt and the SCR masks.
    """
    root = Path(folder)
    target = output_folder(masks, out)
    files = Files()
    for path in _pictures(root, target):
        files.add(path.stem.upper(), path)
    nodules, people = _clinical(root)
    outlines = _outlines(root)
    gathered = Gathered(list(LABELS))
    gathered.skipped["missing_image"] = len(set(people) - set(files))
    for stem, path in ((stem, files[stem]) for stem in sorted(files)):
        nodule = stem.startswith("JPCLN")
        facts: dict[str, Any] = {**facts_of(*people.get(stem, ("", "")), view="PA")}
        if stem in nodules:
            facts["boxes"] = [_box(nodules[stem], picture_size(path))]
        if target is not None and len(outlines.get(stem, [])) == len(LUNGS):
            facts["mask"] = write_mask(union_of_pictures(outlines[stem], picture_size(path)), target / f"{stem}.png")
        gathered.add("training", path, stem, [int(not nodule), int(nodule)], **facts)
    gathered.divide(fractions, seed)
    return finish("jsrt", gathered, root, out)


def _pictures(root: Path, target: Path | None) -> list[Path]:
    found = find_files(root, (".png", ".jpg", ".jpeg", ".img"), without=target)
    named = [found[name] for name in found if re.match(r"JPC[LN]N\d{3}\.", name, re.IGNORECASE)]
    pictures = [path for path in named if path.suffix.lower() != ".img"]
    if named and not pictures:
        raise DataListError(
            f"{root}: only .IMG films are in it, which have no header. Convert them to 16-bit PNG (2048 x 2048 pixels, "
            "12 bits in big-endian 16, low values are dense: docs/data.md shows how), and give the folder of these"
        )
    return pictures


def _clinical(root: Path) -> tuple[dict[str, tuple[float, float, float]], dict[str, tuple[str, str]]]:
    """Nodules as (x, y, diameter in mm) and people as (sex, age), by picture."""
    nodules: dict[str, tuple[float, float, float]] = {}
    people: dict[str, tuple[str, str]] = {}
    for match in NODULE.finditer(_text(optional_file(root, "CLNDAT_EN.*", "*/CLNDAT_EN.*"))):
        name, diameter, age, sex, x, y = match.groups()
        nodules[name.upper()] = (float(x), float(y), float(diameter))
        people[name.upper()] = (sex, age)
    for match in NORMAL.finditer(_text(optional_file(root, "CNNDAT_EN.*", "*/CNNDAT_EN.*"))):
        people[match[1].upper()] = (match[3], match[2])
    return nodules, people


def _text(path: Path | None) -> str:
    """Content of a clinical table, "" if it is not there."""
    if path is None:
        return ""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if not (NODULE.search(text) or NORMAL.search(text)):
        raise DataListError(
            f"{path}: no line `JPCLN001.IMG 5 15 53 Male 1634 692 …` (or `JPCNN001.IMG 53 Male …`) in it. "
            "Fetch it again"
        )
    return text


def _outlines(root: Path) -> dict[str, list[Path]]:
    outlines: dict[str, list[Path]] = {}
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and path.name.lower() in LUNGS):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".gif", ".png"):
                outlines.setdefault(path.stem.upper(), []).append(path)
    return outlines


def _box(nodule: tuple[float, float, float], shape: tuple[int, int]) -> list[Any]:
    x, y, diameter = nodule
    down, across = shape[0] / SIDE, shape[1] / SIDE
    side = diameter / PIXEL
    left, top = max(x - side / 2, 0), max(y - side / 2, 0)
    right, bottom = min(x + side / 2, SIDE), min(y + side / 2, SIDE)
    return [left * across, top * down, (right - left) * across, (bottom - top) * down, "Nodule"]
