"""Shared steps of all adapters: find images, hold out validation patients, and check before writing a list."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.datalists.cells import facts_of
from afire_monai.datalists.file import DEFAULT_NORMAL, SECTIONS, DataList, StrPath, save_datalist
from afire_monai.datalists.patients import patient_of, shared_patients
from afire_monai.datalists.splits import split_by_group
from afire_monai.radiographs.header import read_header

Item = dict[str, Any]
Unmentioned = Literal["negative", "missing"]
RANDOM_FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of training, validation and test for data sets without official test images."""
OUTLINES = ("heart", "left lung", "right lung", "left clavicle", "right clavicle")
"""Folders in which SCR has its outlines as pictures that are named as the radiographs are."""


@dataclass
class Gathered:
    """Items that an adapter has found so far, and counts."""

    labels: list[str]  #: names of the labels
    #: items by section; `hold_out` and `divide` divide only the items in "training"
    sections: dict[str, list[Item]] = field(default_factory=lambda: {section: [] for section in SECTIONS})
    #: number of images left out, by reason
    skipped: Counter[str] = field(default_factory=lambda: Counter(missing_image=0))
    facts: dict[str, Any] = field(default_factory=dict)  #: further values for ``meta``

    def add(self, section: str, image: StrPath, group: str, label: Sequence[int | None], **more: Any) -> None:
        """Add an item to a section; further values that are None or empty are left out."""
        item = {"image": str(Path(image).absolute()), "group": group, "label": label, **more}
        self.sections[section].append({name: value for name, value in item.items() if value not in (None, [])})

    def hold_out(self, fraction: float, seed: int) -> None:
        """Move a share of the training patients, stratified by their labels, to validation.

        Raises DataListError for a share that is not from 0 to below 1.
        """
        if not 0 <= fraction < 1:
            raise DataListError(
                f"validation is {fraction}; a share from 0 to below 1 of the training images is expected"
            )
        self._deal((1 - fraction, fraction), ("training", "validation"), seed)
        self.facts |= {"split": "official test images", "validation_fraction": fraction, "seed": seed}

    def divide(self, fractions: Sequence[float], seed: int) -> None:
        """Divide all items by patient into training, validation and test; DataListError: wrong fractions."""
        if len(fractions) != len(SECTIONS):
            raise DataListError(f"fractions are {tuple(fractions)}; three, for {', '.join(SECTIONS)}, are expected")
        self._deal(fractions, SECTIONS, seed)
        self.facts |= {"split": "random by patient", "fractions": [float(f) for f in fractions], "seed": seed}

    def _deal(self, fractions: Sequence[float], sections: Sequence[str], seed: int) -> None:
        items = self.sections["training"]
        strata = [str(item["label"]) for item in items]
        split = split_by_group([patient_of(item) for item in items], strata, fractions, seed)
        for index, section in enumerate(sections):
            self.sections[section] = [item for item, part in zip(items, split, strict=True) if part == index]


def finish(
    name: str, gathered: Gathered, folder: StrPath, out: StrPath | None, official: Sequence[str] = ()
) -> DataList:
    """Check the gathered items, assemble the list and write it.

    Args:
        name: name of the list.
        gathered: items by section, labels, and counts of omitted images.
        folder: folder that was searched for images, for messages.
        out: JSON file to write; None to only return.
        official: sections whose images the publishers chose. A patient who is in one of these and elsewhere is reported
            as ``meta.patients_in_two_sections``; between other sections it is an error.

    Raises:
        DataListError: if no image was found, or a patient is in two sections that are not official.
    """
    sections = {section: gathered.sections[section] for section in SECTIONS if gathered.sections[section]}
    if not sections:
        missing = gathered.skipped["missing_image"]
        seen = f"none of the {missing} images that the tables name was" if missing else f"no image of {name} was"
        raise DataListError(
            f"{folder}: {seen} found. Unpack the images into this folder as published, or give their folder"
        )
    if "training" not in sections:
        others = ", ".join(f"{len(items)} of {section}" for section, items in sections.items())
        raise DataListError(
            f"{folder}: no training image was found, only {others}. "
            "Unpack the training images into this folder as published"
        )
    shared = shared_patients(sections)
    for (one, other), patients in shared.items():
        if one not in official and other not in official:
            raise DataListError(
                f"{name}: {len(patients)} patients are in both {one} and {other}. "
                "Use the lists as published, or give others that keep patients on one side"
            )
    both = len(set().union(*shared.values()))
    meta = {"source": name, **gathered.facts, "skipped": dict(gathered.skipped), "patients_in_two_sections": both}
    datalist: DataList = {"name": name, "labels": gathered.labels, "meta": {**meta, "normal_label": DEFAULT_NORMAL}}
    datalist |= sections
    if out is not None:
        save_datalist(datalist, out)
    return datalist


