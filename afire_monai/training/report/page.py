"""The text of a pre-training report: verdicts in plain words, tables, captions, and the next commands."""

from __future__ import annotations

import html
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_text
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.methods.health import health_warnings, shortcut_in_words
from afire_monai.pages.elements import RESEARCH_ONLY, page, paragraph, section, table
from afire_monai.radiographs.raster import write_png
from afire_monai.training.checkpoint import find_checkpoint
from afire_monai.training.handlers import fixed_batch, read_csv_log
from afire_monai.training.report import pictures
from afire_monai.training.worth import WORTH_FILE, Comparison, figures_table

BUDGET_FILE = "time_budget.json"
"""File in a run's folder: the minutes, the number of epochs decided on, and the seconds behind that decision."""


@dataclass(frozen=True)
class RunFiles:
    """Files of a pre-training run; those that are not there are empty or None."""

    folder: Path
    settings: dict[str, Any]
    log: list[dict[str, float]]
    encoder: dict[str, Any]
    checkpoint: dict[str, Any] | None
    panel: Path | None
    budget: dict[str, Any] = field(default_factory=dict)
    worth: Comparison | None = None

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Collect them; AfireError if the folder has no log, so is of no pre-training."""
        log = read_csv_log(folder / "log.csv")
        if not log:
            raise AfireError(f"{folder} has no log.csv with epochs in it: give the output_dir of a pre-training run")
        settings, encoder = folder / "settings.yaml", folder / "models" / "encoder.json"
        found = find_checkpoint(folder / "checkpoints")
        budget, worth = folder / BUDGET_FILE, folder / WORTH_FILE
        panels = sorted((folder / "panels").glob("epoch_*.png"))
        return cls(
            folder,
            (yaml.safe_load(settings.read_text(encoding="utf-8")) or {}) if settings.exists() else {},
            log,
            json.loads(encoder.read_text(encoding="utf-8")) if encoder.exists() else {},
            found[1] if found else None,
            panels[-1] if panels else None,
            json.loads(budget.read_text(encoding="utf-8")) if budget.exists() else {},
            Comparison.read(worth) if worth.exists() else None,
        )

    @property
    def figures(self) -> dict[str, float]:
        """The newest value of each figure in the log."""
        return {name: value for row in self.log for name, value in row.items()}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the encoder's input."""
        size = self.settings.get("image_size") or self.encoder.get("architecture", {}).get("image_size")
        if size is None:
            return None
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def canvas_grid(self, cells: int) -> tuple[int, int] | None:
        """Rows and columns of a bank of so many prototype cells, or None if they are not known."""
        patch = self.settings.get("patch_size") or self.encoder.get("architecture", {}).get("patch_size")
        if self.image_size is not None and patch:
            shift = int(self.settings.get("shift") or 0)
            grid = (self.image_size[0] // patch + shift, self.image_size[1] // patch + shift)
            if grid[0] * grid[1] == cells:
                return grid
        side = round(cells**0.5)
        return (side, side) if side * side == cells else None


def budget_in_words(budget: dict[str, Any]) -> str:
    """Return in words how many epochs a time budget allows, and from which times."""
    seconds = budget["seconds"]
    return (
        f"{budget['minutes']:g} minutes: {budget['epochs']} epochs of {budget['steps_per_epoch']} steps "
        f"({seconds['step']:.3f} s a step, {seconds['epoch_end']:.1f} s at an epoch's end, {seconds['before']:.0f} s "
        f"before training and {seconds['after']:.0f} s after it)"
    )


# labels of panel rows whose names in the method are not clear enough
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
    ("labels predicted by neighbours (AUROC)", (("label_auroc", "AUROC"),)),
)


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html``, one file that needs nothing else, and its pictures as PNG, into a run's folder.

    Args:
        run_dir: output_dir of a pre-training run; missing parts are left out of the page.

    Raises:
        AfireError: if there is no log of a run in the folder.
        CheckpointError: if there are checkpoints but none can be read.
    """
    run = RunFiles.read(Path(run_dir))
    drawn = draw_pictures(run, run.folder / "pictures")
    page = run.folder / "report.html"
    write_text(page, page_text(run, drawn))
    return page


def write_mean_image(dataset: RadiographDataset, run_dir: str | Path, count: int) -> Path:
    """Write the mean picture of a data set, for the prototype map, as ``pictures/mean_image.png`` of a run."""
    path = Path(run_dir) / "pictures" / "mean_image.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = fixed_batch(dataset, count).mean((0, 1))
    write_png(path, (mean * 255).round().byte().cpu().numpy())
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
    if run.worth is not None:
        drawn["worth"] = pictures.draw_intervals(run.worth.figures, folder / "worth.png", "mean AUROC over labels")
    return {name: path for name, path in drawn.items() if path is not None}


def loss_curves(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return title and lines of each of the method's losses, with the same on unseen images where it was measured."""
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


