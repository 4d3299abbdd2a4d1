"""Gather the statistics of normal radiographs, cross-fitted by patient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.precision import best_device, set_precision
from afire_monai.core.quiet import hidden
from afire_monai.datalists.file import datalist_hash, read_raw, reader_options, training_items
from afire_monai.datalists.patients import patient_of
from afire_monai.models.folder import load_module_files, model_files, weights_hashes
from afire_monai.predictions.anomaly.combination import Combination, Pooling
from afire_monai.predictions.anomaly.corrections import Corrections, corrections_of, marked_items, without
from afire_monai.predictions.anomaly.detector import DEFAULT_PARTS, HEAD_PARTS, AnomalyDetector, load_detector
from afire_monai.predictions.anomaly.normals import CellGaussian, fit_images, fit_neighbours, fit_tokens
from afire_monai.predictions.anomaly.reference import Fitted, Measure, NormalReference, measures_of, percentiles
from afire_monai.predictions.reading import LeftOut, Radiograph, ahead, batches, read_radiograph

MIN_NORMALS = 20
FOLDS = 10
Source: TypeAlias = tuple[str | None, int | None, int]
RESERVED = 100_000  # bytes for means, deviations and scores
MOST_BYTES = 20_000_000
"""Size below which a reference file is kept, by keeping the tokens of fewer radiographs as neighbours."""


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
    scales: Sequence[int] = (1,),
) -> NormalReference:
    """Gather the statistics of normal radiographs.

    Pictures (B, 1, Hc, Wc) come in batches, with the patient of each; the rest is as for `make_reference`. Raises
    AfireError for fewer than 20 radiographs or 2 patients, unknown parts, blocks or pooling.
    """
    parts = DEFAULT_PARTS if parts is None else tuple(parts)
    if pooling not in get_args(Pooling) or not parts:
        raise AfireError(f"pooling must be mean, top or max and there must be a part, got {pooling!r} and {parts}")
    if set(parts) == {"places"}:
        raise AfireError("the part places draws the map and gives no score; name another part beside it")
    canvas = detector.canvas.canvas_grid
    if not 0 <= window <= max(canvas):
        raise AfireError(f"the window of neighbours must be at least 0 cells, at most {max(canvas)}, got {window}")
    of_cells, of_images = measures_of(parts, layers, scales)
    measures = [*of_cells, *of_images]
    gathered, count = _gather(detector, batches, parts, layers, measures)
    patients = _patients(groups, count)
    if not all(values.isfinite().all() for values in gathered.values()):
        raise AfireError("the model gives values that are not finite: damaged weights, or failed training")
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
    return NormalReference(parts, layers, canvas, models, combination, scores, described, scales).eval()


def _gather(
    detector: AnomalyDetector,
    batches: Iterable[Tensor],
    parts: Sequence[str],
    layers: Sequence[int],
    measures: Sequence[Measure],
) -> tuple[dict[Source, Tensor], int]:
    """Read all radiographs; return the features for the measures, (n, …) each, and the number of radiographs."""
    needed = {_source(measure): measure for measure in measures}
    kept: dict[Source, list[Tensor]] = {source: [] for source in needed}
    count = 0
    for images in batches:
        found = detector.features(images, parts, layers=layers)
        count += len(images)
        # the pictures themselves are not kept: thousands of them would fill the memory
        for source, measure in needed.items():
            values = measure.vectors(found) if measure.fitted else found.cells[measure.part]
            kept[source].append(values.cpu() if measure.of_image or not measure.fitted else values.half().cpu())
    return {source: torch.cat(values) for source, values in kept.items() if values}, count


def _source(measure: Measure) -> Source:
    """Name the features that a measure needs; measures that compare the same tokens share them."""
    return (None if measure.part in ("tokens", "neighbours") else measure.part), measure.block, measure.scale


def _fit(
    measures: Sequence[Measure],
    gathered: Mapping[Source, Tensor],
    patients: Tensor,
    canvas: tuple[int, int],
    window: int,
) -> tuple[dict[str, Fitted], dict[str, Tensor]]:
    """Fit the measures that compare vectors; return the models, and each measure's values of the normals."""
    models: dict[str, Fitted] = {}
    raw: dict[str, Tensor] = {}
    # neighbours come last: they take the space that the others leave
    for measure in sorted(measures, key=lambda m: m.part == "neighbours"):
        values = gathered[_source(measure)]
        if not measure.fitted:
            raw[measure.name] = values
        elif measure.of_image:
            models[measure.name], raw[measure.name] = fit_images(values, patients)
        elif measure.part in ("tokens", "places"):
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


@dataclass
class MadeReference:
    """A reference that was written."""

    reference: NormalReference  #: the reference
    path: Path  #: its file
    left_out: int  #: number of normal radiographs that could not be used
    #: whether the model was pre-trained on these radiographs; None if the model does not say: a list that was merged
    #: into that of the training has another hash, so a difference proves nothing
    seen: bool | None
    corrections: Corrections | None = None  #: changes made by marked radiographs, if there are any


