"""Commands around training: ``afire plan``, ``crossvalidate``, ``report`` and ``import-release``."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.cli.fronts import front
from afire_monai.core.errors import AfireError, CheckpointError, DataListError, require_path
from afire_monai.core.files import write_text
from afire_monai.core.quiet import silence

if TYPE_CHECKING:
    from afire_monai.training.planning import StepCost

SHARES = (0.35, 0.5)  # of the matrix rate that steps of vision transformers reach, see docs/performance.md


def plan(
    *,
    images: int | None = None,
    datalist: str | None = None,
    epochs: int | None = None,
    method: str | None = None,
    config: str | None = None,
    preset: str | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    gpus: int = 1,
    precision: str | None = None,
    tflops: float | None = None,
    share: float | None = None,
    from_run: str | None = None,
    memory: float | None = None,
) -> int:
    """Say how much arithmetic, memory and time a pre-training takes.

    The step is done with a few random images here to count its operations and what it keeps in memory. Hours come, in
    this order, from --from-run (the speed of a short run on the machine in question), from --tflops (the matrix rate of
    a device that is not at hand), or from steps that are timed here.

    Example: afire plan --images 100000 --config preset_paper --gpus 8 --tflops 300

    Example: afire plan --datalist normals.json --epochs 50

    Example: afire plan --from-run runs/mine --epochs 300

    Args:
        images: normal training images; those of --from-run unless given.
        datalist: data list to count them in, instead.
        epochs: passes over them; the configs' unless given, like all that follow down to precision.
        method: afire, peac, mlvicx, mae or dino; that of --from-run, else afire, unless given.
        config: a further config of the bundle, preset_gpu or preset_paper.
        preset: encoder preset, as encoder_preset of the configs; its own patch size comes with it.
        image_size: what the encoder sees, in pixels.
        batch_size: images of one process in one step.
        gpus: processes, each with a device of its own.
        precision: float32, tf32 or bfloat16.
        tflops: measured rate of a large matrix product on one device, in 10^12 operations a second.
        share: of that rate which the step reaches; a range of 0.35 to 0.5 unless given.
        from_run: output_dir of a short run on one such device; its settings.yaml has whatever is not given.
        memory: GiB of one device, to say which batch fits.
    """
    from afire_monai.networks.build import ENCODER_PRESETS
    from afire_monai.training import planning

    run = planning.settings_of_run(from_run) if from_run and method is None and config is None else None
    images = run.images if run and images is None and datalist is None else images
    count = _images(images, datalist)
    configs = [run.settings] if run else _configs(method or "afire", config)
    epochs = run.epochs if run and epochs is None else epochs
    given = {"epochs": epochs, "encoder_preset": preset, "image_size": image_size, "batch_size": batch_size}
    # encoders with a stride of their own take no other
    given = {**given, "precision": precision, "patch_size": ENCODER_PRESETS.get(preset or "", {}).get("patch_size")}
    settings = planning.settings_of(configs, list(given)) | {k: v for k, v in given.items() if v is not None}
    _check_plan(count, settings, gpus=gpus, share=share, tflops=tflops, memory=memory)
    _print_plan(count, settings, configs, gpus, memory, from_run, tflops, SHARES if share is None else (share,))
    return 0


def _check_plan(count: int, settings: dict[str, Any], gpus: int, share: float | None, **above: float | None) -> None:
    for name, value in (("epochs", settings["epochs"]), ("batch-size", settings["batch_size"]), ("gpus", gpus)):
        if value < 1:
            raise AfireError(f"--{name} is {value}; at least 1 is expected")
    if share is not None and not 0 < share <= 1:
        raise AfireError(f"--share is a part of the matrix rate, above 0 and at most 1; got {share}")
    for name, number in above.items():
        if number is not None and not 0 < number < math.inf:
            raise AfireError(f"--{name} is {number}; a number above 0 is expected")
    if count < settings["batch_size"] * gpus:
        raise AfireError(
            f"{count} images are fewer than one step takes ({gpus} process(es) of batch {settings['batch_size']}); "
            "give a smaller --batch-size"
        )


def _print_plan(
    count: int,
    settings: dict[str, Any],
    configs: Sequence[Any],
    gpus: int,
    memory: float | None,
    from_run: str | None,
    tflops: float | None,
    shares: tuple[float, ...],
) -> None:
    import torch

    from afire_monai.core.precision import best_device, set_precision
    from afire_monai.training import planning

    device, dtype = best_device(), set_precision(settings["precision"])
    torch.manual_seed(0)
    built, optimizer = planning.build_training(configs, {**settings, "device": str(device)})
    cost = planning.count_step(built, device, settings["precision"])
    name = type(built).__name__.lower()
    print(f"{name}, {settings['encoder_preset']}, {settings['image_size']} px, {settings['precision']}")
    _print_cost(cost, count, settings["epochs"], settings["batch_size"], gpus, memory)
    if from_run is not None:
        speeds, source = [planning.speed_of_run(from_run) * gpus], "the run's median speed, times the processes"
    elif tflops is not None:
        speeds = [tflops * 1e12 * part / cost.flops_per_image * gpus for part in shares]
        source = f"{tflops:g} TFLOP/s, of which {' to '.join(f'{part:.0%}' for part in shares)} are reached"
    else:
        speeds, source = _speed_here(built, optimizer, cost, device, settings, dtype, gpus)
    times = sorted(planning.hours(count, settings["epochs"], speed) for speed in speeds)
    print(f"speed:       {' to '.join(f'{speed:.4g}' for speed in speeds)} images/s ({source})")
    print(f"time:        {' to '.join(_in_words(value) for value in times)}, without reading of images")


def _speed_here(
    built: Any, optimizer: Any, cost: StepCost, device: Any, settings: dict[str, Any], dtype: Any, gpus: int
) -> tuple[list[float], str]:
    from afire_monai.training import planning

    batch = min(settings["batch_size"], 16) if device.type == "cpu" else settings["batch_size"]
    seconds = planning.time_steps(built, optimizer, batch, device, settings["precision"])
    rate = planning.matrix_rate(device, dtype)
    reached = cost.flops_per_image / seconds / rate
    source = f"steps of {batch} timed here, {reached:.0%} of this machine's matrix rate of {rate / 1e9:.0f} GFLOP/s"
    return [gpus / seconds], source


def _images(images: int | None, datalist: str | None) -> int:
    if (images is None) == (datalist is None):
        raise AfireError("give either --images N or --datalist FILE, to say how many images there are")
    if datalist is not None:
        from afire_monai.datalists.file import training_items

        return len(training_items(datalist))
    if images is None or images < 1:
        raise AfireError(f"--images is {images}; at least 1 is expected")
    return images


def _configs(method: str, config: str | None) -> list[Path]:
    from afire_monai.cli.bundle import bundle_root

    folder = bundle_root() / "configs"
    chosen = folder / f"method_{method}.yaml"
    if not chosen.is_file():
        known = sorted(path.stem.removeprefix("method_") for path in folder.glob("method_*.yaml"))
        raise AfireError(f"--method {method!r} is not known; there are {', '.join(known)}")
    configs = [folder / "pretrain.yaml", chosen]
    if config is not None:
        preset = folder / f"{config.removesuffix('.yaml')}.yaml"
        if not (preset.stem.startswith("preset_") and preset.is_file()):
            known = sorted(path.stem for path in folder.glob("preset_*.yaml"))
            raise AfireError(f"--config {config!r} is not known; there are {', '.join(known)}")
        # a method that names its own encoder keeps it, with the batch and rates that go with it
        own = any(line.startswith("encoder_preset:") for line in chosen.read_text(encoding="utf-8").splitlines())
        configs.insert(1 if own else 2, preset)
    return configs


def _print_cost(cost: StepCost, images: int, epochs: int, batch: int, gpus: int, memory: float | None) -> None:
    print(f"images:      {images} a pass, {epochs} passes, {images // (batch * gpus) * epochs} steps of {batch * gpus}")
    print(f"parameters:  {cost.trained / 1e6:.1f} million trained")
    total = cost.flops_per_image * images * epochs
    print(f"arithmetic:  {cost.flops_per_image / 1e9:.2f} GFLOP an image, {total / 1e15:.4g} PFLOP in all")
    state, each = cost.state_bytes / 2**30, cost.activation_bytes / 2**20
    print(
        f"memory:      {cost.memory(batch) / 2**30:.2f} GiB a device at batch {batch}: {state:.2f} GiB of weights and"
    )
    print(f"             moments, {each:.1f} MiB an image; and what the framework itself takes")
    if memory is not None:
        room = memory * 0.9 * 2**30 - cost.state_bytes - cost.fixed_activation_bytes
        print(f"             a batch of {max(0, int(room // cost.activation_bytes))} fits into 90 % of {memory:g} GiB")
    if gpus > 1:
        print(
            f"traffic:     {cost.gradient_bytes / 2**20:.0f} MiB of gradients a step, summed during the backward pass"
        )


def _in_words(value: float) -> str:
    if value < 1:
        return f"{value * 60:.1f} minutes"
    return f"{value:.1f} hours" if value < 48 else f"{value / 24:.1f} days"


@front("afire_monai.training.probe:fit_probe", "datalist")
def probe(work: Callable[..., Any], *, datalist: str, out: str, model: str | None = None, **options: Any) -> int:
    """Make a classifier from few labels in a minute: the encoder stays as it is.

    A logistic regression on the encoder's features and on the distance from normal radiographs. Better than fine-tuning
    with up to some tens of labelled patients (docs/finetune.md); also the first thing to try with more.

    Example: afire probe labelled.json --out runs/classifier

    Example: afire probe labelled.json --model runs/mine/models --labels Effusion,Mass --out runs/classifier

    Args:
        calibration: of probabilities on the validation images: temperature, platt or none.
        threshold_rule: youden, or specificity95.
    """
    silence()
    require_path("data list", datalist, "make one with `afire datalist`")
    require_path("--model", model, "give a model folder (models/ of a run)")
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
    require_path("--model", model, "give a model folder (models/ of a run)")
    from afire_monai.training.worth import worth_lines

    print(worth_lines(work(datalist, model, **options)))
    return 0


def crossvalidate(
    datalist: str,
    *,
    init: str = "random",
    out: str,
    folds: int = 5,
    seed: int = 0,
    settings: tuple[str, ...] = (),
) -> int:
    """Fine-tune a classifier once for each fold of a data list's training and validation images.

    Patients are never divided between folds. Each fold's run has its own folder, and one that is complete is not run
    again, so the command can be stopped and given again. The summary holds each fold's validation AUROC, their mean
    and standard deviation, for each label and the mean over labels.

    Example: afire crossvalidate list.json --init runs/first/models --out runs/five_folds --settings epochs=20,lr=0.004

    Args:
        datalist: the data list, with labels.
        init: model folder of a pre-trained encoder; random for fresh weights.
        out: folder of the runs and of crossvalidation.json.
        folds: number of folds.
        seed: of folds, weights and order.
        settings: of finetune_classification.yaml, as key=value.
    """
    from afire_monai.cli.bundle import run_configs
    from afire_monai.datalists.file import datalist_hash, read_raw
    from afire_monai.training.finetuning import facts
    from afire_monai.training.settings import read_settings

    if folds < 2:
        raise AfireError(f"--folds {folds}: at least 2 are expected")
    taken = ("datalist", "init", "output_dir", "folds", "fold", "seed", "resume")
    extra = read_settings(settings, taken)
    if not Path(datalist).is_file():
        raise DataListError(f"no data list at {datalist!r}; make one with `afire datalist`")
    sha256 = datalist_hash(read_raw(Path(datalist)))
    results = []
    for fold in range(folds):
        folder = Path(out) / f"fold_{fold}"
        model = folder / "models" / "classifier.json"
        wanted = {"folds": folds, "fold": fold, "seed": seed}
        origin = facts(init, 1.0, folds, fold, seed)["encoder"]
        # predictions come last: a run that was ended between the two is taken up again
        if not (model.is_file() and (folder / "predictions" / "validation" / "predictions.json").is_file()):
            print(f"fold {fold + 1} of {folds}", flush=True)
            given = {"datalist": datalist, "init": init, "output_dir": str(folder), "resume": "true"}
            run_configs({**extra, **given, **wanted}, ("finetune_classification.yaml",))
        description = _description(model, sha256)
        if {key: description.get(key) for key in wanted} != wanted:
            seen = ", ".join(f"{key} {description.get(key)}" for key in wanted)
            raise AfireError(
                f"{folder} holds a run of {seen}, not of {folds} folds with seed {seed}; give another --out"
            )
        if description.get("encoder") != origin:
            raise AfireError(f"{folder} holds a run from another encoder than {init}; give another --out")
        results.append(description["validation"])
    _write(Path(out), summarise(results), folds, seed)
    return 0


def _description(model: Path, sha256: str) -> dict[str, Any]:
    """Read what a fold's run says of itself, and see that it is of the same data list."""
    try:
        description = json.loads(model.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{model}: cannot be read ({error}); delete {model.parents[1]} to run it again"
        ) from error
    if not isinstance(description, dict) or not isinstance(description.get("validation"), dict):
        raise CheckpointError(f"{model}: 'validation' is not in it; delete {model.parents[1]} to run it again")
    if description.get("data_sha256") != sha256:
        raise AfireError(f"{model.parents[1]} holds a run of another data list; give another --out")
    return description


