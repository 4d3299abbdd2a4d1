"""Write the output of an ingest: data list, data card, left-out files, and the private index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_object, write_rows
from afire_monai.datalists.file import SECTIONS, datalist_hash, save_datalist
from afire_monai.hospital.contact_sheet import SHEET, sheets, write_contact_sheet
from afire_monai.hospital.convert import BINS, Converted
from afire_monai.hospital.datacard import age_band, age_in_band, describe, write_datacard
from afire_monai.hospital.forgotten import FORGOTTEN, Forgotten
from afire_monai.hospital.identity import INDEX, LEFT_OUT, PRIVATE, UNMATCHED, IdentityKey
from afire_monai.hospital.issuers import ONE, Issuers
from afire_monai.hospital.labels import JoinedLabels, LabelTable, Subject, join_labels
from afire_monai.hospital.sections import SplitRule, assign_sections
from afire_monai.hospital.state import KEPT, State
from afire_monai.radiographs.header import Header
from afire_monai.radiographs.judgement import judge

ALLOWED = ("age", "sex", "view", "manufacturer_model")
IMAGES, DATALIST, SUMMARY = "images", "datalist.json", "ingest.json"
_MOST_LINES = 1000


@dataclass(frozen=True)
class Options:
    """Options that the result depends on besides files, labels and key; see `ingest.ingest`."""

    allow: tuple[str, ...] = ()
    split: SplitRule = field(default_factory=SplitRule)
    include_laterals: bool = False
    max_side: int = 1024
    check_text: bool = False
    accept_text: bool = False
    name: str = "hospital"
    normal_label: str = "Normal"
    issuers: str = ONE
    window_index: int = 0


@dataclass
class Kept:
    """Facts about the images that are kept, in the order of their paths."""

    items: list[dict[str, Any]] = field(default_factory=list)
    days: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    histogram: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(BINS))
    counts: Counter[str] = field(default_factory=Counter)
    issuers: Issuers = field(default_factory=Issuers)
    looked_at: list[tuple[float, str]] = field(default_factory=list)

    def card(self, datalist: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of the data card."""
        return describe(datalist, self.facts, (self.histogram / len(self.items)).tolist())


def image_of(identity: IdentityKey, header: Header, path: str) -> str:
    """Hash of an image: of its SOPInstanceUID, else of its path."""
    return identity.image(header.sop_uid or f"file {path}")


def group_of(identity: IdentityKey, header: Header, path: str, issuers: Issuers) -> str:
    """Hash of a patient; files without PatientID are kept together by study, without study each by itself."""
    if header.patient_id:
        return identity.patient(header.patient_id, issuers.of(header.patient_id, header.issuer))
    return identity.study(header.study_uid) if header.study_uid else image_of(identity, header, path)


def write(
    state: State,
    identity: IdentityKey,
    options: Options,
    out: Path,
    table: LabelTable | None,
    roots: Sequence[str],
    forgotten: Forgotten,
) -> dict[str, Any]:
    """Write all files of a finished ingest, the summary last.

    Raises AfireError if no image is kept or a file cannot be written.
    """
    left_out, seen = write_left_out(state, out)
    kept = collect(state, identity, options)
    if not kept.items:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.items())
        raise AfireError(f"none of {seen} files is a frontal chest radiograph that can be used ({reasons})")
    joined = _join(state, identity, kept.issuers, table, roots, out, forgotten) if table is not None else None
    datalist = _datalist(kept, joined, options)
    save_datalist(datalist, out / DATALIST)
    write_private(state, identity, kept, out)
    write_datacard(kept.card(datalist), out)
    note_list(state, datalist)
    done: dict[str, Any] = {
        "seen": seen,
        "kept": len(kept.items),
        "patients": len({item["group"] for item in kept.items}),
        "left_out": left_out,
        "sections": {name: len(datalist[name]) for name in SECTIONS if name in datalist},
        "labels": _label_figures(joined) if joined is not None else {},
        "remarks": tuple(_remarks(kept, joined, options, datalist, out)),
    }
    settings = {
        "allow": list(options.allow), "split_by": options.split.by, "split": list(options.split.shares),
        "seed": options.split.seed, "include_laterals": options.include_laterals, "max_side": options.max_side,
        "check_text": options.check_text, "accept_text": options.accept_text, "issuers": options.issuers,
        "window_index": options.window_index,
    }  # fmt: skip
    facts = {"afire_monai": __version__, "datalist_sha256": datalist_hash(datalist),
             "key_fingerprint": identity.fingerprint, "settings": settings}  # fmt: skip
    write_object(out / SUMMARY, {**facts, **done})
    return done


