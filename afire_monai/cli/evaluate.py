"""``afire evaluate``: predictions against a data list."""

from __future__ import annotations

from typing import Any


def evaluate(
    predictions: str,
    *,
    datalist: str,
    out: str,
    section: str = "test",
    compare: str | None = None,
    uncertain: str = "ignore",
    lesion_masks: bool = False,
    no_pictures: bool = False,
    repeats: int = 2000,
    seed: int = 0,
    base_dir: str | None = None,
) -> int:
    """Judge a folder of predictions against its data list; writes evaluation.html, evaluation.csv and evaluation.json.

    Every figure has a 95 % interval over patients. A list with a patient in two sections, and predictions of another
    list or section, are refused. Exit status 2: refused, and why.

    Example: afire evaluate predictions --datalist list.json --out evaluation

    Example: afire evaluate predictions --datalist list.json --compare baseline --out comparison

    Args:
        predictions: folder that `afire predict` or fine-tuning wrote.
        datalist: the data list that was predicted.
        out: folder to write to.
        section: of the list: training, validation or test.
        compare: folder of another model's predictions of the same section.
        uncertain: what label value -1 counts as: ignore, zeros or ones.
        lesion_masks: the list's masks show lesions, so judge heatmaps against them as well as against boxes.
        no_pictures: show no radiographs on the page.
        repeats: bootstrap draws.
        seed: of the draws.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
    """
    from afire_monai.evaluation.evaluate import run_evaluation

    results = run_evaluation(
        predictions, datalist, section, out, compare or "", uncertain, lesion_masks,  # type: ignore[arg-type]  # checked there
        not no_pictures, repeats, seed, base_dir or "",
    )  # fmt: skip
    print("\n".join(_summary(results)))
    print(f"written: {out}/evaluation.html, evaluation.csv, evaluation.json")
    return 0


def _summary(results: dict[str, Any]) -> list[str]:
    from afire_monai.evaluation.page import verdicts
    from afire_monai.evaluation.page_tables import interval

    lines = [f"{results['datalist']['name']}, {results['datalist']['section']}: {results['cases']} images of "
             f"{results['patients']} patients"]  # fmt: skip
    for row in (results["labels"] or {"labels": []})["labels"]:
        said = f"AUROC {interval(row['figures']['auroc'])}" if row["figures"] else f"not judged: {row['status']}"
        lines.append(f"{row['name']}: {said}")
    for name, masks in (results["masks"] or {"classes": {}})["classes"].items():
        lines.append(f"{name}: Dice {interval(masks['dice'])}, where drawn {interval(masks['dice_positives'])}")
    for name, row in (results["heatmaps"] or {"boxes": {}})["boxes"].items():
        lines.append(
            f"heatmaps, {name}: pointing {interval(row['pointing'])}, pixel AUROC {interval(row['pixel_auroc'])}"
        )
    sentences = [text for _, text in verdicts(results)]
    # of a single finding the verdict says the same and more
    lines = [line for line in lines if not any(text.startswith(f"{line}.") for text in sentences)]
    return [*lines, *sentences, *(f"note: {text}" for text in results["notes"])]