def make_reference(
    model: str | Path,
    datalist: str | Path,
    section: str = "training",
    base_dir: str | Path | None = None,
    parts: Sequence[str] | None = None,
    pooling: str = "mean",
    most: int = 1000,
    batch_size: int = 16,
    workers: int = 2,
    progress: bool = False,
    layers: Sequence[int] = (),
    window: int = 0,
    scales: Sequence[int] = (1,),
    normal: str | Path | None = None,
    not_normal: str | Path | None = None,
) -> MadeReference:
    """Write ``reference.safetensors`` and its JSON into a model folder.

    Args:
        model: folder with ``restorer.safetensors`` or ``encoder.safetensors``.
        datalist: data list; its normal radiographs are used: those labelled normal, or all of a list without labels.
        section: ``training``, ``validation`` or ``test``.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
        parts: parts to judge by (see `AnomalyDetector`); None for those that the model names, or the default.
        pooling: method of pooling cells into the image's score: mean, top (mean of the highest 5 %) or max.
        most: largest number of radiographs to use, evenly spaced over the section; they are held in memory as tokens.
        batch_size: radiographs computed at once.
        workers: threads that read.
        progress: show a bar with the time left.
        layers: blocks whose tokens are judged besides the encoder's output; 0 is the first, -1 the last.
        window: for neighbours, largest distance in cells of a normal token from the token that is compared with it.
        scales: sides in cells, odd, of the squares over which tokens are averaged before ``tokens`` and ``neighbours``
            compare them; several are judged separately.
        normal: data list of false alarms: its images join the normals, whatever their labels.
        not_normal: data list of misses: its images are not normal, and 5 or more of them set the alarm percentile.

    Raises:
        DataListError: if the list or the section is missing, or holds no normal radiograph.
        CheckpointError: if the model cannot be read.
        AfireError: if there are fewer than 20 usable normal radiographs.
    """
    if most < MIN_NORMALS or batch_size < 1 or workers < 0:
        raise AfireError(
            f"--most takes at least {MIN_NORMALS}, --batch-size 1, --workers 0; got {most}, {batch_size}, {workers}"
        )
    files = model_files([model])
    set_precision("float32")
    device = best_device()
    detector = load_detector(files).to(device)
    base = "restorer" if "restorer" in files else "encoder"
    described = load_module_files(files[base])[1]
    of_encoder = load_module_files(files["encoder"])[1] if "encoder" in files else described
    if not parts and isinstance(named := of_encoder.get("reference_parts"), list):
        parts = [str(part) for part in named]
    false_alarms, misses = marked_items(normal), marked_items(not_normal)
    raw = read_raw(Path(datalist))
    items = without(training_items(datalist, section, base_dir=base_dir), [*false_alarms, *misses])
    items = [items[place * len(items) // min(most, len(items))] for place in range(min(most, len(items)))]
    kept = len(items)
    items = [{**item, "reader": reader_options(raw)} for item in items] + without(false_alarms, misses)

    def pictures(items: Sequence[dict], name: str, used: list[int], owners: list[str]) -> Iterator[Tensor]:
        """Read pictures and gather them into batches, and place and patient of each into lists."""

        def read(index: int) -> Radiograph | LeftOut:
            item = items[index]
            return read_radiograph(index, str(item["image"]), [detector.canvas_size], options=item["reader"])

        reading = ahead(read, range(len(items)), workers, 2 * max(batch_size, workers))
        bar = tqdm(reading, total=len(items), desc=name, unit="image", disable=hidden(progress))
        for batch in batches(bar, batch_size):
            used += [radiograph.index for radiograph in batch]
            # a radiograph without a patient counts as a patient of its own
            owners += [patient_of(items[radiograph.index]) for radiograph in batch]
            yield torch.stack([image for radiograph in batch for image in radiograph.images.values()]).to(device)

    needed = {base, "detector"} if HEAD_PARTS & set(parts or ()) else {base}
    hashes = weights_hashes({kind: path for kind, path in files.items() if kind in needed})
    sha256 = datalist_hash(raw)
    seen = section == "training" if described.get("data_sha256") == sha256 else None
    facts = {"section": section, "datalist_sha256": sha256, "model_sha256": hashes, "seen_in_training": seen}
    used, owners = list[int](), list[str]()
    normals = pictures(items, "normal radiographs", used, owners)
    reference = build_reference(detector, normals, owners, parts, pooling, facts, layers, window, scales)
    corrections = None
    if false_alarms or misses:
        earlier = _earlier(model, detector, hashes)
        judges = [reference.to(device), *([] if earlier is None else [earlier.to(device)])]
        alarms = _judge(judges, detector, pictures(items[kept:], "false alarms", [], []))
        found = _judge(judges, detector, pictures(misses, "misses", [], []))
        own = torch.tensor([place for place, index in enumerate(used) if index >= kept], dtype=torch.long)
        alarms[0] = percentiles(reference.crossed[own], reference.crossed)
        corrections = corrections_of(alarms, found)
        reference.facts["corrections"] = corrections.facts()
    # where a run's folder is given, beside the weights in its models/
    path = reference.cpu().save(files.get("reference", files[base]).parent)
    return MadeReference(reference, path, len(items) - reference.count, seen, corrections)


def _earlier(model: str | Path, detector: AnomalyDetector, hashes: dict[str, str]) -> NormalReference | None:
    """Return the reference that the model folder holds, if it can still judge."""
    try:
        earlier = NormalReference.load(model)
        earlier.check(detector, hashes)
    except CheckpointError:
        return None
    return earlier


@torch.no_grad()
def _judge(judges: Sequence[NormalReference], detector: AnomalyDetector, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return percentiles (n,) of pictures, by each reference."""
    found: list[list[Tensor]] = [[] for _ in judges]
    for images in batches:
        for judge, values in zip(judges, found, strict=True):
            features = detector.features(images, judge.parts, layers=judge.layers)
            values.append(judge.judge(features, judge.canvas).percentile.cpu())
    return [torch.cat(values) if values else torch.empty(0, dtype=torch.float64) for values in found]
