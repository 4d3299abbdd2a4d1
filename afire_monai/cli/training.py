"""Commands after a training: ``afire probe``, ``worth``, ``ui``, ``report`` and ``import-release``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afire_monai.cli.fronts import front
from afire_monai.core.errors import require_path
from afire_monai.core.quiet import silence
from afire_monai.models.shipped import require_model


@front("afire_monai.training.probe:fit_probe", "datalist")
def probe(work: Callable[..., Any], *, datalist: str, out: str, model: str | None = None, **options: Any) -> int:
    """Make a classifier from few labels in a minute: the encoder stays as it is.

    It is a logistic regression on the encoder's features and on the distance from normal radiographs. It is better than
    fine-tuning with up to some tens of labelled patients (docs/finetune.md); also the first thing to try with more.

    Example: afire probe labelled.json --out runs/classifier

    Example: afire probe labelled.json --model runs/mine/models --labels Effusion,Mass --out runs/classifier

    Args:
        calibration: calibration of probabilities on the validation images: temperature, platt or none.
        threshold_rule: rule for thresholds: youden or specificity95.
    """
    silence()
    require_path("data list", datalist, "make one with `afire datalist`")
    require_model("--model", model)
    done = work(datalist, out, model, **options)
    print(f"labels of: {done.labelled} training images")
    print(
        f"normal:    {done.normals} radiographs" if done.normals else "normal:    too few to measure the distance from"
    )
    for section, reasons in done.left_out.items():
        index, reason = next(iter(reasons.items()))
        print(f"left out:  {len(reasons)} of section {section}; image {index}: {reason}")
    print(*done.scores, sep="\n")
    print(f"written:   {Path(out) / 'models'}")
    print(f"next:      afire predict FOLDER --model {shlex.quote(str(Path(out) / 'models'))} --out results")
    return 0


@front("afire_monai.training.worth:compare_encoders", "datalist", hide=("dataset_dir",))
def worth(work: Callable[..., Any], *, datalist: str, model: str | None = None, **options: Any) -> int:
    """Say whether an encoder is worth using: on your labels, beside fresh weights, raw pixels and the shipped encoder.

    Example: afire worth labelled.json --model runs/mine/models
    """
    silence()
    require_path("data list", datalist, "make one with `afire datalist`")
    require_model("--model", model)
    from afire_monai.training.worth import worth_lines

    print(worth_lines(work(datalist, model, **options)))
    return 0


def ui(runs: str, *more: str, port: int = 5000) -> int:
    """Open MLflow's pages in one view over all runs below some folders, on this machine only, until interrupted.

    Example: afire ui runs

    Args:
        runs: folder of a run, or one that holds runs.
        more: further folders.
        port: port of the pages, on 127.0.0.1.
    """
    from afire_monai.training.run_stores import show_runs

    return show_runs((runs, *more), port)


def report(run_dir: str) -> int:
    """Write report.html, and its pictures as PNG, into the folder of a pre-training run.

    Example: afire report runs/first

    Args:
        run_dir: the run's output_dir.
    """
    from afire_monai.training.report.page import write_report

    print(f"written: {write_report(run_dir)}")
    return 0


@front("afire_monai.models.released:import_released", "path")
def import_release(work: Callable[..., Any], *, output: str, **options: Any) -> int:
    """Turn a released AFiRe checkpoint (AFiRe_ViT-B.pth) into encoder.safetensors and its description.

    Example: afire import-release AFiRe_ViT-B.pth --output released --channels fold

    Args:
        path: the released file; code in it is never run.
        strict: with False, continue even if something has no place here or is missing.
        decoder_heads: number of attention heads of the restoration decoder, which the weights do not show; the number
            that the file names, or 16 as released, unless given.
    """
    report = work(output=output, **options)
    for title, names in (
        ("without a place here", report.unplaced),
        ("missing, left at random", report.missing),
        ("assumed", report.assumed),
    ):
        if names:
            print(f"{title}: {', '.join(names)}")
    for file in report.files:
        print(f"written: {file}")
    print(f"next:    python -c \"import afire_monai; print(afire_monai.load_encoder('{output}').config)\"")
    return 0
