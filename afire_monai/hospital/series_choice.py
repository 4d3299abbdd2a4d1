"""Choose the images to keep from their headers: judge, try in order, check the picture, and keep each once."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import MEMORY, STOPPED, TOO_SLOW, UNEXPECTED, Failure
from afire_monai.hospital.convert import (
    DISK,
    Converted,
    Job,
    Reading,
    convert,
    provisional,
    read_file,
    read_header_only,
)
from afire_monai.hospital.forgotten import Forgotten
from afire_monai.hospital.identity import HASH_CHARACTERS, IdentityKey
from afire_monai.hospital.outputs import IMAGES, Options, image_of
from afire_monai.hospital.state import KEPT, State
from afire_monai.radiographs.judgement import LOOKS_OTHER, judge

# names of the files that this module writes, whole or partial; it removes no others
_OWN_FILE = re.compile(
    rf"[0-9a-f]{{{HASH_CHARACTERS}}}\.png|\.[0-9a-f]{{{HASH_CHARACTERS}}}\.png\.part|\.+\d+\.png(\.part)+"
)

Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[tuple[Any, Any]]]


@dataclass
class Chosen:
    """Why each file that could be judged is left out, or that it is kept; and how many were converted for it."""

    verdicts: dict[int, str] = field(default_factory=dict)
    converted: int = 0


class Chooser:
    """Chooses among the files of a run, converting those that are to be kept and are not converted yet."""

    def __init__(self, state: State, identity: IdentityKey, options: Options, out: Path, forgotten: Forgotten) -> None:
        self.state, self.identity, self.options = state, identity, options
        self.folder = out / IMAGES
        self.chosen = Chosen()
        self.needs_look: dict[int, bool] = {}
        self.forgotten = forgotten
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise AfireError(f"{self.folder}: {error.strerror}; give a folder that can be written") from error

    def read(self, runner: Runner) -> int:
        """Read the files that are not known yet, and convert those whose headers do not speak against it.

        Raises AfireError if pictures cannot be written.
        """
        o, folder = self.options, str(self.folder)
        tasks = [
            Reading(number, path, folder, o.max_side, o.check_text, o.include_laterals, o.window_index, self.forgotten)
            for number, path in self.state.without_header()
        ]
        again = []
        for task, read in runner(read_file, tasks):
            if isinstance(read, Failure) and read.kind in (TOO_SLOW, STOPPED, MEMORY, UNEXPECTED):
                again.append(task)  # its pixels may be at fault, and its header is useful without them
                continue
            self._note_read(task, read)
        for task, read in runner(read_header_only, again):
            self._note_read(task, read)
        self.state.save()
        return len(tasks)

    def _note_read(self, task: Reading, read: Any) -> None:
        if not isinstance(read, Failure) and read.result is not None:
            self._refuse_full_disk(read.result)
            self.chosen.converted += 1
        self.state.note_read(task.number, read)

    def run(self, runner: Runner, excluded: Collection[str] = ()) -> Chosen:
        """Choose; pictures of images that are not kept (any more) are removed.

        Args:
            runner: function that does the conversions, as `Pool.run` does.
            excluded: hashes of images to leave out; another image of their series may be kept instead, but none with
                the same pixels.

        Raises:
            AfireError: if pictures cannot be written.
        """
        try:
            self.written = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder)}
        except OSError as error:
            raise AfireError(f"{self.folder}: {error.strerror}; give a folder that can be written") from error
        candidates = list(self._candidates())
        slots = choose_per_series(candidate for candidate in candidates if candidate.image not in excluded)
        hidden = [candidate for candidate in candidates if candidate.image in excluded]
        first = {candidate.image: candidate for candidate in reversed(hidden)}  # copies have one name to be written to
        self._try([[candidate] for candidate in first.values()], runner)  # their pixels, under the settings of this run
        self.chosen.verdicts.update((candidate.number, EXCLUDED) for candidate in hidden)
        processed = [slot for slot in slots if not slot[0].raw]
        self._try(processed, runner)
        shown = {(slot[0].study, slot[0].lateral) for slot in processed if self._kept_of(slot)}
        raw = [slot for slot in slots if slot[0].raw]
        for slot in raw:
            if (slot[0].study, slot[0].lateral) in shown:
                self.chosen.verdicts.update((candidate.number, RAW) for candidate in slot)
        self._try([slot for slot in raw if (slot[0].study, slot[0].lateral) not in shown], runner)
        self._drop_equal_pictures(slots, hidden)
        self._restore([candidate for slot in slots for candidate in self._kept_of(slot)], runner)
        self._tidy(slots)
        return self.chosen

    def _candidates(self) -> Iterator[Candidate]:
        # in the order of paths, so that the choice does not depend on when files were found
        for place, entry in enumerate(self.state.entries()):
            header, split = entry.header, self.options.split
            verdict = judge(header, self.options.include_laterals)
            unsplit = split.missing(header.date, header.institution or header.station)
            if verdict.reason or unsplit:
                self.chosen.verdicts[entry.number] = verdict.reason or (NO_DATE if split.by == "date" else NO_SITE)
                continue
            self.needs_look[entry.number] = verdict.needs_look
            alone = f"file {entry.path}"
            patient = entry.header.patient_id  # anonymised archives may give one UID to several patients
            yield Candidate(
                entry.number,
                image_of(self.identity, entry.header, entry.path),
                f"{entry.header.series_uid or alone} {patient}",
                f"{entry.header.study_uid or alone} {patient}",
                verdict.lateral,
                verdict.raw,
                entry.header.rows * entry.header.columns,
                place,
            )

    def _try(self, slots: Sequence[Sequence[Candidate]], runner: Runner) -> None:
        """Convert the first of each slot; where it cannot be used, the next, until one can."""
        waiting = [(slot, 0) for slot in slots]
        while waiting:
            jobs = [self._job(slot[at]) for slot, at in waiting if self._result(slot[at]) is None]
            for job, result in runner(convert, jobs):
                self._note(job, result)
            following = []
            for slot, at in waiting:
                reason = self._judge_result(slot[at])
                self.chosen.verdicts[slot[at].number] = reason
                if reason == KEPT:
                    self._leave_out_rest(slot, at)
                elif at + 1 < len(slot):
                    following.append((slot, at + 1))
            waiting = following
        self.state.save()

    def _note(self, job: Job, result: Converted | Failure) -> None:
        self._refuse_full_disk(result)
        self.state.note_result(job.number, job.setting, result)
        self.chosen.converted += 1
        if isinstance(result, Converted):
            self.written[os.path.basename(job.target)] = result.size
            self.written.pop(provisional(job.number), None)  # of other settings: `_restore` must not prefer it
            (self.folder / provisional(job.number)).unlink(missing_ok=True)

    def _refuse_full_disk(self, result: Any) -> None:
        if isinstance(result, Failure) and result.kind == DISK:
            raise AfireError(
                f"{self.folder}: a picture cannot be written: {result.detail}. Make room or correct the permissions, "
                "then repeat the command: it continues where it stopped"
            )

    def _job(self, candidate: Candidate) -> Job:
        source, o = self.state.path_of(candidate.number), self.options
        target = self.folder / f"{candidate.image}.png"
        look = self.needs_look[candidate.number]
        return Job(candidate.number, source, str(target), o.max_side, o.check_text, look, o.window_index)

    def _judge_result(self, candidate: Candidate) -> str:
        result = self.state.result(candidate.number, self._job(candidate).setting, passing=True)
        if isinstance(result, Converted):
            return self._reason(candidate, result)
        return result.kind if result is not None else "unexpected error"

    def _reason(self, candidate: Candidate, result: Converted) -> str:
        if self.needs_look[candidate.number] and result.look < 0:
            return LOOKS_OTHER
        if result.letters > 0 and not self.options.accept_text:
            return TEXT_SEEN
        return KEPT

    def _leave_out_rest(self, slot: Sequence[Candidate], kept: int) -> None:
        for other in slot[kept + 1 :]:
            same = other.image == slot[kept].image
            raw = other.raw and not slot[kept].raw
            self.chosen.verdicts[other.number] = DUPLICATE if same else RAW if raw else ANOTHER

    def _kept_of(self, slot: Sequence[Candidate]) -> list[Candidate]:
        return [candidate for candidate in slot if self.chosen.verdicts.get(candidate.number) == KEPT]

    def _drop_equal_pictures(self, slots: Sequence[Sequence[Candidate]], hidden: Sequence[Candidate]) -> None:
        """Of images with the same pixels keep the first in the order of paths, or none if one is excluded."""
        seen = {result.pixels for one in hidden if isinstance(result := self._result(one), Converted)}
        for candidate in sorted((c for slot in slots for c in self._kept_of(slot)), key=lambda c: c.place):
            result = self._result(candidate)
            if isinstance(result, Converted):
                if result.pixels in seen:
                    self.chosen.verdicts[candidate.number] = DUPLICATE
                seen.add(result.pixels)

    def _restore(self, kept: Sequence[Candidate], runner: Runner) -> None:
        """Move pictures to their names; write again those that are missing or damaged."""
        lost = []
        for candidate in kept:
            result, name, first = self._result(candidate), f"{candidate.image}.png", provisional(candidate.number)
            if not isinstance(result, Converted):
                continue
            if self.written.get(first) == result.size:
                os.replace(self.folder / first, self.folder / name)
                self.written[name] = self.written.pop(first)
            elif self.written.get(name) != result.size:
                lost.append(candidate)
        by_number = {candidate.number: candidate for candidate in lost}
        for job, result in runner(convert, [self._job(candidate) for candidate in lost]):
            self._note(job, result)
            self.chosen.verdicts[job.number] = self._judge_result(by_number[job.number])

    def _result(self, candidate: Candidate) -> Converted | Failure | None:
        return self.state.result(candidate.number, self._job(candidate).setting)

    def _tidy(self, slots: Sequence[Sequence[Candidate]]) -> None:
        """Remove pictures of images that are not kept, and half-written files of an interrupted run."""
        kept = {f"{candidate.image}.png" for slot in slots for candidate in self._kept_of(slot)}
        for name in self.written:
            if name not in kept and _OWN_FILE.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)


RAW = "raw, and there is a processed image"
ANOTHER = "another image of the series"
DUPLICATE = "duplicate"
TEXT_SEEN = "text seen near the border"
NO_DATE = "no date to split by"
NO_SITE = "no site to split by"
EXCLUDED = "excluded by hand"


@dataclass(frozen=True)
class Candidate:
    """A file that may be kept, as far as choosing among the images of a series needs it.

    Files without a series or study UID have a substitute; ``place`` is the place in the order of paths.
    """

    number: int
    image: str
    series: str
    study: str
    lateral: bool
    raw: bool
    pixels: int
    place: int


def choose_per_series(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Put candidates in the order in which they are to be tried, one list for each image that is to be kept.

    A list holds the images of one series (frontal and lateral ones apart): for presentation before raw, large before
    small, and all copies of one SOP instance one after the other, in the order of their paths. Lists that hold
    nothing but raw images come last. The first of a list that can be used is kept.
    """
    copies: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda c: c.place):
        copies[candidate.image].append(candidate)
    slots: dict[tuple[str, bool], list[list[Candidate]]] = defaultdict(list)
    for group in copies.values():
        slots[group[0].series, group[0].lateral].append(group)
    ordered = []
    for groups in slots.values():
        groups.sort(key=lambda group: (group[0].raw, -group[0].pixels, group[0].place))
        ordered.append([candidate for group in groups for candidate in group])
    return sorted(ordered, key=lambda slot: slot[0].raw)
