"""Gather the statistics of normal radiographs, cross-fitted by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.predictions.anomaly.combination import Combination, Pooling
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.predictions.anomaly.gaussian import CellGaussian, fit_images, fit_tokens
from afire_monai.predictions.anomaly.measures import Fitted, Measure, measures_of
from afire_monai.predictions.anomaly.neighbours import fit_neighbours
from afire_monai.predictions.anomaly.reference import NormalReference

MIN_NORMALS = 20
FOLDS = 10
Source: TypeAlias = tuple[str | None, int | None]
RESERVED = 100_000  # for means, deviations and scores
MOST_BYTES = 20_000_000
"""Size that a reference file is kept below by keeping the tokens of fewer radiographs as neighbours."""


@torch.no_grad()
def build_reference(
    detector: AnomalyDetector,
    batches: Iterable[Tensor],
    groups: Sequence[str],
    parts: Sequence[str] | None = None,
    pooling: str = "mean",
    facts: Mapping[str, Any] | None = None,
    layers: Sequence[int] = (),
    window: int = 0,
) -> NormalReference:
    """Gather the statistics of normal radiographs.

    Args:
        detector: what looks at them.
        batches: their pictures (B, 1, Hc, Wc) in 0…1.
        groups: the patient of each, in the same order; patients are kept whole when cross-fitting.
        parts: which parts to use; None for the detector's default.
        pooling: of cells into a number for the image (see `Combination`).
        facts: plain values to keep: data list, section, model.
        layers: blocks whose tokens are judged besides the encoder's output; 0 is the first, -1 the last.
        window: for ``neighbours``, cells that a normal token may be away from the place of the one it is compared to.

    Raises:
        AfireError: for fewer than 20 radiographs or 2 patients, unknown parts, blocks or pooling.
    """
    parts = detector.default_parts if parts is None else tuple(parts)
    if pooling not in get_args(Pooling) or not parts:
        raise AfireError(f"pooling must be mean, top or max and there must be a part, got {pooling!r} and {parts}")
    if window < 0:
        raise AfireError(f"the window of neighbours must be at least 0 cells, got {window}")
    of_cells, of_images = measures_of(parts, layers)
    measures = [*of_cells, *of_images]
    gathered, count = _gather(detector, batches, parts, layers, measures)
    patients = _patients(groups, count)
    if not all(values.isfinite().all() for values in gathered.values()):
        raise AfireError("the model gives values that are not finite: damaged weights, or failed training")
    canvas = detector.canvas.canvas_grid
    models, raw = _fit(measures, gathered, patients, canvas, window)
    cells, images = ([raw[m.name].float() for m in some] for some in (of_cells, of_images))
    combination, scores = Combination.fit(
        [m.weight for m in of_cells],
        [m.weight for m in of_images],
        pooling,
        torch.stack(cells, 1) if cells else torch.zeros(count, 0, 0),
        torch.cat(images, 1) if images else torch.zeros(count, 0),
    )
    described = {**(facts or {}), "patients": len(set(groups))}
    return NormalReference(parts, layers, canvas, models, combination, scores, described).eval()


def _gather(
    detector: AnomalyDetector,
    batches: Iterable[Tensor],
    parts: Sequence[str],
    layers: Sequence[int],
    measures: Sequence[Measure],
) -> tuple[dict[Source, Tensor], int]:
    """Look at all radiographs; return what the measures need of them, (n, …) each, and their number."""
    needed = {_source(measure): measure for measure in measures}
    kept: dict[Source, list[Tensor]] = {source: [] for source in needed}
    count = 0
    for images in batches:
        found = detector.features(images, parts, layers=layers)
        count += len(images)
        # of the pictures themselves nothing is kept, of thousands they would fill the memory
        for source, measure in needed.items():
            values = measure.vectors(found) if measure.fitted else found.cells[measure.part]
            kept[source].append(values.cpu() if measure.of_image or not measure.fitted else values.half().cpu())
    return {source: torch.cat(values) for source, values in kept.items() if values}, count


def _source(measure: Measure) -> Source:
    """Name what a measure needs of a radiograph; measures that compare the same tokens share them."""
    return (None if measure.fitted and not measure.of_image else measure.part), measure.block


def _fit(
    measures: Sequence[Measure],
    gathered: Mapping[Source, Tensor],
    patients: Tensor,
    canvas: tuple[int, int],
    window: int,
) -> tuple[dict[str, Fitted], dict[str, Tensor]]:
    """Fit what compares vectors; return it, and what each measure says of the normal radiographs, cross-fitted."""
    models: dict[str, Fitted] = {}
    raw: dict[str, Tensor] = {}
    # neighbours come last: they take the room that the others leave
    for measure in sorted(measures, key=lambda m: m.part == "neighbours"):
        values = gathered[_source(measure)]
        if not measure.fitted:
            raw[measure.name] = values
        elif measure.of_image:
            models[measure.name], raw[measure.name] = fit_images(values, patients)
        elif measure.part == "tokens":
            models[measure.name], raw[measure.name] = fit_tokens(values, patients % FOLDS)
        else:
            widths = [gathered[_source(m)][0].numel() for m in measures if m.part == "neighbours"]
            taken = sum(b.nbytes for m in models.values() if isinstance(m, CellGaussian) for b in m.buffers())
            most = max(MIN_NORMALS, int((MOST_BYTES - taken - RESERVED) / (2 * sum(widths))))
            models[measure.name], raw[measure.name] = fit_neighbours(values, patients, canvas, most, window)
    return models, raw


def _patients(groups: Sequence[str], count: int) -> Tensor:
    """Return the number of each radiograph's patient, (n,)."""
    if count < MIN_NORMALS:
        raise AfireError(
            f"{count} normal radiographs are too few for a reference: percentiles would come in steps of "
            f"{100 / max(count, 1):.0f} %; at least {MIN_NORMALS} are needed, some hundreds are better"
        )
    if len(groups) != count:
        raise AfireError(f"{len(groups)} groups do not fit {count} radiographs")
    numbers = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        raise AfireError(f"the {count} normal radiographs are of one patient; a reference needs several")
    return torch.tensor([numbers[group] for group in groups])
