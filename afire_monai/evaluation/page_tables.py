"""The tables of an evaluation page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from afire_monai.evaluation.bootstrap import FIGURES, RANKING
from afire_monai.pages.elements import paragraph, table

Results = dict[str, Any]
DASH = "–"
_HEADS = ("AUROC", "average precision", "sensitivity at 95 % specificity", "Brier", "ECE")  # of FIGURES
FEW = 10
"""Number of cases of a class below which a bootstrap interval cannot be trusted."""


def heading(text: str) -> str:
    """Return a heading."""
    return f"<h2>{html.escape(text)}</h2>"


def interval(figure: dict[str, Any] | None, digits: int = 3, signed: bool = False) -> str:
    """Write a value with its interval, or a dash where it is not defined."""
    if not figure or figure["value"] is None:
        return DASH
    sign = "+" if signed else ""
    value = f"{figure['value']:{sign}.{digits}f}"
    if figure["low"] is None:
        return f"{value} (no interval)"
    return f"{value} ({figure['low']:{sign}.{digits}f} to {figure['high']:{sign}.{digits}f})"


def _cell(figure: dict[str, Any] | None, digits: int = 3, signed: bool = False) -> str:
    """As `interval`, with the bounds kept on one line."""
    value, bracket, bounds = interval(figure, digits, signed).partition("(")
    return value + bracket + bounds.replace(" ", "\u00a0")


def labels(results: Results) -> str:
    """Figures of each label and their mean."""
    found = results["labels"]
    head = ["finding", "with / without", *_HEADS]
    rows = []
    for row in found["labels"]:
        counts = f"{row['positives']} / {row['negatives']}"
        if row["figures"]:
            rows.append([row["name"], counts, *(_cell(row["figures"][f]) for f in FIGURES)])
        else:
            rows.append([row["name"], counts, f"not judged: {row['status']}", *[""] * 4])
    if len(found["macro_over"]) > 1:
        rows.append([f"mean of {len(found['macro_over'])}", "", *(_cell(found["macro"][f]) for f in FIGURES)])
    note = few_images(found["labels"])
    return table(head, rows) + (paragraph(note, "small") if note else "")


def few_images(rows: Sequence[dict[str, Any]]) -> str:
    """Name the judged labels that have too few images on one side for their figures to be trusted; empty if none."""
    few = [r["name"] for r in rows if r["figures"] and min(r["positives"], r["negatives"]) < FEW]
    words = (
        f"Fewer than {FEW} images with or without the finding, so take value and interval lightly: {', '.join(few)}."
    )
    return words if few else ""


def confusion(results: Results) -> str:
    """Counts and rates at each label's threshold."""
    head = ["finding", "threshold", "TP", "FP", "FN", "TN", "sensitivity", "specificity", "PPV", "NPV"]
    rows = [
        [
            row["name"],
            f"{row['threshold']:.3g}",
            *(str(row["confusion"][k]) for k in ("tp", "fp", "fn", "tn")),
            *(_cell(row["figures"][f], 2) for f in ("sensitivity", "specificity", "ppv", "npv")),
        ]
        for row in results["labels"]["labels"]
        if row["figures"]
    ]
    note = "PPV and NPV hold for the share of findings in this section only."
    return table(head, rows) + paragraph(note, "small")


def comparison(results: Results) -> str:
    """Differences to another model."""
    compared = results["comparison"]
    parts = []
    if compared:
        head = ["finding", *_HEADS]
        rows = [[name, *(_cell(row[f], signed=True) for f in FIGURES)] for name, row in compared["labels"].items()]
        if len(compared["macro_over"]) > 1:
            mean = [_cell(compared["macro"][f], signed=True) for f in FIGURES]
            rows.append([f"mean of {len(compared['macro_over'])}", *mean])
        note = f"On {compared['cases']} images that both judged. For Brier and ECE, negative is better."
        parts = [table(head, rows), paragraph(note, "small")]
    others = {
        "anomaly score": (results["anomaly"] or {}).get("difference", {}),
        "masks, Dice": (results["masks"] or {}).get("difference", {}),
        "heatmaps": (results["heatmaps"] or {}).get("difference", {}),
    }
    rest = [
        [part, name.replace("_", " "), _cell(figure, signed=True)]
        for part, figures_of in others.items()
        for name, figure in figures_of.items()
    ]
    parts.append(table(["part", "figure", "difference"], rest))
    if not any(parts):
        return ""
    note = "This model minus the compared one, on the same draws of patients; an interval without 0 shows a difference."
    return "".join([heading("Comparison"), paragraph(note, "small"), *parts])


def subgroups(results: Results) -> str:
    """Figures by sex, age, view and source."""
    groups = results["subgroups"]
    if not groups:
        return ""
    single = len(results["labels"]["macro_over"]) <= 1
    head = ["", "group", "images", "patients", "AUROC" if single else "mean AUROC", "over"]
    rows = []
    for group in groups:
        over, macro = group["macro_over"], _cell(group["macro"]) if group["macro"] else "too small"
        named = ", ".join(over) if len(over) < 3 else f"{len(over)} findings"
        rows.append([group["by"], group["name"], str(group["cases"]), str(group["patients"]), macro, named])
    note = (
        "The mean is over the findings that can be judged in every group of a kind, so that groups can be compared. "
        "A finding with fewer than 10 images with or without it in a group is too small to be judged there."
    )
    return heading("Groups") + table(head, rows) + paragraph(note, "small") + _subgroup_labels(groups)