# share of the grey-level variance from which on a restoration is hardly better than none
UNRESTORED = 0.8
# key, name, healthy values, meaning
HEALTH_TABLE = (
    ("feature_std_ratio", "spread of features", "above 0.05; 1 is ideal", "near 0: all images look alike"),
    ("effective_rank", "effective rank", "above 2", "directions in which images differ"),
    ("prototype_usage", "prototype usage", "above 0.1", "share of the prototype dimensions that some cell uses most"),
    ("prototype_entropy", "prototype entropy", "below 1", "1: every cell's assignment is spread over all dimensions"),
    ("position_gap", "position gap", "clearly above 0", "structure loss without the anatomy minus with it"),
    ("own_cell_real", "own cell found", "rises", "share of tokens nearest to the prototype of their own cell"),
    ("lesion_token_auroc", "lesion AUROC", "above 0.5", "lesion tokens lie further from their cell's prototype"),
    ("label_auroc", "label AUROC", "rises", "the list's labels predicted by nearest neighbours of other patients"),
    ("validation_restoration", "restoration error", "falls", "squared error on unseen images; 1 = grey-level variance"),
)  # fmt: skip


def page_text(run: RunFiles, drawn: dict[str, Path]) -> str:
    """Put the page together."""
    name = str(run.settings.get("run_name", run.folder.name))
    parts = [
        paragraph(f"afire-monai {__version__}. {RESEARCH_ONLY}", "small"),
        *(paragraph(text, kind) for kind, text in verdicts(run)),
        section(*_picture_section(run, drawn.get("restoration"))),
        section("What the prototypes have learnt", drawn.get("prototypes"), _prototype_caption(run)),
        section("Losses", drawn.get("losses"), "Each is the mean of an epoch. Unseen images: validation images."),
        section("Schedules", drawn.get("schedules"), "Updated at each step; drawn at the end of each epoch."),
        section("Health", drawn.get("health"), "Measured on normal images that training does not see."),
        table(["figure", "value", "healthy", "what it is"], health_rows(run.figures)),
        *_worth_section(run, drawn.get("worth")),
        "<h2>What was run</h2>",
        table([], facts(run)),
        f"<h2>Next</h2><pre>{html.escape(next_commands(run), quote=False)}</pre>",
    ]
    return page(f"Pre-training: {name}", parts)


RESTORATION_CAPTION = (
    "Unseen normal images, their twins with synthetic lesions, where lesion was added, and what the network makes of "
    "the twin: cells with lesion are hidden from the decoder and filled in from the rest of the picture, so the lesion "
    "has to be gone; blur is expected. The last row keeps the twin and takes only the lesion's cells from the "
    "restoration."
)


def _picture_section(run: RunFiles, picture: Path | None) -> tuple[str, Path | None, str]:
    method = str(run.encoder.get("method_name", "AFiRe"))
    if method == "AFiRe":
        return "Lesions removed", picture, RESTORATION_CAPTION
    return (f"What {method} shows its network", picture, "Unseen normal images, and what becomes of them.")


def _worth_section(run: RunFiles, picture: Path | None) -> list[str]:
    if run.worth is None:
        return []
    caption = (
        f"{run.worth.sentence()} Each image is judged by a logistic regression on frozen features of other patients; "
        "intervals are over patients, gains are paired."
    )
    return [
        section("Was it worth it?", picture, caption),
        table(["features", "AUROC", "gain of this encoder"], figures_table(run.worth)),
        paragraph(run.worth.advice()),
    ]


