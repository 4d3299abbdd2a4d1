"""Commands that use a model: ``afire reference``, ``predict``, ``evaluate`` and ``figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afire_monai.core.errors import require_path
from afire_monai.core.quiet import silence

LIST = "make a data list with `afire datalist`"
MODEL = "a run writes its model folder as models/ below its output folder"


def predict(
    *inputs: str,
    out: str,
    model: tuple[str, ...] | None = None,
    population: str = "adults",
    section: str = "test",
    heatmap: str = "auto",
    label: str | None = None,
    restored: bool = False,
    overlays: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> int:
    """Predict radiographs: probabilities, masks, anomaly percentile and maps, as far as there are models for them.

    Exit status: 0 all files scored, 1 some left out (left_out.csv says why), 2 none scored or a wrong command.

    Example: afire predict radiographs --out results

    Example: afire predict radiographs --model runs/mine/models --out results

    Example: afire predict list.json --section test --model runs/tuned/models,runs/mine/models --out results

    Args:
        inputs: folders and files (PNG, JPEG, NIfTI, DICOM), or one data list (.json).
        out: folder to write into.
        model: model folder, or several with commas between them; the model that comes with the package unless given.
        population: whose normal radiographs that model measures anomalies against, adults or children (1 to 5 years).
        section: of the data list.
        heatmap: anomaly, gradcam, rollout, none; auto takes the first that the model can.
        label: which label Grad-CAM is for; each image's most probable finding unless given.
        restored: also write restored pictures.
        overlays: also write the heatmaps in colour over the radiographs, for people.
        batch_size: radiographs computed at once.
        workers: threads that read; the number of cores unless given.
        resume: go on with what an interrupted run left in the folder.
        quiet: no progress bar.
    """
    silence()
    for path in inputs:
        require_path("input", path, "give folders, radiographs, or one data list")
    for folder in model or ():
        require_path("--model", folder, MODEL)
    from afire_monai.models.shipped import DEFAULT, shipped_models
    from afire_monai.predictions.predict import predict as run
    from afire_monai.predictions.results import KEY, LEFT_OUT

    if model is None:
        model = tuple(map(str, shipped_models(population)))
        print(f"model:    {DEFAULT}, which comes with the package: research only, not a medical device")
        print(f"          percentiles are among normal radiographs of {population}; --population names others")
    done = run(
        inputs,
        model,
        out,
        section=section,
        heatmap=heatmap,
        label=label,
        restored=restored,
        overlays=overlays,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        progress=not quiet,
    )
    if done.rank:
        # a process that ends with another status than 0 would make torchrun end the others
        return 0
    earlier = f" ({done.earlier} by an earlier run)" if done.earlier else ""
    print(f"scored:   {done.scored} of {done.total}{earlier}")
    if done.left_out:
        print(f"left out: {len(done.left_out)}; {LEFT_OUT} says why")
        for index, reason in sorted(done.left_out.items())[:5]:
            print(f"  image {index}: {reason}")
    print(f"results:  {out} (which file an index is says {KEY} there; it can identify patients, keep it)")
    return done.status


def reference(
    *,
    model: str,
    datalist: str,
    section: str = "training",
    base_dir: str | None = None,
    parts: tuple[str, ...] | None = None,
    layers: tuple[int, ...] = (),
    window: int = 0,
    pooling: str = "mean",
    most: int = 1000,
    batch_size: int = 16,
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Teach a model folder what normal radiographs look like, so that predict can rank others among them.

    Example: afire reference --model runs/mine/models --datalist list.json

    Example: afire reference --model runs/mine/models --datalist list.json --parts neighbours,density --window 1

    Args:
        model: model folder; gets reference.safetensors and reference.json.
        datalist: data list; its normal radiographs are taken.
        section: training, validation or test.
        base_dir: folder that the list's relative paths start from; the list's own folder unless given.
        parts: what to judge by, with commas between them: tokens, neighbours, residual, difference, prototypes (of
            cells), density, class_density (of the whole image).
        layers: blocks whose tokens are judged besides the encoder's output, with commas between them; 0 is the first.
        window: for neighbours, cells that a normal token may be away from the place of the one it is compared with.
        pooling: of cells into the image's score: mean, top (mean of the highest 5 %) or max.
        most: use at most so many radiographs.
        batch_size: radiographs computed at once.
        workers: threads that read.
        quiet: no progress bar.
    """
    silence()
    require_path("--model", model, MODEL)
    require_path("--datalist", datalist, LIST)
    from afire_monai.predictions.anomaly.build_reference import make_reference

    made = make_reference(
        Path(model),
        datalist,
        section=section,
        base_dir=base_dir,
        parts=parts,
        layers=layers,
        window=window,
        pooling=pooling,
        most=most,
        batch_size=batch_size,
        workers=workers,
        progress=not quiet,
    )
    count = made.reference.count
    print(f"reference: {count} normal radiographs of section {section!r}, judged by {', '.join(made.reference.parts)}")
    print(f"           percentiles come in steps of {100 / count:.2g} %")
    if made.left_out:
        print(f"left out:  {made.left_out} that cannot be used; `afire check` says why")
    if made.seen:
        print("note:      the model was pre-trained on these radiographs; unseen normals can look more unusual to it")
    print(f"written:   {made.path}")
    print(f"next:      afire predict FOLDER --model {model} --out results")
    return 0


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
    for option, folder in (("predictions", predictions), ("--compare", compare)):
        if folder:
            require_path(option, folder, "give a folder that `afire predict` or fine-tuning wrote")
    require_path("--datalist", datalist, LIST)
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
    from afire_monai.evaluation.page_tables import few_images, interval

    few = few_images((results["labels"] or {"labels": []})["labels"])
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
    return [*lines, *sentences, *(f"note: {text}" for text in [few, *results["notes"]] if text)]


def figures(
    *,
    encoder: str,
    datalist: str,
    out: str,
    label: str | None = None,
    section: str = "test",
    images: int = 150,
    clusters: int = 8,
    shift: int | None = None,
    mask_ignore: int | None = 127,
    seed: int = 0,
) -> int:
    """Draw what an encoder has learnt without labels: t-SNE, correspondence, co-segmentation, prototypes, with numbers.

    Example: afire figures --encoder runs/mine/models --datalist mine.json --out figures

    Args:
        encoder: model folder of a run, or an encoder file.
        datalist: list with the images.
        out: folder to write into; figures.html needs nothing else.
        label: finding to colour images by; the one that divides them most evenly unless given.
        section: of the list: training, validation or test.
        images: at most so many, one a patient.
        clusters: of the co-segmentation, 2 to 12.
        shift: cells that the canvas is larger by; what the model was trained with, or a quarter of its grid, unless
            given.
        mask_ignore: mask value of pixels to leave out; none for none.
        seed: of everything random.
    """
    require_path("--encoder", encoder, MODEL)
    require_path("--datalist", datalist, LIST)
    from afire_monai.figures.page import verdicts
    from afire_monai.figures.run import draw_figures
    from afire_monai.figures.study import Settings

    page, numbers = draw_figures(
        encoder, datalist, out, Settings(section, label, images, clusters, shift, mask_ignore, seed)
    )
    for _, words in verdicts(numbers):
        print(words)
    print(f"written: {page}")
    return 0
