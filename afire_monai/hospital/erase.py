"""Find everything that the folder of an ingest holds of one patient, and remove it from each file."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.files import write_object, write_rows
from afire_monai.datalists.file import datalist_hash, present_sections, read_raw, save_datalist
from afire_monai.hospital import outputs
from afire_monai.hospital.convert import provisional
from afire_monai.hospital.datacard import write_datacard
from afire_monai.hospital.exclusion import Excluded
from afire_monai.hospital.forgotten import Forgotten
from afire_monai.hospital.identity import NOT_RETRIEVED, PRIVATE, RETRIEVED, UNMATCHED, UNPACKED, IdentityKey
from afire_monai.hospital.issuers import Issuers
from afire_monai.hospital.labels import file_keys
from afire_monai.hospital.state import KEPT, State
from afire_monai.radiographs.header import read_header


@dataclass
class Traces:
    """A patient's traces in the state of an ingest, and what belongs to others and must stay."""

    numbers: list[int] = field(default_factory=list)  #: numbers of the patient's files in the state
    images: set[str] = field(default_factory=set)  #: hashes of the patient's images
    groups: set[str] = field(default_factory=set)  #: hash of the patient, a single one
    others: set[str] = field(default_factory=set)  #: hashes of kept images of other patients
    paths: set[str] = field(default_factory=set)  #: paths of all known files, of any patient
    values: set[str] = field(default_factory=set)  #: values that join labels to the patient's images
    uids: set[str] = field(default_factory=set)  #: UIDs of the patient's studies, series and instances
    hashes: set[str] = field(default_factory=set)  #: hashes by which the patient is recognised, see `Forgotten`
    names: set[str] = field(default_factory=set)  #: those of the names that a person may give: hash and PatientID


@dataclass(frozen=True)
class Erased:
    """Counts of erased files and entries."""

    files: int = 0  #: number of known files of the patient
    counts: dict[str, int] = field(default_factory=dict)  #: number of erased files and entries by kind
    sections: tuple[str, ...] = ()  #: sections that held the patient's images
    before: str = ""  #: SHA-256 of the data list that held the patient; "" if none did
    after: str = ""  #: SHA-256 of the data list now; "" if no image is left


def drop_forgotten(state: State, private: Path) -> int:
    """Delete copies of files of forgotten patients and their lines in the state; return the number of files."""
    forgotten = state.forgotten_paths()
    folders = [os.path.abspath(private / name) for name in (RETRIEVED, UNPACKED)]
    paths = [Path(path) for path in forgotten if any(path.startswith(folder + os.sep) for folder in folders)]
    for path in paths:
        path.unlink(missing_ok=True)
        depth = len(path.relative_to(os.path.abspath(private)).parts)
        for folder in path.parents[: max(0, depth - 3)]:  # below private/unpacked/KEY; names may identify the patient
            with contextlib.suppress(OSError):  # the folder holds another file
                folder.rmdir()
    if forgotten:
        state.erase_forgotten()
    return len(paths)


def find_traces(
    state: State, identity: IdentityKey, forgotten: Forgotten, patient: str | None, group: str | None
) -> Traces:
    """Find all traces of a patient, by PatientID or by hash.

    Raises AfireError for a PatientID that several patients of different issuers have.
    """
    issuers, found = Issuers(forgotten.rule), Traces()
    for entry in state.entries(kept_only=True):
        issuers.add(entry.header.patient_id, entry.header.issuer)
    roots = [os.fsdecode(bytes.fromhex(root)) for root in state.fact("roots").split("\0") if root]
    for entry in state.entries(any_run=True):
        header = entry.header
        owner = outputs.group_of(identity, header, entry.path, issuers)
        image = outputs.image_of(identity, header, entry.path)
        found.paths.add(entry.path)
        if owner != group and (not patient or header.patient_id.strip() != patient.strip()):
            found.others |= {image} if entry.reason == KEPT else set()
            continue
        found.numbers.append(entry.number)
        found.images.add(image)
        found.groups.add(owner)
        found.uids |= {header.study_uid, header.series_uid, header.sop_uid} - {""}
        found.values |= {header.patient_id.strip(), header.accession, header.study_uid} - {""}
        found.values |= file_keys(entry.path, roots)
        found.hashes.add(forgotten.patient(header, entry.path))
        found.names |= forgotten.names({owner}, header.patient_id)
    if len(found.groups) > 1:
        raise AfireError(
            f"{len(found.groups)} patients of different issuers have this PatientID; name one of them with --hash: "
            + ", ".join(sorted(found.groups))
        )
    found.hashes |= found.names | {forgotten.value(value) for value in found.values}
    found.images -= found.others  # anonymised archives may give one UID to several patients
    return found