def _subgroup_labels(groups: list[dict[str, Any]]) -> str:
    head = ["", "group", "finding", "with / without", "AUROC", "sensitivity", "specificity"]
    rows = []
    for group in groups:
        for name, row in group["labels"].items():
            auroc, *rates = (row["figures"].get(figure) for figure in ("auroc", "sensitivity", "specificity"))
            cells = [_cell(auroc), *(_cell(rate, 2) for rate in rates)] if row["figures"] else ["too small", "", ""]
            rows.append([group["by"], group["name"], name, f"{row['positives']} / {row['negatives']}", *cells])
    summary = "<summary>Each finding in each group, rates at the threshold</summary>"
    return f"<details>{summary}{table(head, rows)}</details>"


def anomaly(results: Results) -> str:
    """Figures of the anomaly score."""
    row = results["anomaly"]["result"]
    if not row["figures"]:
        return paragraph(f"Not judged: {row['status']}.", "note")
    head = ["abnormal / normal", *_HEADS[: len(RANKING)]]
    first = table(head, [[f"{row['positives']} / {row['negatives']}", *(_cell(row["figures"][f]) for f in RANKING)]])
    text = (
        f"From the {row['threshold']:.0f}th percentile on: sensitivity {_cell(row['figures']['sensitivity'], 2)}, "
        f"specificity {_cell(row['figures']['specificity'], 2)}. Normals that are like the reference give "
        f"a specificity of {row['threshold'] / 100:.2f}."
    )
    return first + paragraph(text)


def masks(results: Results) -> str:
    """Figures of predicted masks."""
    if not results["masks"]:
        return ""
    head = ["class", "images", "drawn", "Dice", "Dice where drawn", "HD95 (pixels)", "both empty", "missed", "invented"]
    rows = []
    for name, row in results["masks"]["classes"].items():
        overlap = (_cell(row["dice"]), _cell(row["dice_positives"]), _cell(row["hd95"], 1))
        counts = (str(row[k]) for k in ("both_empty", "missed", "invented"))
        rows.append([name, str(row["cases"]), str(row["positives"]), *overlap, *counts])
    note = (
        "Dice is 1 where both masks are empty. HD95 is over the images where neither is. Missed: drawn, none "
        "predicted. Invented: predicted, none drawn."
    )
    more = paragraph(results["masks"]["note"], "note") if results["masks"]["note"] else ""
    return heading("Masks") + table(head, rows) + paragraph(note, "small") + more


def heatmaps(results: Results) -> str:
    """Figures of heatmaps beside chance."""
    found = results["heatmaps"]
    if not found:
        return ""
    rows = [(f"model: {k}" if len(found["boxes"]) > 1 else "model", v) for k, v in found["boxes"].items()]
    rows += [(f"chance: {name}", v) for name, v in found["chance"].items()]
    sides = {"model": next(iter(found["boxes"].values())), **found["chance"]}
    figures = {
        "pointing": "pointing", "within 15 px": "pointing_tolerant", "pixel AUROC": "pixel_auroc",
        "pooled pixel AUROC": "pooled_auroc", "pixel AP": "pixel_average_precision",
        "pooled pixel AP": "pooled_average_precision",
    }  # fmt: skip
    head = ["", "images", *figures]
    first = [[name, str(v["cases"]), *(_cell(v[f], 2) for f in figures.values())] for name, v in rows]
    share = next(iter(found["boxes"].values()))["lesion_share"]
    note = (
        f"Lesions cover {100 * share:.1f} % of these pictures on average: the pixel AP of a random map. A map is worth "
        "something where it beats both forms of chance, which never saw the picture."
    )
    if found["kind"]:
        note = f"Kind of heatmap: {found['kind']}. {note}"
    return heading("Heatmaps") + table(head, first) + paragraph(note, "small") + _box_table(sides)


def _box_table(columns: dict[str, dict[str, Any]]) -> str:
    """Boxes found and false boxes of the model and of chance, side by side."""
    head = ["cut at, of 255", "a box counts as found if"]
    for name in columns:
        head += [f"{name}: boxes found", "false boxes an image"]
    body = []
    for rows in zip(*(figures["rows"] for figures in columns.values()), strict=True):
        cells = [str(rows[0]["cut"]), f"{rows[0]['ratio']} > {rows[0]['threshold']:g}"]
        for row in rows:
            cells += [_cell(row["accuracy"], 2), _cell(row["false_positives"], 2)]
        body.append(cells)
    drawn = next(iter(columns.values()))["boxes"]
    title = f"<details><summary>As boxes, against {drawn} drawn ones</summary>"
    return f"{title}{table(head, body)}</details>" if body else ""


def facts(results: Results) -> list[list[str]]:
    """Describe the evaluation: model, data and settings."""
    settings, named = results["settings"], results["datalist"]
    uncertain = {"ignore": "left out", "zeros": "count as absent", "ones": "count as present"}
    rows = [
        ["data list", f"{named['name']}, section {named['section']}"],
        ["SHA-256", named["sha256"]],
        ["uncertain labels", uncertain[settings["uncertain"]]],
        ["draws, seed", f"{settings['repeats']}, {settings['seed']}"],
    ]
    rows += [[f"model: {key}", str(value)] for key, value in _short(results["model"])]
    rows += [[f"compared with: {key}", str(value)] for key, value in _short(results["compared_with"] or {})]
    return rows


def _short(model: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts that fit into a cell and are no paths of the machine."""
    texts = [(k, v) for k, v in model.items() if isinstance(v, str | int | float) and len(str(v)) <= 80]
    return [(k, v) for k, v in texts if not re.search(r"\\|^[./~]|/.*/", str(v))]
