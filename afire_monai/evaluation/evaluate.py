"""Evaluate predictions against a data list, and write the results."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.core.files import csv_text, write_text
from afire_monai.datalists.targets import UncertainPolicy
from afire_monai.evaluation import metrics
from afire_monai.evaluation.anomaly_masks_heatmaps import evaluate_anomaly, evaluate_heatmaps, evaluate_masks
from afire_monai.evaluation.bootstrap import Interval
from afire_monai.evaluation.cases import AGAIN, Cases, read_cases, scores_of_other
from afire_monai.evaluation.metrics import evaluate_subgroups
from afire_monai.predictions.format import Predictions, load_predictions

if TYPE_CHECKING:
    from afire_monai.predictions.predict import Source
    from afire_monai.predictions.scoring import Scorer

FORMAT = "afire evaluation 1"


def run_evaluation(
    predictions: str | Path,
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
        predictions: folder that `afire predict` or fine-tuning wrote.
        datalist: the data list that was predicted.
        section: section of the list: training, validation or test.
        out: folder to write to, made if need be.
        compare: folder of another model's predictions of the same section.
        uncertain: meaning of label value -1: ``ignore``, ``zeros`` or ``ones``.
        lesion_masks: the list's masks show lesions, so judge heatmaps against them as well as against boxes.
        pictures: show the worst cases, with the radiographs, on the page.
        repeats: number of bootstrap draws.
        seed: seed of the draws.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.

    Raises:
        AfireError: if predictions and list do not belong together, nothing can be judged, or a file cannot be used.
    """
    from afire_monai.evaluation.page import page_text

    if repeats < 100:
        raise AfireError(f"repeats is {repeats}; at least 100 draws are needed for a 95 % interval, 2000 are usual")
    judged = load_predictions(predictions)
    other = load_predictions(compare) if compare else None
    cases = read_cases(datalist, judged, section, uncertain, base_dir or None)
    results = evaluate_predictions(cases, judged, section, other, uncertain, lesion_masks, repeats, seed)
    page = page_text(results, cases, judged, other, pictures)
    write_results(results, page, Path(out))
    return results


@dataclasses.dataclass
class ListEvaluator:
    """The ``evaluator`` of ``evaluate.yaml``; as with MONAI's engines, ``run`` does the work."""

    network: Scorer  #: the models
    dataset: Source  #: the images, from `afire_monai.predictions.predict.find_source`
    datalist: str | Path  #: the data list that they are from
    output_dir: str | Path  #: gets predictions/ and evaluation/
    compare: str | Path = ""  #: folder of another model's predictions of the same section
    uncertain: UncertainPolicy = "ignore"  #: meaning of label value -1
    batch_size: int = 16
    repeats: int = 2000  #: number of bootstrap draws
    seed: int = 0  #: seed of the draws
    base_dir: str | Path = ""  #: folder that the list's relative paths start from; the list's own unless given

    def run(self) -> dict[str, Any]:
        """Predict the images that have no prediction yet, evaluate all, and return the results (see `run_evaluation`).

        Raises:
            AfireError: for files, models or settings that cannot be used.
        """
        from afire_monai.predictions.predict import predict

        folder = Path(self.output_dir) / "predictions"
        predict(self.dataset, self.network, folder, batch_size=self.batch_size, resume=True, progress=True)
        return run_evaluation(
            folder, self.datalist, self.dataset.section, Path(self.output_dir) / "evaluation", self.compare,
            self.uncertain, repeats=self.repeats, seed=self.seed, base_dir=self.base_dir,
        )  # fmt: skip


