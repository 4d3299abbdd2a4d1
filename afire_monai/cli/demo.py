"""``afire demo``: a complete pre-training in minutes, on synthetic radiographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# Tuned so that two CPU cores need a few minutes and lesions are visibly removed: small pictures of small cells, a
# small head, many steps of few images at a high learning rate, and more weight than elsewhere on the restoration,
# above all of lesioned cells.
DEMO_SETTINGS: dict[str, Any] = {
    "run_name": "demo",
    "epochs": 30,
    "batch_size": 8,
    "image_size": 96,
    "patch_size": 12,
    "shift": 1,
    "lr": 0.036,
    "teacher_momentum": 0.99,
    "final_weight_decay": 0.1,
    "head_hidden": 256,
    "prototype_dim": 64,
    "decoder_dim": 128,
    "decoder_depth": 3,
    "restoration_weight": 8.0,
    "abnormal_weight": 3.0,
    "health_every": 3,
    "panel_every": 10,
    "checkpoint_every": 3,
    "use_mlflow": False,
    # only the paper's terms: in such a short time, restoration should get all of it
    "stem": "patches",
    "exposure": 0.0,
    "match_weight": 0.0,
    "class_weight": 0.0,
    "lesion_weight": 0.0,
    "lesion_free": 0.0,
    "lesion_lungs": 0.0,
}
PHANTOMS = {"normal": 480, "abnormal": 32, "size": 160}
# files and folders that a demo writes, and that --overwrite may delete
_CONTENT = (
    "phantoms",
    "checkpoints",
    "panels",
    "models",
    "pictures",
    "log.csv",
    "settings.yaml",
    "report.html",
    "worth.json",
)


def demo(
    *,
    output: str = "demo",
    epochs: int = DEMO_SETTINGS["epochs"],
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> int:
    """Pre-train on synthetic chest radiographs for a few minutes and write a page with the results.

    Example: afire demo

    Example: afire demo --output demo --resume --epochs 60

    Args:
        output: folder to write into.
        epochs: number of training epochs.
        seed: seed of the synthetic radiographs and of training; the same seed gives the same result.
        resume: continue an interrupted demo, or train an old one for longer.
        overwrite: delete an earlier demo in that folder first.
    """
    from afire_monai.core.errors import AfireError

    if epochs < 1 or seed < 0:
        raise AfireError(f"--epochs must be at least 1 and --seed at least 0, got {epochs} and {seed}")
    run_demo(Path(output), {**DEMO_SETTINGS, "epochs": epochs, "seed": seed}, PHANTOMS, resume, overwrite)
    return 0


def run_demo(
    folder: Path, settings: dict[str, Any], phantoms: dict[str, int], resume: bool = False, overwrite: bool = False
) -> Path:
    """Write phantoms, pre-train on them, and say where the report is.

    Args:
        folder: folder for phantoms/ and all files of a pre-training run.
        settings: overrides of the bundle's configs, with ``seed``.
        phantoms: numbers and size for :func:`write_phantom_dataset`.
        resume: continue the demo in the folder.
        overwrite: delete an earlier demo in the folder first.

    Raises:
        AfireError: if the folder is in use and neither ``resume`` nor ``overwrite`` says what to do with it.
    """
    make_way(folder, resume, overwrite)
    try:
        page = _run(folder, settings, phantoms, resume)
    except KeyboardInterrupt:
        for part in folder.rglob("*.part"):
            part.unlink(missing_ok=True)
        raise
    print(f"3/3  done. Open this page in a browser:\n\n    {page}\n")
    print("Next, with your own normal radiographs:\n\n    afire datalist from-folder FOLDER --out mine.json")
    return page


def _run(folder: Path, settings: dict[str, Any], phantoms: dict[str, int], resume: bool) -> Path:
    from afire_monai.cli.bundle import run_configs
    from afire_monai.phantom import write_phantom_dataset

    datalist = folder / "phantoms" / "datalist.json"
    if not datalist.exists():
        print(f"1/3  writing {sum(phantoms.values()) - phantoms['size']} synthetic radiographs", flush=True)
        write_phantom_dataset(datalist.parent, seed=settings["seed"], **phantoms)
    print(f"2/3  pre-training for {settings['epochs']} epochs", flush=True)
    run_configs({**settings, "datalist": str(datalist), "output_dir": str(folder), "resume": resume})
    page = folder / "report.html"
    if not page.exists():
        from afire_monai.training.report.page import write_report

        write_report(folder)
    return page


def make_way(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to touch a folder that is in use, unless an option allows an earlier demo to be replaced or continued."""
    from afire_monai.core.errors import AfireError

    if resume and overwrite:
        raise AfireError("--resume and --overwrite exclude each other: continue the old demo, or delete it")
    if folder.is_file():
        raise AfireError(f"{folder} is a file; --output names a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_demo(folder):
        raise AfireError(f"{folder} holds something other than a demo; choose another folder with --output")
    if overwrite:
        for name in _CONTENT:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif not resume:
        raise AfireError(
            f"{folder} holds an earlier demo: continue it (--resume, and a larger --epochs to train for longer), "
            "replace it (--overwrite), or choose another folder (--output)"
        )


def is_demo(folder: Path) -> bool:
    """Say whether a folder was made by the demo: it holds phantoms, or nothing but the start of them."""
    datalist = folder / "phantoms" / "datalist.json"
    try:
        return bool(json.loads(datalist.read_text(encoding="utf-8")).get("name") == "phantom")
    except FileNotFoundError:
        # interrupted while the phantoms were written: their list is written last
        return [path.name for path in folder.iterdir()] == ["phantoms"]
    except (OSError, ValueError, AttributeError):
        return False
