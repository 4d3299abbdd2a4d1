"""Parse settings from the command line as the bundle does, and refuse those that make no sense."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from afire_monai.core.errors import AfireError
from afire_monai.core.precision import PRECISIONS

# arguments that `python -m monai.bundle run` uses itself
_RUNNER_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_type",
}  # fmt: skip

_CHOICES: dict[str, tuple[str, ...]] = {
    # settings that are used only at the end of a run, hours later, or after the list has been read
    "calibration": ("temperature", "platt", "none"),
    "threshold_rule": ("youden", "specificity95"),
    "cache_dtype": ("uint8", "uint16"),
    "precision": PRECISIONS,
}

# the least meaningful value; for a setting that is absent here, any finite number of the right kind is accepted
_LEAST: dict[str, float] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulation_steps", "image_size", "patch_size"), 1),
    **dict.fromkeys(("checkpoint_every", "checkpoint_keep", "health_every", "panel_every"), 1),
    **dict.fromkeys(("validate_every", "decoder_width", "max_lesions"), 1),
    **dict.fromkeys(("prototype_dim", "prototypes_per_cell", "head_hidden"), 1),
    **dict.fromkeys(("decoder_dim", "decoder_depth", "decoder_heads"), 1),
    **dict.fromkeys(("seed", "num_workers", "checkpoint_every_iterations", "shift", "clip"), 0),
    **dict.fromkeys(("folds", "fold", "patience", "minutes", "label_probe_every", "worth_images"), 0),
    **dict.fromkeys(("lr", "final_lr", "warmup", "weight_decay", "final_weight_decay"), 0),
    **dict.fromkeys(("local_size", "projector_dim", "projector_layers", "dense_dim", "dense_side", "dense_cells"), 1),
    **dict.fromkeys(("local_views", "predictor_dim", "windows", "registers", "koleo_weight"), 0),
    **dict.fromkeys(("order_weight", "restoration_weight", "global_weight", "local_weight", "structure_weight"), 0),
    **dict.fromkeys(("category_weight", "abnormal_weight", "dense_weight"), 0),
    **dict.fromkeys(
        ("lesion_peak", "lesion_dark", "lesion_elsewhere", "lesion_lungs", "lesion_free", "abnormal_change"), 0
    ),
    **dict.fromkeys(("exposure", "match_weight", "class_weight", "lesion_weight", "latent_weight"), 0),
    "class_dim": 2,
    **dict.fromkeys(("invariance_weight", "variance_weight", "covariance_weight"), 0),
    "health_images": 2,  # features of a single image cannot differ
    "head_dim": 2,  # a softmax over one value carries no information
    "crop_scale": 0.01,
    "global_scale": 0.05,  # lower end of the shares of local crops
}

# shares and probabilities, whose largest value is 1
_MOST: dict[str, float] = dict.fromkeys(
    (
        *("mask_ratio", "crop_scale", "global_scale", "flip", "jitter", "brightness", "contrast", "keep_probability"),
        *("curve_probability", "paint_probability", "teacher_momentum", "center_momentum", "prototype_momentum"),
        *("lesion_peak", "lesion_dark", "lesion_elsewhere", "lesion_lungs", "lesion_free", "abnormal_change"),
    ),
    1,
)


def command_line(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split the command line of ``python -m monai.bundle run`` into config files and overrides.

    Returns:
        The config files, and every other ``--key value`` or ``--key=value``.
    """
    options: dict[str, str] = {}
    waiting: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            options[name] = value
            waiting = None if equals else name
        elif waiting is not None:
            options[waiting] = argument
            waiting = None
    files = yaml.safe_load(options.get("config_file", "[]") or "[]")
    files = [files] if isinstance(files, str) else list(files)
    return files, {name: value for name, value in options.items() if name not in _RUNNER_ARGUMENTS}