def summarise(results: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return each figure's values, mean and standard deviation over folds.

    Args:
        results: validation figures of each fold; a figure may be missing where a fold lacks a class.

    Returns:
        For each figure ``values`` (None where missing), ``mean``, ``sd`` (None below two values) and ``folds`` counted.
    """
    names = dict.fromkeys(name for result in results for name in result if "auroc" in name)
    summary: dict[str, dict[str, Any]] = {}
    for name in names:
        values = [result.get(name) for result in results]
        known = [v for v in values if v is not None and math.isfinite(v)]
        if not known:
            continue
        summary[name.removeprefix("validation_")] = {
            "values": values,
            "mean": statistics.fmean(known),
            "sd": statistics.stdev(known) if len(known) > 1 else None,
            "folds": len(known),
        }
    return summary


def _write(out: Path, summary: dict[str, dict[str, Any]], folds: int, seed: int) -> None:
    text = json.dumps({"folds": folds, "seed": seed, "figures": summary}, indent=1) + "\n"
    try:
        write_text(out / "crossvalidation.json", text)
    except OSError as error:
        raise AfireError(
            f"{out / 'crossvalidation.json'} cannot be written ({error.strerror}); all folds are kept, so make "
            "room and give the command again"
        ) from error
    width = max((len(name) for name in summary), default=0)
    for name, figure in summary.items():
        spread = f" ± {figure['sd']:.3f}" if figure["sd"] is not None else ""
        missing = f"  ({figure['folds']} of {folds} folds have both classes)" if figure["folds"] < folds else ""
        print(f"{name:{width}}  {figure['mean']:.3f}{spread}{missing}")
    if not summary:
        print("no fold has a label with both classes among its validation images: use fewer folds or more images")
    print(f"written: {out / 'crossvalidation.json'}")


def ui(runs: str, *more: str, port: int = 5000) -> int:
    """Open MLflow's pages in one view over all runs below some folders, on this machine only, until interrupted.

    Example: afire ui runs

    Args:
        runs: folder of a run, or one that holds runs.
        more: further folders.
        port: of the pages, on 127.0.0.1.
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
        path: the released file; no code that may be in it is run.
        strict: with False, go on although something has no place here or is missing.
        decoder_heads: attention heads of the restoration decoder, which the weights do not tell; the number that the
            file names, or 16 as released, unless given.
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
