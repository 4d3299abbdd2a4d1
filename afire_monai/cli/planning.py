"""``afire plan``: estimate the time and memory of a pre-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.core.errors import AfireError

if TYPE_CHECKING:
    from afire_monai.training.planning import StepCost


SHARES = (0.35, 0.5)  # shares of the matrix rate that steps of vision transformers reach, see docs/performance.md


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

    One step runs here with a few random images, to count its operations and its memory. Hours come from --from-run if
    given (the speed of a short run on the machine in question), else from --tflops (the matrix rate of a device that is
    not at hand), else from steps that are timed here.

    Example: afire plan --images 100000 --config preset_paper --gpus 8 --tflops 300

    Example: afire plan --datalist normals.json --epochs 50

    Example: afire plan --from-run runs/mine --epochs 300

    Args:
        images: number of normal training images; those of --from-run unless given.
        datalist: data list in which to count them, instead.
        epochs: number of passes over them; unless given, the configs' value, as for all options down to precision.
        method: afire, peac, mlvicx, mae or dino; that of --from-run, else afire, unless given.
        config: a further config of the bundle, preset_gpu or preset_paper.
        preset: encoder preset, as encoder_preset of the configs; its own patch size comes with it.
        image_size: size of the encoder's input in pixels.
        batch_size: number of images for each process in one step.
        gpus: number of processes, each with a device of its own.
        precision: float32, tf32 or bfloat16.
        tflops: measured rate of a large matrix product on one device, in 10^12 operations a second.
        share: share of that rate that the step reaches; a range of 0.35 to 0.5 unless given.
        from_run: output_dir of a short run on one such device; its network, its speed, and its values for options that
            are not given are used.
        memory: memory of one device in GiB, to say which batch fits.
    """
    from afire_monai.networks.build import ENCODER_PRESETS
    from afire_monai.training import planning

    network: dict[str, Any] = {"--method": method, "--config": config, "--preset": preset, "--image-size": image_size}
    network["--precision"] = precision
    if from_run and (named := [name for name, value in network.items() if value is not None]):
        raise AfireError(
            f"--from-run {from_run}: its speed is that of its own network, so leave out {', '.join(named)}; without "
            "--from-run, steps are timed on this machine"
        )
    run = planning.settings_of_run(from_run) if from_run else None
    images = run.images if run and images is None and datalist is None else images
    count = _images(images, datalist)
    configs = [run.settings] if run else _configs(method or "afire", config)
    epochs = run.epochs if run and epochs is None else epochs
    given = {"epochs": epochs, "encoder_preset": preset, "image_size": image_size, "batch_size": batch_size}
    # encoders with a stride of their own accept no other
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
            f"{count} images are fewer than one step needs ({gpus} process(es) of batch {settings['batch_size']}); "
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
