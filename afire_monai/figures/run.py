"""Show what an encoder's tokens and features represent: pictures, numbers, and one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.core.files import whole_file
from afire_monai.datalists.file import datalist_hash, load_datalist, read_raw, reader_options
from afire_monai.datalists.targets import target_matrix
from afire_monai.figures import study as parts
from afire_monai.figures.landmarks import add_landmarks
from afire_monai.figures.page import page_text
from afire_monai.figures.study import DRAWN, Settings, Study
from afire_monai.figures.views import choose_items, read_sample, views_of
from afire_monai.methods.grid_shift import GridShift
from afire_monai.models.folder import load_encoder, load_module_files
from afire_monai.networks import Encoder


def draw_figures(
    encoder: str | Path, datalist: str | Path, out: str | Path, settings: Settings | None = None
) -> tuple[Path, dict[str, Any]]:
    """Draw all figures that the model and the list have material for.

    It writes ``*.png``, ``figures.json`` and ``figures.html``, which needs nothing else. They name no file and no
    patient, but show radiographs. Nothing is written before everything is computed.

    Args:
        encoder: model folder with ``encoder.safetensors`` (and perhaps ``detector.safetensors``), or an encoder file.
        datalist: JSON list with the images.
        out: folder to write into.
        settings: see `Settings`.

    Raises:
        AfireError: for impossible settings, an unknown label, or no images of two patients.
    """
    s = settings or Settings()
    network, description = load_encoder(encoder), load_module_files(encoder)[1]
    shift = GridShift(network.grid, network.patch_size, _shift(description, network, s.shift))
    content = load_datalist(datalist)
    items = load_datalist(datalist, section=s.section)
    if s.label is not None:
        if not content.get("labels"):
            raise DataListError(f"{datalist}: it has no labels, so images cannot be coloured by {s.label!r}")
        target_matrix([], content["labels"], select=[s.label])
    sample = read_sample(choose_items(items, s.images, s.seed), network, shift, reader_options(content))
    study = Study(sample, views_of(sample, network, shift, s.seed), shift, s, content)
    if sample.left_out:
        study.notes.append(f"{len(sample.left_out)} files cannot be used.")
    facts = ("method_name", "epochs", "shift", "data_sha256")
    study.numbers |= {
        "format": "afire figures 1",
        "images": len(sample.items),
        "section": s.section,
        "datalist": {"name": str(content.get("name", "")), "sha256": datalist_hash(read_raw(Path(datalist)))},
        "model": {key: description[key] for key in facts if key in description},
        "grid": list(network.grid),
        "canvas_shift": shift.shift,
        "seed": s.seed,
    }
    parts.add_cells(study)
    add_landmarks(study)
    parts.add_disease(study)
    parts.add_correspondence(study)
    parts.add_segments(study)
    parts.add_atlas(study, Path(encoder))
    return _write(Path(out), study), study.numbers


def _shift(description: dict[str, Any], encoder: Encoder, asked: int | None) -> int:
    smallest = min(encoder.grid)
    if asked is None:
        asked = int(description.get("shift") or 0) or max(1, smallest // 4)
    if not 1 <= asked < smallest:
        raise AfireError(f"shift is {asked}; a whole number of cells from 1 to {smallest - 1} is expected")
    return asked


def _write(out: Path, study: Study) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**study.numbers, "notes": study.notes}, indent=1, ensure_ascii=False) + "\n"
    page = page_text(study.numbers, study.drawn, study.notes)
    files = {f"{name}.png": data for name, data in study.drawn.items()}
    files |= {"figures.json": text.encode(), "figures.html": page.encode()}
    for name, data in files.items():
        with whole_file(out / name) as part:
            part.write_bytes(data)
    for name in set(DRAWN) - set(study.drawn):  # of an earlier run with other material
        (out / f"{name}.png").unlink(missing_ok=True)
    return out / "figures.html"
