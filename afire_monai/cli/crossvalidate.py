"""``afire crossvalidate``: one fine-tuning for each fold."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError, CheckpointError, DataListError
from afire_monai.core.files import write_text


def crossvalidate(
    datalist: str, *, init: str = "random", out: str, folds: int = 5, seed: int = 0, settings: tuple[str, ...] = ()
) -> int:
    """Fine-tune a classifier once for each fold of a data list's training and validation images.

    Patients are never divided between folds. Each fold's run has its own folder, and a complete run is not repeated, so
    you can stop the command and run it again with the same settings. The summary holds each fold's validation AUROC,
    their mean and standard deviation, for each label and the mean over labels.

    Example: afire crossvalidate list.json --init runs/first/models --out runs/five_folds --settings epochs=20,lr=0.004

    Args:
        datalist: the data list, with labels.
        init: model folder of a pre-trained encoder; random for fresh weights.
        out: folder of the runs and of crossvalidation.json.
        folds: number of folds.
        seed: seed of folds, weights and order.
        settings: settings of finetune_classification.yaml, as key=value.
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
    content = read_raw(Path(datalist))
    sha256 = datalist_hash(content)
    sections = ["validation", *(["test"] if content.get("test") else [])]
    _same_settings(Path(out), extra)
    results = []
    for fold in range(folds):
        folder = Path(out) / f"fold_{fold}"
        model = folder / "models" / "classifier.json"
        wanted = {"folds": folds, "fold": fold, "seed": seed}
        origin = facts(init, 1.0, folds, fold, seed)["encoder"]
        # predictions are written last: a run that ended without them is continued
        predictions = [folder / "predictions" / section / "predictions.json" for section in sections]
        if not all(path.is_file() for path in (model, *predictions)):
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
    _write(Path(out), summarise(results), {"folds": folds, "seed": seed, "settings": extra})
    return 0


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Note the settings of a cross-validation until its first fold has begun; refuse to go on with others."""
    path = out / "settings.json"
    try:
        if not any(out.glob("fold_*/settings.yaml")):
            out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(settings, indent=1) + "\n")
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AfireError(f"{path} cannot be read or written ({error}); give another --out") from error
    if before != json.loads(json.dumps(settings)):
        raise AfireError(
            f"{out} holds folds of --settings {_words(before)}, not {_words(settings)}; give the same, or another --out"
        )


def _words(settings: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in settings.items()) or "none"


def _description(model: Path, sha256: str) -> dict[str, Any]:
    """Read the description of a fold's run, and check that it used the same data list."""
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
        results: validation figures of each fold; a figure may be missing if a fold lacks a class.

    Returns:
        For each figure ``values`` (None if missing), ``mean``, ``sd`` (None below two values) and ``folds`` counted.
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


def _write(out: Path, summary: dict[str, dict[str, Any]], how: dict[str, Any]) -> None:
    folds, text = how["folds"], json.dumps({**how, "figures": summary}, indent=1) + "\n"
    try:
        write_text(out / "crossvalidation.json", text)
    except OSError as error:
        raise AfireError(
            f"{out / 'crossvalidation.json'} cannot be written ({error.strerror}); all folds are kept, so make room "
            "and run the command again"
        ) from error
    width = max((len(name) for name in summary), default=0)
    for name, figure in summary.items():
        spread = f" ± {figure['sd']:.3f}" if figure["sd"] is not None else ""
        missing = f"  ({figure['folds']} of {folds} folds have both classes)" if figure["folds"] < folds else ""
        print(f"{name:{width}}  {figure['mean']:.3f}{spread}{missing}")
    if not summary:
        print("no fold has a label with both classes among its validation images: use fewer folds or more images")
    print(f"written: {out / 'crossvalidation.json'}")
