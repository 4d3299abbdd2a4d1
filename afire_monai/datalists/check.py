"""Read every file of a data list or folder, and report in plain words which ones cannot be used, and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.core.pool import threads
from afire_monai.core.quiet import hidden
from afire_monai.datalists.file import load_datalist, present_sections, reader_options
from afire_monai.radiographs.decode import list_images, read_picture
from afire_monai.radiographs.picture import Picture

NARROW_RANGE = 0.1
"""A picture whose 1st and 99th percentiles are closer is reported: its window or white level is likely wrong."""

NEARLY_BLACK = 16383 / 65535
"""A 16-bit PNG without a brighter pixel holds at most 14 bits: its white level is not 65535."""


@dataclass(frozen=True)
class RefusedFile:
    """A file that cannot be used: its path, the short reason by which files are counted, and the reason in words."""

    path: str
    kind: str
    detail: str


@dataclass(frozen=True)
class FileFacts:
    """Facts of one readable file: its size, format, and range (1st and 99th percentile, lowest and highest value)."""

    path: str
    height: int
    width: int
    format: str
    inverted: bool
    percentiles: tuple[float, float]
    extremes: tuple[float, float]
    png16: bool = False
    two_values: bool = False
    odd: tuple[str, ...] = ()
    spacing: tuple[float, float] = (1.0, 1.0)

    @property
    def stretched(self) -> bool:
        """Whether the file says that a pixel's sides differ by more than 1 %."""
        row, column = self.spacing
        return abs(row / column - 1) > 0.01 if min(row, column) > 0 else False

    @property
    def intensity_problem(self) -> str | None:
        """Return what is wrong with the grey levels, or None.

        It is "all black", "constant", "nearly black 16-bit PNG", "only two values, as masks have" or "hardly any
        contrast". The last one is the only one that does not spoil a training.
        """
        low, high = self.extremes
        if high <= 0:
            return "all black"
        if high <= low:
            return "constant"
        if self.png16 and high <= NEARLY_BLACK:
            return "nearly black 16-bit PNG"
        if self.two_values:
            return "only two values, as masks have"
        return "hardly any contrast" if self.percentiles[1] - self.percentiles[0] < NARROW_RANGE else None


