"""``afire datalist``: build data lists, and check them without reading the images."""

from __future__ import annotations

import shlex
from typing import Any

from afire_monai.cli.check import reader_arguments


def from_csv(
    path: str,
    *,
    out: str,
    image_column: str = "path",
    group_column: str | None = "group",
    labels_column: str | None = "labels",
    label_separator: str = "|",
    label_columns: tuple[str, ...] | None = None,
    keep: tuple[str, ...] | None = ("auto",),
    source_column: str | None = "source",
    source: tuple[str, ...] | None = None,
    by_source: bool = False,
    mask_column: str | None = None,
    boxes_csv: str | None = None,
    base_dir: str | None = None,
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1),
    seed: int = 0,
    normal_label: str | None = None,
    name: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    png16_max: str | None = None,
    modalities: str | None = None,
    window_index: int | None = None,
) -> int:
    """Build a data list, or one for each source, from a CSV manifest; patients are never divided between splits.

    Example: afire datalist from-csv manifest.csv --out lists --by-source

    Example: afire datalist from-csv manifest.csv --out mine.json --image-column file --group-column patient

    Example: afire datalist from-csv mine.csv --out mine.json --label-columns Atelectasis,Edema --keep sex=gender,age

    Args:
        path: the CSV file, with a header line.
        out: JSON file to write; with --by-source a folder.
        image_column: column of image paths.
        group_column: column of patients; None if there is none.
        labels_column: column of label names; None if there is none.
        label_separator: between several names in one cell.
        label_columns: instead of --labels-column: columns of one label each, with 1, 0, -1 (uncertain) or nothing.
        keep: facts for subgroup results, out of sex,age,view,source, each alone or as sex=column; auto: those that have
            a column of that name; none: no facts.
        source_column: column of sources.
        source: keep the rows of this source, or of several with commas between them.
        by_source: write one list for each source.
        mask_column: column of mask paths.
        boxes_csv: CSV of boxes: path, label, x, y, width, height.
        base_dir: folder that the paths start from; the CSV's own folder unless given.
        fractions: shares of training, validation and test.
        seed: of the split.
        normal_label: the label that means "no finding"; unless given, Normal or No Finding.
        name: of the list.
        delimiter: between cells: , ; or tab; found out unless given.
        encoding: of the text: utf-8, utf-16, cp1252, …; found out unless given.
        png16_max: what is white in 16-bit PNG: a number such as 4095, dtype (65535) or image; kept in the list.
        modalities: DICOM modalities to read, with commas between them, or any; kept in the list.
        window_index: which DICOM window to use where a file has several; kept in the list.
    """
    from afire_monai.datalists.from_csv import datalist_from_csv
    from afire_monai.datalists.normal import normal_in_words

    made = datalist_from_csv(
        path, out, image_column, group_column, labels_column, label_separator, source_column, source, by_source,
        mask_column, boxes_csv, base_dir, fractions, seed, normal_label, name, label_columns, keep, delimiter,
        encoding, reader_arguments(png16_max, modalities, window_index),
    )  # fmt: skip
    lists = list(made.values()) if by_source else [made]
    for datalist in lists:
        print(_counts(datalist))
        print(normal_in_words(datalist))
    if by_source:
        _next_step(f"{out}/{next(iter(made))}.json", f"{len(lists)} lists in {out}")
    else:
        _next_step(out, out)
    return 0


def from_folder(
    folder: str,
    *,
    out: str,
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1),
    seed: int = 0,
    group_pattern: str | None = None,
    labels_from_folders: bool = False,
    normal_label: str | None = None,
    name: str | None = None,
    masks: str | None = None,
    png16_max: str | None = None,
    modalities: str | None = None,
    window_index: int | None = None,
) -> int:
    r"""Build a data list of all radiographs in a folder and below; patients are never divided between splits.

    Example: afire datalist from-folder radiographs --out mine.json

    Example: afire datalist from-folder chest_xray --out mine.json --group-pattern 'person(\d+)_' --labels-from-folders

    Args:
        folder: searched with its sub-folders.
        out: JSON file to write.
        fractions: shares of training, validation and test.
        seed: of the split.
        group_pattern: regular expression that finds the patient in each path; without it each image is a patient.
        labels_from_folders: the folder that directly holds an image is its label.
        normal_label: the label that means "no finding"; unless given, Normal or No Finding.
        name: of the list.
        masks: folder of masks, named as the images are (1.png or 1_mask.png for 1.png).
        png16_max: what is white in 16-bit PNG: a number such as 4095, dtype (65535) or image; kept in the list.
        modalities: DICOM modalities to read, with commas between them, or any; kept in the list.
        window_index: which DICOM window to use where a file has several; kept in the list.
    """
    from afire_monai.datalists.build import datalist_from_folder

    reader = reader_arguments(png16_max, modalities, window_index)
    made = datalist_from_folder(
        folder, out, fractions, seed, group_pattern, labels_from_folders, normal_label, name, masks, reader
    )
    print(_counts(made))
    if group_pattern is None:
        print("each image counts as its own patient: give --group-pattern if patients have several")
    _next_step(out, out)
    return 0


def merge(*paths: str, out: str, name: str = "merged") -> int:
    """Join data lists into one, for pre-training on several sources; each image keeps its section.

    Example: afire datalist merge lists/crd_normal.json lists/nih.json --out adults.json

    Args:
        paths: the data lists.
        out: JSON file to write.
        name: of the joined list.
    """
    from afire_monai.datalists.merge import merge_datalists

    print(_counts(merge_datalists(paths, out, name)))
    _next_step(out, out)
    return 0


def validate(path: str, *, base_dir: str | None = None, decode: bool = False) -> int:
    """Check a data list: keys, labels, patients in two splits, missing and duplicate files.

    Exit status 1: an error was found.

    Example: afire datalist validate mine.json --decode

    Args:
        path: the data list.
        base_dir: folder that its relative paths start from; its own folder unless given.
        decode: read every image as well.
    """
    from afire_monai.datalists.validate import validate_datalist

    report = validate_datalist(path, base_dir, decode=decode)
    print(report.summary())
    return 0 if report.ok else 1


def print_made(datalist: dict[str, Any], out: str) -> int:
    """Say what a list holds and what was left out of it, with the next command.

    Args:
        datalist: that was written.
        out: where to.
    """
    print(_counts(datalist))
    shared = datalist["meta"].get("patients_in_two_sections", 0)
    if shared:
        print(f"note: {shared} patients are in two sections, as published: results may be too good")
    _next_step(out, out)
    return 0


def _counts(datalist: dict[str, Any]) -> str:
    sections = [s for s in ("training", "validation", "test") if s in datalist]
    line = f"{datalist['name']}: " + ", ".join(f"{section} {len(datalist[section])}" for section in sections)
    meta = datalist.get("meta", {})
    line += "".join(f"; left out, {kind.replace('_', ' ')}: {n}" for kind, n in meta.get("skipped", {}).items() if n)
    return line + "".join(f"; {fact} not usable in {n} rows, whose images are kept" for fact, n in
                          meta.get("unusable", {}).items())  # fmt: skip


def _next_step(target: str, written: str) -> None:
    print(f"written: {written}\nnext:    afire check {shlex.quote(target)}")
