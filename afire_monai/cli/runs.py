"""One-word commands for runs of the bundle: ``afire pretrain``, ``finetune`` and ``segment``; and the bundle's path."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, require_path
from afire_monai.models.shipped import DEFAULT, shipped_names, with_shipped

METHODS = ("afire", "peac", "mlvicx", "mae", "dino")


def pretrain(
    datalist: str, *settings: str, out: str, method: str = "afire", preset: str | None = None, resume: bool = False
) -> int:
    """Pre-train an encoder on the normal radiographs of a data list.

    Example: afire pretrain mine.json --out runs/mine

    Example: afire pretrain mine.json --out runs/mine --method mae --preset gpu epochs=100 lr=0.004

    Args:
        datalist: data list; if it has labels, only images known to be normal are used.
        settings: settings of the configs, as key=value or --key value; README.md has a table of them.
        out: folder to write into.
        method: afire, peac, mlvicx, mae or dino.
        preset: gpu (ViT-S, one GPU) or paper (ViT-B); the size of a laptop unless given.
        resume: continue an interrupted run in the folder.
    """
    if method not in METHODS:
        raise AfireError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    configs = ["pretrain.yaml", f"method_{method}.yaml", *([f"preset_{preset}.yaml"] if preset else [])]
    return _run(configs, settings, {"datalist": datalist, "output_dir": out, "resume": resume}, "report.html")


def finetune(datalist: str, *settings: str, out: str, init: str | None = None, resume: bool = False) -> int:
    """Fine-tune an encoder into a classifier of the labels of a data list.

    With up to some tens of labelled patients `afire probe` is quicker and better.

    Example: afire finetune labelled.json --init runs/mine/models --out runs/classifier

    Example: afire finetune labelled.json --out runs/classifier epochs=50 "labels=['Effusion','Mass']"

    Args:
        datalist: data list with labels.
        settings: settings of finetune_classification.yaml, as key=value or --key value.
        out: folder to write into.
        init: model folder to start from, or random; the encoder that comes with the package unless given.
        resume: continue an interrupted run in the folder.
    """
    given = {"datalist": datalist, "output_dir": out, "init": init or DEFAULT, "resume": resume}
    return _run(["finetune_classification.yaml"], settings, given, "models")


def segment(
    datalist: str, *settings: str, out: str, classes: str = "{'foreground': []}", init: str | None = None,
    resume: bool = False,
) -> int:  # fmt: skip
    """Fine-tune an encoder into a segmenter of the masks of a data list.

    Example: afire segment outlined.json --out runs/lungs --classes "{'lung': [255]}"

    Args:
        datalist: data list with masks.
        settings: settings of finetune_segmentation.yaml, as key=value or --key value.
        out: folder to write into.
        classes: class names and the mask values that belong to them; an empty list stands for every value but 0.
        init: model folder to start from, or random; the encoder that comes with the package unless given.
        resume: continue an interrupted run in the folder.
    """
    given = {"datalist": datalist, "output_dir": out, "init": init or DEFAULT, "resume": resume}
    _require_inputs(given, settings)
    from afire_monai.training.settings import parse_value

    return _run(["finetune_segmentation.yaml"], settings, {**given, "classes": parse_value(classes)}, "models")


def path() -> int:
    """Print the folder of the MONAI bundle that comes with the package."""
    from afire_monai.cli.bundle import bundle_root

    print(bundle_root())
    return 0


def copy(out: str, *, model: tuple[str, ...] = (), kind: str | None = None) -> int:
    """Copy the MONAI bundle, to change its configs or to run it by MONAI's own commands.

    With --model the copy holds that model's weights, and `monai.bundle.load` finds them.

    Example: afire bundle copy mine --model chest-s16-1

    Args:
        out: folder that must not exist yet.
        model: model folder of a run, or several with commas between them; or the name of a model that comes with the
            package, whose classifier is that of adults.
        kind: classifier, segmenter, restorer or encoder; the first of them that the folder holds unless given.
    """
    from afire_monai.cli.bundle import bundle_root

    if Path(out).exists():
        raise AfireError(f"{out} exists; name a folder that does not")
    if kind and not model:
        raise AfireError("--kind says which network of --model is wanted; give --model as well")
    network, reader = None, {}
    if model:
        from afire_monai.models.bundle_model import fill_bundle, load_for_bundle
        from afire_monai.models.folder import model_files
        from afire_monai.predictions.scoring import reader_of

        folders = with_shipped(model)
        network, reader = load_for_bundle(folders, kind), reader_of(model_files(folders).values())
    shutil.copytree(bundle_root(), out, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.pt", "*.safetensors"))
    print(f"written: {out}")
    if network is None:
        configs = "['configs/pretrain.yaml','configs/method_afire.yaml']"
        words = f'--config_file "{configs}" --output_dir runs/mine'
    else:
        fill_bundle(out, network, reader)
        words = "--config_file configs/inference.json --dataset_dir FOLDER --output_dir results"
        print(f"holds:   models/model.pt ({type(network).__name__}); research only, not a medical device")
        print(f"check:   afire bundle check {shlex.quote(out)}")
    print(f"next:    cd {shlex.quote(out)} && python -m monai.bundle run {words}")
    return 0


def check_bundle(folder: str) -> int:
    """Run MONAI's own checks of a bundle, those that its model zoo makes, offline.

    Directory, version and changelog, metadata against the schema, versions of packages, shape of the network's answer,
    properties of inference and training, export to TorchScript and ONNX, and `monai.bundle.load`.

    Args:
        folder: folder of the bundle, with weights (`afire bundle copy FOLDER --model MODEL`).
    """
    from afire_monai.cli.bundle_check import CHECKS

    require_path("bundle", folder, "make one with `afire bundle copy FOLDER --model MODEL`")
    failed = 0
    for name, check in CHECKS.items():
        fault = check(Path(folder).resolve())
        failed += bool(fault)
        print(f"{'fails' if fault else 'ok':6} {name}{f': {fault}' if fault else ''}", flush=True)
    return 1 if failed else 0


def _require_inputs(given: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Refuse a wrong data list or model before torch is loaded."""
    values = {**dict(setting.partition("=")[::2] for setting in settings), **given}
    datalist, init, folder = (str(values.get(key) or "") for key in ("datalist", "init", "dataset_dir"))
    if datalist != "phantom" and not (Path(folder) / datalist).is_file():
        require_path("data list", datalist, "make one with `afire datalist`")
    if init and init != "random" and init not in shipped_names():
        require_path("--init", init, "give a model folder (models/ of a run), weights, or random")


def _run(configs: list[str], settings: tuple[str, ...], given: dict[str, Any], result: str) -> int:
    """Run configs of the bundle with these settings; say which line of MONAI's does the same."""
    _require_inputs(given, settings)
    from afire_monai.cli.bundle import bundle_root, run_configs
    from afire_monai.training.settings import read_settings

    values = {**given, **read_settings(settings, given)}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        configs = [*configs, "multi_gpu.yaml"]
    for name in configs:
        if not (bundle_root() / "configs" / name).is_file():
            known = sorted(p.stem.partition("_")[2] for p in (bundle_root() / "configs").glob("preset_*.yaml"))
            raise AfireError(f"no config {name} in the bundle; presets are {', '.join(known)}")
    files = [str(bundle_root() / "configs" / name) for name in configs]
    words = " ".join(f"--{key} {shlex.quote(str(value))}" for key, value in values.items())
    print(f'runs: python -m monai.bundle run --config_file "{files}" {words}', flush=True)
    run_configs(values, tuple(configs))
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"written: {Path(given['output_dir']) / result}")
    return 0
