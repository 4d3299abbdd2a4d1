"""Import of the weights that the authors of AFiRe released (arXiv 2504.10972)."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from afire_monai.core.errors import CheckpointError
from afire_monai.models.encoder import export_encoder, save_module_files
from afire_monai.models.released_parts import FoundParts, find_parts, fold_decoder, fold_encoder

logger = logging.getLogger(__name__)
_KNOWN_ENTRIES = {"student", "teacher", "optimizer", "epoch", "args", "AFiRe_loss", "fp16_scaler"}
# the authors' own argument parser has neither; those who train with other decoders add one
_HEADS_NAMES = ("decoder_num_heads", "decoder_heads")
_RELEASED_HEADS = 16
_INPUT = "images (B, C, H, W) float32 in 0…1, bright = dense, row 0 at the top; normalised inside"


@dataclass
class ImportReport:
    """What an import did.

    Attributes:
        files: the weights files written, each with a JSON beside it.
        unplaced: names in the source that have no place here.
        missing: names that a network here needs and the source lacks; they kept their random start values.
        assumed: what neither the source nor the caller says and was taken for granted, in words.
    """

    files: list[Path] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


def import_released(
    path: str | Path,
    output: str | Path,
    channels: Literal["keep", "fold"] = "keep",
    part: Literal["teacher", "student"] = "teacher",
    strict: bool = True,
    decoder_heads: int | None = None,
) -> ImportReport:
    """Turn an official AFiRe checkpoint into the files of this project.

    Written into `output`: `encoder.safetensors` (for `load_encoder`), `head.safetensors` (for `TokenHead`),
    `prototypes.safetensors` (for `PrototypeBank`), and `restorer.safetensors` (the student's encoder and decoder, for
    `load_restorer`), each with a JSON that says what it is; what the checkpoint does not hold is not written. Sizes
    come from the tensors' shapes; a square grid and encoder heads of width 64 are taken for granted, as released. The
    number of decoder heads is in no shape: it is the caller's, else what the checkpoint's ``args`` name, else 16 as
    released, which is logged and written into the restorer's JSON as an assumption. The released input is three equal
    channels with ImageNet's mean and standard deviation.

    Args:
        path: the checkpoint. It is read without running code from it: only tensors, plain containers and
            `argparse.Namespace` are accepted.
        output: folder to write into; made if absent.
        channels: "keep" the three channels, or "fold" them into one; a grey image gives the same tokens either way.
        part: which encoder and head to export; the paper fine-tunes the teacher's.
        strict: fail if a name has no place or is missing. Otherwise both are listed in the report and the JSON files.
        decoder_heads: attention heads of the restoration decoder; None for the checkpoint's own.

    Returns:
        Written files, names that were not placed or are missing, and what was assumed.

    Raises:
        CheckpointError: the file cannot be read, holds other types, lacks the part, does not fit and `strict` is set
            (the message lists the names), or names decoder heads that cannot be.
    """
    for name, value, known in (("channels", channels, ("keep", "fold")), ("part", part, ("teacher", "student"))):
        if value not in known:
            raise CheckpointError(f"{name} is {value!r}; expected one of {known}.")
    path, output = Path(path), Path(output)
    source = _read(path)
    if part not in source:
        raise CheckpointError(f"'{path.name}' has no entry '{part}'; it holds {sorted(source)}.")
    report = ImportReport(unplaced=sorted(str(name) for name in set(source) - _KNOWN_ENTRIES))
    heads = _decoder_heads(path, source.get("args"), decoder_heads)
    parts: dict[str, FoundParts] = {}
    for name in ("teacher", "student"):
        if name in source:
            parts[name] = _found(path, name, source[name], heads or _RELEASED_HEADS, report)
    if heads is None and "student" in parts and parts["student"].decoder is not None:
        report.assumed.append(f"{_RELEASED_HEADS} decoder heads, as released: the checkpoint names none")
        logger.warning(
            "%s. With another number restored pictures are wrong although all weights fit: give it by --decoder-heads",
            report.assumed[-1],
        )
    prototypes = _prototypes(path, source.get("AFiRe_loss"), report)
    if strict and (report.unplaced or report.missing):
        raise CheckpointError(
            f"'{path.name}' does not fit. No place for: {_listed(report.unplaced)}. "
            f"Missing: {_listed(report.missing)}. Pass strict=False to import what fits."
        )
    facts = {"source_sha256": _sha256(path), "unplaced": report.unplaced, "missing": report.missing}
    if isinstance(source.get("epoch"), int):
        facts["epochs"] = source["epoch"]
    _write(parts, prototypes, part, channels == "fold", output, {**facts, "method_name": "AFiRe"}, report)
    return report


def _decoder_heads(path: Path, args: object, given: int | None) -> int | None:
    """Number of decoder heads that the caller or the checkpoint's arguments name, None if neither does."""
    named = args if isinstance(args, Mapping) else vars(args) if isinstance(args, argparse.Namespace) else {}
    heads = given if given is not None else next((named[key] for key in _HEADS_NAMES if key in named), None)
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        where = "--decoder-heads" if given is not None else f"'{path.name}', args"
        raise CheckpointError(f"{where}: {heads!r} decoder heads; a whole number of at least 1 is expected.")
    return heads


