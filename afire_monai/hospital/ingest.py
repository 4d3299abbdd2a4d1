"""From DICOM files to a data list: scan, read headers, choose, convert, join labels, split, describe."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import Pool, threads
from afire_monai.core.quiet import hidden
from afire_monai.datalists.file import present_sections, read_raw
from afire_monai.hospital import outputs
from afire_monai.hospital.audit import AUDIT, audited
from afire_monai.hospital.erase import drop_forgotten
from afire_monai.hospital.exclusion import Excluded, read_exclusions
from afire_monai.hospital.forget import refuse_unfinished
from afire_monai.hospital.forgotten import Forgotten
from afire_monai.hospital.identity import INDEX, KEY, PRIVATE, IdentityKey, make_private_folder
from afire_monai.hospital.issuers import Issuers
from afire_monai.hospital.labels import LabelTable
from afire_monai.hospital.outputs import ALLOWED, Options
from afire_monai.hospital.scan import scan
from afire_monai.hospital.sections import SplitRule
from afire_monai.hospital.series_choice import Chooser, Runner
from afire_monai.hospital.state import STATE, State
from afire_monai.hospital.unpack import unpacked

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class IngestSummary:
    """Counts of an ingest; nothing in it identifies anybody.

    ``left_out`` (by reason) and ``kept`` add up to ``seen``; pictures that turned out to be copies count as read.
    """

    out: Path
    seen: int
    kept: int
    patients: int
    left_out: dict[str, int] = field(default_factory=dict)
    sections: dict[str, int] = field(default_factory=dict)
    labels: dict[str, object] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    headers_read: int = 0
    images_read: int = 0

    def lines(self) -> list[str]:
        """Return counts, reasons and remarks as text for a console."""
        lines = [f"seen: {self.seen} files; kept: {self.kept} images of {self.patients} patients"]
        lines += [f"  left out, {reason}: {count}" for reason, count in self.left_out.items()]
        lines += ["sections: " + ", ".join(f"{section} {count}" for section, count in self.sections.items())]
        counts = {name: count for name, count in self.labels.items() if isinstance(count, int)}
        lines += [f"  labels, {name.replace('_', ' ')}: {count}" for name, count in counts.items()]
        return lines + [f"note: {remark}" for remark in self.remarks]


def ingest(
    inputs: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    labels: StrPath | None = None,
    join: str = "accession",
    join_column: str | None = None,
    label_columns: Sequence[str] | None = None,
    labels_column: str | None = None,
    label_separator: str = "|",
    delimiter: str | None = None,
    encoding: str | None = None,
    normal_label: str = "Normal",
    allow: Sequence[str] = (),
    key: StrPath | None = None,
    split: Sequence[float] = (0.7, 0.1, 0.2),
    split_by: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    include_laterals: bool = False,
    max_side: int = 1024,
    window_index: int = 0,
    check_text: bool = False,
    accept_text: bool = False,
    issuers: str = "one",
    exclude: StrPath | None = None,
    name: str = "hospital",
    progress: bool = False,
    seconds_per_file: float = 60.0,
) -> IngestSummary:
    """Make a data list of the frontal chest radiographs among DICOM files, without names, numbers, dates and places.

    Sources are only read. An interrupted run continues where it stopped, and a run over unchanged files (size and time
    of change) reads none of them again. With the same key, options and files the result is the same.

    Args:
        inputs: folders, DICOMDIR files or single DICOM files; a later run must name at least those of earlier runs.
        out: folder to write into (see docs/hospital.md); ``out/private`` stays with the hospital.
        labels: CSV file with labels.
        join: key that joins labels to images: accession, patient, study or file.
        join_column: column of the CSV that holds this key, unless it has a usual name such as AccessionNumber.
        label_columns: columns with one finding each; a cell holds 1, 0, -1 (uncertain) or nothing.
        labels_column: one column with the names of findings, instead of label columns.
        label_separator: separator between these names.
        delimiter: separator between the cells of the CSV: , ; or tab; detected unless given.
        encoding: encoding of the CSV: utf-8, utf-16, cp1252, …; detected unless given.
        normal_label: the finding that means "no finding".
        allow: tags that may go into the data list: any of age (in bands), sex, view, manufacturer_model.
        key: identity key of an earlier folder, so that patients have the same hashes in both; unless given, the key in
            ``out/private``, which is created if needed.
        split: shares of training, validation and test.
        split_by: date:YYYY-MM-DD,YYYY-MM-DD (first days of validation and test) or site, instead of shares.
        seed: seed of the split.
        workers: number of processes that read files; the number of cores, at most 8, unless given. With 0, this process
            reads them, without limits of time and memory for each file.
        include_laterals: keep lateral views as well.
        max_side: longest side of the pictures in pixels; larger ones are averaged down.
        window_index: which DICOM window or VOI LUT to use if a file has several: 0, 1, …
        check_text: leave out pictures that seem to have text near the border.
        accept_text: with check_text, keep these pictures and count them.
        issuers: one: a PatientID is one patient, whoever issued it; separate: the same PatientID of two issuers is two
            patients. Case and blanks of an issuer never count.
        exclude: file of images to leave out: a hash or name of a picture on each line, or a CSV with a column image;
            they stay left out in later runs (private/excluded.csv).
        name: name of the data list.
        progress: show bars with the time left.
        seconds_per_file: seconds after which a file counts as hanging.

    Raises:
        AfireError: if there is nothing to read, no image is kept, an option is wrong, others may read the key, or the
            disk is full.
    """
    sources = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    roots = [Path(os.path.abspath(source)) for source in sources]
    options = Options(
        tuple(allow), SplitRule.parse(split_by, split, seed), include_laterals, max_side, check_text, accept_text,
        name, normal_label, Issuers(issuers).rule, window_index,
    )  # fmt: skip
    processes = threads(workers)
    folder = Path(out)
    _check(roots, options, folder, processes, key)
    table = None
    if labels is not None:
        table = LabelTable(
            Path(labels), join, join_column, label_columns, labels_column, label_separator, normal_label, delimiter,
            encoding,
        )  # fmt: skip
    excluding = (Path(exclude), read_exclusions(Path(exclude))) if exclude is not None else None
    private = make_private_folder(folder)
    with audited(private / AUDIT, "ingest") as entry, State(private) as state:
        identity = _identity(private, key, state)
        _same_roots(state, roots)
        _same_issuers(state, options.issuers)
        forgotten = Forgotten.load(private, identity, options.issuers)
        refuse_unfinished(state, forgotten)
        (folder / outputs.SUMMARY).unlink(missing_ok=True)  # without it, a folder does not count as finished
        before = _groups(folder / outputs.DATALIST)
        with Pool(processes, seconds_per_file) as pool:
            bar = functools.partial(tqdm, unit="file", disable=hidden(progress))
            _find(state, roots, folder, bar)
            chooser = Chooser(state, identity, options, folder, forgotten)
            headers = chooser.read(_runner(pool, bar, "reading"))
            excluded = _excluded(state, identity, private, excluding)
            chosen = chooser.run(_runner(pool, bar, "converting"), excluded)
        state.note_verdicts(chosen.verdicts.items())
        state.save()
        done = outputs.write(state, identity, options, folder, table, [str(root) for root in roots], forgotten)
        drop_forgotten(state, private)
        entry.what = f"{done['seen']} files seen, {done['kept']} images of {done['patients']} patients kept"
        entry.pseudonyms = sorted(_groups(folder / outputs.DATALIST) - before)
        return IngestSummary(folder, **done, headers_read=headers, images_read=chosen.converted)


def _find(state: State, roots: Sequence[Path], out: Path, bar: Callable[..., Iterable[Any]]) -> None:
    """Note all files that are there."""
    for found in bar(unpacked(scan(roots, [out]), out / PRIVATE), desc="scanning"):
        state.note_found(found)
    state.save()
    if state.count() == 0:
        raise AfireError("the given folders contain no file; check the paths")


def _runner(pool: Pool, bar: Callable[..., Iterable[Any]], words: str) -> Runner:
    """Return a function like `Pool.run` that shows a progress bar."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
        return bar(pool.run(function, tasks), total=len(tasks), desc=words) if tasks else ()

    return run


