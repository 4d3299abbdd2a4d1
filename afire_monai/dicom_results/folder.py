"""The DICOM objects of one radiograph, and of a whole folder of predictions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.core.files import csv_text, write_text
from afire_monai.core.quiet import hidden
from afire_monai.dicom_results.capture import write_capture
from afire_monai.dicom_results.objects import OutputError
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.presentation import write_presentation
from afire_monai.dicom_results.report import write_report
from afire_monai.dicom_results.segmentation import write_heatmap
from afire_monai.dicom_results.source import SourceFile, SourceImage, open_source, source_files
from afire_monai.predictions.format import Predictions, load_predictions
from afire_monai.predictions.results import LEFT_OUT
from afire_monai.radiographs.judgement import FIT, reason_of_file
from afire_monai.radiographs.picture import refusal

_WRITERS = {"sr": write_report, "seg": write_heatmap, "sc": write_capture, "gsps": write_presentation}
KINDS = ("sr", "seg", "sc")
"""Kinds that are written unless others are named."""
FINDING = "finding"
"""Kind of the captures that show one finding each."""


def write_results(
    source_file: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction | Mapping[str, Any],
    out_dir: str | os.PathLike[str],
    kinds: Sequence[str] = KINDS,
    heatmap: NDArray[np.floating[Any]] | None = None,
    seed: str | None = None,
    per_finding: bool = False,
) -> list[Path]:
    """Write a model's results for one radiograph as DICOM objects of the radiograph's study.

    Args:
        source_file: DICOM radiograph; opened for reading only.
        prediction: the prediction, or the record that ``afire predict`` writes for an image (``json/NNNNN.json``).
        out_dir: folder for the files, each named after its UID; made with mode 0700 if need be.
        kinds: ``sr`` (report), ``seg`` (heatmap), ``sc`` (picture), ``gsps`` (outline and scores on the radiograph).
        heatmap: (h, w) in 0…1, if the prediction is a record.
        seed: see `new_uid`.
        per_finding: also write a picture for each of `ImagePrediction.findings`.

    Returns:
        The files, in the order of ``kinds``, then of the findings. If one cannot be written, those before it are
        removed again.

    Raises:
        RadiographError: if the source cannot carry results.
        AfireError: for an unknown kind, a kind that the prediction has nothing for, or a folder that cannot be written.
    """
    check_kinds(kinds)
    if not isinstance(prediction, ImagePrediction):
        prediction = ImagePrediction.from_record(prediction, heatmap)
    source = open_source(source_file)
    findings = prediction.findings if per_finding else []
    writers: list[Callable[..., Path]] = [_WRITERS[kind] for kind in kinds]
    writers += [partial(write_capture, finding=name) for name in findings]
    written: list[Path] = []
    try:
        for write in writers:
            written.append(write(source, prediction, out_dir, seed))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds that are not known, repeated, or none."""
    if not kinds or isinstance(kinds, str) or len(set(kinds)) != len(kinds) or not set(kinds) <= _WRITERS.keys():
        raise AfireError(f"kinds {kinds!r}: some of {', '.join(_WRITERS)}, each once, are expected")


OBJECTS = "objects.csv"


@dataclass
class DicomSummary:
    """Counts of written and left-out images of a folder of predictions.

    ``unfit`` counts, by reason, images with objects that are not frontal chest radiographs.
    """

    total: int
    done: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    left_out: dict[int, str] = field(default_factory=dict)
    unfit: Counter[str] = field(default_factory=Counter)

    @property
    def status(self) -> int:
        """Exit status: 0 all written, 1 some left out, 2 none."""
        return 2 if not self.done else 1 if self.done < self.total else 0


