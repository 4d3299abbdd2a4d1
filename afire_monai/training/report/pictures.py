"""The pictures of a pre-training report: panels with names, prototype map, curves. Each function writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from afire_monai.pages.elements import GREY, LINE, SECOND, new_figure

Log = Sequence[dict[str, float]]


def draw_panel(panel: Path, path: Path, names: Sequence[str], cell: tuple[int, int]) -> Path:
    """Draw a panel of `PanelWriter` larger, with the name of each row beside it."""
    pixels = np.asarray(Image.open(panel).convert("L"))
    rows, count = len(names), pixels.shape[1] // cell[1]
    label, side, gap = 1.3, 1.35, 0.05
    height = side * cell[0] / cell[1]
    figure = new_figure(label + side * count, (height + gap) * rows, constrained=False)
    total_width, total_height = figure.get_size_inches()
    for index, (name, strip) in enumerate(zip(names, np.split(pixels, rows), strict=True)):
        bottom = total_height - (index + 1) * (height + gap) + gap / 2
        box = (label / total_width, bottom / total_height, side * count / total_width, height / total_height)
        axis = figure.add_axes(box)
        axis.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="bilinear", aspect="auto")
        axis.set_axis_off()
        centre = (bottom + height / 2) / total_height
        figure.text((label - 0.1) / total_width, centre, name, fontsize=11, ha="right", va="center")
    figure.savefig(path, dpi=100)
    Image.open(path).convert("L").save(path, optimize=True)
    return path


def prototype_colours(prototypes: Tensor) -> NDArray[np.float64]:
    """Turn prototypes into colours: cells with like prototypes get like colours.

    The rows are projected on their first three principal components, each stretched to 0…1 from its 2nd to its 98th
    percentile. A component's sign is chosen so that its largest loading is positive. (Rows of the assignment are not
    suitable: they are close to one-hot, so all pairs of cells are about equally unlike.)

    Args:
        prototypes: (N, K).

    Returns:
        (N, 3) red, green and blue in 0…1; mid grey if all rows are equal.
    """
    rows = prototypes.double()
    centred = rows - rows.mean(0)
    _, strengths, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    strongest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = torch.zeros(len(rows), 3, dtype=torch.float64)
    # components that are only rounding noise get no colour
    real = int((strengths[:3] > 1e-6).sum())
    scores[:, :real] = (centred @ (directions * strongest.sign()).T)[:, :real]
    low, high = scores.quantile(0.02, dim=0), scores.quantile(0.98, dim=0)
    span = high - low
    colours = torch.where(span > 0, (scores - low) / span.clamp_min(1e-12), torch.tensor(0.5, dtype=torch.float64))
    return colours.clamp(0, 1).numpy()


def draw_prototypes(prototypes: Tensor, grid: tuple[int, int], mean_image: Path | None, path: Path) -> Path:
    """Draw the prototypes' colours on the grid of cells, beside and over the mean picture if there is one.

    The grid has as many cells as there are prototypes (N, K); of several per cell, (N, M, K), the mean is drawn.
    """
    colours = prototype_colours(prototypes.view(len(prototypes), -1, prototypes.shape[-1]).mean(1)).reshape(*grid, 3)
    mean = None if mean_image is None else np.asarray(Image.open(mean_image).convert("L")) / 255
    figure = new_figure(9.3 if mean is not None else 3.2, 3.3)
    axes = figure.subplots(1, 3 if mean is not None else 1, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    height, width = mean.shape if mean is not None else grid
    extent = (0, width, height, 0)
    if mean is not None:
        axes[0].imshow(mean, cmap="gray", vmin=0, vmax=1, extent=extent)
        axes[0].set_title("mean of the training images", fontsize=10)
        axes[2].imshow(mean, cmap="gray", vmin=0, vmax=1, extent=extent)
        axes[2].imshow(colours, alpha=0.45, extent=extent)
        axes[2].set_title("both", fontsize=10)
    axes[1 if mean is not None else 0].imshow(colours, extent=extent)
    axes[1 if mean is not None else 0].set_title(f"prototypes of {grid[0]} x {grid[1]} cells", fontsize=10)
    figure.savefig(path, dpi=100)
    return path


def measured(log: Log, key: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of a figure, without values repeated from an earlier measurement."""
    points = [(row["epoch"], row[key]) for row in log if key in row]
    return [p for i, p in enumerate(points) if i in (0, len(points) - 1) or p[1] != points[i - 1][1]]


def draw_curves(log: Log, path: Path, curves: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> Path | None:
    """Draw figures of the log over epochs, one axis for each title.

    Args:
        log: one dictionary an epoch.
        path: the PNG to write.
        curves: title, and the figures of that axis as (key in the log, name); those that the log lacks are left out.

    Returns:
        The path, or None if the log has none of them.
    """
    present = [
        (title, [(key, name) for key, name in lines if any(key in row for row in log)]) for title, lines in curves
    ]
    present = [(title, lines) for title, lines in present if lines]
    if not present:
        return None
    width, height = 3.1 * len(present), 2.5
    figure = new_figure(width, height, constrained=False)  # finding margins takes as long as drawing
    figure.subplots_adjust(0.5 / width, 0.45 / height, 1 - 0.1 / width, 1 - 0.3 / height, wspace=0.24)
    for axis, (title, lines) in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        for (key, name), colour in zip(lines, (LINE, SECOND, GREY), strict=False):
            points = measured(log, key)
            axis.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 12 else None)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4))
        if len(lines) > 1:
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)
    return path


def draw_intervals(figures: Mapping[str, tuple[float, float, float]], path: Path, name: str) -> Path:
    """Draw figures with their intervals as points with bars, one row each, the first on top."""
    figure = new_figure(6.5, 0.7 + 0.35 * len(figures))
    axis = figure.subplots()
    for row, (value, low, high) in enumerate(figures.values()):
        colour = GREY if row else LINE
        axis.plot((low, high), (row, row), color=colour)
        axis.plot(value, row, "o", color=colour)
    axis.set_yticks(range(len(figures)), list(figures))
    axis.invert_yaxis()
    axis.set_xlabel(name, fontsize=9)
    axis.grid(alpha=0.25, axis="x")
    figure.savefig(path, dpi=100)
    return path
