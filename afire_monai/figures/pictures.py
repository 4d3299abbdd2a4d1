"""Pictures of representations; each function draws one figure and gives it as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.figures.views import pixel_tokens
from afire_monai.losses.token_contrastive import similarities
from afire_monai.pages.elements import LINE, SECOND, new_figure, png

Points = NDArray[np.float32]
# distinguishable for the colour-blind, and on grey
SEGMENT_COLOURS = np.array(
    [
        (0.00, 0.45, 0.70), (0.90, 0.62, 0.00), (0.00, 0.62, 0.45), (0.80, 0.47, 0.65), (0.34, 0.71, 0.91),
        (0.84, 0.37, 0.00), (0.94, 0.89, 0.26), (0.45, 0.35, 0.65), (0.55, 0.65, 0.25), (0.60, 0.30, 0.15),
        (0.20, 0.25, 0.45), (0.75, 0.75, 0.75),
    ]
)  # fmt: skip
CORNERS = np.array([[(0.80, 0.15, 0.15), (0.95, 0.75, 0.10)], [(0.15, 0.25, 0.75), (0.10, 0.60, 0.35)]])
"""Colours of the picture's corners, between which cells are coloured."""


def cell_colours(grid: tuple[int, int]) -> NDArray[np.float64]:
    """A colour for each cell (rows · columns, 3) that changes evenly over the picture."""
    down, across = (np.linspace(0, 1, side)[:, None] for side in grid)
    left = CORNERS[0, 0] * (1 - down) + CORNERS[1, 0] * down
    right = CORNERS[0, 1] * (1 - down) + CORNERS[1, 1] * down
    colours = left[:, None] * (1 - across)[None] + right[:, None] * across[None]
    return colours.reshape(-1, 3)


def draw_disease(maps: Mapping[str, Points], values: NDArray[np.float32], label: str) -> bytes:
    """Scatter images (n, 2), coloured by whether a label is present, absent or not known; one panel for each view."""
    label = label.replace("$", r"\$")  # or matplotlib would take it for the start of a formula
    figure = new_figure(3.4 * len(maps), 3.6)
    for axis, (name, points) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        for value, colour, word in ((0, LINE, f"no {label}"), (1, SECOND, label), (np.nan, "#bbbbbb", "not known")):
            chosen = np.isnan(values) if np.isnan(value) else values == value
            if chosen.any():
                axis.scatter(*points[chosen].T, s=13, color=colour, alpha=0.75, linewidths=0, label=word)
        _plain(axis, name)
    axis.legend(fontsize=8, frameon=True, framealpha=0.9, loc="best")
    return png(figure, 110)


def draw_cells(maps: Mapping[str, Points], cells: NDArray[np.int64], grid: tuple[int, int]) -> bytes:
    """Scatter tokens (m, 2), coloured by the cell that they show; one panel for each view, and the key of colours."""
    colours = cell_colours(grid)
    figure = new_figure(3.3 * len(maps) + 1.4, 3.6)
    panels = figure.subplots(1, len(maps) + 1, squeeze=False, width_ratios=[3.3] * len(maps) + [1.3])[0]
    for axis, (name, points) in zip(panels, maps.items(), strict=False):
        axis.scatter(*points.T, s=5, color=colours[cells], alpha=0.8, linewidths=0)
        _plain(axis, name)
    panels[-1].imshow(colours.reshape(*grid, 3))
    _plain(panels[-1], "colour of a cell\nin the picture")
    return png(figure, 110)


