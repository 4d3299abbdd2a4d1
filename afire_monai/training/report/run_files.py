"""What a pre-training run left in its folder, as a report needs it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from afire_monai.core.errors import AfireError
from afire_monai.training.checkpoint import find_checkpoint
from afire_monai.training.handlers import read_csv_log

BUDGET_FILE = "time_budget.json"
"""In a run's folder: the minutes, the epochs that were decided on, and the seconds that they were decided from."""


@dataclass(frozen=True)
class RunFiles:
    """What a pre-training run left in its folder; parts that are not there are empty or None."""

    folder: Path
    settings: dict[str, Any]
    log: list[dict[str, float]]
    encoder: dict[str, Any]
    checkpoint: dict[str, Any] | None
    panel: Path | None
    budget: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Collect them.

        Raises:
            AfireError: if the folder has no log, so is no pre-training run.
        """
        log = read_csv_log(folder / "log.csv")
        if not log:
            raise AfireError(f"{folder} has no log.csv with epochs in it: give the output_dir of a pre-training run")
        settings, encoder = folder / "settings.yaml", folder / "models" / "encoder.json"
        found = find_checkpoint(folder / "checkpoints")
        budget = folder / BUDGET_FILE
        panels = sorted((folder / "panels").glob("epoch_*.png"))
        return cls(
            folder,
            (yaml.safe_load(settings.read_text(encoding="utf-8")) or {}) if settings.exists() else {},
            log,
            json.loads(encoder.read_text(encoding="utf-8")) if encoder.exists() else {},
            found[1] if found else None,
            panels[-1] if panels else None,
            json.loads(budget.read_text(encoding="utf-8")) if budget.exists() else {},
        )

    @property
    def figures(self) -> dict[str, float]:
        """The newest value of each figure in the log."""
        return {name: value for row in self.log for name, value in row.items()}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of what the encoder sees."""
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
    """Say how many epochs a time budget allows, and from which times."""
    seconds = budget["seconds"]
    return (
        f"{budget['minutes']:g} minutes: {budget['epochs']} epochs of {budget['steps_per_epoch']} steps "
        f"({seconds['step']:.3f} s a step, {seconds['epoch_end']:.1f} s at an epoch's end, {seconds['before']:.0f} s "
        f"before training and {seconds['after']:.0f} s after it)"
    )
