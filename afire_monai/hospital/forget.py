"""Erase one patient from what an ingest wrote, for good, and say which models were trained on a list with them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.files import open_whole, write_rows
from afire_monai.datalists.file import datalist_hash, present_sections, read_raw, save_datalist
from afire_monai.hospital import outputs
from afire_monai.hospital.audit import AUDIT, audited
from afire_monai.hospital.convert import provisional
from afire_monai.hospital.datacard import write_datacard
from afire_monai.hospital.exclusion import Excluded
from afire_monai.hospital.forgotten import Forgotten
from afire_monai.hospital.identity import KEY, NOT_RETRIEVED, PRIVATE, RETRIEVED, UNMATCHED, IdentityKey
from afire_monai.hospital.issuers import Issuers
from afire_monai.hospital.labels import file_keys
from afire_monai.hospital.models_that_saw import Sight, models_that_saw
from afire_monai.hospital.state import KEPT, STATE, State
from afire_monai.radiographs.header import read_header

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class ForgetSummary:
    """What was erased; nothing in it identifies anybody.

    Attributes:
        files: of the patient that were known.
        erased: counts by kind.
        sections: in which the patient's images were.
        before: SHA-256 of the data list that held the patient; "" if none did.
        after: SHA-256 of the data list now; "" if no image is left.
        models: what the model folders that were named have seen.
        already: the patient was erased before.
    """

    files: int = 0
    erased: dict[str, int] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    models: tuple[Sight, ...] = ()
    already: bool = False

    def lines(self) -> list[str]:
        """Return what was done as text for a console."""
        lines = ["this patient was erased before; nothing of theirs is left here"] if self.already else []
        if not self.already:
            where = f" ({', '.join(self.sections)})" if self.sections else ""
            lines = [f"erased: one patient{where}, {self.files} files known"]
            lines += [f"  {name}: {count}" for name, count in self.erased.items()]
        if self.before and self.after:
            lines.append(
                f"data list: changed, so its SHA-256 is another: {self.before[:12]}… was, {self.after[:12]}… is"
            )
        elif self.before:
            lines.append("data list: removed, as it held nobody else")
        return lines + [f"model {sight.folder}: {sight.words()}" for sight in self.models]


@dataclass
class _Found:
    """What is known of the patient; ``others`` are images kept of other patients, ``paths`` all files known."""

    numbers: list[int] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    hashes: set[str] = field(default_factory=set)


def forget(
    patient: str | None = None,
    folder: StrPath = "",
    *,
    hash: str | None = None,
    key: StrPath | None = None,
    model: Sequence[StrPath] = (),
) -> ForgetSummary:
    """Erase one patient from the folder of an ingest, and keep them out of later ones.

    Erased are pictures, the patient's part of every table, of the state and of the contact sheet, and retrieved DICOM
    files. First it is noted (by keyed hashes) that the patient is forgotten; if the command is interrupted after that,
    the same one completes it, and no ingest goes on before. Sources, predictions, results, caches, models and copies
    stay as they are.

    Args:
        patient: PatientID.
        folder: that an ingest wrote.
        hash: of the patient, instead of a PatientID: column group of private/index.csv.
        key: identity key, if the folder was made with one from elsewhere.
        model: folders of trainings or models, to be told which named a data list that held the patient.

    Raises:
        AfireError: the patient is not known, the folder is of something else or in use, or cannot be written. Nothing
            was erased then, or the same command goes on.
    """
    out = Path(folder)
    private = out / PRIVATE
    if bool(patient and patient.strip()) == bool(hash):
        raise AfireError("name one patient: by PatientID, or with --hash by the column group of private/index.csv")
    if not (private / STATE).exists():
        raise AfireError(f"{out}: no folder of `afire ingest` (no {PRIVATE}/{STATE}); give one with --folder")
    with audited(private / AUDIT, "forget") as entry:
        state = State(private, new_run=False)
        try:
            identity = _identity(private, key, state)
            forgotten = Forgotten.load(private, identity, state.fact("issuers") or Issuers().rule)
            found = _find(state, identity, forgotten, patient, hash)
            if found.numbers:
                summary = _erase(state, identity, forgotten, found, out)
            elif (hash and forgotten.group(hash) in forgotten.hashes) or (patient and forgotten.holds_value(patient)):
                state.erase_forgotten()  # an interruption may have left something in its free space
                summary = ForgetSummary(already=True)
            else:
                raise AfireError(
                    f"no file of this patient is known in {out}, so nothing was erased. Blanks around a PatientID do "
                    "not count, capitals do; for --hash take the column group of private/index.csv"
                )
            groups = found.groups or ({hash} if hash else {identity.patient(str(patient))})
            sights = models_that_saw(model, forgotten.lists_of(groups))
            entry.what = f"{summary.files} files, {summary.erased.get('pictures', 0)} pictures"
            entry.pseudonyms = sorted(groups)
            return ForgetSummary(**{**vars(summary), "models": tuple(sights)})
        finally:
            state.close(save=False)


def refuse_unfinished(state: State, forgotten: Forgotten) -> None:
    """Refuse to go on with a folder from which a patient was not wholly erased.

    Raises:
        AfireError: if it holds something of a forgotten patient.
    """
    entries = state.entries(any_run=True) if forgotten.hashes else iter(())
    if any(entry.header is not None and forgotten.holds(entry.header, entry.path) for entry in entries):
        raise AfireError("`afire forget` was interrupted in this folder: give the same command again, then this one")


def drop_forgotten(state: State, private: Path) -> int:
    """Delete retrieved files of forgotten patients and their lines in the state; return the number of files."""
    here = os.path.abspath(private / RETRIEVED)
    forgotten = state.forgotten_paths()
    paths = [path for path in forgotten if os.path.dirname(path) == here]
    for path in paths:
        Path(path).unlink(missing_ok=True)
    if forgotten:
        state.erase_forgotten()
    return len(paths)


def _identity(private: Path, key: StrPath | None, state: State) -> IdentityKey:
    identity = IdentityKey.load(Path(key) if key is not None else private / KEY)
    if identity.fingerprint != state.fact("key"):
        raise AfireError(f"{private.parent}: made with another key; give that one with --key")
    return identity


def _find(state: State, identity: IdentityKey, forgotten: Forgotten, patient: str | None, group: str | None) -> _Found:
    issuers, found = Issuers(forgotten.rule), _Found()
    for entry in state.entries(kept_only=True):
        if entry.header is not None:
            issuers.add(entry.header.patient_id, entry.header.issuer)
    roots = [os.fsdecode(bytes.fromhex(root)) for root in state.fact("roots").split("\0") if root]
    for entry in state.entries(any_run=True):
        header = entry.header
        if header is None:
            continue
        theirs = outputs.group_of(identity, header, entry.path, issuers)
        image = outputs.image_of(identity, header, entry.path)
        found.paths.add(entry.path)
        if theirs != group and (not patient or header.patient_id.strip() != patient.strip()):
            found.others |= {image} if entry.reason == KEPT else set()
            continue
        found.numbers.append(entry.number)
        found.images.add(image)
        found.groups.add(theirs)
        found.uids |= {header.study_uid, header.series_uid, header.sop_uid} - {""}
        found.values |= {header.patient_id.strip(), header.accession, header.study_uid} - {""}
        found.values |= file_keys(entry.path, roots)
        found.hashes |= {forgotten.patient(header, entry.path), forgotten.group(theirs)}
    if len(found.groups) > 1:
        raise AfireError(
            f"{len(found.groups)} patients of different issuers have this PatientID; name one of them with --hash: "
            + ", ".join(sorted(found.groups))
        )
    found.hashes |= {forgotten.value(value) for value in found.values}
    found.images -= found.others  # archives that were made anonymous may give one UID to several patients
    return found


def _erase(state: State, identity: IdentityKey, forgotten: Forgotten, found: _Found, out: Path) -> ForgetSummary:
    private, facts, options = out / PRIVATE, *_ingested(out)
    datalist = read_raw(out / outputs.DATALIST) if (out / outputs.DATALIST).exists() else {}
    held = {
        section: sum(item["group"] in found.groups for item in datalist[section])
        for section in present_sections(datalist)
    }
    known = outputs.collect(state, identity, options).facts
    if any(item["image"] not in known for section in held for item in datalist[section]):
        raise AfireError(f"{out / outputs.DATALIST}: not the list that `afire ingest` wrote; give that command again")
    before = datalist_hash(datalist) if any(held.values()) else ""
    if before:
        earlier = [sha256 for sha256 in state.fact("lists").split() if sha256 != before]
        sections = "+".join(section for section, count in held.items() if count)
        group = forgotten.group(next(iter(found.groups)))
        lists = [(group, before, sections), *((group, sha256, "") for sha256 in earlier)]
        forgotten.lists += [one for one in lists if one not in forgotten.lists]
    forgotten.hashes |= found.hashes
    forgotten.save(private)  # from here on an interruption is completed by the same command
    erased = {
        "pictures": _delete(_pictures(out, found)),
        "retrieved DICOM files": _delete(_unread(forgotten, found, private)),
    }
    state.forget(found.numbers)
    left_out, _ = outputs.write_left_out(state, out)
    kept = outputs.collect(state, identity, options)
    outputs.write_private(state, identity, kept, out)
    erased |= {
        "lines of unmatched labels": _without(private / UNMATCHED, 1, found.values, blank=True),
        "lines of what could not be retrieved": _without(private / NOT_RETRIEVED, 0, found.uids, blank=False),
        "exclusions by hand": _include(private, found.images),
        "entries of the data list": sum(held.values()),
    }
    after = _rewrite_list(state, datalist, found, kept, {**facts, "left_out": left_out}, out)
    erased["retrieved DICOM files"] += drop_forgotten(state, private)
    if not kept.items:
        (out / outputs.SUMMARY).unlink(missing_ok=True)
    counts = {name: count for name, count in erased.items() if count}
    return ForgetSummary(len(found.numbers), counts, tuple(s for s, n in held.items() if n), before, after)


def _ingested(out: Path) -> tuple[dict[str, Any], outputs.Options]:
    """Return what the last ingest came to, and its options as far as they matter here."""
    try:
        facts = json.loads((out / outputs.SUMMARY).read_text(encoding="utf-8"))
        settings = facts["settings"]
        options = outputs.Options(
            tuple(settings["allow"]), include_laterals=settings["include_laterals"], issuers=settings["issuers"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AfireError(
            f"{out}: no finished ingest; give the command of `afire ingest` again, then this one"
        ) from error
    return facts, options


def _pictures(out: Path, found: _Found) -> Iterator[Path]:
    yield from (out / outputs.IMAGES / f"{image}.png" for image in found.images)
    yield from (out / outputs.IMAGES / provisional(number) for number in found.numbers)


def _unread(forgotten: Forgotten, found: _Found, private: Path) -> Iterator[Path]:
    """Retrieved files of the patient that no ingest has read yet."""
    for path in Path(os.path.abspath(private / RETRIEVED)).glob("*.dcm"):
        if str(path) not in found.paths:
            try:
                header = read_header(path)
            except RadiographError:
                continue
            if forgotten.holds(header, str(path)):
                yield path


def _delete(paths: Iterator[Path]) -> int:
    count = 0
    for path in paths:
        count += path.exists()
        path.unlink(missing_ok=True)
    return count


def _without(path: Path, column: int, values: set[str], blank: bool) -> int:
    """Take lines with one of these values in a column out of a table, or blank the value; return how many lines."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    kept, count = [], 0
    for row in rows:
        theirs = len(row) > column and row[column].strip() in values
        count += theirs
        if not theirs:
            kept.append(row)
        elif blank:
            kept.append([*row[:column], "", *row[column + 1 :]])
    if count:
        write_rows(path, kept, private=True)
    return count


