"""The evaluation page: one HTML file with figures, tables and pictures that names no file and no patient."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from afire_monai import __version__
from afire_monai.core.errors import RadiographError
from afire_monai.datalists.items import is_box
from afire_monai.evaluation import page_tables as tables
from afire_monai.evaluation.bootstrap import calibration_bins, weighted_curve
from afire_monai.evaluation.cases import Cases, scores_of_other
from afire_monai.evaluation.localisation import resize_heatmap
from afire_monai.evaluation.page_tables import heading, interval
from afire_monai.pages.elements import (
    GREY,
    LINE,
    RESEARCH_ONLY,
    SECOND,
    embedded,
    new_figure,
    page,
    paragraph,
    png,
    section,
    table,
)
from afire_monai.predictions.format import Predictions
from afire_monai.predictions.reading import display_size
from afire_monai.radiographs.decode import read_picture

OPEN_LABELS = 3
"""With more findings than this, the section of each finding is folded."""


def page_text(
    results: dict[str, Any], cases: Cases, predictions: Predictions, other: Predictions | None, pictures: bool = True
) -> str:
    """Put the page together."""
    named = results["datalist"]
    parts = [
        paragraph(f"afire-monai {__version__}. {RESEARCH_ONLY}", "small"),
        paragraph(
            f"{results['cases']} images of {results['patients']} patients, section {named['section']} of data list "
            f"{named['name']} (SHA-256 {named['sha256'][:16]}…). Intervals are 95 %, by "
            f"{results['settings']['repeats']} draws of whole patients."
        ),
        *(paragraph(text, kind) for kind, text in verdicts(results)),
        *(paragraph(text, "note") for text in results["notes"]),
        *_labels(results),
        tables.comparison(results),
        tables.subgroups(results),
        *_anomaly(results, cases, predictions),
        tables.masks(results),
        tables.heatmaps(results),
        *_each_label(results, cases, predictions, other, pictures),
        "<h2>What was run</h2>",
        table([], tables.facts(results)),
    ]
    return page(f"Evaluation: {named['name']}", parts)


def verdicts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """State each result in a sentence, as (``good``, ``bad`` or ``note``, text)."""
    messages: list[tuple[str, str]] = []
    labels, comparison = results["labels"], results["comparison"]
    if labels and labels["macro"]:
        mean, over = labels["macro"]["auroc"], labels["macro_over"]
        name = over[0] if len(over) == 1 else f"Mean of {len(over)} findings"
        kind, more = ("note", "") if mean["low"] is None else ("good", "")
        if mean["low"] is not None and mean["low"] <= 0.5:
            kind, more = "bad", " This is below chance." if mean["high"] < 0.5 else " Chance is not excluded."
        messages.append((kind, f"{name}: AUROC {interval(mean)}.{more}"))
    if comparison and comparison["macro"]:
        d = comparison["macro"]["auroc"]
        if d["low"] is None or d["low"] <= 0 <= d["high"]:
            text = f"No difference to the compared model is shown: AUROC {interval(d, signed=True)}."
            messages.append(("note", text))
        else:
            kind, word = ("good", "better") if d["value"] > 0 else ("bad", "worse")
            messages.append((kind, f"AUROC {word} than the compared model: {interval(d, signed=True)}."))
    if results["anomaly"] and (figures := results["anomaly"]["result"]["figures"]):
        messages.append(("note", f"Abnormal against normal: AUROC {interval(figures['auroc'])}."))
    if results["heatmaps"] and "beyond_prior" in results["heatmaps"]:
        messages.append(_beyond_prior(results["heatmaps"]["beyond_prior"]["pointing"]))
    return messages


def _beyond_prior(gain: dict[str, Any]) -> tuple[str, str]:
    words = f"{interval(gain, signed=True)} pointing, minus the mean lesion of other patients, which sees no picture."
    if gain["low"] is not None and gain["low"] > 0:
        return "good", f"Heatmaps find lesions: {words}"
    return "bad", f"Heatmaps are not shown to find lesions better than a guess by place: {words}"


def _labels(results: dict[str, Any]) -> Iterator[str]:
    labels = results["labels"]
    if not labels:
        return
    comparison = results["comparison"] or {"labels": {}, "macro": {}}
    judged = [
        (r["name"], r["figures"]["auroc"], comparison["labels"].get(r["name"]))
        for r in labels["labels"]
        if r["figures"]
    ]
    if len(labels["macro_over"]) > 1:
        judged.append((f"mean of {len(labels['macro_over'])}", labels["macro"]["auroc"], comparison["macro"]))
    # a value minus its difference is the other model's value, on the cases that both judged
    rows = [(n, own, d and {"value": own["value"] - d["auroc"]["value"]}) for n, own, d in judged]
    yield heading("Findings")
    if rows:
        yield embedded(draw_overview(rows), "AUROC of each finding")
    yield tables.labels(results)
    yield heading("At the threshold")
    yield tables.confusion(results)


def _anomaly(results: dict[str, Any], cases: Cases, predictions: Predictions) -> Iterator[str]:
    if not results["anomaly"] or predictions.anomaly_percentile is None:
        return
    values = predictions.anomaly_percentile
    known = ~np.isnan(values)
    normal, abnormal = (values[known & (cases.abnormal == kind)] for kind in (0, 1))
    yield section("Anomaly score", draw_percentiles(normal, abnormal), "Each group's bars add up to 1.")
    yield tables.anomaly(results)


def _each_label(
    results: dict[str, Any], cases: Cases, predictions: Predictions, other: Predictions | None, pictures: bool
) -> Iterator[str]:
    judged = [r for r in (results["labels"] or {"labels": []})["labels"] if r["figures"]]
    if not judged:
        return
    others = None if other is None else scores_of_other(cases, other)
    yield heading("Each finding")
    if pictures:
        yield paragraph(
            "Pictures: the worst mistakes at the threshold, with the score, the place in the section (from 0), the "
            "heatmap if there is one, and the list's boxes in green. Radiographs can carry names burnt in: "
            "look before passing this page on.",
            "small",
        )
    for row in judged:
        column = cases.names.index(row["name"])
        known = ~np.isnan(cases.targets[:, column]) & ~np.isnan(cases.scores[:, column])
        compared = None if others is None or np.isnan(others[:, column]).all() else others[known, column]
        curves = draw_curves(cases.targets[known, column] == 1, cases.scores[known, column], compared, row["threshold"])
        shown = draw_worst(cases, predictions, column, row["threshold"]) if pictures else None
        title = f"{row['name']}: AUROC {interval(row['figures']['auroc'])}"
        yield f"<details{' open' if len(judged) <= OPEN_LABELS else ''}><summary>{html.escape(title)}</summary>"
        yield embedded(curves, f"curves of {row['name']}")
        yield embedded(shown, f"worst cases of {row['name']}") if shown else ""
        yield "</details>"


Floats = NDArray[np.float64]
WORST = 4
SIDE = 200


def draw_overview(rows: Sequence[tuple[str, dict[str, Any], dict[str, Any] | None]]) -> bytes:
    """Draw the AUROC of each label with its interval as a line, one below the other.

    Args:
        rows: name, interval (``value``, ``low``, ``high``; bounds may be None), and another model's value or None.
    """
    figure = new_figure(7.6, 0.75 + 0.27 * len(rows))
    axis = figure.subplots()
    for place, (_, own, _) in enumerate(rows):
        last = place == len(rows) - 1 and len(rows) > 1
        if own["low"] is not None:
            axis.plot([own["low"], own["high"]], [place, place], color=LINE, linewidth=2 + last)
        axis.plot(own["value"], place, "D" if last else "o", color=LINE)
    others = [(other["value"], place) for place, (_, _, other) in enumerate(rows) if other]
    if others:
        axis.plot(*zip(*others, strict=True), "x", color=SECOND, label="compared model")
        axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    axis.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name, _, _ in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlabel("AUROC with 95 % interval over patients (dotted: chance)", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    return png(figure)


def draw_curves(truth: NDArray[np.bool_], scores: Floats, other: Floats | None, threshold: float) -> bytes:
    """Draw ROC, precision over recall, and reliability of one label.

    Args:
        truth: (n,), both classes present.
        scores: (n,) probabilities.
        other: (n,) probabilities of the model to compare with, NaN where unknown; None without one.
        threshold: threshold to mark on the curves.
    """
    figure = new_figure(9.3, 3.0)
    roc, precision, reliability = figure.subplots(1, 3)
    drawn = [(scores, truth, LINE, "this model")]
    if other is not None and 0 < truth[~np.isnan(other)].sum() < (~np.isnan(other)).sum():
        drawn.append((other[~np.isnan(other)], truth[~np.isnan(other)], SECOND, "compared"))
    for column, known, colour, name in drawn:
        curve = weighted_curve(column, known, np.ones((1, len(known))))
        true, false = curve.true[0], curve.false[0]
        roc.plot([0, *false / false[-1]], [0, *true / true[-1]], color=colour, label=name)
        precision.plot(true / true[-1], true / (true + false), color=colour, linewidth=1)
        mean, share, count = calibration_bins(known, column)
        reliability.plot(mean[count > 0], share[count > 0], color=colour, linewidth=0.8)
        reliability.scatter(mean, share, s=6 + 90 * count / count.max(), color=colour, alpha=0.7)
    flagged = scores >= threshold
    roc.plot((flagged & ~truth).sum() / (~truth).sum(), (flagged & truth).sum() / truth.sum(), "o", color=GREY)
    roc.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    precision.axhline(truth.mean(), color=GREY, linewidth=0.8, linestyle=":")
    reliability.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    words = (
        ("1 - specificity", "sensitivity", "ROC (dot: threshold)"),
        ("sensitivity", "precision", "precision over sensitivity"),
        ("stated probability", "share with finding", "reliability"),
    )
    for axis, (x, y, title) in zip((roc, precision, reliability), words, strict=True):
        axis.set_xlabel(x, fontsize=9)
        axis.set_ylabel(y, fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.04)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    if len(drawn) > 1:
        roc.legend(fontsize=8, frameon=False, loc="lower right")
    return png(figure, 90)


def draw_percentiles(normal: Floats, abnormal: Floats) -> bytes:
    """Draw how the anomaly percentiles of normal and of abnormal images are spread."""
    figure = new_figure(7.6, 2.5)
    axis = figure.subplots()
    bins = np.linspace(0, 100, 21)
    for values, colour, name in ((normal, LINE, "normal"), (abnormal, SECOND, "any finding")):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axis.hist(values, bins, weights=weights, color=colour, alpha=0.5, label=f"{name} ({len(values)})")
    axis.axhline(1 / 20, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_xlabel("percentile among reference normals (dotted: how such normals should be spread)", fontsize=9)
    axis.set_ylabel("share of images", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_worst(cases: Cases, predictions: Predictions, label: int, threshold: float) -> bytes | None:
    """Draw the negatives with the highest scores and the positives with the lowest, with heatmaps and boxes over them.

    Returns:
        The JPEG; None if no case is on the wrong side of the threshold.
    """
    high, low = worst_cases(cases.targets[:, label], cases.scores[:, label], threshold)
    if not len(high) and not len(low):
        return None
    kinds = ((high, "no finding,\nhigh score"), (low, "finding,\nlow score"))
    rows = [(row, words) for row, words in kinds if len(row)]
    figure = new_figure(9.3, 2.35 * len(rows))
    axes = figure.subplots(len(rows), WORST, squeeze=False)
    for line, (places, words) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(words, fontsize=10)
        for axis, place in zip(line, places, strict=False):
            axis.set_title(f"{cases.scores[place, label]:.2f}   no. {cases.index[place]}", fontsize=9)
            _draw_case(axis, cases.items[place], cases.reader, predictions.heatmap(int(cases.index[place])))
    # a PNG of radiographs is five times as large
    return png(figure, 90, format="jpeg", pil_kwargs={"quality": 88})


def worst_cases(targets: Floats, scores: Floats, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the negatives with the highest scores and the positives with the lowest, worst first.

    Targets and scores are (n,), NaN where unknown; there are at most `WORST` of each.
    """
    wrong = ((targets == 0) & (scores >= threshold), (targets == 1) & (scores < threshold))
    order = np.argsort(scores, kind="stable")
    high, low = (order[mask[order]] for mask in wrong)
    return high[::-1][:WORST], low[:WORST]


def _draw_case(axis: Any, item: dict[str, Any], reader: Mapping[str, Any], heatmap: NDArray[np.float32] | None) -> None:
    try:
        pixels = read_picture(item["image"], **{**reader, "modalities": None}).pixels
    except RadiographError:
        axis.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=9, transform=axis.transAxes)
        return
    height, width = pixels.shape
    shape = display_size((height, width), SIDE)
    small = np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX))
    axis.imshow(small, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    if heatmap is not None:
        shown = resize_heatmap(heatmap, shape)
        # faint parts stay transparent, so that the picture is seen where the map shows nothing
        axis.imshow(shown, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * shown.clip(0, 1), extent=(0, width, height, 0))
    for left, top, wide, tall, _ in filter(is_box, item.get("boxes") or []):
        xs, ys = [left, left + wide, left + wide, left, left], [top, top, top + tall, top + tall, top]
        axis.plot(xs, ys, color="#3ddc84", linewidth=1)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