def write_left_out(state: State, out: Path) -> tuple[dict[str, int], int]:
    """Write both tables of files left out; return counts by reason, most frequent first, and of all files seen."""
    reasons: Counter[str] = Counter()

    def rows(private: bool) -> Iterator[Sequence[Any]]:
        yield ["number", "reason", *(["file", "detail"] if private else [])]
        for number, (path, reason, detail) in enumerate(state.reasons(), start=1):
            reasons[reason] += not private
            if reason != KEPT:
                named = [path, detail] if reason != FORGOTTEN else ["", ""]
                yield [number, reason, *(named if private else [])]

    write_rows(out / LEFT_OUT, rows(False))
    write_rows(out / PRIVATE / LEFT_OUT, rows(True), private=True)
    seen = reasons.total()
    del reasons[KEPT]
    return dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))), seen


def collect(state: State, identity: IdentityKey, options: Options) -> Kept:
    """Return the facts about the images that are kept."""
    kept = Kept(issuers=Issuers(options.issuers))
    for entry in state.entries(kept_only=True):
        kept.issuers.add(entry.header.patient_id, entry.header.issuer)
    for entry in state.entries(kept_only=True):
        header = entry.header
        image = f"{IMAGES}/{image_of(identity, header, entry.path)}.png"
        verdict = judge(header, options.include_laterals)
        item: dict[str, Any] = {"image": image, "group": group_of(identity, header, entry.path, kept.issuers)}
        item |= _allowed_facts(header, verdict.view, options.allow)
        kept.items.append(item)
        kept.days.append(header.date)
        site = header.institution or header.station
        kept.sites.append(identity.site(site) if site else "")
        facts = {"view": verdict.view, "sex": header.sex, "age": age_band(header.age)}
        if "manufacturer_model" in options.allow:
            facts["manufacturer_model"] = _model(header)
        kept.facts[image] = facts
        if isinstance(entry.result, Converted):
            kept.histogram += entry.result.histogram
            kept.counts["text seen"] += entry.result.letters > 0
            if verdict.needs_look:
                kept.looked_at.append((entry.result.look, Path(image).stem))
        kept.counts["no burned-in statement"] += not header.burned_in
        kept.counts["no patient id"] += not header.patient_id
    return kept


