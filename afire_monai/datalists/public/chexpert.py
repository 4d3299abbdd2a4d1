"""CheXpert (Irvin et al., AAAI 2019)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.cells import facts_of, parse_label
from afire_monai.datalists.csv_table import Row, one_row_each, read_table
from afire_monai.datalists.file import DEFAULT_NORMAL, DataList, StrPath
from afire_monai.datalists.public.common import Gathered, Unmentioned, check_unmentioned, finish, first_file

NO_FINDING = "No Finding"
FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
LABEL_SETS: Mapping[str, tuple[str, ...]] = {
    "chexpert14": (NO_FINDING, *FINDINGS),
    "chexpert5": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}
"""All 14 labels, or the five that CheXpert's competition and most papers judge."""


def datalist_from_chexpert(
    folder: StrPath,
    out: StrPath | None = None,
    labels: str = "chexpert14",
    unmentioned: Unmentioned = "negative",
    lateral: bool = False,
    validation: float = 0.02,
    seed: int = 0,
) -> DataList:
    """Build the list of CheXpert (full or small): 14 or 5 findings with uncertain ones, valid.csv as test images.

    ``valid.csv`` (200 studies labelled by three radiologists) is the test section; validation images are taken from
    ``train.csv`` by patient. Uncertain (-1) stays -1. "No Finding" becomes the label "Normal".

    Args:
        folder: folder that holds ``train.csv``, ``valid.csv`` and the folders ``train`` and ``valid``; or the folders
            of the full set's batches, or one level above.
        labels: ``chexpert14`` or ``chexpert5``.
        unmentioned: a blank cell is ``negative`` (0, as most work does) or ``missing`` (null).
        lateral: take lateral views too.
        validation: share of the training images that goes to validation, by patient, stratified.
        seed: seed of that choice.
    """
    root = Path(folder)
    roots = _roots(root)
    blank, wanted = check_unmentioned(unmentioned), label_set(labels)
    gathered = Gathered([DEFAULT_NORMAL if name == NO_FINDING else name for name in wanted])
    for table, section in (("train.csv", "training"), ("valid.csv", "test")):
        path = _table(roots, table)
        rows = read_table(path, ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *wanted])
        for row in one_row_each(rows, "Path").values():
            if not lateral and row["Frontal/Lateral"] != "Frontal":
                gathered.skipped["lateral_view"] += 1
                continue
            image = _image(roots, row["Path"])
            if image is None:
                gathered.skipped["missing_image"] += 1
                continue
            label = [parse_label(row, name, blank) for name in wanted]
            gathered.add(section, image, _patient(row), label, **_facts(row))
    gathered.hold_out(validation, seed)
    gathered.facts |= {"unmentioned": unmentioned}
    return finish("chexpert", gathered, root, out, official=("test",))


def label_set(name: str) -> tuple[str, ...]:
    """Names of the labels in a set; DataListError: no such set."""
    if name not in LABEL_SETS:
        raise DataListError(f"labels are {name!r}; one of {', '.join(LABEL_SETS)} is expected")
    return LABEL_SETS[name]


def _roots(folder: Path) -> list[Path]:
    """Return the folders that paths of the tables may start in: the archive's, and those of the full set's batches.

    The full set unpacks into ``CheXpert-v1.0 batch 1 (validate & csv)``, ``… batch 2 (train 1)`` and so on. The folder
    may be one of these, the one that holds them, or the one above.
    """
    levels = [folder, *sorted(path for path in folder.glob("*") if path.name.lower().startswith("chexpert"))]
    if " batch " in folder.name:
        levels += sorted(folder.parent.glob("CheXpert* batch *"))
    return list(dict.fromkeys(p for level in levels for p in (level, *sorted(level.glob("CheXpert* batch *")))))


def _table(roots: list[Path], name: str) -> Path:
    found = [path for root in roots for path in (root / name, root / f"{name}.gz") if path.is_file()]
    return found[0] if found else first_file(roots[0], name, f"{name}.gz")


def _image(roots: list[Path], published: str) -> Path | None:
    """Find an image; paths in the tables start with the name of the archive, which batches and renamed copies lack."""
    first, _, rest = published.partition("/")
    below = rest if first.lower().startswith("chexpert") else published
    for place, root in enumerate(roots):
        for path in (root / below, root / below.partition("/")[2]):
            if path.is_file():
                roots.insert(0, roots.pop(place))  # the next image most likely lies there, too
                return path
    return None


def _patient(row: Row) -> str:
    match = re.search(r"patient\d+", row["Path"])
    if match is None:
        raise DataListError(f"{row.where('Path')}: {row['Path']!r}; …/patientNNNNN/… is expected")
    return match[0]


def _facts(row: Row) -> dict[str, str | float]:
    # the tables give age 0 if it is not known
    age = row["Age"] if row["Age"] not in ("0", "0.0") else ""
    return facts_of(row["Sex"], age, row["AP/PA"] or row["Frontal/Lateral"])