def _check(roots: Sequence[Path], options: Options, out: Path, workers: int, key: StrPath | None) -> None:
    if not roots:
        raise AfireError("nothing to ingest: name a folder of DICOM files, or a DICOMDIR")
    unknown = [tag for tag in options.allow if tag not in ALLOWED]
    if unknown:
        raise AfireError(f"allow names {', '.join(map(repr, unknown))}; {', '.join(ALLOWED)} can be allowed")
    if options.max_side < 32:
        raise AfireError(f"max-side is {options.max_side}; 32 pixels or more are expected")
    if options.window_index < 0:
        raise AfireError(f"window-index is {options.window_index}; 0, 1, … are expected")
    if workers < 0:
        raise AfireError(f"workers is {workers}; 0 or more are expected")
    known = [STATE, KEY] if key is None else [STATE, INDEX]  # if a damaged state was removed, files are read again
    if out.exists() and not any((out / PRIVATE / name).exists() for name in known):
        others = [name for name in os.listdir(out) if name != PRIVATE] if out.is_dir() else [out.name]
        if others:
            raise AfireError(f"{out}: not empty, and not written by `afire ingest`; give another folder with --out")
    real = os.path.realpath(out)
    if any(os.path.realpath(root) == real for root in roots):
        raise AfireError(f"{out} is both read and written; give another folder with --out")