def _allowed_facts(header: Header, view: str, allow: Sequence[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "sex": header.sex or None,
        "age": age_in_band(header.age),
        "view": view or None,
        "manufacturer_model": _model(header) or None,
    }
    return {name: value for name, value in facts.items() if name in allow and value is not None}


def _model(header: Header) -> str:
    return " ".join(text for text in (header.maker, header.model) if text)


def _join(
    state: State,
    identity: IdentityKey,
    issuers: Issuers,
    table: LabelTable,
    roots: Sequence[str],
    out: Path,
    forgotten: Forgotten,
) -> JoinedLabels:
    def subject(header: Header, path: str, kept: bool) -> Subject:
        group = group_of(identity, header, path, issuers) if header.patient_id else ""
        return Subject(image_of(identity, header, path) if kept else "", header, path, group)

    subjects = (subject(entry.header, entry.path, entry.reason == KEPT) for entry in state.entries())
    detail: list[tuple[int, str]] = []
    joined = join_labels(table, subjects, roots, detail)
    rows = [(line, "" if forgotten.holds_value(value) else value) for line, value in sorted(detail)]
    write_rows(out / PRIVATE / UNMATCHED, [("line", "value"), *rows], private=True)
    if not joined.by_image:
        raise AfireError(
            f"{table.path}: none of its {joined.rows} lines belongs to an image that is kept. Look at --join and "
            f"--join-column; {out / PRIVATE / UNMATCHED} lists what was looked for"
        )
    return joined


def _datalist(kept: Kept, joined: JoinedLabels | None, options: Options) -> dict[str, Any]:
    strata = []
    for item in kept.items:
        present: list[str] = []
        if joined:
            item["label"] = list(joined.by_image.get(Path(item["image"]).stem) or [None] * len(joined.names))
            present = [name for name, value in zip(joined.names, item["label"], strict=True) if value == 1]
        strata.append("|".join(sorted(present)))
    groups = [item["group"] for item in kept.items]
    sections = assign_sections(options.split, groups, strata, kept.days, kept.sites)
    datalist: dict[str, Any] = {"name": options.name}
    if joined:
        datalist["labels"] = list(joined.names)
    split = {"fractions": list(options.split.shares)} if options.split.by != "date" else {}
    datalist["meta"] = {
        "source": "afire ingest", "split_by": options.split.by, **split, "seed": options.split.seed,
        "normal_label": options.normal_label, "max_side": options.max_side,
    }  # fmt: skip
    for number, name in enumerate(SECTIONS):
        items = [item for item, section in zip(kept.items, sections, strict=True) if section == number]
        if items:
            datalist[name] = sorted(items, key=lambda item: item["image"])  # the order of paths could identify patients
    return datalist


def write_private(state: State, identity: IdentityKey, kept: Kept, out: Path) -> None:
    """Write which file each image is and what decided on it, and a sheet of those decided by their look."""
    looked_at = {image for _, image in kept.looked_at}

    def rows() -> Iterator[Sequence[Any]]:
        yield ("image", "group", "file", "study_uid", "series_uid", "sop_uid", "rests_on")
        for entry in state.entries(kept_only=True):
            header = entry.header
            image = image_of(identity, header, entry.path)
            group = group_of(identity, header, entry.path, kept.issuers)
            rests_on = "look" if image in looked_at else "tags"
            yield (image, group, entry.path, header.study_uid, header.series_uid, header.sop_uid, rests_on)

    write_rows(out / PRIVATE / INDEX, rows(), private=True)
    write_contact_sheet(out / PRIVATE, out / IMAGES, [image for _, image in sorted(kept.looked_at)])


def note_list(state: State, datalist: dict[str, Any]) -> None:
    """Note the SHA-256 of a data list in the state, behind those before it; the last thousand stay."""
    lists = [sha256 for sha256 in state.fact("lists").split() if sha256 != datalist_hash(datalist)]
    state.set_fact("lists", " ".join([*lists, datalist_hash(datalist)][-1000:]))


def _label_figures(joined: JoinedLabels) -> dict[str, Any]:
    figures: dict[str, Any] = {"lines": joined.rows, "images_without_label": joined.without}
    parts = {"matched": joined.matched, "of_images_left_out": joined.left_out, "unmatched": joined.unmatched,
             "contradicting": joined.contradicting, "ambiguous": joined.ambiguous}  # fmt: skip
    for name, lines in parts.items():
        figures[name] = len(lines)
        if name != "matched" and lines:
            figures[f"{name}_lines"] = lines[:_MOST_LINES]
    return figures


def _remarks(
    kept: Kept, joined: JoinedLabels | None, options: Options, datalist: Mapping[str, Any], out: Path
) -> Iterator[str]:
    counts = kept.counts
    if counts["no burned-in statement"]:
        yield (
            f"{counts['no burned-in statement']} images do not state whether text is burned into their pixels: look at "
            "some, or use --check-text"
        )
    if counts["text seen"]:
        yield f"text was seen near the border of {counts['text seen']} images that were kept with --accept-text"
    if kept.looked_at:
        pages = len(sheets(out / PRIVATE))
        yield (
            f"the tags of {len(kept.looked_at)} images name no body part or no view: they rest on their look alone, "
            f"which can be wrong. Look through private/{SHEET}{f' ({pages} pages)' * (pages > 1)}, and leave out what "
            "is not a frontal chest radiograph with --exclude FILE"
        )
    if counts["no patient id"]:
        yield f"{counts['no patient id']} images have no PatientID; those of one study count as one patient's"
    yield from kept.issuers.remarks()
    if joined is not None and joined.without:
        yield f"{joined.without} images have no label"
    rule = options.split
    by_shares = tuple(share > 0 for share in rule.shares)
    wanted = {"date": (True, len(rule.cuts) == 2, True), "site": (*by_shares[:2], True)}.get(rule.by, by_shares)
    missing = [name for name, expected in zip(SECTIONS, wanted, strict=True) if expected and name not in datalist]
    if missing:
        yield f"no image for {', '.join(missing)}: too few patients, or other dates are needed"