def evaluate_predictions(
    datalist: str | Path | Cases,
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

    Cases that `read_cases` has read take the place of the list; ``section`` and ``base_dir`` then have no effect.

    Returns:
        The results: numbers, texts, lists and dictionaries only; None for a figure that is not defined.

    Raises:
        AfireError: if predictions and list do not belong together, or nothing can be judged.
    """
    cases = datalist if isinstance(datalist, Cases) else read_cases(datalist, predictions, section, uncertain, base_dir)
    options = (repeats, seed)
    other_scores = None if other is None else scores_of_other(cases, other)
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
        if other_scores is not None:
            parts["comparison"] = metrics.compare_labels(
                cases.targets, cases.scores, other_scores, *arguments, cases.findings, repeats=repeats, seed=seed
            )
    if not any(parts.values()):
        raise AfireError(
            f"nothing can be judged: of the labels of the predictions ({', '.join(predictions.labels) or 'none'}) the "
            "list has none, and there is no anomaly percentile, and no mask or heatmap for the list's masks or boxes. "
            f"{' '.join([*cases.notes, AGAIN])}"
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
    return plain({**about, **parts})


COLUMNS = ("part", "group", "label", "figure", "value", "low", "high", "positives", "negatives", "status")


def plain(value: Any) -> Any:
    """Turn results into JSON values: numbers (None for NaN), texts, lists and dictionaries; arrays are left out."""
    if isinstance(value, Interval):
        return {name: plain(number) for name, number in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items() if not _holds_arrays(v)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_folders(value: Any) -> Any:
    """Cut absolute paths, anywhere in plain values, down to their last part: folders tell of machine and people."""
    if isinstance(value, Mapping):
        return {k: without_folders(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(v) for v in value]
    absolute = isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute())
    return PureWindowsPath(value).name if absolute else value  # knows both kinds of slash


def write_results(results: dict[str, Any], page: str, folder: Path) -> None:
    """Write ``evaluation.csv``, ``evaluation.html`` and, last, ``evaluation.json``, each in one piece.

    Raises AfireError if the folder cannot be written.
    """
    texts = {
        ".csv": table_text(results),
        ".html": page,
        ".json": json.dumps(results, indent=1, ensure_ascii=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():  # names in a list may hold half of a surrogate pair, which JSON can escape
            write_text(folder / f"evaluation{suffix}", text.encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError as error:
        raise AfireError(f"{folder}: {error.strerror}; give a folder that can be written with --out") from error


def table_text(results: Mapping[str, Any]) -> str:
    """Return all figures as CSV, one figure a line; cells are empty where something is not defined."""
    return csv_text([COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in table_rows(results))])


def table_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the rows of the table of figures."""
    labels = results["labels"] or {"labels": [], "macro": {}}
    for label in labels["labels"]:
        yield from _label_rows("labels", "", label)
    yield from _figure_rows("labels", "", "mean", labels["macro"])
    for group in results["subgroups"]:
        where = f"{group['by']}: {group['name']}"
        for name, label in group["labels"].items():
            yield from _label_rows("subgroups", where, {"name": name, **label})
        if group["macro"]:
            yield from _figure_rows("subgroups", where, "mean", {"auroc": group["macro"]})
    comparison = results["comparison"] or {"labels": {}, "macro": {}}
    for name, figures in {**comparison["labels"], "mean": comparison["macro"]}.items():
        yield from _figure_rows("difference", "", name, figures)
    yield from _other_rows(results)


def _other_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if anomaly := results["anomaly"]:
        yield from _label_rows("anomaly", "", anomaly["result"])
        yield from _figure_rows("difference", "anomaly", "abnormal", anomaly.get("difference", {}))
    if masks := results["masks"]:
        for name, figures in masks["classes"].items():
            yield from _figure_rows("masks", "", name, {f: figures[f] for f in ("dice", "dice_positives", "hd95")})
        yield from _figure_rows("difference", "dice", "", masks.get("difference", {}), as_label=True)
    if heatmaps := results["heatmaps"]:
        rows = [("heatmaps", k, v) for k, v in heatmaps["boxes"].items()]
        for part, name, figures in [*rows, *(("chance", k, v) for k, v in heatmaps["chance"].items())]:
            yield from _figure_rows(part, name, "", {k: v for k, v in figures.items() if isinstance(v, dict)})
            for row in figures["rows"]:
                what = f"{row['ratio']} > {row['threshold']} at {row['cut']}"
                yield from _figure_rows(
                    part, name, what, {"accuracy": row["accuracy"], "false_positives": row["false_positives"]}
                )
        yield from _figure_rows("difference", "heatmaps", "", heatmaps.get("difference", {}))
        yield from _figure_rows("difference", "heatmaps, mean lesion", "", heatmaps.get("beyond_prior", {}))


def _label_rows(part: str, group: str, label: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    known = {k: label[k] for k in ("positives", "negatives", "status")}
    for row in _figure_rows(part, group, label["name"], label["figures"]):
        yield {**row, **known}
    if not label["figures"]:
        yield {"part": part, "group": group, "label": label["name"], **known}


def _figure_rows(
    part: str, group: str, label: str, figures: Mapping[str, Any], as_label: bool = False
) -> Iterator[dict[str, Any]]:
    for name, figure in figures.items():
        where = {"label": name, "figure": "dice"} if as_label else {"label": label, "figure": name}
        yield {"part": part, "group": group, **where, **figure}


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_arrays(v) for v in value.values())
    return isinstance(value, np.ndarray)
