"""Which model folders name a data list that held a patient."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError

_KEYS = ("data_sha256", "datalist_sha256")


@dataclass(frozen=True)
class Sight:
    """What the files of a model folder say of the data lists that it was made from.

    Attributes:
        folder: as it was named.
        held: section of each list that held the patient; "" for an earlier list, of which that is not known.
        lists: how many lists it names.
    """

    folder: str
    held: tuple[str, ...]
    lists: int

    def words(self) -> str:
        """Say it in a sentence."""
        sections = "+".join(sorted({section for section in self.held if section}))
        if sections:
            return (
                f"made with a data list that held the patient ({sections}). Weights cannot forget: train again from "
                "the list as it is now, and delete this model"
            )
        if self.held:
            return "made with an earlier data list of this folder, which may have held the patient; not known"
        if self.lists:
            return "names other data lists, none that is known to have held the patient"
        return "names no data list, so it is not known what it saw"


def models_that_saw(folders: Sequence[str | os.PathLike[str]], lists: Mapping[str, str]) -> list[Sight]:
    """Compare the data lists that models name with those that held a patient.

    Read are the JSON files of a folder, of its ``models`` and of the ``models`` of its subfolders: also what an
    encoder was pre-trained on counts, as far as it is named there.

    Args:
        folders: of trainings or models.
        lists: SHA-256 of data lists, with the section that the patient was in ("" if not known).

    Raises:
        AfireError: if one is no folder.
    """
    check_folders(folders)
    return [_sight(Path(folder), lists) for folder in folders]


def check_folders(folders: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse what is no folder.

    Raises:
        AfireError: naming the first.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise AfireError(f"--model {folder}: no such folder; give those of trainings or models")


def _sight(folder: Path, lists: Mapping[str, str]) -> Sight:
    named: set[str] = set()
    for pattern in ("*.json", "models/*.json", "*/models/*.json"):
        for path in folder.glob(pattern):
            try:
                named |= set(_hashes(json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, RecursionError):
                continue
    return Sight(str(folder), tuple(sorted(lists[sha256] for sha256 in named if sha256 in lists)), len(named))


def _hashes(content: Any) -> Iterator[str]:
    """Yield hashes of data lists, however deep."""
    if isinstance(content, dict):
        yield from (str(content[key]) for key in _KEYS if content.get(key))
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _hashes(value)
