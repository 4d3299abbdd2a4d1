"""Shenzhen and Montgomery tuberculosis radiographs (Jaeger et al., 2014)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of
from afire_monai.datalists.file import DataList, StrPath
from afire_monai.datalists.public.common import RANDOM_FRACTIONS, Gathered, find_files, finish
from afire_monai.datalists.public.masks import output_folder, union_of_pictures, write_mask
from afire_monai.radiographs.decode import picture_size

LABELS = ("Normal", "Tuberculosis")
SEX = re.compile(r"\b(female|male|f|m)\b", re.IGNORECASE)
AGE = re.compile(r"(\d+)\s*(y|m|w|d)", re.IGNORECASE)


def datalist_from_shenzhen(
    folder: StrPath, out: StrPath | None = None, fractions: Sequence[float] = RANDOM_FRACTIONS, seed: int = 0
) -> DataList:
    """Build the list of the Shenzhen set: tuberculosis or normal, lung masks, random split, each picture a patient.

    Read are ``CXR_png/CHNCXR_nnnn_0.png`` (normal) and ``…_1.png`` (tuberculosis), ``ClinicalReadings/*.txt`` (sex and
    age), and lung masks in a folder named ``mask`` or ``masks`` as ``CHNCXR_nnnn_0_mask.png``, where they are there.

    Args:
        folder: folder that holds CXR_png, ClinicalReadings and perhaps mask.
    """
    root = Path(folder)
    folders = [path for path in sorted(root.rglob("*")) if path.is_dir() and path.name.lower() in ("mask", "masks")]
    masks = {
        name.removesuffix(".png").removesuffix("_mask"): path
        for folder in folders
        for name, path in find_files(folder, (".png",), masks=True).items()
    }

    def mask_of(path: Path) -> str | None:
        return str(masks[path.stem].absolute()) if path.stem in masks else None

    return _build("shenzhen", r"CHNCXR_(\d+)_([01])\.png", root, out, None, fractions, seed, mask_of)


def datalist_from_montgomery(
    folder: StrPath,
    out: StrPath | None = None,
    masks: StrPath | None = None,
    fractions: Sequence[float] = RANDOM_FRACTIONS,
    seed: int = 0,
) -> DataList:
    """Build the list of the Montgomery set: tuberculosis or normal, lung masks, random split, each picture a patient.

    Read are ``CXR_png/MCUCXR_nnnn_0.png`` (normal) and ``…_1.png`` (tuberculosis), ``ClinicalReadings/*.txt`` (sex and
    age) and ``ManualMask/leftMask`` and ``rightMask``.

    Args:
        folder: folder that holds CXR_png, ClinicalReadings and ManualMask.
    """
    root = Path(folder)
    target = output_folder(masks, out)
    sides = [find_files(root / "ManualMask" / side, (".png",), masks=True) for side in ("leftMask", "rightMask")
             if (root / "ManualMask" / side).is_dir()]  # fmt: skip

    def mask_of(path: Path) -> str | None:
        lungs = [side[path.name] for side in sides if path.name in side]
        if target is None or len(lungs) < 2:
            return None
        return write_mask(union_of_pictures(lungs, picture_size(path)), target / path.name)

    return _build("montgomery", r"MCUCXR_(\d+)_([01])\.png", root, out, target, fractions, seed, mask_of)


def _build(
    name: str,
    pattern: str,
    root: Path,
    out: StrPath | None,
    target: Path | None,
    fractions: Sequence[float],
    seed: int,
    mask_of: Callable[[Path], str | None],
) -> DataList:
    gathered = Gathered(list(LABELS))
    place = root / "CXR_png"
    files = find_files(place if place.is_dir() else root, (".png",), without=target)
    for match in filter(None, (re.fullmatch(pattern, name) for name in sorted(files))):
        path = files[match[0]]
        facts = _reading(root / "ClinicalReadings" / f"{path.stem}.txt")
        gathered.add("training", path, match[1], [int(match[2] == n) for n in "01"], mask=mask_of(path), **facts)
    if not gathered.sections["training"]:
        raise DataListError(f"{root}: no picture named like {pattern} in it or in CXR_png. Give the unpacked folder")
    gathered.divide(fractions, seed)
    return finish(name, gathered, root, out)


def _reading(path: Path) -> dict[str, str | float]:
    """Sex and age from a reading such as ``male 45yrs`` or ``Patient's Sex: M`` and ``Patient's Age: 045Y``."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return {}
    sex, age = SEX.search(text), AGE.search(text)
    return facts_of(sex[1] if sex else "", f"{age[1]}{age[2]}" if age else "")
