"""Predict folders of radiographs: read ahead, compute in batches, write behind, and resume earlier runs."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from afire_monai.core.distributed import join_group, leave_group, wait_for_all
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import csv_text
from afire_monai.core.pool import threads
from afire_monai.core.quiet import hidden
from afire_monai.datalists.file import datalist_hash, is_normal, load_datalist, normal_label, read_raw, reader_options
from afire_monai.predictions.anomaly.fit import ReferenceFit
from afire_monai.predictions.format import JUDGEMENT
from afire_monai.predictions.reading import LeftOut, Radiograph, ahead, batches, read_radiograph
from afire_monai.predictions.results import ResultFolder, pictures_of
from afire_monai.predictions.scoring import Answer, Scorer
from afire_monai.radiographs.decode import list_images
from afire_monai.radiographs.masks import mask_folders
from afire_monai.radiographs.reader import Unfit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Files in order; the place of a file is its index in everything that is written."""

    files: tuple[str, ...]  #: absolute paths
    section: str = ""  #: of the data list; "" for folders and files
    datalist_sha256: str = ""  #: of the data list; "" for folders and files
    #: reader options that the data list keeps or, for folders and files, those of the model's training
    reader: Mapping[str, Any] = field(default_factory=dict)
    normal: frozenset[int] = frozenset()  #: indices of the images that the data list calls normal

    def key(self) -> str:
        """Return the table that tells which index is which file. It can identify patients: it stays with its owner."""
        return csv_text([["index", "file"], *enumerate(self.files)])