def _read(path: Path) -> dict[str, Any]:
    """Checkpoint as a dictionary, with nothing executed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            source = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:Unsupported global|GLOBAL|global) :?\s*(?:GLOBAL )?([\w.]+)", str(error))
        what = f"holds {refused.group(1)}" if refused else "is damaged or holds other types"
        raise CheckpointError(
            f"'{path.name}' {what}; only tensors, plain containers and argparse.Namespace are read, because anything "
            "else could run code. Remove it where the file comes from and save the state dictionaries alone."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"'{path.name}' cannot be read as a PyTorch checkpoint: {error}") from error
    if not isinstance(source, dict):
        raise CheckpointError(f"'{path.name}' holds a {type(source).__name__}; expected a dictionary with 'teacher'.")
    return source


def _found(path: Path, name: str, state: object, heads: int, report: ImportReport) -> FoundParts:
    """Networks of one part, with what did not fit added to the report."""
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"'{path.name}': entry '{name}' is not a dictionary of tensors.")
    try:
        found = find_parts({str(key).removeprefix("module."): value for key, value in state.items()}, heads)
    except CheckpointError as error:
        raise CheckpointError(f"'{path.name}', entry '{name}': {error}") from error
    if name == "student" and found.decoder is None:
        found.missing.append("decoder.*")
    report.unplaced += [f"{name}.{key}" for key in found.unplaced]
    report.missing += [f"{name}.{key}" for key in found.missing]
    return found


def _prototypes(path: Path, loss: object, report: ImportReport) -> Tensor | None:
    """Prototypes (L, K) float32 of the loss's state, None where the checkpoint has none."""
    if loss is None:
        return None
    if not isinstance(loss, Mapping):
        raise CheckpointError(f"'{path.name}': entry 'AFiRe_loss' is a {type(loss).__name__}; expected a dictionary.")
    report.unplaced += [f"AFiRe_loss.{name}" for name in loss if name != "prototype"]
    value = loss.get("prototype")
    if value is None:
        report.missing.append("AFiRe_loss.prototype")
        return None
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CheckpointError(f"'{path.name}': AFiRe_loss.prototype is {shape}; expected (1, L, K).")
    return value[0].float()


def _write(
    parts: dict[str, FoundParts],
    prototypes: Tensor | None,
    part: str,
    fold: bool,
    output: Path,
    facts: dict[str, Any],
    report: ImportReport,
) -> None:
    """Write the files and put them in the report."""
    chosen = parts[part]
    encoder = fold_encoder(chosen.encoder) if fold else chosen.encoder
    report.files.append(export_encoder(encoder, output, part=part, **facts))
    if chosen.head is not None:
        cells, out_dim, bottleneck = chosen.head.weight.shape
        hidden = chosen.head.state_dict()["mlp.0.bias"].shape[0]
        head = {"in_dim": encoder.embed_dim, "cells": cells, "out_dim": out_dim, "hidden_dim": hidden}
        head["bottleneck_dim"] = bottleneck
        report.files.append(_save(chosen.head, output, "head", {"architecture": head, "part": part, **facts}))
    if prototypes is not None:
        description = {"format": "afire-monai prototypes 1", "shape": list(prototypes.shape), **facts}
        file = output / "prototypes.safetensors"
        report.files.append(save_module_files({"prototypes": prototypes}, description, file))
    student = parts.get("student")
    if student is not None and student.decoder is not None:
        encoder = fold_encoder(student.encoder) if fold else student.encoder
        decoder = fold_decoder(student.decoder, student.encoder, encoder) if fold else student.decoder
        both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        description = {"encoder": encoder.config, "decoder": decoder.config, "input": _INPUT, **facts}
        description["assumed"] = report.assumed
        report.files.append(_save(both, output, "restorer", description))


def _save(module: nn.Module, output: Path, name: str, description: dict[str, Any]) -> Path:
    description = {"format": f"afire-monai {name} 1", **description}
    return save_module_files(module.state_dict(), description, output / f"{name}.safetensors")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(names: list[str]) -> str:
    """Up to 20 names in one line."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) + more) or "nothing"