def _include(private: Path, images: set[str]) -> int:
    excluded = Excluded(private)
    theirs = excluded.images & images
    excluded.keep(excluded.images - images)
    return len(theirs)


def _rewrite_list(
    state: State, datalist: dict[str, Any], found: _Found, kept: outputs.Kept, facts: dict[str, Any], out: Path
) -> str:
    """Write data list, data card and summary without the patient, and return the SHA-256 of the list."""
    rest = {key: value for key, value in datalist.items() if key not in present_sections(datalist)}
    for section in present_sections(datalist):
        items = [item for item in datalist[section] if item["group"] not in found.groups]
        rest |= {section: items} if items else {}
    if not kept.items:
        for name in (outputs.DATALIST, "datacard.json", "datacard.html"):
            (out / name).unlink(missing_ok=True)
        return ""
    save_datalist(rest, out / outputs.DATALIST)
    write_datacard(kept.card(rest), out)
    outputs.note_list(state, rest)
    facts |= {
        "datalist_sha256": datalist_hash(rest),
        "kept": len(kept.items),
        "patients": len({item["group"] for item in kept.items}),
        "sections": {name: len(rest[name]) for name in present_sections(rest)},
    }
    with open_whole(out / outputs.SUMMARY) as file:
        json.dump(facts, file, indent=1, ensure_ascii=False)
        file.write("\n")
    return datalist_hash(rest)
