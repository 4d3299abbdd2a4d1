"""Find errors in a data list before they cost a day of training."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.core.errors import RadiographError
from afire_monai.datalists.file import (
    DEFAULT_NORMAL,
    DataList,
    StrPath,
    datalist_hash,
    patient_of,
    present_sections,
    read_raw,
    reader_options,
    resolve_paths,
    save_datalist,
)
from afire_monai.datalists.items import Entry, Problem, fact_problems, is_box, label_problems, outside
from afire_monai.datalists.mask_check import mask_problems
from afire_monai.radiographs.decode import picture_size

if TYPE_CHECKING:
    from afire_monai.datalists.check import CheckReport

ITEM_KEYS = ("image", "label", "group", "mask", "boxes", "sex", "age", "view", "source", "manufacturer_model")
_KNOWN_KEYS = frozenset(ITEM_KEYS)
TOP_KEYS = ("name", "labels", "meta", "training", "validation", "test")


@dataclass
class DataListReport:
    """Result of `validate_datalist`.

    Items without group count as a patient each; errors come before warnings.
    """

    counts: dict[str, int]
    groups: dict[str, int]
    labels: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no problem is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def summary(self, most: int = 20) -> str:
        """Plain text: counts, then at most ``most`` problems in words, then the number of the rest by kind."""
        lines = [f"{section}: {n} images of {self.groups[section]} patients" for section, n in self.counts.items()]
        if self.labels:
            lines.append("labels: " + ", ".join(f"{name} {n}" for name, n in self.labels.items()))
        lines += [str(problem) for problem in self.problems[:most]]
        rest = Counter(problem.kind for problem in self.problems[most:])
        lines += [f"… and {n} more of: {kind}" for kind, n in rest.items()]
        lines.append("no problem found" if not self.problems else f"problems: {len(self.problems)}")
        return "\n".join(lines)


def validate_datalist(
    datalist: DataList | StrPath, base_dir: StrPath | None = None, check_files: bool = True, decode: bool = False
) -> DataListReport:
    """Check a data list: keys, labels, patients in two splits, missing and duplicate files.

    Args:
        datalist: a list, or the path of one.
        base_dir: folder that relative paths start from; None for the folder of the file (or the working directory).
        check_files: look whether files exist, and compare the content (SHA-256) of those of equal size.
        decode: read every image as well; slow.

    Returns:
        Counts and problems; nothing is raised for a list that is merely wrong.

    Raises:
        DataListError: if the file cannot be read as a data list at all.
    """
    if isinstance(datalist, str | os.PathLike):
        return open_datalist(datalist, base_dir, check_files, decode).report
    return _validate(resolve_paths(datalist, Path(base_dir or ".")), [], check_files, decode)


@dataclass(frozen=True)
class OpenedDataList:
    """A data list that has been read once, for all that a run wants of it."""

    datalist: DataList  #: with absolute paths
    sha256: str  #: its `datalist_hash`, with paths as they stand in the file
    report: DataListReport  #: of `validate_datalist`


def open_datalist(
    path: StrPath,
    base_dir: StrPath | None = None,
    check_files: bool = False,
    decode: bool = False,
    masks: bool = False,
    classes: Mapping[str, Sequence[int]] | None = None,
) -> OpenedDataList:
    """Read a data list once, check it, and compute its hash.

    Args:
        path: the JSON file.
        base_dir: as for `validate_datalist`, like ``check_files`` and ``decode``.
        check_files: look whether files exist.
        decode: read every image and mask as well.
        masks: read every mask.
        classes: of the masks, with the values that mean them; see `mask_problems`.

    Raises:
        DataListError: if the file cannot be read as a data list at all.
    """
    base = Path(base_dir) if base_dir is not None else Path(path).absolute().parent
    raw = read_raw(Path(path))
    sha256 = datalist_hash(raw)
    datalist = resolve_paths(raw, base, str(path), in_place=True)
    problems: list[Problem] = []
    if (stored := datalist.get("meta", {}).get("sha256")) not in (None, sha256):
        advice = "Items were edited after saving; save the list again with save_datalist, so that runs name this one"
        problems.append(Problem("hash differs", "meta.sha256", str(stored)[:12], advice, "warning"))
    if masks:
        problems += mask_problems(_Entries(datalist), classes)
    return OpenedDataList(datalist, sha256, _validate(datalist, problems, check_files, decode))


def _validate(datalist: DataList, problems: list[Problem], check_files: bool, decode: bool) -> DataListReport:
    entries = _Entries(datalist)
    problems += [*_key_problems(datalist, entries), *label_problems(datalist, entries), *_group_problems(entries)]
    labels, named = datalist.get("labels", []), datalist.get("meta", {}).get("normal_label")
    if named not in (None, DEFAULT_NORMAL, *labels):
        advice = f"The labels are {', '.join(labels)}: build the list again with --normal-label NAME for the right one"
        problems.append(Problem("unknown label", "meta.normal_label", repr(named), advice))
    problems += [*fact_problems(entries), *_same_path_problems(entries)]
    if check_files:
        problems += [*_file_problems(entries), *_place_problems(entries)]
    if decode:
        problems += [*_decode_problems(datalist, entries), *mask_problems(entries)]
    problems.sort(key=lambda problem: problem.severity != "error")
    return _count(datalist, problems)


class _Entries:
    """Items of a list with section and place in words, made when asked for: a million of them would fill the memory."""

    def __init__(self, datalist: DataList) -> None:
        self.datalist = datalist

    def __iter__(self) -> Iterator[Entry]:
        for section in present_sections(self.datalist):
            for place, item in enumerate(self.datalist[section]):
                yield section, f"{section}[{place}]", item


def _count(datalist: DataList, problems: list[Problem]) -> DataListReport:
    sections = present_sections(datalist)
    names = [name for name in datalist.get("labels", []) if isinstance(name, str)]
    labels = dict.fromkeys(names, 0)
    for section in sections:
        for item in datalist[section]:
            values = item.get("label")
            if isinstance(values, list) and 1 in values:
                for name, value in zip(names, values, strict=False):
                    labels[name] += value == 1
    groups = {s: len({patient_of(item) for item in datalist[s]}) for s in sections}
    return DataListReport({s: len(datalist[s]) for s in sections}, groups, labels, problems)


def _key_problems(datalist: DataList, entries: Iterable[Entry]) -> Iterator[Problem]:
    for key in datalist:
        if key not in TOP_KEYS:
            yield Problem("unknown key", "top level", repr(key), f"Known are {', '.join(TOP_KEYS)}", "warning")
    for section in present_sections(datalist):
        if not datalist[section]:
            severity = "error" if section == "training" else "warning"
            yield Problem("empty section", section, "0 items", "Leave it out, or give it a larger share", severity)
    for _, where, item in entries:
        if _KNOWN_KEYS.issuperset(item):
            continue
        for key in item:
            if key not in ITEM_KEYS:
                yield Problem("unknown key", where, repr(key), f"Known are {', '.join(ITEM_KEYS)}", "warning")


def _group_problems(entries: Iterable[Entry]) -> Iterator[Problem]:
    sections: dict[str, set[str]] = defaultdict(set)
    for section, _, item in entries:
        if (patient := patient_of(item)) != item["image"]:
            sections[patient].add(section)
    for group, found in sections.items():
        if len(found) > 1:
            advice = "Put all images of a patient into one section, or results will be too good"
            yield Problem("patient in two splits", " and ".join(sorted(found)), f"group {group}", advice)


def _same_path_problems(entries: Iterable[Entry]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for _, where, item in entries:
        path = os.path.normcase(item["image"])
        if path in first:
            yield Problem("duplicate file", f"{first[path]} and {where}", item["image"], "Keep one of the two")
        first.setdefault(path, where)


def _file_problems(entries: Iterable[Entry]) -> Iterator[Problem]:
    """Missing files, and files with equal content under different names."""
    by_size: dict[int, dict[str, tuple[str, str]]] = defaultdict(dict)
    for section, where, item in entries:
        for key in ("image", "mask"):
            if item.get(key) and not os.path.isfile(item[key]):
                advice = "Copy the file there, give the right base_dir, or take the item out"
                yield Problem("missing file", f"{where}.{key}", str(item[key]), advice)
            elif key == "image":
                by_size[os.path.getsize(item[key])].setdefault(os.path.normcase(item[key]), (section, where))
    for same_size in by_size.values():
        if len(same_size) > 1:
            yield from _same_content_problems(same_size)


def _place_problems(entries: Iterable[Entry]) -> Iterator[Problem]:
    """Boxes that do not lie within their picture."""
    for _, where, item in entries:
        given = item.get("boxes")  # what is no list of boxes is reported where labels are
        boxes = (
            [box for box in given if is_box(box)] if isinstance(given, list) and os.path.isfile(item["image"]) else []
        )
        with contextlib.suppress(RadiographError):  # reported where images are read
            shape = picture_size(item["image"]) if boxes else (0, 0)
            for box in boxes:
                if outside(box, shape):
                    advice = f"The picture has {shape[0]} rows and {shape[1]} columns; give boxes in its own pixels"
                    yield Problem("wrong box", where, str(box), advice)


def _same_content_problems(files: dict[str, tuple[str, str]]) -> Iterator[Problem]:
    first: dict[str, tuple[str, str]] = {}
    for path, (section, where) in files.items():
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield Problem("missing file", where, path, f"It cannot be read ({error.strerror}); check its permissions")
            continue
        if digest in first:
            other_section, other = first[digest]
            severity = "warning" if other_section == section else "error"
            advice = "The two files have the same content: keep one of them"
            yield Problem("duplicate file", f"{other} and {where}", path, advice, severity)
        first.setdefault(digest, (section, where))


def _decode_problems(datalist: DataList, entries: Iterable[Entry]) -> Iterator[Problem]:
    from afire_monai.datalists.check import check_files

    where = {item["image"]: place for _, place, item in entries if os.path.isfile(item["image"])}
    for refused in check_files(list(where), **reader_options(datalist)).refused:
        yield Problem("not readable", where[refused.path], refused.path, f"{refused.kind}: {refused.detail}")


def write_without(opened: OpenedDataList, report: CheckReport, path: StrPath, reader: Mapping[str, Any]) -> str:
    """Write a list without the images that were refused or blank, those listed twice, and masks that cannot be used.

    Returns:
        A description of the omissions.
    """
    bad = {refused.path for refused in report.refused} | set(report.blank)
    errors = {problem.where for problem in opened.report.problems if problem.severity == "error"}
    datalist = dict(opened.datalist)
    seen: set[str] = set()
    images = masks = 0
    for section in present_sections(datalist):
        kept: list[dict[str, Any]] = []
        for place, item in enumerate(datalist[section]):
            name = os.path.normcase(item["image"])
            if item["image"] in bad or name in seen:
                images += 1
                continue
            seen.add(name)
            if f"{section}[{place}].mask" in errors:
                masks += 1
                item = {key: value for key, value in item.items() if key != "mask"}
            kept.append(item)
        datalist[section] = kept
    if reader:
        meta = datalist.get("meta", {})
        datalist["meta"] = {**meta, "reader": {**meta.get("reader", {}), **reader}}
    save_datalist(datalist, path)
    return f"written: {os.fspath(path)}, without {images} images and {masks} masks"