def draw_landmarks(maps: Mapping[str, Points], landmarks: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Scatter tokens (m, 2), coloured by the landmark that they show; one panel for each view, and the names."""
    figure = new_figure(3.3 * len(maps) + 2.1, 3.6)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (name, points) in zip(axes, maps.items(), strict=True):
        for landmark, word in enumerate(names):
            shown = landmarks == landmark
            colour = SEGMENT_COLOURS[landmark % len(SEGMENT_COLOURS)]
            axis.scatter(*points[shown].T, s=9, color=colour, alpha=0.8, linewidths=0, label=word)
        _plain(axis, name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    return png(figure, 110)


@dataclass(frozen=True)
class Correspondence:
    """One asked cell and its answers."""

    asked: tuple[float, float, float]  #: box (left, top, side) in the first picture
    found: list[tuple[float, float, float]]  #: boxes of the best match in the others
    right: list[tuple[float, float, float]]  #: boxes of the same anatomy in the others
    similarity: NDArray[np.float32]  #: (others, rows, columns) cosine to the asked cell
    distance: float  #: mean distance of found from right in cells


def draw_correspondence(
    first: NDArray[np.float32], others: NDArray[np.float32], rows: Sequence[Correspondence]
) -> bytes:
    """Draw the first patient with the asked cell, and the others with likeness in colour and the best match boxed."""
    side = 1.75
    figure = new_figure(side * (1 + len(others)) + 0.3, (side + 0.05) * len(rows) + 0.35)
    axes = figure.subplots(len(rows), 1 + len(others), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        line[0].imshow(first, cmap="gray", vmin=0, vmax=1)
        _box(line[0], row.asked, "#ffd23f", "-")
        for place, axis in enumerate(line[1:]):
            height, width = others[place].shape
            axis.imshow(others[place], cmap="gray", vmin=0, vmax=1)
            axis.imshow(
                row.similarity[place], cmap="inferno", vmin=0, vmax=1, alpha=0.45, extent=(0, width, height, 0),
                interpolation="bilinear",
            )  # fmt: skip
            _box(axis, row.right[place], "white", (0, (2, 2)))
            _box(axis, row.found[place], "#4fd0ff", "-")
            axis.set_xlim(0, width)
            axis.set_ylim(height, 0)
        for axis in line:
            _plain(axis, "")
        line[0].set_ylabel(f"off by {row.distance:.1f} cells", fontsize=8)
    axes[0, 0].set_title("patient A", fontsize=9)
    for place, axis in enumerate(axes[0, 1:]):
        axis.set_title(f"patient {chr(ord('B') + place)}", fontsize=9)
    return png(figure, 110)


def draw_segments(
    pictures: NDArray[np.float32], segments: Mapping[str, NDArray[np.int64]], masks: NDArray[np.float32] | None
) -> bytes:
    """Draw radiographs, their clusters in colour for each view, and outlines of masks where there are some.

    Args:
        pictures: (n, H, W) in 0…1.
        segments: name of the view → (n, H, W) clusters.
        masks: (n, H, W) 1, 0 or NaN, outlined; None for none.
    """
    count, side = len(pictures), 1.35
    figure = new_figure(side * count + 0.3, (side + 0.03) * (1 + len(segments)) + 0.05)
    axes = figure.subplots(1 + len(segments), count, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    for column, picture in enumerate(pictures):
        axes[0, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
        for row, clusters in enumerate(segments.values(), start=1):
            colours = SEGMENT_COLOURS[clusters[column]]
            axes[row, column].imshow(0.55 * picture[..., None] + 0.45 * colours, vmin=0, vmax=1)
        if masks is not None:
            for axis in axes[:, column]:
                axis.contour(masks[column] == 1, [0.5], colors="white", linewidths=0.8)
    for axis in axes.flat:
        _plain(axis, "")
    for axis, name in zip(axes[:, 0], ("radiograph", *segments), strict=True):
        axis.set_ylabel(name, fontsize=8)
    return png(figure, 110)


def draw_atlas(
    mean: NDArray[np.float32], strongest: NDArray[np.int64], mosaic: NDArray[np.float32], share: NDArray[np.float64]
) -> bytes:
    """Draw the atlas: each cell's strongest dimension, its mean patch, and the share of tokens that choose it.

    ``mean`` (H, W) is the mean picture of the canvas; see `Atlas` for the rest.
    """
    figure = new_figure(12.4, 3.3)
    axes = figure.subplots(1, 4)
    height, width = mean.shape
    extent = (0, width, height, 0)
    axes[0].imshow(mean, cmap="gray", vmin=0, vmax=1)
    _plain(axes[0], "mean of the images")
    names, index = np.unique(strongest, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(len(names))[index].reshape(strongest.shape)
    axes[1].imshow(mean, cmap="gray", vmin=0, vmax=1)
    axes[1].imshow(shuffled, cmap="turbo", alpha=0.5, extent=extent)
    for (row, column), value in np.ndenumerate(strongest):
        x, y = ((column + 0.5) * width / strongest.shape[1], (row + 0.5) * height / strongest.shape[0])
        axes[1].text(x, y, str(value), ha="center", va="center", fontsize=6, color="white")
    _plain(axes[1], f"strongest dimension of each cell\n({len(names)} in use)")
    axes[2].imshow(np.ma.masked_invalid(mosaic), cmap="gray", vmin=0, vmax=1)
    axes[2].set_facecolor("#b5541c")
    _plain(axes[2], "mean patch that chose each prototype")
    drawn = axes[3].imshow(share, cmap="viridis", vmin=0, vmax=1)
    _plain(axes[3], "tokens that chose their own cell")
    figure.colorbar(drawn, ax=axes[3], fraction=0.046, pad=0.03).ax.tick_params(labelsize=8)
    return png(figure, 110)


def _plain(axis: Any, title: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#cccccc")
    if title:
        axis.set_title(title, fontsize=9)


def _box(axis: Any, box: tuple[float, float, float], colour: str, style: Any) -> None:
    from matplotlib.patches import Rectangle

    left, top, side = box
    axis.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=1.6, linestyle=style))


@dataclass(frozen=True)
class Atlas:
    """The prototypes of a canvas of rows · columns cells."""

    strongest: NDArray[np.int64]  #: (rows, columns) dimension with the largest share of each cell's (mean) assignment
    mosaic: NDArray[np.float32]  #: (H, W) mean patch of the tokens that chose each cell's prototype; NaN where none did
    #: (rows, columns) share of the tokens of each cell that chose its own prototype; NaN where none was seen
    share: NDArray[np.float64]
    found: float  #: share over all tokens


@torch.no_grad()
def build_atlas(detector: Any, canvas: Tensor) -> Atlas:
    """Let each token of each canvas, seen through the crops at its corners, choose the prototype that it is nearest to.

    Args:
        detector: an `AnomalyDetector` with token head and assignment, (N, K) or (N, M, K).
        canvas: (n, C, Hc, Wc) in 0…1.
    """
    shift, assignment = detector.canvas, detector.assignment.cpu()
    rows, columns = shift.canvas_grid
    count, p = rows * columns, shift.patch_size
    sums, chosen = torch.zeros(count, p * p, dtype=torch.float64), torch.zeros(count)
    own, seen = torch.zeros(count), torch.zeros(count)
    for offset in detector.offsets():
        for part in canvas.split(32):
            offsets = torch.tensor([offset]).expand(len(part), 2)
            crops = shift.crop(part, offsets)
            logits = detector.head(detector.encoder(crops)[:, 1:])
            best = similarities(logits, assignment, detector.temperature)[0].argmax(-1).flatten()
            sums.index_add_(0, best, pixel_tokens(crops, p).flatten(0, 1).double())
            chosen.index_add_(0, best, torch.ones(len(best)))
            here = shift.cells(offsets).flatten()
            seen.index_add_(0, here, torch.ones(len(here)))
            own.index_add_(0, here, (best == here).float())
    mean = torch.where(chosen[:, None] > 0, sums / chosen[:, None].clamp_min(1), torch.nan)
    mosaic = mean.view(rows, columns, p, p).transpose(1, 2).reshape(rows * p, columns * p)
    share = torch.where(seen > 0, own / seen.clamp_min(1), torch.nan)
    return Atlas(
        assignment.view(count, -1, assignment.shape[-1]).mean(1).argmax(1).view(rows, columns).numpy(),
        mosaic.float().numpy(),
        share.view(rows, columns).double().numpy(),
        float(own.sum() / seen.sum()),
    )
