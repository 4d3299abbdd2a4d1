"""Which files are to be predicted: a folder, files, or a section of a data list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import datalist_hash, load_datalist, read_raw
from afire_monai.predictions.results import csv_text
from afire_monai.radiographs.decode import list_images


@dataclass(frozen=True)
class Source:
    """Files in order; the place of a file is its index in everything that is written.

    Attributes:
        files: absolute paths.
        section: of the data list; "" for folders and files.
        datalist_sha256: of the data list; "" for folders and files.
    """

    files: tuple[str, ...]
    section: str = ""
    datalist_sha256: str = ""

    def key(self) -> str:
        """Give the table that tells which index is which file. It can identify patients: it stays with its owner."""
        return csv_text([["index", "file"], *enumerate(self.files)])


def find_source(inputs: Sequence[str | os.PathLike[str]], section: str = "test") -> Source:
    """Find the files behind what was named on the command line.

    Args:
        inputs: folders (searched with their subfolders, sorted by path) and files, in this order and each file once; or
            one data list (.json).
        section: which section of the data list.

    Raises:
        DataListError: for something that is not there, a data list beside other inputs, or no file at all.
    """
    paths = [Path(os.fspath(name)) for name in inputs]
    if not paths:
        raise DataListError("nothing to predict: name a folder of radiographs, files, or one data list (.json)")
    if any(path.suffix.lower() == ".json" for path in paths):
        if len(paths) > 1:
            raise DataListError("a data list is predicted by itself; give it alone, or give folders and files only")
        return _from_datalist(paths[0], section)
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += list_images(path)
        elif path.is_file():
            files.append(path)
        else:
            raise DataListError(f"{path}: no such file or folder; a folder, files or a data list (.json) is expected")
    if not files:
        raise DataListError(f"no radiograph (PNG, JPEG, NIfTI, DICOM) in {', '.join(map(str, paths))} or below")
    return Source(tuple(dict.fromkeys(os.path.abspath(file) for file in files)))


def _from_datalist(path: Path, section: str) -> Source:
    # the items keep their places, so a repeated image is predicted as often as it is listed
    files = tuple(str(item["image"]) for item in load_datalist(path, section=section))
    if not files:
        raise DataListError(f"{path}: section {section!r} is empty; name another with --section")
    return Source(files, section, datalist_hash(read_raw(path)))
