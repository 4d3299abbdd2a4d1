"""Write a data list again without what a check found unusable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from afire_monai.datalists.check import CheckReport
from afire_monai.datalists.file import StrPath, present_sections, save_datalist
from afire_monai.datalists.validate import OpenedDataList

MASK_KINDS = frozenset(("mask not readable", "colour mask", "lossy mask", "multi-frame mask", "mask of another size"))


def write_without(opened: OpenedDataList, report: CheckReport, path: StrPath, reader: Mapping[str, Any]) -> str:
    """Write a list without the images that were refused or blank, those listed twice, and masks that cannot be used.

    Returns:
        What was left out, in words.
    """
    bad = {refused.path for refused in report.refused} | set(report.blank)
    bad_masks = {problem.where for problem in opened.report.problems if _is_about_a_mask(problem.kind, problem.where)}
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
            if f"{section}[{place}].mask" in bad_masks:
                masks += 1
                item = {key: value for key, value in item.items() if key != "mask"}
            kept.append(item)
        datalist[section] = kept
    if reader:
        meta = datalist.get("meta", {})
        datalist["meta"] = {**meta, "reader": {**meta.get("reader", {}), **reader}}
    save_datalist(datalist, path)
    return f"written: {os.fspath(path)}, without {images} images and {masks} masks"


def _is_about_a_mask(kind: str, where: str) -> bool:
    return kind in MASK_KINDS or (kind == "missing file" and where.endswith(".mask"))
