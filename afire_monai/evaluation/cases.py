"""Match predictions with the ground truth of the same images; refuse them if the two do not belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.datalists.cells import loose
from afire_monai.datalists.file import (
    SECTIONS,
    abnormality,
    datalist_hash,
    normal_label,
    read_raw,
    reader_options,
    resolve_paths,
)
from afire_monai.datalists.items import is_box, outside
from afire_monai.datalists.patients import patient_of, shared_patients
from afire_monai.datalists.targets import UncertainPolicy, target_matrix
from afire_monai.evaluation.localisation import LesionCase, lesion_pixels
from afire_monai.evaluation.overlap import IGNORE
from afire_monai.predictions.format import Predictions
from afire_monai.radiographs.decode import picture_size
from afire_monai.radiographs.masks import read_mask

AGAIN = "Predict again with `afire predict DATALIST --section SECTION --out OUT`, and evaluate against that list"


@dataclass(frozen=True)
class Cases:
    """The images that were predicted, with targets."""

    items: list[dict[str, Any]]  #: items of the data list, with absolute paths
    index: NDArray[np.int64]  #: (n,) their places in the section
    groups: NDArray[np.int64]  #: (n,) patient of each, as numbers without meaning
    names: list[str]  #: labels that both the list and the predictions have
    targets: NDArray[np.float64]  #: (n, C), 1, 0, NaN unknown
    scores: NDArray[np.float64]  #: (n, C), NaN where there is none
    findings: list[str]  #: those of ``names`` that are not the list's name for normal
    abnormal: NDArray[np.float64]  #: (n,) 1 with any finding, 0 known to be normal, NaN otherwise
    section: str  #: section of the list
    datalist: str  #: name of the list
    sha256: str  #: SHA-256 of the list
    notes: list[str] = field(default_factory=list)  #: remarks for readers of the figures, in words
    #: the list's options for reading its images (see `reader_options`)
    reader: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def patients(self) -> int:
        """Number of different patients."""
        return len(np.unique(self.groups))


def read_cases(
    datalist: str | Path,
    predictions: Predictions,
    section: str = "test",
    uncertain: UncertainPolicy = "ignore",
    base_dir: str | Path | None = None,
) -> Cases:
    """Read a data list and put predictions beside it.

    Args:
        datalist: JSON file.
        predictions: predictions for images of one section of this very list.
        section: that section.
        uncertain: meaning of label value -1: left out, absent or present.
        base_dir: folder that the list's relative paths start from; its own unless given.

    Raises:
        DataListError: if the list cannot be read, lacks the section, or has a patient in two sections.
        AfireError: if the predictions are of another list or section, or name images that the section lacks.
    """
    path = Path(datalist)
    raw = read_raw(path)
    content = resolve_paths(raw, Path(base_dir) if base_dir else path.absolute().parent, str(path))
    sha256 = datalist_hash(raw)
    items = _section_items(content, section, path)
    _check_origin(predictions, section, sha256, path, len(items))
    _refuse_shared_patients(content, section, path)
    chosen = [items[i] for i in predictions.index]
    labels = list(content.get("labels") or [])
    names = [name for name in predictions.labels if name in labels]
    normal = normal_label(content)
    targets = target_matrix(chosen, labels, uncertain, names) if names else np.zeros((len(chosen), 0))
    columns = [predictions.scores[name] for name in names]
    _, groups = np.unique([patient_of(item) for item in chosen], return_inverse=True)
    return Cases(
        items=chosen,
        index=predictions.index,
        groups=groups,
        names=names,
        targets=targets.astype(np.float64),
        scores=np.stack(columns, 1) if columns else np.zeros((len(chosen), 0)),
        findings=[name for name in names if name != normal] or names,
        abnormal=np.array([abnormality(item, labels, normal) for item in chosen]),
        section=section,
        datalist=str(raw.get("name") or path.stem),
        sha256=sha256,
        notes=_notes(predictions, labels, len(items), section, normal),
        reader=reader_options(raw),
    )


def scores_of_other(cases: Cases, other: Predictions) -> NDArray[np.float64]:
    """Return the scores (n, C) of another model for the same images and labels, NaN where it has none.

    Raises AfireError if it was run on another list or section, or shares no image or no label.
    """
    if other.datalist_sha256 != cases.sha256 or other.section != cases.section:
        raise AfireError(
            f"the predictions to compare with are of {_origin(other)}; {_named(cases.section, cases.sha256)} is "
            f"expected. {AGAIN}"
        )
    shared = int(np.isin(cases.index, other.index).sum())
    names = [name for name in cases.names if name in other.labels]
    if not shared or (cases.names and not names):
        raise AfireError(
            f"the predictions to compare with share {shared} images and {len(names)} labels with these; there is "
            f"nothing to compare. {AGAIN}"
        )
    scores = np.full(cases.scores.shape, np.nan)
    for name in names:
        scores[:, cases.names.index(name)] = aligned(cases, other, other.scores[name])
    return scores


def aligned(cases: Cases, other: Predictions, column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring a column (m,) of another model's predictions to the order of the cases, (n,); NaN where it has none."""
    values = np.full(len(cases), np.nan)
    _, ours, theirs = np.intersect1d(cases.index, other.index, return_indices=True)
    values[ours] = column[theirs]
    return values