def write_dicom_results(
    predictions: str | Path,
    out: str | os.PathLike[str],
    index: str | os.PathLike[str] | None = None,
    kinds: Sequence[str] | None = None,
    any: bool = False,
    per_finding: bool = False,
    progress: bool = False,
) -> DicomSummary:
    """Write the predictions of a folder as DICOM objects of the studies that the radiographs belong to.

    The folder also gets ``objects.csv`` (index, kind, file) and, if something was left out, ``left_out.csv`` (index,
    reason). All are readable only by their owner, because the objects name patients.

    Args:
        predictions: folder that afire predict wrote.
        out: folder to write into; new or empty, so that nothing can be sent twice by mistake.
        index: see `source_files`.
        kinds: ``sr``, ``seg``, ``sc``, ``gsps``; None for those of `KINDS` that an image has results for.
        per_finding: also write a picture (secondary capture) for each finding whose probability is at least its
            threshold, named after it, with the heatmap if it is that finding's.
        any: also write for DICOM files that are not frontal chest radiographs, see `predict`; the objects say so.
        progress: show a bar with the time left.

    Raises:
        AfireError: for wrong options or tables, or a folder that is not empty or cannot be written.
    """
    if kinds is not None:
        check_kinds(kinds)
    table = load_predictions(predictions)
    sources = source_files(predictions, index)
    folder = _empty_private_folder(Path(out))
    done = DicomSummary(len(table))
    rows: list[tuple[int, str, str]] = []
    for number in tqdm(table.index.tolist(), desc="writing", unit="image", disable=hidden(progress)):
        try:
            written, unfit = _write_one(table, number, sources.get(number), folder, kinds, any, per_finding)
        except OutputError as error:
            raise AfireError(f"{out}: {error}. {done.done} images are written whole; begin again elsewhere") from error
        except AfireError as error:
            done.left_out[number] = _reason(error, predictions)
            continue
        except MemoryError:
            raise
        except Exception as error:  # one strange file must not end the work on thousands
            # its message is left out: other libraries quote the header
            done.left_out[number] = f"unexpected error: {type(error).__name__}; please report this file"
            continue
        rows += [(number, kind, path.name) for kind, path in written]
        done.done += 1
        done.unfit.update([unfit] if unfit else [])
        done.objects.update(kind.split(" ")[0] for kind, _ in written)
    _write_tables(folder, rows, done.left_out)
    return done


def _write_one(
    table: Predictions,
    number: int,
    source: SourceFile | None,
    folder: Path,
    kinds: Sequence[str] | None,
    any: bool,
    per_finding: bool,
) -> tuple[list[tuple[str, Path]], str]:
    if source is None:
        raise AfireError("no source file: the index does not hold this image")
    prediction = ImagePrediction.from_predictions(table, number)
    chosen = list(kinds) if kinds is not None else possible_kinds(prediction)
    image = open_source(source.file)
    if source.sop_instance_uid.strip() not in ("", str(image.header.SOPInstanceUID).strip()):
        raise AfireError("another image: the source file is not the one that was read in; run `afire ingest` again")
    if not prediction.judgement and not source.ingested:
        prediction = replace(prediction, judgement=reason_of_file(source.file) or FIT)
    if prediction.unfit and not any:
        detail = "not a frontal chest radiograph for presentation; --any writes its results all the same"
        raise refusal(source.file, prediction.unfit, detail)
    files = write_results(image, prediction, folder, chosen, per_finding=per_finding)
    names = [*chosen, *(f"{FINDING} {name}" for name in (prediction.findings if per_finding else []))]
    return list(zip(names, files, strict=True)), prediction.unfit


def possible_kinds(prediction: ImagePrediction) -> list[str]:
    """Return those of `KINDS` that a prediction has something for; AfireError if there is none."""
    prediction.check_any()
    scores = bool(prediction.probabilities) or prediction.anomaly_percentile is not None
    possible = {"sr": scores, "seg": prediction.heatmap is not None, "sc": True}
    return [kind for kind in KINDS if possible[kind]]


def _reason(error: AfireError, predictions: str | Path) -> str:
    """Return the reason without the names of files."""
    if isinstance(error, RadiographError):
        return error.reason()
    return " ".join(str(error).replace(f"{predictions}{os.sep}", "").split())


def _empty_private_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise AfireError(f"{folder}: not empty; what is there could be sent again. Give a new folder with --out")
        folder.chmod(0o700)
    except OSError as error:
        raise AfireError(f"{folder}: {error.strerror}; give a folder that can be written with --out") from error
    return folder


def _write_tables(folder: Path, rows: list[tuple[int, str, str]], left_out: dict[int, str]) -> None:
    try:
        write_text(folder / OBJECTS, csv_text([("index", "kind", "file"), *rows]), private=True)
        if left_out:
            write_text(folder / LEFT_OUT, csv_text([("index", "reason"), *sorted(left_out.items())]), private=True)
    except OSError as error:
        raise AfireError(f"{folder}: {error.strerror}; the objects are written, the tables are not") from error
