"""``afire datalist``: build data lists, and check them without reading the images."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from afire_monai.cli.fronts import Command, front


@front("afire_monai.datalists.from_csv:datalist_from_csv", "path")
def from_csv(work: Callable[..., Any], *, by_source: bool = False, **options: Any) -> int:
    """Build a data list, or one for each source, from a CSV manifest; patients are never divided between splits.

    Example: afire datalist from-csv manifest.csv --out lists --by-source

    Example: afire datalist from-csv manifest.csv --out mine.json --image-column file --group-column patient

    Example: afire datalist from-csv mine.csv --out mine.json --label-columns Atelectasis,Edema --keep sex=gender,age
    """
    from afire_monai.datalists.normal import normal_in_words

    result = work(by_source=by_source, **options)
    lists = list(result.values()) if by_source else [result]
    for datalist in lists:
        print(_counts(datalist))
        print(normal_in_words(datalist))
    out = options["out"]
    if by_source:
        _next_step(f"{out}/{next(iter(result))}.json", f"{len(lists)} lists in {out}")
    else:
        _next_step(out)
    return 0


@front("afire_monai.datalists.build:datalist_from_folder", "folder")
def from_folder(work: Callable[..., Any], *, out: str, **options: Any) -> int:
    r"""Build a data list of all radiographs in a folder and below; patients are never divided between splits.

    Example: afire datalist from-folder radiographs --out mine.json

    Example: afire datalist from-folder chest_xray --out mine.json --group-pattern 'person(\d+)_' --labels-from-folders
    """
    print(_counts(work(out=out, **options)))
    if options.get("group_pattern") is None:
        print("each image counts as its own patient: give --group-pattern if patients have several")
    _next_step(out)
    return 0


@front("afire_monai.phantom.chest:write_phantom_dataset", hide=("folder",))
def phantom(work: Callable[..., Any], *, out: str, dicom: bool = False, **options: Any) -> int:
    """Write synthetic radiographs to try everything with: pictures with findings, masks and boxes, and their data list.

    Example: afire datalist phantom --out phantoms

    Example: afire datalist phantom --out hospital --dicom

    Args:
        out: folder, made if needed; gets images/, masks/ and datalist.json.
        dicom: write dicom/ and findings.csv instead, as a small archive of invented patients.
    """
    from pathlib import Path

    from afire_monai.phantom import PHANTOM_LABELS, write_phantom_archive

    path = (write_phantom_archive if dicom else work)(Path(out), **options)
    if dicom:
        print(f"written: {path.parent / 'dicom'} and {path}")
        files, table = shlex.quote(str(path.parent / "dicom")), shlex.quote(str(path))
        columns = ",".join(("Normal", *PHANTOM_LABELS))
        print(f"next:    afire ingest {files} --out chest --labels {table} --label-columns {columns}")
    else:
        _next_step(str(path))
    return 0


@front("afire_monai.datalists.merge:merge_datalists", "*paths")
def merge(work: Callable[..., Any], *, out: str, **options: Any) -> int:
    """Join data lists into one, for pre-training on several sources; each image keeps its section.

    Example: afire datalist merge lists/crd_normal.json lists/nih.json --out adults.json
    """
    print(_counts(work(out=out, **options)))
    _next_step(out)
    return 0


@front("afire_monai.datalists.validate:validate_datalist", "datalist", hide=("check_files",))
def validate(work: Callable[..., Any], **options: Any) -> int:
    """Check a data list: keys, labels, patients in two splits, missing and duplicate files.

    Exit status 1: an error was found.

    Example: afire datalist validate mine.json --decode
    """
    report = work(**options)
    print(report.summary())
    return 0 if report.ok else 1


def _public(module: str, name: str, example: str, word: str = "folder") -> Command:
    """Return the command of a public data set: its files as published → data list."""

    @front(f"afire_monai.datalists.public.{module}:datalist_from_{name}", word)
    def command(work: Callable[..., Any], *, out: str, **options: Any) -> int:
        datalist = work(out=out, **options)
        print(_counts(datalist))
        shared = datalist["meta"].get("patients_in_two_sections", 0)
        if shared:
            print(f"note: {shared} patients are in two sections, as published: results may be too good")
        _next_step(out)
        return 0

    command.example = f"afire datalist {name} {example} --out lists/{name}.json"
    return command


PUBLIC_DATASETS = {
    name: _public(module, name, *example)
    for module, name, *example in (
        ("bmad", "bmad", "Chest"),
        ("chexpert", "chexpert", "CheXpert-v1.0-small"),
        ("jsrt", "jsrt", "JSRT"),
        ("kermany", "kermany", "chest_xray"),
        ("medmnist", "medmnist", "pneumoniamnist_224.npz", "file"),
        ("mimic", "mimic", "mimic-cxr-jpg-2.0.0"),
        ("tuberculosis", "montgomery", "MontgomerySet"),
        ("nih", "nih", "NIH"),
        ("padchest", "padchest", "PadChest"),
        ("rsna", "rsna", "rsna-pneumonia-detection-challenge"),
        ("tuberculosis", "shenzhen", "ChinaSet_AllFiles"),
        ("siim", "siim", "siim"),
        ("vindr", "vindr", "vindr-cxr-1.0.0"),
    )
}
"""Commands of ``afire datalist`` by the name of the data set."""


def _counts(datalist: dict[str, Any]) -> str:
    sections = [s for s in ("training", "validation", "test") if s in datalist]
    line = f"{datalist['name']}: " + ", ".join(f"{section} {len(datalist[section])}" for section in sections)
    meta = datalist.get("meta", {})
    line += "".join(f"; left out, {kind.replace('_', ' ')}: {n}" for kind, n in meta.get("skipped", {}).items() if n)
    return line + "".join(f"; {fact} not usable in {n} rows, whose images are kept" for fact, n in
                          meta.get("unusable", {}).items())  # fmt: skip


def _next_step(target: str, written: str = "") -> None:
    print(f"written: {written or target}\nnext:    afire check {shlex.quote(target)}")
