"""Erase one patient permanently from the output of an ingest, and name the models trained with that patient."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.hospital.audit import AUDIT, audited
from afire_monai.hospital.erase import Erased, erase, find_traces
from afire_monai.hospital.forgotten import Forgotten
from afire_monai.hospital.identity import KEY, PRIVATE, IdentityKey
from afire_monai.hospital.issuers import Issuers
from afire_monai.hospital.state import STATE, State

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class ForgetSummary:
    """Counts of an erasure; nothing in it identifies anybody."""

    erased: Erased = field(default_factory=Erased)
    models: tuple[Sight, ...] = ()
    already: bool = False

    def lines(self) -> list[str]:
        """Return the summary as text for a console."""
        done = self.erased
        if self.already:
            lines = ["this patient was erased before; nothing of theirs is left here"]
        else:
            where = f" ({', '.join(done.sections)})" if done.sections else ""
            lines = [f"erased:    one patient{where}"]
            lines += [f"  {name}: {count}" for name, count in {"files known": done.files, **done.counts}.items()]
        if done.before and done.after:
            lines.append(f"data list: changed; its SHA-256 was {done.before[:12]}… and is {done.after[:12]}…")
        elif done.before:
            lines.append("data list: removed, as it held nobody else")
        return lines + [f"model:     {sight.folder}: {sight.words()}" for sight in self.models]


def forget(
    patient: str | None = None,
    folder: StrPath = "",
    *,
    hash: str | None = None,
    key: StrPath | None = None,
    model: Sequence[StrPath] = (),
) -> ForgetSummary:
    """Erase one patient from the folder of an ingest, and keep them out of later ones.

    This erases the patient's pictures and retrieved DICOM files, and the patient's part of every table, of the state
    and of the contact sheet. First the command notes, by keyed hashes, that the patient is forgotten. If it is
    interrupted after that, the same command completes the erasure, and no ingest runs before that. Sources,
    predictions, results, caches, models and copies stay as they are.

    Args:
        patient: PatientID of the patient.
        folder: folder that an ingest wrote.
        hash: hash of the patient, instead of a PatientID; it is in the column group of private/index.csv.
        key: identity key, if the folder was made with a key from elsewhere.
        model: folders of trainings or models; those that name a data list with the patient are reported.

    Raises:
        AfireError: if the patient is not known, or the folder is not that of an ingest, is in use or cannot be written.
            Then nothing was erased, or the same command completes the erasure.
    """
    out = Path(folder)
    private = out / PRIVATE
    if bool(patient and patient.strip()) == bool(hash):
        raise AfireError("name one patient: by PatientID, or with --hash by the column group of private/index.csv")
    if not (private / STATE).exists():
        raise AfireError(f"{out}: no folder of `afire ingest` (no {PRIVATE}/{STATE}); give one with --folder")
    check_folders(model)
    with audited(private / AUDIT, "forget") as entry, State(private, new_run=False) as state:
        identity = _identity(private, key, state)
        forgotten = Forgotten.load(private, identity, state.fact("issuers") or Issuers().rule)
        traces = find_traces(state, identity, forgotten, patient, hash)
        groups = traces.groups or ({hash} if hash else {identity.patient(str(patient))})
        names = forgotten.names(groups, patient)
        if not traces.numbers and not names & forgotten.hashes:
            raise AfireError(
                f"no file of this patient is known in {out}, so nothing was erased. Spaces around a PatientID are "
                "ignored, but case matters; for --hash take the column group of private/index.csv"
            )
        if traces.numbers:
            erased = erase(state, identity, forgotten, traces, out)
        else:
            erased = Erased()
            state.erase_forgotten()  # after an interruption, erased values may remain in its free space
        sights = models_that_saw(model, forgotten.lists_of(names))
        entry.what = f"files known: {erased.files}, pictures erased: {erased.counts.get('pictures', 0)}"
        entry.pseudonyms = sorted(groups)
        return ForgetSummary(erased, tuple(sights), already=not traces.numbers)


def refuse_unfinished(state: State, forgotten: Forgotten) -> None:
    """Refuse a folder from which a patient was not completely erased."""
    entries = state.entries(any_run=True) if forgotten.hashes else iter(())
    if any(forgotten.holds(entry.header, entry.path) for entry in entries):
        raise AfireError("`afire forget` was interrupted in this folder: run that command again, then this one")


def _identity(private: Path, key: StrPath | None, state: State) -> IdentityKey:
    identity = IdentityKey.load(Path(key) if key is not None else private / KEY)
    if identity.fingerprint != state.fact("key"):
        raise AfireError(f"{private.parent}: made with another key; give that key with --key")
    return identity


_KEYS = ("data_sha256", "datalist_sha256")


@dataclass(frozen=True)
class Sight:
    """The data lists that a model folder was made from, according to its files."""

    folder: str  #: folder as the caller named it
    #: section of each list that held the patient; "" for an earlier list that may have held the patient
    held: tuple[str, ...]
    lists: int  #: number of lists that its files name

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


def models_that_saw(folders: Sequence[StrPath], lists: Mapping[str, str]) -> list[Sight]:
    """Compare the data lists that models name with those that held a patient.

    This reads the JSON files of a folder, of its ``models`` and of the ``models`` of its subfolders. The data lists of
    an encoder's pre-training count too, if these files name them.

    Args:
        folders: folders of trainings or models.
        lists: SHA-256 of data lists, with the section that the patient was in ("" if not known).

    Raises:
        AfireError: if a path is not a folder.
    """
    check_folders(folders)
    return [_sight(Path(folder), lists) for folder in folders]


def check_folders(folders: Sequence[StrPath]) -> None:
    """Refuse paths that are not folders."""
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
