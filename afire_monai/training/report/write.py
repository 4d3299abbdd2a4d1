"""The page of a pre-training run: what it was, what came out, whether it is sound, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from afire_monai.core.files import write_text
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.training.handlers import fixed_batch
from afire_monai.training.report import pictures
from afire_monai.training.report.page import page_text
from afire_monai.training.report.run_files import RunFiles

# rows of a panel whose names in the method do not say enough
PANEL_ROWS = {
    "image": "normal",
    "twin": "twin with\nlesions",
    "mask": "lesion mask",
    "restoration": "restored",
    "repaired": "twin, lesion\ncells restored",
}
SCHEDULES = (
    ("learning rate", (("lr", "lr"),)),
    ("weight decay", (("weight_decay", "weight decay"),)),
    ("teacher momentum", (("momentum", "momentum"),)),
)
HEALTH = (
    ("spread of features", (("feature_std_ratio", "spread"),)),
    ("position gap", (("position_gap", "gap"),)),
    ("lesions told from normal (AUROC)", (("lesion_token_auroc", "AUROC"),)),
)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html``, one file that needs nothing else, and its pictures as PNG, into a run's folder.

    Args:
        run_dir: output_dir of a pre-training run; what it lacks is left out of the page.

    Returns:
        The page.

    Raises:
        AfireError: if there is no log of a run in the folder.
        CheckpointError: if no checkpoint can be read though there are some.
    """
    run = RunFiles.read(Path(run_dir))
    drawn = draw_pictures(run, run.folder / "pictures")
    page = run.folder / "report.html"
    write_text(page, page_text(run, drawn))
    return page


def write_mean_image(dataset: RadiographDataset, run_dir: str | Path, count: int) -> Path:
    """Write the mean picture of a data set, for the prototype map, as ``pictures/mean_image.png`` of a run.

    Args:
        dataset: images (C, H, W) in 0…1.
        run_dir: the run's folder.
        count: how many images, evenly spaced over the data set.
    """
    path = Path(run_dir) / "pictures" / "mean_image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = fixed_batch(dataset, count).mean((0, 1))
    Image.fromarray((mean * 255).round().byte().cpu().numpy()).save(path)
    return path


def draw_pictures(run: RunFiles, folder: Path) -> dict[str, Path]:
    """Draw all pictures that the run has data for, and give them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Path | None] = {}
    if run.panel is not None and run.image_size is not None:
        drawn["restoration"] = _draw_panel(run.panel, run.image_size, folder / "restoration.png")
    prototypes = (run.checkpoint or {}).get("method", {}).get("prototypes.prototypes")
    grid = None if prototypes is None else run.canvas_grid(len(prototypes))
    if grid is not None:
        mean = folder / "mean_image.png"
        path = folder / "prototypes.png"
        drawn["prototypes"] = pictures.draw_prototypes(prototypes, grid, mean if mean.exists() else None, path)
    for name, curves in (("losses", loss_curves(run)), ("schedules", SCHEDULES), ("health", HEALTH)):
        drawn[name] = pictures.draw_curves(run.log, folder / f"{name}.png", curves)
    return {name: path for name, path in drawn.items() if path is not None}


def loss_curves(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Give title and lines of each of the method's losses, with the same on unseen images where it was measured."""
    names = run.encoder.get("losses", ("structure", "category", "restoration"))
    return [(f"{name} loss", [(name, "training"), (f"validation_{name}", "unseen images")]) for name in names]


def _draw_panel(panel: Path, size: tuple[int, int], path: Path) -> Path | None:
    with Image.open(panel) as picture:
        rows, rest = divmod(picture.height, size[0])
        if rows < 1 or rest or picture.width % size[1]:
            return None
        names = json.loads(picture.info.get("rows", "[]"))
    names = [PANEL_ROWS.get(name, name) for name in names] + [""] * rows
    return pictures.draw_panel(panel, path, names[:rows], size)
