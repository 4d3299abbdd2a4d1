"""Values on the command line: read as the bundle reads them, and refused where they cannot be meant."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import yaml

from afire_monai.errors import AfireError

__all__ = ["parse_value", "refuse_wrong_values"]

# the least value that means something; of what is absent here, any number of the right kind is passed on
_LEAST: dict[str, int] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulation_steps", "image_size", "patch_size"), 1),
    **dict.fromkeys(("checkpoint_every", "checkpoint_keep", "health_every", "panel_every"), 1),
    **dict.fromkeys(("prototype_dim", "head_hidden", "decoder_dim", "decoder_depth", "decoder_heads"), 1),
    **dict.fromkeys(("seed", "num_workers", "checkpoint_every_iterations", "shift", "clip"), 0),
    **dict.fromkeys(("lr", "final_lr", "warmup", "weight_decay", "final_weight_decay"), 0),
    "health_images": 2,  # features of a single image differ from nothing
}


def parse_value(text: str) -> Any:
    """Read a value as the bundle's command line does: a Python literal, else YAML (so ``true`` is True), else a word.

    Args:
        text: what stands behind ``--key``.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            return yaml.safe_load(text) if text else text
        except yaml.YAMLError:
            return text
    return list(value) if isinstance(value, tuple) else value


def refuse_wrong_values(config: Mapping[str, Any], overrides: Mapping[str, str]) -> None:
    """Refuse a value of another kind than the config's own, or below the least that means something.

    Args:
        config: the merged config files.
        overrides: keys and values as on the command line; expressions, references and nested keys are not looked at.

    Raises:
        AfireError: naming the key, the value and what is expected.
    """
    for key, text in overrides.items():
        default = config.get(key)
        if text.startswith(("$", "@")) or isinstance(default, str) or key == "resume":
            continue
        if isinstance(default, bool):
            if text not in ("True", "False"):
                # the bundle's command line would hand this on as a word, and any word counts as true
                likely = f"write --{key} {text.capitalize()}" if text in ("true", "false") else "True or False expected"
                raise AfireError(f"--{key} {text}: {likely}")
        elif isinstance(default, int | float):
            _refuse_wrong_number(key, text, whole=isinstance(default, int))


def _refuse_wrong_number(key: str, text: str, whole: bool) -> None:
    value, least = parse_value(text), _LEAST.get(key)
    kind = "a whole number" if whole else "a number"
    expected = kind if least is None else f"{kind} of at least {least}"
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or (least is not None and value < least):
        raise AfireError(f"--{key} {text}: {expected} is expected")
