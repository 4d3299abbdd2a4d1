"""Commands that use a model: ``afire reference``, ``predict``, ``evaluate``, ``figures`` and ``export``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afire_monai.cli.fronts import front
from afire_monai.core.errors import AfireError, require_path
from afire_monai.core.quiet import silence
from afire_monai.models.shipped import (
    DEFAULT,
    MODEL,
    POPULATIONS,
    is_shipped,
    require_model,
    shipped_names,
    with_shipped,
)

LIST = "make a data list with `afire datalist`"


@front("afire_monai.predictions.predict:predict", "*inputs", hide=("device",))
def predict(
    work: Callable[..., Any],
    *,
    inputs: Sequence[str] = (),
    model: Sequence[str] | None = None,
    population: str | None = None,
    **options: Any,
) -> int:
    """Predict radiographs: probabilities, masks, anomaly percentile and maps, as far as there are models for them.

    Exit status: 0 all files scored, 1 some left out (left_out.csv says why), 2 none scored or a wrong command.

    Example: afire predict radiographs --out results

    Example: afire predict radiographs --model runs/mine/models --out results

    Example: afire predict list.json --section test --model runs/tuned/models,runs/mine/models --out results

    Args:
        model: model folder, or name of a model that comes with the package, or several with commas between them;
            chest-s16-1 unless given.
        population: normal radiographs that the package's model compares with: adults or children (1 to 5 years); adults
            unless given.
    """
    silence()
    for path in inputs:
        require_path("input", path, "give folders, radiographs, or one data list")
    for folder in model or ():
        require_model("--model", folder)
    folders = model_folders(model, population)
    from afire_monai.predictions.results import KEY

    if model is None or all(map(is_shipped, model)):
        print(
            f"model:    {(model or (DEFAULT,))[0]}, which comes with the package: research only, not a medical device"
        )
        normals = population or POPULATIONS[0]
        print(f"          percentiles are among normal radiographs of {normals}; --population names others")
    done = work(inputs, folders, **options)
    if done.rank:
        # a process that ends with another status than 0 would make torchrun end the others
        return 0
    earlier = f" ({done.earlier} by an earlier run)" if done.earlier else ""
    print(f"scored:   {done.scored} of {done.total}{earlier}")
    for line in exception_lines(done.left_out, done.unfit):
        print(line)
    if done.fit is not None and (done.fit.known_normal or not done.fit.fits):
        print(f"{'reference:' if done.fit.fits else 'WARNING:'} {done.fit.words}")
    print(f"results:  {options['out']} ({KEY} there says which file an index is; it can identify patients, keep it)")
    return int(done.status)


def model_folders(model: Sequence[str] | None, population: str | None) -> Sequence[str]:
    """Return model folders; a name of the package's models stands for two, with its reference of a population.

    Raises AfireError for an unknown population, or for one beside a model that is not the package's.
    """
    models = model or (DEFAULT,)
    if population is not None and model is not None and not all(map(is_shipped, model)):
        raise AfireError(
            f"--population {population} chooses among the references of the package's models "
            f"({', '.join(shipped_names())}); {', '.join(models)} has its own, so leave one of the two out"
        )
    return tuple(map(str, with_shipped(models, population or POPULATIONS[0])))


def exception_lines(left_out: Mapping[int, str], unfit: Mapping[str, int]) -> list[str]:
    """Say which files were left out and why, and which were used although they are not frontal chest radiographs.

    Args:
        left_out: reasons by index.
        unfit: number of files that were used because of ``--any``, by reason.
    """
    from afire_monai.predictions.results import LEFT_OUT, counted_reasons
    from afire_monai.radiographs.judgement import READABLE

    lines = []
    if left_out:
        reasons = counted_reasons(left_out)
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        lines += [f"left out: {len(left_out)} ({counts}); {LEFT_OUT} says why"]
        lines += [f"  image {index}: {reason}" for index, reason in sorted(left_out.items())[:5]]
        if readable := sum(count for reason, count in reasons.items() if reason in READABLE):
            lines += [f"  {readable} can be read, but are not frontal chest radiographs; --any takes them all the same"]
    if unfit:
        counts = ", ".join(f"{reason} {count}" for reason, count in unfit.items())
        lines += [f"warning:  {sum(unfit.values())} are not frontal chest radiographs, used because of --any: {counts}"]
    return lines


@front("afire_monai.predictions.anomaly.build_reference:make_reference")
def reference(work: Callable[..., Any], *, model: str, datalist: str, section: str = "training", **options: Any) -> int:
    """Teach a model folder the look of normal radiographs, so that predict can rank others among them.

    Example: afire reference --model runs/mine/models --datalist list.json

    Example: afire reference --model runs/mine/models --datalist list.json --parts neighbours,density --window 1

    Example: afire reference --model runs/mine/models --datalist list.json --normal alarms.json --not-normal misses.json

    Args:
        model: model folder, into which reference.safetensors and reference.json are written.
        parts: parts to judge by, with commas between them: tokens, neighbours, residual, difference, prototypes,
            lesions (of cells), density, class_density, class_lesion (of the whole image), places (only for the map).
    """
    silence()
    require_path("--model", model, MODEL)
    require_path("--datalist", datalist, LIST)
    result = work(model, datalist, section, **options)
    count = result.reference.count
    print(
        f"reference: {count} normal radiographs of section {section!r}, judged by {', '.join(result.reference.parts)}"
    )
    print(f"           percentiles come in steps of {100 / count:.2g} %")
    if result.corrections:
        print(*(f"           {line}" for line in result.corrections.lines()), sep="\n")
    if result.left_out:
        print(f"left out:  {result.left_out} that cannot be used; `afire check` says why")
    if result.seen:
        print("note:      the model was pre-trained on these radiographs; unseen normals can look more unusual to it")
    print(f"written:   {result.path}")
    print(f"next:      afire predict FOLDER --model {shlex.quote(model)} --out results")
    return 0


@front("afire_monai.evaluation.evaluate:run_evaluation", "predictions", hide=("pictures",))
def evaluate(
    work: Callable[..., Any], *, predictions: str, datalist: str, out: str, compare: str = "",
    no_pictures: bool = False, **options: Any,
) -> int:  # fmt: skip
    """Judge a folder of predictions against its data list; writes evaluation.html, evaluation.csv and evaluation.json.

    Every figure has a 95 % interval over patients. A list with a patient in two sections, and predictions of another
    list or section, are refused. Exit status 2: refused; the message says why.

    Example: afire evaluate predictions --datalist list.json --out evaluation

    Example: afire evaluate predictions --datalist list.json --compare baseline --out comparison

    Args:
        predictions: folder that afire predict or fine-tuning wrote.
        no_pictures: show no radiographs on the page.
    """
    for option, folder in (("predictions", predictions), ("--compare", compare)):
        if folder:
            require_path(option, folder, "give a folder that `afire predict` or fine-tuning wrote")
    require_path("--datalist", datalist, LIST)
    results = work(predictions, datalist, out=out, compare=compare, pictures=not no_pictures, **options)
    print("\n".join(_summary(results)))
    print(f"written: {out}/evaluation.html, evaluation.csv, evaluation.json")
    return 0


def _summary(results: dict[str, Any]) -> list[str]:
    from afire_monai.evaluation.page import verdicts
    from afire_monai.evaluation.page_tables import few_images, interval

    labels = (results["labels"] or {"labels": []})["labels"]
    few = few_images(labels)
    lines = [f"{results['datalist']['name']}, {results['datalist']['section']}: {results['cases']} images of "
             f"{results['patients']} patients"]  # fmt: skip
    for row in labels:
        result = f"AUROC {interval(row['figures']['auroc'])}" if row["figures"] else f"not judged: {row['status']}"
        lines.append(f"{row['name']}: {result}")
    for name, masks in (results["masks"] or {"classes": {}})["classes"].items():
        lines.append(f"{name}: Dice {interval(masks['dice'])}, where drawn {interval(masks['dice_positives'])}")
    for name, row in (results["heatmaps"] or {"boxes": {}})["boxes"].items():
        lines.append(
            f"heatmaps, {name}: pointing {interval(row['pointing'])}, pixel AUROC {interval(row['pixel_auroc'])}"
        )
    sentences = [text for _, text in verdicts(results)]
    # for a single finding the verdict says the same and more
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
    """Draw what an encoder has learned without labels: t-SNE, correspondence, co-segmentation, prototypes and numbers.

    Example: afire figures --encoder runs/mine/models --datalist mine.json --out figures

    Args:
        encoder: model folder of a run, or an encoder file.
        datalist: list with the images.
        out: folder to write into; figures.html needs nothing else.
        label: finding to colour images by; the one that divides them most evenly unless given.
        section: section of the list: training, validation or test.
        images: maximum number of images, one for each patient.
        clusters: number of clusters in the co-segmentation, 2 to 12.
        shift: number of cells by which the canvas is larger; the number in the model's training, or a quarter of its
            grid, unless given.
        mask_ignore: mask value of pixels to leave out; none for none.
        seed: seed of all random numbers.
    """
    require_model("--encoder", encoder)
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


def export(
    model: tuple[str, ...],
    *,
    format: str,
    out: str,
    kind: str | None = None,
    images: tuple[str, ...] = (),
    section: str = "test",
    compared: int = 8,
) -> int:
    """Export a model to ONNX, TorchScript, an exported program of PyTorch, timm or Hugging Face.

    The result is compared with PyTorch, and kept only if nothing differs by more than 1e-4. Nothing is uploaded.

    Example: afire export runs/mine/models --format onnx --out encoder.onnx

    Example: afire export runs/tuned/models --format onnx --kind classifier --images radiographs --out exports

    Args:
        model: model folder of a run, or several with commas between them; or the name of a model that comes with the
            package, whose detector has the reference of adults.
        format: onnx, torchscript, torch_export (files, for batches of any size), timm or hf (folders).
        out: file or folder to write; a file has the format's suffix (.onnx, .pt, .pt2).
        kind: classifier, segmenter, encoder or detector; the first of them that the folder holds unless given.
        images: folders, files or one data list to compare on, with commas between them; phantoms unless given.
        section: section of the data list.
        compared: number of images to compare on, at least 3.
    """
    silence()
    from afire_monai.models.export import OPSET, SUFFIXES, export_graph
    from afire_monai.models.layouts import LAYOUTS, export_layout
    from afire_monai.predictions.exportable import comparison_images, load_exportable

    if format not in (*SUFFIXES, *LAYOUTS):
        raise AfireError(f"--format must be one of {', '.join((*SUFFIXES, *LAYOUTS))}, got {format!r}")
    exportable = load_exportable(with_shipped(model), kind)
    pictures = comparison_images(exportable.size, images, section, compared)
    if format in LAYOUTS:
        report = export_layout(exportable, pictures, Path(out), format)
    else:
        path = Path(out)
        path = path if path.suffix == SUFFIXES[format] else path / f"{exportable.kind}{SUFFIXES[format]}"
        report = export_graph(exportable, pictures, path, format)
    opset = f", opset {OPSET}" if format == "onnx" else ""
    print(f"written:  {report.path} ({exportable.kind}, {format}{opset})")
    print(f"compared: {report.images} images with PyTorch, one alone and the others as a batch")
    for name, difference in report.differences.items():
        print(f"          {name}: largest difference {difference:.2g}")
    print("note:     research software, not a medical device")
    return 0