def refuse_unknown_keys(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse an override that names nothing in the config: a typing error would otherwise change nothing, in silence.

    Args:
        config: the merged config files.
        overrides: keys as on the command line (``epochs``, ``train#dataloader#num_workers``, ``a::b``).

    Raises:
        AfireError: naming the key and the nearest ones that exist.
    """
    for override in overrides:
        at: Any = config
        for part in override.lstrip("+").replace("::", "#").split("#"):
            if isinstance(at, dict) and part in at:
                at = at[part]
            elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
                at = at[int(part)]
            else:
                known = [str(k) for k in at] if isinstance(at, dict) else []
                near = difflib.get_close_matches(part, known, 3) or sorted(k for k in known if not k.startswith("_"))
                raise AfireError(f"unknown setting --{override}: {part!r} is not there; nearest: {', '.join(near)}")


def parse_value(text: str) -> Any:
    """Read a value as the bundle does: a Python literal, else YAML (so ``true`` is True), else a word."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            return yaml.safe_load(text) if text else text
        except yaml.YAMLError:
            return text
    return list(value) if isinstance(value, tuple) else value


def read_settings(words: Iterable[str], taken: Collection[str]) -> dict[str, Any]:
    """Read settings of a command line.

    Raises AfireError if one is not written key=value, or is among those that the command sets itself.
    """
    values = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise AfireError(f"{word}: settings are written key=value, for example epochs=20")
        if key in taken or key in _RUNNER_ARGUMENTS:
            raise AfireError(f"{word}: set by the command itself; use its own option")
        values[key] = parse_value(value)
    return values


def refuse_wrong_values(config: Mapping[str, Any], overrides: Mapping[str, str]) -> None:
    """Refuse a value of another kind than the config's own, or below the least that means something.

    Args:
        config: the merged config files.
        overrides: keys and values as on the command line; expressions, references and nested keys are not checked.

    Raises:
        AfireError: naming the key, its value and the values that are expected.
    """
    for key, text in overrides.items():
        default = config.get(key)
        if key in _CHOICES and key in config and not text.startswith(("$", "@")) and text not in _CHOICES[key]:
            raise AfireError(f"--{key} {text}: one of {', '.join(_CHOICES[key])} is expected")
        if text.startswith(("$", "@")) or isinstance(default, str) or key == "resume":
            continue
        if isinstance(default, bool):
            if key == "cache" and text == "disk" and "cache_dir" in config:
                continue
            if text not in ("True", "False"):
                # the bundle's command line would pass this on as a string, and any string counts as true
                likely = f"write --{key} {text.capitalize()}" if text in ("true", "false") else "True or False expected"
                raise AfireError(f"--{key} {text}: {likely}")
        elif isinstance(default, int | float):
            _refuse_wrong_number(key, text, whole=isinstance(default, int))


def refuse_changed_names(overrides: Mapping[str, str]) -> None:
    """Refuse names and paths that the bundle's command line does not hand on as they were typed (``a,b``, ``a#b``, 12).

    Raises AfireError, which names key and value and says how to write it.
    """
    import fire.parser

    for key in ("output_dir", "datalist", "dataset_dir", "run_name", "init"):
        text = overrides.get(key, "")
        value = fire.parser.DefaultParseValue(text)
        if text.startswith("%"):
            raise AfireError(f"--{key} {text}: the runner treats values that begin with % as macros; write ./{text}")
        if not isinstance(value, str) or (value != text and text[:1] not in "'\""):
            raise AfireError(f"--{key} {text}: the runner reads this as {value!r}; write --{key} \"'{text}'\"")


def _refuse_wrong_number(key: str, text: str, whole: bool) -> None:
    value, least, most = parse_value(text), _LEAST.get(key), _MOST.get(key)
    expected = "a whole number" if whole else "a number"
    if most is not None:
        least = least or 0
        expected += f" from {least} to {most}"
    elif least is not None:
        expected += f" of at least {least}"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    right = right and abs(value) < math.inf  # a limit that whole numbers of any length can be compared with
    if not right or (least is not None and value < least) or (most is not None and value > most):
        raise AfireError(f"--{key} {text}: {expected} is expected")


_TRACKING = {key for settings in DEFAULT_EXP_MGMT_SETTINGS.values() for key in settings["configs"]}


def running_workflow() -> ConfigWorkflow | None:
    """Return the workflow whose `initialize` is calling, or None: MONAI's expressions are not handed their config."""
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return workflow
        frame = frame.f_back
    return None


def checked_settings(workflow: ConfigWorkflow) -> dict[str, Any]:
    """Return a workflow's config, with its overrides, as plain values; the metadata is left out.

    A workflow does not keep the names of its files. They are the files in its config folder all of whose keys it has. A
    key that none of them has counts as misspelt unless something in the config refers to it, which a config of the
    caller's own may do. Raises AfireError for a setting that does not exist, or a value that it cannot have.
    """
    config = {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}
    files = list(_own_files(Path(workflow.config_root_path), config))
    if not files:  # nothing to compare with
        return {key: _plain(value) for key, value in config.items()}
    known: dict[str, Any] = {}
    for file in files:
        known = _merged(known, file)
    words = "\n".join(_texts(config))
    unknown = [path for path in _new_paths(config, known) if f"@{path}" not in words]
    refuse_unknown_keys(known, [path for path in unknown if path.split("#")[0] not in _TRACKING])
    changed = {
        key: str(value)
        for key, value in config.items()
        if not isinstance(value, dict | list) and key in known and all(file.get(key) != value for file in files)
    }
    refuse_wrong_values(known, changed)
    side, patch = config.get("image_size"), config.get("patch_size")
    fresh = config.get("init") == "random" and "network_def" in config
    if fresh and isinstance(side, int) and isinstance(patch, int) and side % patch:
        raise AfireError(f"--image_size {side}: a multiple of patch_size {patch} is expected, for example "
                         f"{math.ceil(side / patch) * patch}")  # fmt: skip
    return {key: _plain(value) for key, value in config.items()}


def _own_files(folder: Path, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.yaml")):
        content = ConfigParser.load_config_file(path)
        if {str(key).lstrip("+") for key in content} <= config.keys():
            yield {str(key).lstrip("+"): value for key, value in content.items()}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = {**one, **other}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            both[key] = _merged(one[key], other[key])
    return both


def _new_paths(config: Mapping[str, Any], known: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the paths (``train#sampler#seed``) that only the config has; constructors check their own arguments."""
    for key, value in config.items():
        path = f"{above}{key}"
        if key not in known:
            yield path
        elif isinstance(value, dict) and _has_parts(known[key]):
            yield from _new_paths(value, known[key], f"{path}#")


def _has_parts(known: Any) -> bool:
    """Whether a value is a section of the config (``train``), not a setting with names of the user (``classes``)."""
    return isinstance(known, dict) and any(isinstance(part, dict) and "_target_" in part for part in known.values())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.replace("::", "#")
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _plain(value: Any) -> Any:
    """Return a value of numbers, words, lists and dictionaries; a text in the place of any other object."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