def first_file(folder: Path, *patterns: str) -> Path:
    """Return a file in a folder that fits a pattern; the first pattern that any file fits decides.

    Raises DataListError if there is none.
    """
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found[-1]
    if not folder.is_dir():
        raise DataListError(f"{folder}: no such folder. Give the folder that the data set was unpacked into")
    raise DataListError(
        f"{folder}: {' or '.join(patterns)} is not in it. Give the folder that the data set was unpacked into, "
        "with the tables that come with it"
    )


def optional_file(folder: Path, *patterns: str) -> Path | None:
    """As `first_file`, or None."""
    try:
        return first_file(folder, *patterns)
    except DataListError:
        return None


class Files(Mapping[str, Path]):
    """Files by name; a name that two different files have cannot be asked for."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}
        self._clashes: dict[str, Path] = {}

    def add(self, name: str, path: Path) -> None:
        """Add a file; links to a file that is there already are the same file."""
        if os.path.realpath(path) != os.path.realpath(self._paths.setdefault(name, path)):
            self._clashes[name] = path

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __getitem__(self, name: str) -> Path:
        path = self._paths[name]
        if name in self._clashes:
            raise DataListError(f"{path} and {self._clashes[name]} could both be {name!r}. Keep one, or move one away")
        return path


def find_files(
    folder: Path,
    suffixes: Iterable[str],
    published: Sequence[str] = (),
    without: Path | None = None,
    masks: bool = False,
) -> Files:
    """Return the files below a folder by name. Links are followed.

    Args:
        folder: folder to search with its sub-folders, but without hidden ones and, unless ``masks``, without those
            with "mask" in their name, and `OUTLINES`.
        suffixes: in lower case, with dot.
        published: folders, in it or one level below, in which the images were published; if any of them exists, only
            these are searched.
        without: a folder that is this command's own output.
        masks: search folders of masks, too.

    Raises:
        DataListError: if there is no such folder.
    """
    if not folder.is_dir():
        raise DataListError(f"{folder}: no such folder. Give the folder that the data set was unpacked into")
    places = [p for name in published for p in (folder / name, *sorted(folder.glob(f"*/{name}"))) if p.is_dir()]
    endings = tuple(suffixes)
    found = Files()
    seen: set[str] = set()
    own = None if without is None else os.path.realpath(without)
    for where, folders, names in (entry for place in places or [folder] for entry in os.walk(place, followlinks=True)):
        # a link to a folder above would lead around in a circle
        real = os.path.realpath(where)
        if real in seen or real == own:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(
            n for n in folders
            if n[0] != "." and n != "__MACOSX" and (masks or ("mask" not in n.lower() and n.lower() not in OUTLINES))
        )  # fmt: skip
        for name in sorted(names):
            if name.lower().endswith(endings) and not name.startswith("."):
                found.add(name, Path(where, name))
    return found


def by_stem(files: Files) -> Files:
    """Return the same by name without suffix."""
    stems = Files()
    for name in files:
        stems.add(files[name].stem, files[name])
    return stems


def check_unmentioned(value: str) -> int | None:
    """Return the meaning of a blank label cell; DataListError: neither "negative" nor "missing"."""
    if value not in ("negative", "missing"):
        raise DataListError(f"unmentioned is {value!r}; negative (a blank cell is 0) or missing (null) is expected")
    return 0 if value == "negative" else None


def read_names(folder: Path, name: str) -> set[str]:
    """Names listed in a text file, one a line; DataListError: the file is missing or empty."""
    path = Path(name) if Path(name).is_absolute() else optional_file(folder, name) or folder / name
    try:
        names = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataListError(
            f"{path}: not readable ({getattr(error, 'strerror', None) or error}); a list of file names, one a line, is "
            "expected. It comes with the data set"
        ) from error
    if not names:
        raise DataListError(f"{path}: it is empty; a list of file names, one a line, is expected. Fetch it again")
    return names


def header_facts(path: Path) -> dict[str, Any]:
    """Sex, age and view from a DICOM header; a file that is none gives nothing.

    An age of 0 says that none is known: no data set that is read so has newborns.
    """
    try:
        header = read_header(path)
    except RadiographError:
        return {}
    return facts_of(header.sex, str(header.age or ""), header.view)