def _prototype_caption(run: RunFiles) -> str:
    caption = (
        "Each square is one grid cell of the picture, coloured by its prototype (first three principal components as "
        "red, green and blue). Cells of like colour are treated as like anatomy, so colours should change from organ "
        "to organ and gently within one; one colour everywhere would mean that the prototypes have collapsed. "
    )
    if run.settings.get("shift"):
        return caption + "Prototypes belong to cells of the larger canvas from which student and teacher see crops."
    return caption + "With shift 0 each cell has a layer of its own, so likeness of colours says little about anatomy."


def verdicts(run: RunFiles) -> list[tuple[str, str]]:
    """Return in plain words whether the run is sound, each as (``good``, ``bad`` or ``note``, text)."""
    figures = run.figures
    if "feature_std_ratio" not in figures:
        return []
    bad = health_warnings(figures)
    verdicts = [("bad", text) for text in bad]
    if not bad:
        spread, rank = figures["feature_std_ratio"], figures["effective_rank"]
        verdicts.append(
            ("good", f"No collapse: features of different images differ (spread {spread:.2f}, rank {rank:.1f}).")
        )
    words = shortcut_in_words(figures)
    if words is not None:
        # the published form always takes the shortcut: this is a property, not a fault of this run
        without = "bad" if run.settings.get("shift") else "note"
        verdicts.append(("good" if words.startswith("Position shortcut: none") else without, words))
    error = figures.get("validation_restoration", 0.0)
    if error >= UNRESTORED and run.settings.get("restoration_weight", 1.0):
        verdicts.append(
            (
                "bad",
                f"Restoration has not been learned: its error on unseen images is {error:.2f}; one grey level "
                "throughout would have 1. Train longer (more epochs), or with a higher lr, before using the restorer.",
            )
        )
    return verdicts


def health_rows(figures: dict[str, float]) -> list[list[str]]:
    """Return the rows of the health table that there are figures for."""
    return [[name, f"{figures[key]:.3f}", healthy, what] for key, name, healthy, what in HEALTH_TABLE if key in figures]


def facts(run: RunFiles) -> list[list[str]]:
    """Describe the run, without folders of the machine."""
    s, progress = run.settings, (run.checkpoint or {}).get("progress", {})
    shift = s.get("shift")
    # the budget no longer applies to a run that was continued for another number of epochs
    budget = run.budget if run.budget.get("epochs") == progress.get("max_epochs") else None
    speeds = [row["images_per_second"] for row in run.log if "images_per_second" in row]
    rows = [
        ("method", run.encoder.get("method_name")),
        ("form", None if shift is None else f"grid-shifted (shift {shift})" if shift else "published (no shift)"),
        ("encoder", s.get("encoder_preset")),
        (
            "image",
            run.image_size and f"{run.image_size[0]} x {run.image_size[1]} px, cells of {s.get('patch_size')} px",
        ),
        ("data list", s.get("datalist") and Path(str(s["datalist"])).name),
        ("data SHA-256", str(run.encoder.get("data_sha256", ""))[:16]),
        ("training images", progress.get("images")),
        ("epochs", f"{run.log[-1]['epoch']:.0f} of {progress.get('max_epochs', s.get('epochs'))}"),
        ("time budget", budget and budget_in_words(budget)),
        ("batch", progress.get("global_batch", s.get("batch_size"))),
        ("learning rate", s.get("lr") and f"{s['lr']} for a batch of 256, scaled linearly"),
        ("seed", s.get("seed")),
        ("precision", s.get("precision")),
        ("speed", speeds and f"{statistics.median(speeds):.1f} images/s (median over epochs)"),
    ]
    return [[name, str(value)] for name, value in rows if value not in (None, "", [])]


def next_commands(run: RunFiles) -> str:
    """Return the next commands: use the encoder, then train on one's own images."""
    # an absolute path would reveal details of the machine, and be wrong on another one
    folder = run.folder.name if run.folder.is_absolute() else run.folder.as_posix()
    return f"""# use the encoder: images (B, 1, H, W) in 0…1 to tokens (B, 1 + L, D)
python -c "import afire_monai; print(afire_monai.load_encoder('{folder}/models').config)"

# pre-train on your own normal radiographs
afire datalist from-folder FOLDER --out mine.json
afire check mine.json
afire pretrain mine.json --out runs/mine"""
