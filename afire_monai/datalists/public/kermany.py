"""Paediatric chest radiographs of Kermany, Zhang and Goldbaum (2018)."""

from __future__ import annotations

import re
from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import DataList, StrPath
from afire_monai.datalists.public.common import Gathered, find_files, finish

LABELS = ("Normal", "Pneumonia")
SECTION = {"train": "training", "val": "training", "test": "test"}
# names of the most widespread copy, then those of the original archive
PATIENT = (
    re.compile(r"person(\d+)_(bacteria|virus)_\d+"),
    re.compile(r"((?:NORMAL\d*-)?IM-\d+)-"),
    re.compile(r"((?:NORMAL|BACTERIA|VIRUS)-\d+)-\d+"),
)


def datalist_from_kermany(
    folder: StrPath, out: StrPath | None = None, validation: float = 0.1, seed: int = 0
) -> DataList:
    """Build the list of Kermany's children's radiographs: pneumonia or normal, published test images.

    The 16 pictures of ``val``, where the copy has them, join the training images, and validation images are taken from
    both by patient. The patient is read from the file name: ``person12_virus_34`` is patient ``virus 12``, as bacterial
    and viral cases are numbered separately; ``IM-0115-0001`` and ``NORMAL2-IM-0115-0001`` are different patients (this
    project's reading: the publishers do not say).

    Args:
        folder: folder that holds ``train`` and ``test`` (or ``chest_xray/train`` …), each with ``NORMAL`` and
            ``PNEUMONIA``.
        validation: share of the training images that goes to validation, by patient, stratified.
        seed: seed of that choice.
    """
    root = _root(Path(folder))
    gathered = Gathered(list(LABELS))
    for part, section in SECTION.items():
        for position, label in enumerate(LABELS):
            place = root / part / label.upper()
            if not place.is_dir():
                if part == "val":
                    continue
                raise DataListError(
                    f"{place}: no such folder; train and test, each with NORMAL and PNEUMONIA, are expected"
                )
            for _, path in sorted(find_files(place, (".jpeg", ".jpg", ".png")).items()):
                gathered.add(section, path, _patient(path), [int(position == index) for index in range(len(LABELS))])
    gathered.hold_out(validation, seed)
    return finish("kermany", gathered, root, out, official=("test",))


def _root(folder: Path) -> Path:
    for candidate in (folder, folder / "chest_xray", folder / "chest_xray" / "chest_xray"):
        if (candidate / "train").is_dir() and (candidate / "test").is_dir():
            return candidate
    raise DataListError(
        f"{folder}: no folders train and test in it, nor in chest_xray below it. Give the unpacked folder"
    )


def _patient(path: Path) -> str:
    for pattern in PATIENT:
        match = pattern.match(path.stem)
        if match:
            return f"{match[2]} {match[1]}" if match.re.groups == 2 else match[1]
    raise DataListError(
        f"{path}: the patient is not in its name; person12_virus_34, IM-0115-0001 or BACTERIA-1008087-0001 is expected"
    )
