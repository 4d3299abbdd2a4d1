"""From predictions and a data list to figures, and to the three files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.datalists.targets import UncertainPolicy
from afire_monai.evaluation import metrics
from afire_monai.evaluation.anomaly_masks_heatmaps import evaluate_anomaly, evaluate_heatmaps, evaluate_masks
from afire_monai.evaluation.cases import AGAIN, Cases, read_cases, scores_of_other
from afire_monai.evaluation.result_files import plain, without_folders, write_results
from afire_monai.evaluation.subgroups import evaluate_subgroups
from afire_monai.predictions.format import Predictions, load_predictions

FORMAT = "afire evaluation 1"


def run_evaluation(
    predictions_dir: str | Path,
    datalist: str | Path,
    section: str = "test",
    out: str | Path = "evaluation",
    compare: str | Path = "",
    uncertain: UncertainPolicy = "ignore",
    lesion_masks: bool = False,
    pictures: bool = True,
    repeats: int = 2000,
    seed: int = 0,
    base_dir: str | Path = "",
) -> dict[str, Any]:
    """Evaluate a folder of predictions and write ``evaluation.json``, ``evaluation.csv`` and ``evaluation.html``.

    Args:
        predictions_dir: folder that `afire predict` or fine-tuning wrote.
        datalist: the list that was predicted.
        section: of the list.
        out: folder to write to, made if need be.
        compare: folder of another model's predictions of the same section; "" for none.
        uncertain: what label value -1 counts as: ``ignore``, ``zeros`` or ``ones``.
        lesion_masks: the list's masks show lesions, so heatmaps are judged against them too.
        pictures: show the worst cases, with the radiographs, on the page.
        repeats: bootstrap draws.
        seed: of the draws.
        base_dir: folder that the list's relative paths start from; "" for its own.

    Returns:
        The results, as in the JSON file.

    Raises:
        AfireError: if predictions and list do not belong together, nothing can be judged, or a file cannot be used.
    """
    from afire_monai.evaluation.page import page_text

    if repeats < 100:
        raise AfireError(f"repeats is {repeats}; at least 100 draws are needed for a 95 % interval, 2000 are usual")
    predictions = load_predictions(predictions_dir)
    other = load_predictions(compare) if compare else None
    cases = read_cases(datalist, predictions, section, uncertain, base_dir or None)
    results = evaluate_cases(cases, predictions, other, uncertain, lesion_masks, repeats, seed)
    page = page_text(results, cases, predictions, other, pictures)
    write_results(results, page, Path(out))
    return results


def evaluate_predictions(
    datalist: str | Path,
    predictions: Predictions,
    section: str = "test",
    other: Predictions | None = None,
    uncertain: UncertainPolicy = "ignore",
    lesion_masks: bool = False,
    repeats: int = 2000,
    seed: int = 0,
    base_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Judge predictions against a data list; see :func:`run_evaluation` for the arguments.

    Returns:
        The results: numbers, texts, lists and dictionaries only; None where a figure is not defined.

    Raises:
        AfireError: if predictions and list do not belong together, or nothing can be judged.
    """
    cases = read_cases(datalist, predictions, section, uncertain, base_dir)
    return evaluate_cases(cases, predictions, other, uncertain, lesion_masks, repeats, seed)


def evaluate_cases(
    cases: Cases,
    predictions: Predictions,
    other: Predictions | None = None,
    uncertain: UncertainPolicy = "ignore",
    lesion_masks: bool = False,
    repeats: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge predictions that are already beside their data list; see :func:`evaluate_predictions`."""
    options = (repeats, seed)
    theirs = None if other is None else scores_of_other(cases, other)
    parts: dict[str, Any] = {
        "labels": None,
        "anomaly": evaluate_anomaly(cases, predictions, other, *options),
        "masks": evaluate_masks(cases, predictions, other, *options),
        "heatmaps": evaluate_heatmaps(cases, predictions, other, lesion_masks, *options),
        "subgroups": [],
        "comparison": None,
    }
    if cases.names:
        arguments = (cases.groups, cases.names)
        thresholds = predictions.thresholds
        parts["labels"] = metrics.evaluate_labels(
            cases.targets, cases.scores, *arguments, thresholds, cases.findings, repeats=repeats, seed=seed
        )
        found = [cases.names.index(name) for name in cases.findings]
        parts["subgroups"] = evaluate_subgroups(
            cases.items, cases.targets[:, found], cases.scores[:, found], cases.groups, cases.findings, thresholds,
            *options,
        )  # fmt: skip
        if theirs is not None:
            parts["comparison"] = metrics.compare_labels(
                cases.targets, cases.scores, theirs, *arguments, cases.findings, repeats=repeats, seed=seed
            )
    if not any(parts.values()):
        raise AfireError(
            f"nothing can be judged: of the labels of the predictions ({', '.join(predictions.labels) or 'none'}) the "
            "list has none, and there is no anomaly percentile, and no mask or heatmap for the list's masks or boxes. "
            f"{AGAIN}"
        )
    settings = {"uncertain": uncertain, "lesion_masks": lesion_masks, "repeats": repeats, "seed": seed}
    about = {
        "format": FORMAT,
        "afire_monai": __version__,
        "datalist": {"name": cases.datalist, "sha256": cases.sha256, "section": cases.section},
        "cases": len(cases),
        "patients": cases.patients,
        "settings": settings,
        "model": without_folders(predictions.facts.get("model") or {}),
        "compared_with": without_folders(other.facts.get("model") or {}) if other is not None else None,
        "notes": cases.notes,
    }
    made: dict[str, Any] = plain({**about, **parts})
    return made