def erase(state: State, identity: IdentityKey, forgotten: Forgotten, found: Traces, out: Path) -> Erased:
    """Note that a patient is forgotten, then take them out of all files.

    Raises AfireError, before anything is changed, if the folder is not that of a finished ingest.
    """
    private, facts, options = out / PRIVATE, *_ingested(out)
    datalist = read_raw(out / outputs.DATALIST) if (out / outputs.DATALIST).exists() else {}
    kept = outputs.collect(state, identity, options)
    try:
        held = {
            section: sum(item["group"] in found.groups for item in datalist[section])
            for section in present_sections(datalist)
        }
        changed = any(item["image"] not in kept.facts for section in held for item in datalist[section])
        changed |= not held and any(item["group"] not in found.groups for item in kept.items)
    except (KeyError, TypeError):
        changed = True
    if changed:
        raise AfireError(f"{out / outputs.DATALIST}: not the list that `afire ingest` wrote; run that command again")
    current, sections = datalist_hash(datalist), "+".join(section for section, count in held.items() if count)
    before = current if sections else ""
    lists = [(before, sections)] if before else []
    lists += [(sha256, "") for sha256 in state.fact("lists").split() if sha256 != current]
    noted = {one[:2] for one in forgotten.lists}
    forgotten.lists += [(name, *one) for name in sorted(found.names) for one in lists if (name, one[0]) not in noted]
    forgotten.hashes |= found.hashes
    forgotten.save(private)  # from here on, the same command completes an interrupted erasure
    erased = {
        "pictures": _delete(_pictures(out, found)),
        "copies of DICOM files": _delete(_unread(forgotten, found, private)),
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
    erased["copies of DICOM files"] += drop_forgotten(state, private)
    if not kept.items:
        (out / outputs.SUMMARY).unlink(missing_ok=True)
    counts = {name: count for name, count in erased.items() if count}
    return Erased(len(found.numbers), counts, tuple(s for s, n in held.items() if n), before, after)


def _ingested(out: Path) -> tuple[dict[str, Any], outputs.Options]:
    """Return the summary of the last ingest, and those of its options that matter here."""
    try:
        facts = json.loads((out / outputs.SUMMARY).read_text(encoding="utf-8"))
        settings = facts["settings"]
        options = outputs.Options(
            tuple(settings["allow"]), include_laterals=settings["include_laterals"], issuers=settings["issuers"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AfireError(f"{out}: no finished ingest; run `afire ingest` again, then this command") from error
    return facts, options


def _pictures(out: Path, found: Traces) -> Iterator[Path]:
    yield from (out / outputs.IMAGES / f"{image}.png" for image in found.images)
    yield from (out / outputs.IMAGES / provisional(number) for number in found.numbers)


def _unread(forgotten: Forgotten, found: Traces, private: Path) -> Iterator[Path]:
    """Retrieved and unpacked files of the patient that no ingest has read yet."""
    here = Path(os.path.abspath(private))
    unpacked = (path for path in (here / UNPACKED).rglob("*") if path.is_file())
    for path in itertools.chain((here / RETRIEVED).glob("*.dcm"), unpacked):
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
        of_patient = len(row) > column and row[column].strip() in values
        count += of_patient
        if not of_patient:
            kept.append(row)
        elif blank:
            kept.append([*row[:column], "", *row[column + 1 :]])
    if count:
        write_rows(path, kept, private=True)
    return count


def _include(private: Path, images: set[str]) -> int:
    excluded = Excluded(private)
    removed = excluded.images & images
    excluded.keep(excluded.images - images)
    return len(removed)


def _rewrite_list(
    state: State, datalist: dict[str, Any], found: Traces, kept: outputs.Kept, facts: dict[str, Any], out: Path
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
    write_object(out / outputs.SUMMARY, facts)
    return datalist_hash(rest)
