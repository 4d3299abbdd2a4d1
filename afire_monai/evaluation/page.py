"""The page of an evaluation: one HTML file with figures, tables and pictures, that names no file and no patient."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import numpy as np

from afire_monai import __version__
from afire_monai.evaluation import page_charts as draw
from afire_monai.evaluation import page_tables as tables
from afire_monai.evaluation.cases import Cases, scores_of_other
from afire_monai.evaluation.page_tables import heading, interval
from afire_monai.pages.elements import RESEARCH_ONLY, embedded, page, paragraph, section, table
from afire_monai.predictions.format import Predictions

OPEN_LABELS = 3
"""With more findings than this, the part of each is folded."""


def page_text(
    results: dict[str, Any], cases: Cases, predictions: Predictions, other: Predictions | None, pictures: bool = True
) -> str:
    """Put the page together.

    Args:
        results: as `evaluate_cases` gives them.
        cases: the images.
        predictions: of the model.
        other: of the model it is compared with.
        pictures: whether to show the worst cases.
    """
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
    """Say in a sentence each what came out, as (``good``, ``bad`` or ``note``, text)."""
    said: list[tuple[str, str]] = []
    labels, comparison = results["labels"], results["comparison"]
    if labels and labels["macro"]:
        mean = labels["macro"]["auroc"]
        over = labels["macro_over"]
        name = over[0] if len(over) == 1 else f"Mean of {len(over)} findings"
        low = mean["low"]
        kind = "note" if low is None else "good" if low > 0.5 else "bad"
        said.append((kind, f"{name}: AUROC {interval(mean)}." + ("" if kind != "bad" else " Chance is not excluded.")))
    if comparison and comparison["macro"]:
        d = comparison["macro"]["auroc"]
        if d["low"] is None or d["low"] <= 0 <= d["high"]:
            said.append(("note", f"No difference to the compared model is shown: AUROC {interval(d, signed=True)}."))
        else:
            better = d["value"] > 0
            word = "better" if better else "worse"
            said.append(
                ("good" if better else "bad", f"AUROC {word} than the compared model: {interval(d, signed=True)}.")
            )
    if results["anomaly"] and results["anomaly"]["result"]["figures"]:
        said.append(
            ("note", f"Abnormal told from normal: AUROC {interval(results['anomaly']['result']['figures']['auroc'])}.")
        )
    if results["heatmaps"] and "beyond_prior" in results["heatmaps"]:
        said.append(_beyond_prior(results["heatmaps"]["beyond_prior"]["pointing"]))
    return said


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
    # a value less its difference is the other model's, on the cases that both judged
    rows = [(n, own, d and {"value": own["value"] - d["auroc"]["value"]}) for n, own, d in judged]
    yield heading("Findings")
    if rows:
        yield embedded(draw.draw_overview(rows), "AUROC of each finding")
    yield tables.labels(results)
    yield heading("At the threshold")
    yield tables.confusion(results)


def _anomaly(results: dict[str, Any], cases: Cases, predictions: Predictions) -> Iterator[str]:
    if not results["anomaly"] or predictions.anomaly_percentile is None:
        return
    values = predictions.anomaly_percentile
    known = ~np.isnan(values)
    normal, abnormal = (values[known & (cases.abnormal == kind)] for kind in (0, 1))
    yield section("Anomaly score", draw.draw_percentiles(normal, abnormal), "Each group's bars add up to 1.")
    yield tables.anomaly(results)


def _each_label(
    results: dict[str, Any], cases: Cases, predictions: Predictions, other: Predictions | None, pictures: bool
) -> Iterator[str]:
    judged = [r for r in (results["labels"] or {"labels": []})["labels"] if r["figures"]]
    if not judged:
        return
    theirs = None if other is None else scores_of_other(cases, other)
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
        compared = None if theirs is None or np.isnan(theirs[:, column]).all() else theirs[known, column]
        curves = draw.draw_curves(
            cases.targets[known, column] == 1, cases.scores[known, column], compared, row["threshold"]
        )
        shown = draw.draw_worst(cases, predictions, column, row["threshold"]) if pictures else None
        title = f"{row['name']}: AUROC {interval(row['figures']['auroc'])}"
        yield f"<details{' open' if len(judged) <= OPEN_LABELS else ''}><summary>{html.escape(title)}</summary>"
        yield embedded(curves, f"curves of {row['name']}")
        yield embedded(shown, f"worst cases of {row['name']}") if shown else ""
        yield "</details>"
