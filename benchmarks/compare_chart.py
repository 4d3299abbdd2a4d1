"""Chart of compare.py: each figure of each method as a dot with its 95 % interval."""

from __future__ import annotations

import numpy as np

from afire_monai.pages.elements import new_figure, png

COLUMNS = 3
LINE = 0.2  # inches of one method's line
CHOSEN, OTHER, BASELINE = "#b5402a", "#2b5c8a", "#8a8a8a"


def colour(name: str) -> str:
    """Return red for AFiRe, grey for fresh weights, blue for the others."""
    return BASELINE if name.startswith("fresh") else CHOSEN if name.startswith("afire") else OTHER


def methods_chart(
    figures: dict[tuple[str, str, str], dict[str, np.ndarray]], level: dict[tuple[str, str, str], set[str]]
) -> bytes:
    """Draw one panel for each figure and one line for each method.

    Args:
        figures: (kind, task, what) to method to (1 + repeats,): the value and its bootstrap draws.
        level: by figure, the methods level with the best one, drawn filled.

    Returns:
        a PNG.
    """
    keys = list(figures)
    rows = -(-len(keys) // COLUMNS)
    lines = max(len(methods) for methods in figures.values())
    figure = new_figure(4.2 * COLUMNS, rows * (0.75 + LINE * lines))
    for place, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
        if place >= len(keys):
            axes.set_visible(False)
            continue
        methods = figures[keys[place]]
        for line, (name, draws) in enumerate(methods.items()):
            low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
            axes.plot([low, high], [line, line], color=colour(name), linewidth=1.5)
            filled = colour(name) if name in level[keys[place]] else "white"
            axes.plot(draws[0], line, "o", color=colour(name), markerfacecolor=filled, markersize=5)
        axes.set_yticks(range(len(methods)), list(methods), fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(", ".join(keys[place]), fontsize=9)
    return png(figure, dpi=110)
