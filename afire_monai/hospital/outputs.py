"""What an ingest writes when all is chosen: data list, data card, what was left out, and the private index."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from afire_monai import __version__
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import open_whole, write_rows
from afire_monai.datalists.file import SECTIONS, datalist_hash, save_datalist
from afire_monai.datalists.splits import split_by_group
from afire_monai.hospital.convert import BINS, Converted
from afire_monai.hospital.datacard import age_band, age_in_band, describe, write_datacard
from afire_monai.hospital.identity import INDEX, LEFT_OUT, PRIVATE, UNMATCHED, IdentityKey
from afire_monai.hospital.issuers import ONE, Issuers
from afire_monai.hospital.labels import JoinedLabels, LabelTable, Subject, join_labels
from afire_monai.hospital.state import KEPT, Entry, State
from afire_monai.radiographs.header import Header
from afire_monai.radiographs.judgement import judge

TRAINING, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class SplitRule:
    """How to split.

    Attributes:
        by: "shares", "date" or "site".
        shares: of training, validation and test.
        cuts: with "date": YYYYMMDD of the first day of validation (if there are two) and of test.
        seed: of what is drawn.
    """

    by: str = "shares"
    shares: tuple[float, ...] = (0.7, 0.1, 0.2)
    cuts: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, split_by: str | None, shares: Sequence[float], seed: int) -> SplitRule:
        """Build a rule from the words of a command line: None, ``date:YYYY-MM-DD[,YYYY-MM-DD]`` or ``site``.

        Raises:
            DataListError: for anything else, or shares that are not three that sum to 1.
        """
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise DataListError(
                f"split is {','.join(f'{s:g}' for s in shares)}; three shares from 0 to 1 that sum to 1 are expected: "
                "training, validation, test"
            )
        plain = tuple(float(share) for share in shares)
        if split_by is None:
            return cls("shares", plain, (), seed)
        kind, _, rest = split_by.partition(":")
        if split_by == "site":
            return cls("site", plain, (), seed)
        if kind != "date":
            raise DataListError(f"split-by is {split_by!r}; date:YYYY-MM-DD,YYYY-MM-DD or site is expected")
        try:
            cuts = tuple(date.fromisoformat(text.strip()).strftime("%Y%m%d") for text in rest.split(","))
        except ValueError:
            cuts = ()
        if len(cuts) not in (1, 2) or list(cuts) != sorted(set(cuts)):
            raise DataListError(
                f"split-by is {split_by!r}; date:FIRST or date:FIRST,SECOND with days as YYYY-MM-DD, the earlier one "
                "first, is expected"
            )
        return cls("date", plain, cuts, seed)

    def missing(self, day: str, site: str) -> bool:
        """Whether an image lacks what this rule splits by."""
        return (self.by == "date" and not day) or (self.by == "site" and not site)


def assign_sections(
    rule: SplitRule, groups: Sequence[str], strata: Sequence[str], days: Sequence[str], sites: Sequence[str]
) -> list[int]:
    """Return the section of each of n images; all images of a patient are in one.

    - shares: patients are dealt out, stratified and seeded (`split_by_group`).
    - date: a patient's *latest* image decides. So no training image is of the first day of validation or later, and
      some images of later sections are older.
    - site: the site with most images is for training and validation (by their shares), all others are the test set. A
      patient seen at both kinds is in the test set, so nothing of another site is trained on.

    Args:
        rule: how.
        groups: patient of each image.
        strata: what the shares are kept in, of each image.
        days: YYYYMMDD of each image.
        sites: hash of the site of each image.

    Raises:
        DataListError: nothing is left for training, or there is one site only.
    """
    if rule.by == "shares":
        return [int(part) for part in split_by_group(groups, strata, rule.shares, rule.seed)]
    if rule.by == "date":
        parts = (TEST,) if len(rule.cuts) == 1 else (VALIDATION, TEST)
        latest = _of_patient(groups, days, max)
        sections = [max((p for p, cut in zip(parts, rule.cuts, strict=True) if latest[g] >= cut), default=TRAINING) for g in groups]  # fmt: skip  # noqa: E501
    else:
        sections = _by_site(rule, groups, strata, sites)
    if sections and TRAINING not in sections:
        raise DataListError("no patient is left for training; split by other dates, or by shares")
    return sections


def _by_site(rule: SplitRule, groups: Sequence[str], strata: Sequence[str], sites: Sequence[str]) -> list[int]:
    counts = Counter(sites)
    if len(counts) < 2:
        raise DataListError(f"{len(counts)} site in the files; two or more are needed to split by site")
    home = min(counts, key=lambda site: (-counts[site], site))
    outside = {group for group, site in zip(groups, sites, strict=True) if site != home}
    inside = [place for place, group in enumerate(groups) if group not in outside]
    total = rule.shares[TRAINING] + rule.shares[VALIDATION]
    shares = (rule.shares[TRAINING] / total, rule.shares[VALIDATION] / total) if total > 0 else (1.0, 0.0)
    parts = split_by_group([groups[i] for i in inside], [strata[i] for i in inside], shares, rule.seed)
    sections = [TEST] * len(groups)
    for place, part in zip(inside, parts, strict=True):
        sections[place] = int(part)
    return sections


def _of_patient(groups: Sequence[str], values: Sequence[str], choose: Callable[[list[str]], str]) -> dict[str, str]:
    collected: dict[str, list[str]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        collected[group].append(value)
    return {group: choose(found) for group, found in collected.items()}


ALLOWED = ("age", "sex", "view", "manufacturer_model")
IMAGES, DATALIST, SUMMARY = "images", "datalist.json", "ingest.json"
_MOST_LINES = 1000


@dataclass(frozen=True)
class Options:
    """What the result depends on besides files, labels and key; see `ingest.ingest`."""

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
class _Kept:
    """What is known of the images that are kept, in the order of their paths."""

    items: list[dict[str, Any]] = field(default_factory=list)
    days: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    histogram: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(BINS))
    counts: Counter[str] = field(default_factory=Counter)
    issuers: Issuers = field(default_factory=Issuers)


def image_of(identity: IdentityKey, header: Header, path: str) -> str:
    """Hash of an image: of its SOPInstanceUID, else of its path."""
    return identity.image(header.sop_uid or f"file {path}")


def group_of(identity: IdentityKey, header: Header, path: str, issuers: Issuers) -> str:
    """Hash of a patient; files without PatientID are kept together by study, without study each by itself."""
    if header.patient_id:
        return identity.patient(header.patient_id, issuers.of(header.patient_id, header.issuer))
    return identity.study(header.study_uid) if header.study_uid else image_of(identity, header, path)


def write(
    state: State, identity: IdentityKey, options: Options, out: Path, table: LabelTable | None, roots: Sequence[str]
) -> dict[str, Any]:
    """Write all files of a finished ingest, the summary last.

    Args:
        state: files with their verdicts.
        identity: names patients and images.
        options: of the ingest.
        out: folder.
        table: of labels; None without.
        roots: folders that were named.

    Returns:
        The fields of an `IngestSummary` that this knows.

    Raises:
        AfireError: no image is kept, or a file cannot be written.
    """
    left_out, seen = _write_left_out(state, out)
    kept = _collect(state, identity, options)
    if not kept.items:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in left_out.items())
        raise AfireError(f"none of {seen} files is a frontal chest radiograph that can be used ({reasons})")
    joined = _join(state, identity, table, roots, out) if table is not None else None
    datalist = _datalist(kept, joined, options)
    save_datalist(datalist, out / DATALIST)
    _write_index(state, identity, out, kept.issuers)
    write_datacard(describe(datalist, kept.facts, (kept.histogram / len(kept.items)).tolist()), out)
    done: dict[str, Any] = {
        "seen": seen,
        "kept": len(kept.items),
        "patients": len({item["group"] for item in kept.items}),
        "left_out": left_out,
        "sections": {name: len(datalist[name]) for name in SECTIONS if name in datalist},
        "labels": _label_figures(joined) if joined is not None else {},
        "remarks": tuple(_remarks(kept, joined, options, datalist)),
    }
    with open_whole(out / SUMMARY) as file:
        settings = {
            "allow": list(options.allow), "split_by": options.split.by, "split": list(options.split.shares),
            "seed": options.split.seed, "include_laterals": options.include_laterals, "max_side": options.max_side,
            "check_text": options.check_text, "accept_text": options.accept_text, "issuers": options.issuers,
            "window_index": options.window_index,
        }  # fmt: skip
        facts = {"afire_monai": __version__, "datalist_sha256": datalist_hash(datalist),
                 "key_fingerprint": identity.fingerprint, "settings": settings}  # fmt: skip
        json.dump({**facts, **done}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    return done


def _write_left_out(state: State, out: Path) -> tuple[dict[str, int], int]:
    """Write both tables of what was left out; also the files by reason, most frequent first, and their number."""
    reasons: Counter[str] = Counter()

    def rows(private: bool) -> Iterator[Sequence[Any]]:
        yield ["number", "reason", *(["file", "detail"] if private else [])]
        for number, (path, reason, detail) in enumerate(state.reasons(), start=1):
            reasons[reason] += not private
            if reason != KEPT:
                yield [number, reason, *([path, detail] if private else [])]

    write_rows(out / LEFT_OUT, rows(False))
    write_rows(out / PRIVATE / LEFT_OUT, rows(True), private=True)
    seen = reasons.total()
    del reasons[KEPT]
    return dict(sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))), seen


def _collect(state: State, identity: IdentityKey, options: Options) -> _Kept:
    kept = _Kept(issuers=Issuers(options.issuers))
    for _, header in _kept_entries(state):
        kept.issuers.add(header.patient_id, header.issuer)
    for entry, header in _kept_entries(state):
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
        kept.counts["no burned-in statement"] += not header.burned_in
        kept.counts["not stated"] += not verdict.stated
        kept.counts["no patient id"] += not header.patient_id
    return kept


def _kept_entries(state: State) -> Iterator[tuple[Entry, Header]]:
    for entry in state.entries(kept_only=True):
        if entry.header is not None:
            yield entry, entry.header


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


def _join(state: State, identity: IdentityKey, table: LabelTable, roots: Sequence[str], out: Path) -> JoinedLabels:
    subjects = (
        Subject(image_of(identity, e.header, e.path) if e.reason == KEPT else "", e.header, e.path)
        for e in state.entries()
        if e.header is not None
    )
    detail: list[tuple[int, str]] = []
    joined = join_labels(table, subjects, roots, detail)
    write_rows(out / PRIVATE / UNMATCHED, [("line", "value"), *sorted(detail)], private=True)
    if not joined.by_image:
        raise AfireError(
            f"{table.path}: none of its {joined.rows} lines belongs to an image that is kept. Look at --join and "
            f"--join-column; {out / PRIVATE / UNMATCHED} lists what was looked for"
        )
    return joined


def _datalist(kept: _Kept, joined: JoinedLabels | None, options: Options) -> dict[str, Any]:
    strata = []
    for item in kept.items:
        values = joined.by_image.get(item["image"][len(IMAGES) + 1 : -4]) if joined else None
        if joined:
            item["label"] = list(values) if values else [None] * len(joined.names)
        names = (
            [name for name, value in zip(joined.names, values, strict=True) if value == 1] if joined and values else []
        )
        strata.append("|".join(sorted(names)))
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
            datalist[name] = sorted(items, key=lambda item: item["image"])  # the order of paths could say who is who
    return datalist


def _write_index(state: State, identity: IdentityKey, out: Path, issuers: Issuers) -> None:
    def rows() -> Iterator[Sequence[Any]]:
        yield ("image", "group", "file", "study_uid", "series_uid", "sop_uid")
        for entry, header in _kept_entries(state):
            hashes = (image_of(identity, header, entry.path), group_of(identity, header, entry.path, issuers))
            yield (*hashes, entry.path, header.study_uid, header.series_uid, header.sop_uid)

    write_rows(out / PRIVATE / INDEX, rows(), private=True)


def _label_figures(joined: JoinedLabels) -> dict[str, Any]:
    figures: dict[str, Any] = {"lines": joined.rows, "images_without_label": joined.without}
    parts = {"matched": joined.matched, "of_images_left_out": joined.left_out, "unmatched": joined.unmatched,
             "contradicting": joined.contradicting, "ambiguous_file_names": joined.ambiguous}  # fmt: skip
    for name, lines in parts.items():
        figures[name] = len(lines)
        if name != "matched" and lines:
            figures[f"{name}_lines"] = lines[:_MOST_LINES]
    return figures


def _remarks(kept: _Kept, joined: JoinedLabels | None, options: Options, datalist: Mapping[str, Any]) -> Iterator[str]:
    counts = kept.counts
    if counts["no burned-in statement"]:
        yield (
            f"{counts['no burned-in statement']} images do not state whether text is burned into their pixels: look at "
            "some, or use --check-text"
        )
    if counts["text seen"]:
        yield f"text was seen near the border of {counts['text seen']} images that were kept with --accept-text"
    if counts["not stated"]:
        yield (
            f"the tags of {counts['not stated']} images name no body part or no view; their pictures show two fields "
            "side by side, which is weak evidence"
        )
    if counts["no patient id"]:
        yield f"{counts['no patient id']} images have no PatientID; those of one study count as one patient's"
    yield from kept.issuers.remarks()
    if joined is not None and joined.without:
        yield f"{joined.without} images have no label"
    expected = [
        s for s, share in zip(SECTIONS, options.split.shares, strict=True) if share > 0 or options.split.by != "shares"
    ]
    missing = [section for section in expected if section not in datalist]
    if missing:
        yield f"no image for {', '.join(missing)}: too few patients, or other dates are needed"