def find_source(inputs: Sequence[str | os.PathLike[str]], section: str = "test") -> Source:
    """Find the files that the command line names.

    Args:
        inputs: folders (searched with their subfolders, sorted by path; those of masks are left out) and files, in this
            order and each file once; or one data list (.json).
        section: section of the data list.

    Raises:
        DataListError: for an input that does not exist, a data list beside other inputs, or no file at all.
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
            found = list_images(path)
            masks = mask_folders(found)
            for folder in masks:
                logger.warning("%s: each of its pictures has only two values, like a mask; they are left out", folder)
            files += [file for file in found if file.parent not in masks]
        elif path.is_file():
            files.append(path)
        else:
            raise DataListError(f"{path}: no such file or folder; a folder, files or a data list (.json) is expected")
    if not files:
        raise DataListError(f"no radiograph (PNG, JPEG, NIfTI, DICOM) in {', '.join(map(str, paths))} or below")
    return Source(tuple(dict.fromkeys(os.path.abspath(file) for file in files)))


def _from_datalist(path: Path, section: str) -> Source:
    # the items keep their places, so a repeated image is predicted as often as it is listed
    items = load_datalist(path, section=section)
    if not items:
        raise DataListError(f"{path}: section {section!r} is empty; name another with --section")
    raw = read_raw(path)
    labels, normal = raw.get("labels", []), normal_label(raw)
    known = frozenset(place for place, item in enumerate(items) if is_normal(item, labels, normal))
    files = tuple(str(item["image"]) for item in items)
    return Source(files, section, datalist_hash(raw), reader_options(raw), known)


NOTE = "Research software, not a medical device: no diagnosis. Read with the radiograph, by someone who can."


@dataclass
class PredictionSummary:
    """Counts of a prediction.

    ``scored`` includes files of earlier runs; process 0 gathers the results.
    """

    total: int
    scored: int
    left_out: dict[int, str] = field(default_factory=dict)
    earlier: int = 0
    rank: int = 0
    unfit: Mapping[str, int] = field(default_factory=dict)
    fit: ReferenceFit | None = None

    @property
    def status(self) -> int:
        """Exit status: 0 all scored, 1 some left out, 2 none scored."""
        return 2 if not self.scored else 1 if self.scored < self.total else 0


def predict(
    inputs: Sequence[str | os.PathLike[str]] | Source,
    model: Sequence[str | Path] | Scorer,
    out: str | Path,
    section: str = "test",
    heatmap: str = "auto",
    label: str | None = None,
    restored: bool = False,
    overlays: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    resume: bool = False,
    any: bool = False,
    reader: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    progress: bool = False,
) -> PredictionSummary:
    """Predict radiographs with the models of a folder.

    DICOM files that `afire_monai.radiographs.judgement` finds not to be frontal chest radiographs for presentation are
    left out with the reason. With ``any`` they are predicted all the same, and everything that is written says so.

    The folder gets ``predictions.csv`` and ``.json`` (see `afire_monai.predictions.format`); for each image
    ``json/NNNNN.json`` and, if asked for, a picture in ``heatmaps/``, ``overlays/``, ``restored/`` or ``masks/``;
    ``left_out.csv``; and ``index.csv``, which alone names the file of each index and which only its owner can read.
    Only a few batches are in memory. Under ``torchrun`` each process takes its share of the files. From Python,
    ``inputs`` may also be the result of `find_source`, and ``model`` a `Scorer` with its own heatmap, label and device.

    Args:
        inputs: folders and files (PNG, JPEG, NIfTI, DICOM), or one data list (.json).
        model: model folders (see `Scorer`).
        out: folder to write into.
        section: section of the data list.
        heatmap: anomaly, gradcam, rollout, none; auto takes the first that the model can give.
        label: label for Grad-CAM; each image's most probable finding unless given.
        restored: also write restored pictures.
        overlays: also write the heatmaps in colour over the radiographs, for people.
        batch_size: radiographs computed at once.
        workers: threads that read; the number of cores, at most 8, unless given. 0 reads without threads.
        resume: continue an earlier run in ``out``; files that it left out are tried again.
        any: also predict DICOM files that are not frontal chest radiographs (laterals, raw, burned-in text, …).
        reader: reader options that override those of the list or, for folders and files, of the models' training.
        device: device to compute on; None for a GPU if there is one.
        progress: show a bar with the time left.

    Raises:
        AfireError: for wrong options, models that cannot be read, or a folder with other results.
    """
    if batch_size < 1 or (workers is not None and workers < 0):
        raise AfireError(f"--batch-size must be at least 1 and --workers at least 0, got {batch_size} and {workers}")
    source = inputs if isinstance(inputs, Source) else find_source(inputs, section)
    joined_before, (rank, world) = dist.is_initialized(), join_processes()
    if not isinstance(model, Scorer):
        model = Scorer(model, device or _own_device(), heatmap, label, restored)
    scorer = model
    # a list says by itself how its images are read; folders are read as in training
    usual = source.reader if source.section else scorer.reader
    source = replace(source, reader={**usual, **(reader or {})})
    if overlays and scorer.heatmap == "none":
        raise AfireError("--overlays shows heatmaps; ask for one with --heatmap")
    folder = ResultFolder(out)
    run = _run_facts(source, scorer, overlays=overlays, any=any)
    if rank == 0:
        folder.start(run, source.key(), resume)
    wait_for_all()
    share = range(rank, len(source.files), world)
    todo = [index for index in share if folder.record(index) is None]
    job = _Job(source, scorer, folder, overlays, batch_size, threads(workers), "note" if any else "refuse")
    left_out, earlier = _gathered(job.run(todo, progress and rank == 0), len(share) - len(todo), world)
    facts = {**run, "thresholds": scorer.thresholds, "mask_values": scorer.mask_values, "note": NOTE}
    facts |= {"rests_on": scorer.rests_on} if scorer.rests_on else {}
    total = len(source.files)
    scored, unfit, fit = total - len(left_out), Counter[str](), None
    if rank == 0:
        gathered = folder.finish(total, left_out, facts, scorer.labels, source.normal)
        scored, unfit, fit = gathered.count, gathered.unfit, gathered.fit
    wait_for_all() if joined_before else leave_group()
    return PredictionSummary(total, scored, left_out, earlier, rank, unfit, fit)


def _run_facts(source: Source, scorer: Scorer, **written: bool) -> dict[str, Any]:
    """Return the facts that results depend on, as kept for resuming."""
    options: dict[str, Any] = {"heatmap": scorer.heatmap, "label": scorer.label, "restored": scorer.restored, **written}
    options |= {"reader": dict(source.reader)} if source.reader else {}
    return {**options, "section": source.section, "datalist_sha256": source.datalist_sha256, "model": scorer.facts}


@dataclass
class _Job:
    """The work of one process."""

    source: Source
    scorer: Scorer
    folder: ResultFolder
    overlays: bool
    batch_size: int
    workers: int
    unfit: Unfit

    def run(self, todo: Sequence[int], progress: bool) -> dict[int, str]:
        """Predict the files of these indices; return the reasons for those that cannot be used."""
        left_out: dict[int, str] = {}
        writing: deque[Future[None]] = deque()
        reading = ahead(self._read, todo, self.workers, max(2 * self.batch_size, 2 * self.workers))
        bar = tqdm(reading, total=len(todo), desc="predicting", unit="image", disable=hidden(progress))
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            for batch in batches(bar, self.batch_size, left_out):
                for radiograph, answer in zip(batch, self._score(batch), strict=True):
                    writing.append(writer.submit(self._write, radiograph, answer))
                while len(writing) > 2 * self.batch_size:
                    writing.popleft().result()
            for future in writing:
                future.result()
        return left_out

    def _read(self, index: int) -> Radiograph | LeftOut:
        file, sizes = self.source.files[index], self.scorer.sizes
        result = read_radiograph(index, file, sizes, self.overlays, self.source.reader, self.unfit)
        if isinstance(result, LeftOut):
            logger.info("image %d is left out: %s", index, result.reason)
        return result

    def _score(self, batch: list[Radiograph]) -> list[Answer]:
        try:
            return self.scorer.score(batch)
        except torch.OutOfMemoryError as error:
            raise AfireError(
                f"the device does not have enough memory for {len(batch)} radiographs at once; give a smaller "
                "--batch-size and --resume"
            ) from error

    def _write(self, radiograph: Radiograph, answer: Answer) -> None:
        pictures = pictures_of(radiograph, answer, list(self.scorer.mask_values.values()), self.overlays)
        judged = {JUDGEMENT: radiograph.judgement} if radiograph.judgement else {}
        record = {**answer.record, **judged, "model": self.scorer.facts, "note": NOTE}
        try:
            self.folder.write(radiograph.index, record, pictures)
        except OSError as error:
            raise AfireError(
                f"{self.folder.folder}: {error.strerror or error}; finished images are kept, and --resume continues "
                "from them"
            ) from error


def _gathered(left_out: dict[int, str], earlier: int, world: int) -> tuple[dict[int, str], int]:
    """Gather from all processes why images were left out, and how many were finished; waits for them."""
    if world == 1:
        return left_out, earlier
    everywhere: list[Any] = [None] * world
    dist.all_gather_object(everywhere, (left_out, earlier))
    return {i: reason for part, _ in everywhere for i, reason in part.items()}, sum(n for _, n in everywhere)


def _own_device() -> torch.device:
    gpu = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")


def join_processes() -> tuple[int, int]:
    """Join the processes that ``torchrun`` started, if it did; return this one's number and how many there are.

    Raises AfireError if WORLD_SIZE is set, but the place of the other processes is not given.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if not dist.is_initialized():
        # processes wait for the slowest at the end, which can be hours later
        join_group("gloo", timeout=timedelta(days=7))
    return dist.get_rank(), dist.get_world_size()
