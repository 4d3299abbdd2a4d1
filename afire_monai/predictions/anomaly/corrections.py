"""A user's corrections: false alarms that are normal, misses that are not, and how they change the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import load_datalist, reader_options

USUAL_ALARM = 95.0
"""Percentile from which on a radiograph counts as unusual unless misses set another one."""
MIN_MISSES = 5
"""Number of marked misses from which on they move that percentile."""


@dataclass(frozen=True)
class Corrections:
    """Changes made by marked radiographs."""

    normal: int  #: number of false alarms that joined the normals
    not_normal: int  #: number of misses that were judged
    alarm: float  #: percentile from which on a radiograph counts as unusual
    #: number of false alarms at or above it: by the reference before (None without one) and by the new one, which
    #: judges each without its own patient
    normal_alarms: tuple[int | None, int]
    not_normal_alarms: tuple[int | None, int]  #: the same for the misses

    def facts(self) -> dict[str, Any]:
        """Return the entries for the reference's description."""
        return {"normal": self.normal, "not_normal": self.not_normal, "alarm_percentile": self.alarm}

    def lines(self) -> list[str]:
        """Return the changes, in a line for each kind."""
        lines = []
        for name, count, (before, now) in (
            ("normal", self.normal, self.normal_alarms),
            ("not normal", self.not_normal, self.not_normal_alarms),
        ):
            if count:
                earlier = "" if before is None else f", {before} by the reference before"
                lines.append(f"{name}: {now} of {count} at or above percentile {self.alarm:.1f}{earlier}")
        return lines


def corrections_of(false_alarms: Sequence[Tensor], misses: Sequence[Tensor]) -> Corrections:
    """Count the changes made by marked radiographs.

    Args:
        false_alarms: percentiles (n,) of the false alarms, by the new reference and, if there was one, by the one
            before.
        misses: the same for the misses.
    """
    alarm = alarm_percentile(misses[0])
    counts = [[int((values >= alarm).sum()) for values in some] for some in (false_alarms, misses)]
    alarms = [(None if len(some) == 1 else some[1], some[0]) for some in counts]
    return Corrections(len(false_alarms[0]), len(misses[0]), alarm, alarms[0], alarms[1])


def marked_items(datalist: str | Path | None) -> list[dict[str, Any]]:
    """Return all images of a data list with their reader's options (``reader``); none without a list.

    The labels of the list are ignored: whoever gives the list says what its images are. Raises DataListError if it
    cannot be read, or has no image.
    """
    if datalist is None:
        return []
    content = load_datalist(datalist)
    sections = [content.get(name) or [] for name in ("training", "validation", "test")]
    items = [{**item, "reader": reader_options(content)} for section in sections for item in section]
    if not items:
        raise DataListError(f"{datalist}: no image in it; list the radiographs that you want to mark")
    return items


def without(items: Sequence[Mapping[str, Any]], marked: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the items whose files are not among the marked ones."""
    files = {Path(item["image"]).resolve() for item in marked}
    return [item for item in items if Path(item["image"]).resolve() not in files]


def alarm_percentile(misses: Tensor) -> float:
    """Return the percentile from which on to raise an alarm, that misses are told from normals best.

    By definition, 100 - p of 100 normals lie above percentile p, so Youden's index of an alarm from p on is the
    share of misses there minus (100 - p) / 100. It is largest at one of the misses; of several, the highest counts.

    Args:
        misses: (m,) percentiles of radiographs that are not normal; with fewer than 5, the result stays at 95.
    """
    if len(misses) < MIN_MISSES:
        return USUAL_ALARM
    ordered = misses.double().sort().values
    share = torch.arange(len(ordered), 0, -1) / len(ordered)
    youden = share - (100 - ordered) / 100
    best = int((youden >= youden.max() - 1e-9).nonzero()[-1])
    return float(ordered[best])