def _section_items(content: dict[str, Any], section: str, path: Path) -> list[dict[str, Any]]:
    items = content.get(section)
    if not items:
        present = ", ".join(s for s in SECTIONS if content.get(s)) or "none"
        raise DataListError(
            f"{path}: no image in section {section!r}; sections with images: {present}. Name one of these"
        )
    return list(items)


def _check_origin(predictions: Predictions, section: str, sha256: str, path: Path, count: int) -> None:
    if not predictions.datalist_sha256:
        raise AfireError(
            f"the predictions are of files or a folder, not of a data list, so the correct answers are unknown. {AGAIN}"
        )
    if predictions.datalist_sha256 != sha256:
        raise AfireError(
            f"the predictions are of {_origin(predictions)}; {path} has SHA-256 {sha256[:12]}…: it is another list, "
            f"or was changed since. {AGAIN}"
        )
    if predictions.section != section:
        raise AfireError(
            f"the predictions are of section {predictions.section!r}, not {section!r}; give --section "
            f"{predictions.section}, or predict section {section}"
        )
    if not len(predictions):
        raise AfireError(f"the predictions hold no image. {AGAIN}")
    if predictions.index.max() >= count:
        raise AfireError(
            f"the predictions name place {predictions.index.max()}; section {section!r} of {path} has {count} images. "
            f"{AGAIN}"
        )


def _refuse_shared_patients(content: dict[str, Any], section: str, path: Path) -> None:
    sections = {name: content.get(name) or [] for name in (section, *SECTIONS)}
    for (one, other), shared in shared_patients(sections).items():
        if section in (one, other):
            raise DataListError(
                f"{path}: {len(shared)} patients (or images) are in both {one} and {other}, so the figures would "
                "be too good. Build the list again by patient; `afire datalist validate` names them"
            )


def _notes(predictions: Predictions, labels: list[str], count: int, section: str, normal: str) -> list[str]:
    notes, names = [], [name for name in predictions.labels if name in labels]
    if missing := count - len(predictions):
        notes.append(f"{missing} of {count} images of the section have no prediction and are left out.")
    if foreign := [name for name in predictions.labels if name not in names]:
        notes.append(f"The data list has no label {', '.join(foreign)}; these scores are not judged.")
        alike = {loose(label): label for label in labels}
        pairs = [f"{name!r} and {alike[loose(name)]!r}" for name in foreign if loose(name) in alike]
        notes += [f"Only the spelling differs: {', '.join(pairs)}. Write them alike if they are."] if pairs else []
    if section != "test":
        notes.append(f"Section {section}: the model may have been trained or tuned on it; figures are too good.")
    if normal in names and len(names) > 1:
        notes.append(f"{normal!r} is judged but does not count in the mean over findings.")
    if unset := [name for name in names if name not in predictions.thresholds]:
        notes.append(f"No threshold is stored for {', '.join(unset)}; 0.5 is used.")
    return notes


def _origin(predictions: Predictions) -> str:
    return _named(predictions.section, predictions.datalist_sha256)


def _named(section: str, sha256: str) -> str:
    return f"section {section!r} of the data list with SHA-256 {sha256[:12]}…" if sha256 else "no data list"


def lesion_case(
    item: dict[str, Any], where: str, group: str, box_name: str = "", masks: bool = False
) -> LesionCase | None:
    """Return the lesions of an item, or None if it has none of that kind.

    Args:
        item: item of a data list.
        where: section and place, for messages.
        group: patient.
        box_name: take the boxes of this name only; "" for all.
        masks: whether the item's mask, if it has one, shows lesions, which then count instead of the boxes' pixels.

    Raises:
        DataListError: for a box that is malformed or outside the picture, or a mask of another size.
        RadiographError: if the picture cannot be read.
    """
    chosen = [box for box in item.get("boxes") or [] if not box_name or box[4:] == [box_name]]
    for box in chosen:
        if not is_box(box):
            raise DataListError(f"{where}: box {box!r}; [x, y, width, height, name] in pixels is expected")
    boxes = np.array([box[:4] for box in chosen], dtype=np.float64)
    mask = read_mask(item["mask"]) if masks and item.get("mask") and not box_name else None
    drawn = None if mask is None else (mask != 0) & (mask != IGNORE)
    drawn = drawn if drawn is not None and drawn.any() else None
    if not len(boxes) and drawn is None:
        return None
    shape = picture_size(item["image"])
    if drawn is not None and drawn.shape != shape:
        raise DataListError(f"{where}: its mask is {drawn.shape}, its picture {shape}; both must be of one size")
    boxes = boxes.reshape(-1, 4)
    if any(outside(box, shape) for box in chosen) or (drawn is None and not lesion_pixels(boxes, shape).any()):
        raise DataListError(
            f"{where}: a box does not lie within the picture of {shape[0]} rows and {shape[1]} columns; boxes are [x, "
            "y, width, height, name] in pixels of the stored picture"
        )
    return LesionCase(shape, boxes, group, drawn)


def box_names(items: list[dict[str, Any]]) -> list[str]:
    """Names of the boxes of items, sorted."""
    return sorted({str(box[4]) for item in items for box in _boxes_of(item) if isinstance(box, list) and len(box) == 5})


def _boxes_of(item: dict[str, Any]) -> list[Any]:
    boxes = item.get("boxes") or []
    if not isinstance(boxes, list):
        raise DataListError(
            f"'boxes' of an item is {str(boxes)[:60]}; a list of [x, y, width, height, name] is expected"
        )
    return boxes