@dataclass
class CheckReport:
    """Result of `check_path`."""

    readable: list[FileFacts] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of files that were tried."""
        return len(self.readable) + len(self.refused)

    @property
    def ok(self) -> bool:
        """Whether there is a file, none was refused, and none is blank."""
        return bool(self.readable) and not self.refused and not self.blank

    @property
    def blank(self) -> list[str]:
        """Paths of files with an intensity problem other than little contrast."""
        return [f.path for f in self.readable if f.intensity_problem not in (None, "hardly any contrast")]

    @property
    def png16_max(self) -> int | None:
        """White level to propose: the least 2ⁿ − 1 that covers all 16-bit PNG, where all of them are nearly black."""
        highest = [facts.extremes[1] for facts in self.readable if facts.png16]
        if not 0 < max(highest, default=0) <= NEARLY_BLACK:
            return None
        return int(2 ** round(max(highest) * 65535).bit_length() - 1)

    def refused_by_kind(self) -> dict[str, list[RefusedFile]]:
        """Refused files by reason, the most frequent first."""
        kinds: dict[str, list[RefusedFile]] = defaultdict(list)
        for refused in self.refused:
            kinds[refused.kind].append(refused)
        return dict(sorted(kinds.items(), key=lambda pair: (-len(pair[1]), pair[0])))

    def intensity_problems(self) -> dict[str, list[str]]:
        """Paths of readable files by intensity problem."""
        found: dict[str, list[str]] = defaultdict(list)
        for facts in self.readable:
            if facts.intensity_problem is not None:
                found[facts.intensity_problem].append(facts.path)
        return dict(found)

    def summary(self, most: int = 5) -> str:
        """Plain text: counts, sizes, formats, then each reason with at most ``most`` files."""
        lines = [
            f"{self.total} file{'s' * (self.total != 1)}: {len(self.readable)} readable, {len(self.refused)} refused"
        ]
        if self.readable:
            sizes = np.array([(facts.height, facts.width) for facts in self.readable])
            low, middle, high = sizes.min(axis=0), np.median(sizes, axis=0).astype(int), sizes.max(axis=0)
            lines.append(
                f"rows × columns: smallest {low[0]} × {low[1]}, median {middle[0]} × {middle[1]}, "
                f"largest {high[0]} × {high[1]}"
            )
            lines.append("formats: " + _counted(facts.format for facts in self.readable))
            inverted = sum(facts.inverted for facts in self.readable)
            if inverted:
                lines.append(f"{inverted} were bright = lucent (MONOCHROME1) and are inverted on reading")
        if odd := _counted(keyword for facts in self.readable for keyword in facts.odd):
            lines.append(f"optional DICOM elements that cannot be used and count as absent: {odd}")
        refused = self.refused_by_kind().items()
        found = {f"refused, {kind}": [f"{file.path}: {file.detail}" for file in files] for kind, files in refused}
        found |= {f"readable, but {kind}": paths for kind, paths in self.intensity_problems().items()}
        stretched = [facts.path for facts in self.readable if facts.stretched]
        found |= {"readable, but pixels are not square, so the picture is stretched": stretched} if stretched else {}
        for title, files in found.items():
            lines += [f"{title}: {len(files)}", *(f"  {file}" for file in files[:most])]
            lines += [f"  … and {len(files) - most} more"] if len(files) > most else []
        if white := self.png16_max:
            lines.append(f"the 16-bit PNG hold at most {white.bit_length()} bits: give --png16-max {white}, "
                         "and keep it in the list with --write")  # fmt: skip
        lines.append(
            "all files can be read" if self.ok else "remove or repair the files named above" if self.total else ""
        )
        return "\n".join(line for line in lines if line)


def check_path(
    path: str | os.PathLike[str],
    base_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
    **reader: Any,
) -> CheckReport:
    """Read every image of a data list (a .json file), of a folder, or a single file; bad files do not stop it.

    Args:
        path: data list, folder or image.
        base_dir: folder that relative paths of the list start from; None for the folder of the list.
        workers: threads; None for the number of cores, at most 8.
        progress: show a bar with the time left.
        reader: ``modalities``, ``window_index``, ``png16_max`` of `read_picture`; else those of the list.

    Returns:
        The report. ``report.ok`` is False if a file was refused or is blank, or there is none.

    Raises:
        DataListError: if there is nothing at ``path``, or it is not a data list.
    """
    path = Path(path)
    if path.is_dir():
        files: list[str] = [str(file) for file in list_images(path)]
        if not files:
            raise DataListError(f"{path}: no PNG, JPEG, NIfTI or DICOM file in it or below. Check the path")
    elif path.suffix.lower() == ".json":
        datalist = load_datalist(path, base_dir)
        reader = reader_options(datalist) | reader
        files = list(dict.fromkeys(item["image"] for s in present_sections(datalist) for item in datalist[s]))
    elif path.is_file():
        files = [str(path)]
    else:
        raise DataListError(f"{path}: no such file or folder; a data list (.json), a folder or an image is expected")
    return check_files(files, workers, progress, **reader)


def check_files(files: list[str], workers: int | None = None, progress: bool = False, **reader: Any) -> CheckReport:
    """As `check_path`, for the given image files. Threads suffice: decoding leaves the interpreter lock alone."""
    report = CheckReport()
    with ThreadPoolExecutor(threads(workers) or 1) as pool:
        results = pool.map(_examiner(reader), files)
        for result in tqdm(results, total=len(files), desc="reading", unit="file", disable=hidden(progress)):
            if isinstance(result, RefusedFile):
                report.refused.append(result)
            else:
                report.readable.append(result)
    return report


def _examiner(reader: dict[str, Any]) -> Callable[[str], FileFacts | RefusedFile]:
    def examine(path: str) -> FileFacts | RefusedFile:
        try:
            return _facts(path, read_picture(path, **reader))
        except RadiographError as error:
            return RefusedFile(path, error.kind, error.detail)
        except Exception as error:  # one strange file must not end the check of thousands
            detail = f"{type(error).__name__} while reading; please report this file"
            return RefusedFile(path, "unexpected error", detail)

    return examine


def _facts(path: str, picture: Picture) -> FileFacts:
    pixels = picture.pixels
    low, high = (float(v) for v in np.percentile(pixels[:: max(1, len(pixels) // 512)], (1, 99)))
    extremes = (float(pixels.min()), float(pixels.max()))
    height, width = pixels.shape
    return FileFacts(
        path, height, width, picture.format, picture.polarity_inverted, (low, high), extremes,
        picture.intensity == "/65535", bool(np.isin(pixels, extremes).all()),
        picture.odd, picture.spacing,
    )  # fmt: skip


def _counted(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(Counter(values).items()))
