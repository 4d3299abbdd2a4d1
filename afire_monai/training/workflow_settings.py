"""Settings of a bundle workflow that Python started: the overrides are found again in what the workflow is made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from afire_monai.training.settings import refuse_unknown_keys, refuse_wrong_values

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

    A workflow does not keep the names of its files. They are those of its config folder whose keys it has all of; a key
    that none of them has counts as misspelt unless something in the config refers to it, as a config of the caller's
    own may.

    Raises:
        AfireError: for a setting that does not exist, or a value that it cannot have.
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
    """Yield the paths (``train#sampler#seed``) that only the config has; what a constructor is given, it checks."""
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
