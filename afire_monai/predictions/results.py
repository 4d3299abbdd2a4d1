"""The output folder of predictions: whole files, pictures, and the remains of an interrupted run."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.core.files import csv_text, read_object, write_text
from afire_monai.predictions.anomaly.fit import ReferenceFit, reference_fit
from afire_monai.predictions.format import FACTS, FORMAT, HEATMAPS, INDEX, JUDGEMENT, MASKS, TABLE, Predictions
from afire_monai.predictions.reading import Radiograph, Size, display_size
from afire_monai.predictions.scoring import Answer
from afire_monai.radiographs.judgement import FIT
from afire_monai.radiographs.raster import write_png

RECORDS, OVERLAYS, RESTORED = "json", "overlays", "restored"
KINDS = (RECORDS, HEATMAPS, MASKS, OVERLAYS, RESTORED)
RUN, KEY, LEFT_OUT = "run.json", "index.csv", "left_out.csv"


@dataclass(frozen=True)
class Gathered:
    """Contents of a finished folder."""

    count: int
    unfit: Counter[str]
    fit: ReferenceFit | None


class ResultFolder:
    """Write results image by image; an image counts as done when its record, written last, is whole."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def start(self, run: Mapping[str, Any], key: str, resume: bool) -> None:
        """Make the folder ready, or check that an earlier run's files in it belong to the same work.

        Args:
            run: values that the results depend on: model, options. Plain values without names of files or patients.
            key: table of indices and files; readable only by its owner (mode 0600).
            resume: continue an earlier run in the folder.

        Raises:
            AfireError: if the folder cannot be written, holds other results, or ``resume`` is off and it holds any.
        """
        earlier = self.folder / RUN
        if earlier.exists():
            if not resume:
                raise AfireError(
                    f"{self.folder}: holds predictions of an earlier run; --resume continues it, or give another "
                    "folder with --out"
                )
            self._compare(dict(run), key)
        elif self.folder.exists() and (not self.folder.is_dir() or self._holds_more_than_a_start()):
            raise AfireError(
                f"{self.folder}: not empty, and not written by `afire predict`; give another folder with --out"
            )
        try:
            for kind in ("", *KINDS):
                (self.folder / kind).mkdir(parents=True, exist_ok=True)
            # a folder without facts is not taken for finished predictions
            (self.folder / FACTS).unlink(missing_ok=True)
            write_text(self.folder / KEY, key, private=True)
            write_text(earlier, json.dumps(run, indent=1, ensure_ascii=False) + "\n")  # last, when the rest is there
        except OSError as error:
            raise AfireError(
                f"{self.folder}: {error.strerror}; give a folder that can be written with --out"
            ) from error

    def _holds_more_than_a_start(self) -> bool:
        """Whether there is more than the remains of a start that was killed or found the disk full."""
        begun = {*KINDS, KEY, f".{KEY}.part", f".{RUN}.part"}
        return any(str(path.relative_to(self.folder)) not in begun for path in self.folder.rglob("*"))

    def _compare(self, run: dict[str, Any], key: str) -> None:
        try:
            earlier = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
            files = (self.folder / KEY).read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise AfireError(
                f"{self.folder}: {RUN} and {KEY} of the earlier run cannot be read ({type(error).__name__}), so it "
                "cannot continue; give another folder with --out"
            ) from error
        differing = [name for name in run if not isinstance(earlier, dict) or earlier.get(name) != run[name]]
        if files != key:
            differing.append("files")
        if differing:
            raise AfireError(
                f"{self.folder}: the earlier run had other {', '.join(differing)}; repeat its command to continue, "
                "or give another folder with --out"
            )

    def record(self, index: int) -> dict[str, Any] | None:
        """Read the record of an image; None if there is none or it is damaged."""
        record = read_object(self._path(RECORDS, index, "json"))
        return record if record.get(INDEX) == index else None

    def write(self, index: int, record: Mapping[str, Any], pictures: Mapping[str, NDArray]) -> None:
        """Write the results of one image: its pictures, then its record.

        Args:
            index: place of the image.
            record: plain values.
            pictures: by folder (``heatmaps``, …): (h, w) uint16 or uint8, or (h, w, 3) uint8.
        """
        for kind, pixels in pictures.items():
            # the compression only looks for runs: smooth maps hardly get smaller with more effort
            write_png(self._path(kind, index, "png"), pixels, shared=True, compress_level=1, compress_type=3)
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(self._path(RECORDS, index, "json"), text, shared=True)

    def finish(
        self,
        count: int,
        left_out: Mapping[int, str],
        facts: Mapping[str, Any],
        labels: list[str],
        normal: Collection[int] = (),
    ) -> Gathered:
        """Gather the records into ``predictions.csv`` and ``.json``, and the reasons into ``left_out.csv``."""
        for part in self.folder.glob("*/.[0-9]*.part"):
            part.unlink()  # remains of a killed process
        found = {i: r for i in range(count) if (r := self.record(i)) is not None}
        columns = {name: [_number(r["labels"].get(name), "probability") for r in found.values()] for name in labels}
        percentiles = [_number(r.get("anomaly"), "percentile") for r in found.values()]
        anomaly = bool(np.isfinite(percentiles).any()) if percentiles else False
        table = Predictions(
            np.array(list(found), dtype=np.int64),
            {name: np.array(values, dtype=np.float64) for name, values in columns.items()},
            np.array(percentiles, dtype=np.float64) if anomaly else None,
            dict(facts),
        )
        judged = [str(r.get(JUDGEMENT, "")) for r in found.values()]
        unfit = Counter(judgement for judgement in judged if judgement not in ("", FIT))
        named = bool(facts.get("any"))
        write_text(self.folder / TABLE, _csv_of(table, judged if named else None))
        write_text(self.folder / LEFT_OUT, csv_text([["index", "reason"], *sorted(left_out.items())]))
        for kind in (HEATMAPS, MASKS, OVERLAYS, RESTORED):
            with contextlib.suppress(OSError):
                (self.folder / kind).rmdir()  # only if it is empty
        sizes = [(r.get("anomaly") or {}).get("normals", 0) for r in found.values()]
        values, reference = np.array(percentiles), max(sizes, default=0)
        of_normals = reference_fit(values[np.isin(list(found), list(normal))], True, reference)
        fit = of_normals or reference_fit(values, False, reference)  # by all where too few are known to be normal
        described = {**facts, "format": FORMAT, "labels": labels, "count": len(table), "anomaly": anomaly}
        if fit is not None:
            described["reference_fit"] = {**asdict(fit), "words": fit.words}
        reasons = dict(sorted(counted_reasons(left_out).items()))
        described |= {JUDGEMENT: named, "left_out": reasons, "unfit": dict(sorted(unfit.items()))}
        write_text(self.folder / FACTS, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
        return Gathered(len(table), unfit, fit)

    def _path(self, kind: str, index: int, suffix: str) -> Path:
        return self.folder / kind / f"{index:05d}.{suffix}"


def counted_reasons(left_out: Mapping[int, str]) -> Counter[str]:
    """Count reasons by their first words, those before a colon."""
    return Counter(reason.partition(":")[0] for reason in left_out.values())


def _number(entry: Mapping[str, Any] | None, name: str) -> float:
    value = None if entry is None else entry.get(name)
    return float("nan") if value is None else float(value)


def _csv_of(table: Predictions, judged: list[str] | None) -> str:
    columns = {
        name: ["" if np.isnan(value) else repr(float(value)) for value in values]
        for name, values in table.columns.items()
    }
    if judged is not None:
        columns[JUDGEMENT] = judged
    return csv_text([[INDEX, *columns], *zip(map(int, table.index), *columns.values(), strict=True)])


MASK_THRESHOLD = 0.5
MAP_SIDE = 256
"""Longest side of heatmaps and restored pictures, in pixels: networks see no more, and writing larger ones takes as
much time as the smaller networks need."""


def pictures_of(
    radiograph: Radiograph, answer: Answer, mask_values: Sequence[int], overlays: bool
) -> dict[str, NDArray]:
    """Make the pictures of one image, in the radiograph's aspect.

    Returns:
        By folder: ``heatmaps`` uint16 and ``restored`` uint8, at most `MAP_SIDE` pixels a side; ``masks`` uint8 at the
        radiograph's own size; ``overlays`` (h, w, 3) uint8 at the size of ``display``.
    """
    pictures: dict[str, NDArray] = {}
    size = display_size(radiograph.shape, MAP_SIDE)
    if answer.heatmap is not None:
        heat = enlarge(answer.heatmap[None], size)[0].clamp(0, 1)
        pictures[HEATMAPS] = (heat * 65535).round().numpy().astype(np.uint16)
        if overlays and radiograph.display is not None:
            large = enlarge(answer.heatmap[None], (radiograph.display.shape[1], radiograph.display.shape[2]))[0]
            pictures[OVERLAYS] = overlay(radiograph.display[0], large.clamp(0, 1))
    if answer.restored is not None:
        pictures[RESTORED] = _bytes(enlarge(answer.restored[None], size)[0])
    if answer.masks is not None:
        pictures[MASKS] = label_mask(answer.masks, mask_values, radiograph.shape)
    return pictures


def enlarge(maps: Tensor, size: Size) -> Tensor:
    """Stretch (C, h, w) to a size; averages over areas where it gets smaller."""
    return F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]


def overlay(picture: Tensor, heat: Tensor) -> NDArray[np.uint8]:
    """Blend a heatmap in red over a grey picture, more strongly where it is higher; return (h, w, 3) uint8.

    Both are (h, w) in 0…1.
    """
    share = 0.7 * heat
    red = picture * (1 - share) + share
    return _bytes(torch.stack([red, picture * (1 - share), picture * (1 - share)], -1))


def label_mask(probabilities: Tensor, values: Sequence[int], size: Size) -> NDArray[np.uint8]:
    """Turn class probabilities (classes, h, w) into one mask of a size: the likeliest class from 0.5 on, else 0."""
    large = enlarge(probabilities, size)
    highest, place = large.max(0)
    table = torch.tensor(list(values), dtype=torch.uint8)
    return torch.where(highest >= MASK_THRESHOLD, table[place], 0).numpy().astype(np.uint8)


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
