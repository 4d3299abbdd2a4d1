"""``afire check``: report which files of a data list or folder can be used."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.core.quiet import silence

if TYPE_CHECKING:
    from afire_monai.datalists.check import CheckReport


def check(
    path: str,
    *,
    base_dir: str | None = None,
    classes: str | None = None,
    reader: Mapping[str, Any],
    write: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> int:
    """Read every image and mask of a data list, a folder or one file, and report which cannot be used and why.

    For a data list, its keys, labels, splits and duplicates are checked as well. Exit status 1: problems were found.

    Example: afire check list.json

    Example: afire check list.json --classes lung=255,heart=128 --png16-max 4095 --write good.json

    Args:
        path: data list (.json), folder or image.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
        classes: classes of the masks and the grey values that stand for them, such as lung=255,heart=128.
        write: file for a list without the images and masks that cannot be used; it keeps these reader options.
        workers: number of threads that read; the number of cores, at most 8, unless given.
    """
    from afire_monai.core.errors import DataListError
    from afire_monai.datalists.check import check_path
    from afire_monai.datalists.normal import normal_in_words
    from afire_monai.datalists.validate import open_datalist, write_without

    silence()
    is_list = path.lower().endswith(".json") and not Path(path).is_dir()
    if write is not None and not is_list:
        raise DataListError("--write needs a data list; `afire datalist from-folder` makes one of a folder")
    problems: list[str] = []
    normal = ""
    if is_list:
        opened = open_datalist(path, base_dir, check_files=True, masks=True, classes=_classes(classes))
        print(opened.report.summary())
        normal = normal_in_words(opened.datalist)
        print(*([normal] if normal else []), sep="\n", end="\n" if normal else "")
        problems += [] if opened.report.ok else ["see above"]
    report = check_path(path, base_dir, workers=workers, progress=progress, **reader)
    print(report.summary())
    if write is not None:
        print(write_without(opened, report, write, reader))
    problems += [] if report.ok else ["see above"]
    if report.total == 1 and Path(path).is_dir() | is_list:
        problems += ["one image; a training needs at least two"]
    if problems:
        print(f"result:  not ready; {', '.join(dict.fromkeys(problems))}")
        return 1
    print(f"result:  {_ready(report, is_list, '. The labels' in normal)}")
    if is_list and reader and write is None:
        print("note:    trainings read a list as it says; --write FILE makes one that keeps these options")
    elif is_list:
        _next_step(write or path, "--normal-label" not in normal)
    return 0


def _classes(text: str | None) -> dict[str, list[int]] | None:
    from afire_monai.core.errors import DataListError

    classes: dict[str, list[int]] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if not name.strip() or not value.strip().isdecimal():
            raise DataListError(
                f"--classes {text!r}: NAME=VALUE with commas between is expected, as lung=255,heart=128"
            )
        classes.setdefault(name.strip(), []).append(int(value))
    return classes or None


def _ready(report: CheckReport, is_list: bool, no_normal: bool) -> str:
    if report.total == 1 and not is_list:
        return "this file can be used"
    return "ready for fine-tuning; pre-training needs images known to be normal, see above" if no_normal else "ready"


def _next_step(path: str, pretrain: bool) -> None:
    words = "finetune {} --init runs/mine/models --out runs/classifier"
    print(f"next:    afire {('pretrain {} --out runs/mine' if pretrain else words).format(shlex.quote(path))}")