def _identity(private: Path, key: StrPath | None, state: State) -> IdentityKey:
    """The key that this folder is made with; a folder has one key for good."""
    path = private / KEY
    earlier = state.fact("key")
    if key is not None:
        identity = IdentityKey.load(Path(key))
    elif path.exists() or path.is_symlink():
        identity = IdentityKey.load(path)
    elif earlier:
        raise AfireError(
            f"{path} is gone, or the folder was made with --key. Give that key: with another key, all patients would "
            "get new hashes"
        )
    else:
        identity = IdentityKey.make(path)
    if earlier and earlier != identity.fingerprint:
        raise AfireError(f"{private.parent}: made with another key; give that key, or another folder with --out")
    state.set_fact("key", identity.fingerprint)
    state.save()
    return identity


def _groups(datalist: Path) -> set[str]:
    """Patients of a data list; none if there is no list, or none that can be read."""
    try:
        listed = read_raw(datalist)
        return {str(item["group"]) for section in present_sections(listed) for item in listed[section]}
    except (AfireError, KeyError, TypeError):
        return set()


def _excluded(
    state: State, identity: IdentityKey, private: Path, excluding: tuple[Path, dict[str, int]] | None
) -> set[str]:
    """Hashes of images that are or were excluded by hand."""
    excluded = Excluded(private)
    if excluding is not None:
        path, wanted = excluding
        known = {outputs.image_of(identity, entry.header, entry.path) for entry in state.entries()}
        excluded.add(wanted, known, path)
    return excluded.images


def _same_roots(state: State, roots: Sequence[Path]) -> None:
    """Refuse to drop images because a folder was not named again."""
    earlier = [root for root in state.fact("roots").split("\0") if root]
    now = [os.fsencode(root).hex() for root in roots]
    missing = [root for root in earlier if root not in now]
    if missing:
        raise AfireError(
            f"{state.path.parent.parent}: earlier runs read {len(earlier)} folders, of which {len(missing)} are not "
            "named now, so their images would be dropped. Name all of them, or give another folder with --out"
        )
    state.set_fact("roots", "\0".join(now))


def _same_issuers(state: State, issuers: str) -> None:
    """Refuse to name the patients of a folder in another way than before."""
    earlier = state.fact("issuers")
    if earlier and earlier != issuers:
        raise AfireError(
            f"{state.path.parent.parent}: made with --issuers {earlier}, now it is {issuers}, which gives patients "
            "other hashes. Give the same as before, or another folder with --out"
        )
    state.set_fact("issuers", issuers)
