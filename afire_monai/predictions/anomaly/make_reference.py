"""Make the normal reference of a model folder from a data list."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from afire_monai.core.errors import AfireError
from afire_monai.core.precision import set_precision
from afire_monai.datalists.file import datalist_hash, read_raw, training_items
from afire_monai.models.encoder import load_module_files
from afire_monai.models.folder import model_files, weights_hashes
from afire_monai.predictions.anomaly.build_reference import MIN_NORMALS, build_reference
from afire_monai.predictions.anomaly.load_detector import load_detector
from afire_monai.predictions.anomaly.reference import NormalReference
from afire_monai.predictions.reading import LeftOut, Radiograph, ahead, read_radiograph


@dataclass
class MadeReference:
    """A reference that was written.

    Attributes:
        reference: what was written.
        path: where.
        left_out: how many normal radiographs could not be used.
        seen: whether the model was pre-trained on these radiographs; None where the model does not say.
    """

    reference: NormalReference
    path: Path
    left_out: int
    seen: bool | None


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
    device: torch.device | None = None,
    progress: bool = False,
    layers: Sequence[int] = (),
    window: int = 0,
) -> MadeReference:
    """Write ``reference.safetensors`` and its JSON into a model folder.

    Args:
        model: folder with ``restorer.safetensors`` or ``encoder.safetensors``.
        datalist: normal radiographs are taken from it: those whose labels say so, all of a list without labels.
        section: ``training``, ``validation`` or ``test``.
        base_dir: folder that relative paths of the list start from; None for the list's own.
        parts: what to judge by (see `AnomalyDetector`); None for the default.
        pooling: of cells into the image's score: ``mean``, ``top`` or ``max``.
        most: use at most so many radiographs, evenly spaced over the section; they are held in memory as tokens.
        batch_size: radiographs computed at once.
        workers: threads that read.
        device: where to compute; None for a GPU if there is one.
        progress: show a bar with the time left.
        layers: blocks whose tokens are judged besides the encoder's output; 0 is the first, -1 the last.
        window: for ``neighbours``, cells that a normal token may be away.

    Raises:
        DataListError: if the list or the section is missing, or holds no normal radiograph.
        CheckpointError: if the model cannot be read.
        AfireError: if there are fewer than 20 usable normal radiographs.
    """
    if most < MIN_NORMALS or batch_size < 1 or workers < 0:
        raise AfireError(
            f"--most takes at least {MIN_NORMALS}, --batch-size 1, --workers 0; got {most}, {batch_size}, {workers}"
        )
    files = {k: p for k, p in model_files([model]).items() if k in ("restorer", "encoder", "detector")}
    set_precision("float32")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = load_detector(files).to(device)
    items = training_items(datalist, section, base_dir=base_dir)
    number = min(most, len(items))
    items = [items[place * len(items) // number] for place in range(number)]
    used: list[str] = []
    read = functools.partial(_read, items, detector.canvas_size)
    reading = ahead(read, range(len(items)), workers, max(2 * batch_size, 2 * workers))
    bar = tqdm(reading, total=len(items), desc="normal radiographs", unit="image", disable=not progress)
    batches = _batches(bar, items, batch_size, used, device)
    base = "restorer" if "restorer" in files else "encoder"
    # the other files may come and go: they have no part in it
    needed = {base, "detector"} if "prototypes" in (parts or ()) else {base}
    hashes = {kind: value for kind, value in weights_hashes(files).items() if kind in needed}
    sha256 = datalist_hash(read_raw(Path(datalist)))
    trained_on = load_module_files(files[base])[1].get("data_sha256")
    # a list that was merged into the training's has another hash, so a difference tells nothing
    seen = section == "training" if trained_on == sha256 else None
    facts = {"section": section, "datalist_sha256": sha256, "model_sha256": hashes, "seen_in_training": seen}
    reference = build_reference(detector, batches, used, parts, pooling, facts, layers, window)
    return MadeReference(reference, reference.cpu().save(model), len(items) - reference.count, seen)


def _read(items: Sequence[dict], size: tuple[int, int], index: int) -> Radiograph | LeftOut:
    return read_radiograph(index, str(items[index]["image"]), [size])


def _batches(
    results: Iterator[Radiograph | LeftOut], items: Sequence[dict], size: int, used: list[str], device: torch.device
) -> Iterator[Tensor]:
    """Gather pictures into batches, and the patient of each into a list."""
    batch: list[Tensor] = []
    for result in results:
        if isinstance(result, LeftOut):
            continue
        batch += result.images.values()
        # without a patient each radiograph counts as one of its own
        used.append(str(items[result.index].get("group") or f"image {result.index}"))
        if len(batch) == size:
            yield torch.stack(batch).to(device)
            batch = []
    if batch:
        yield torch.stack(batch).to(device)
