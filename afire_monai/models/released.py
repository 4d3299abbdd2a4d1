"""Import of the weights that the authors of AFiRe released (arXiv 2504.10972)."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from afire_monai.core.errors import UNREADABLE, AfireError, CheckpointError
from afire_monai.models.folder import INPUT, export_encoder, save_module_files, weights_hashes
from afire_monai.networks import AnomalyRestorationDecoder, TokenHead, ViTEncoder, encoder_from_config, sincos_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_HEAD_WIDTH = 64  # the same for ViT-Ti, -S and -B
_ENCODER_EPS = 1e-6
_DECODER_EPS = 1e-5
_RENAMED = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed."),
    (re.compile(r"\.attn\.proj\."), ".attn.out_proj."),
    (re.compile(r"\.mlp\.fc([12])\."), r".mlp.linear\1."),
)


@dataclass
class FoundParts:
    """Networks made from one state dictionary, and the names that did not fit."""

    encoder: ViTEncoder
    head: TokenHead | None
    decoder: AnomalyRestorationDecoder | None
    unplaced: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_parts(state: dict[str, Tensor], decoder_heads: int) -> FoundParts:
    """Make encoder, head and decoder from a released state dictionary.

    Returns:
        The networks (head and decoder are None if the dictionary has none) and the names that did not fit.

    Raises:
        CheckpointError: if sizes cannot be told from the shapes.
    """
    groups: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, "decoder": {}}
    unplaced: list[str] = []
    missing: list[str] = []
    for name, value in state.items():
        group, _, rest = name.partition(".")
        if group not in groups:
            unplaced.append(name)
        elif not value.isfinite().all():
            raise CheckpointError(f"{name} holds values that are not finite.")
        else:
            groups[group][rest] = value.float()
    found = FoundParts(_encoder(groups["encoder"]), None, None, unplaced, missing)
    _place(found, "encoder", found.encoder, groups["encoder"], found.encoder.grid)
    if groups["head"]:
        found.head = _head(found, groups["head"])
    else:
        missing.append("head.*")
    if groups["decoder"]:
        found.decoder = _decoder(groups["decoder"], found.encoder, decoder_heads)
        _place(found, "decoder", found.decoder, groups["decoder"], found.encoder.grid)
    return found


def _shape(state: dict[str, Tensor], group: str, name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor that sizes are read from."""
    if name not in state:
        raise CheckpointError(f"{group}.{name} is missing, so the size of the network is unknown.")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{group}.{name} is {shape}; expected {dimensions} dimensions.")
    return shape


def _depth(state: dict[str, Tensor]) -> int:
    """Number of blocks."""
    return 1 + max((int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)), default=-1)


def _encoder(state: dict[str, Tensor]) -> ViTEncoder:
    """Encoder of the sizes that the shapes tell, with start values."""
    width, channels, patch, patch_width = _shape(state, "encoder", "patch_embed.proj.weight", 4)
    cells = _shape(state, "encoder", "pos_embed", 3)[1] - 1
    hidden = _shape(state, "encoder", "blocks.0.mlp.fc1.weight", 2)[0]
    side = math.isqrt(max(cells, 0))
    if side * side != cells or patch != patch_width or width % _HEAD_WIDTH or channels != 3:
        raise CheckpointError(
            f"{cells} cells, patches of {patch} × {patch_width}, {channels} channels, width {width}; expected a square "
            f"grid and patch, 3 channels, and a width that {_HEAD_WIDTH} divides."
        )
    try:
        return ViTEncoder(
            image_size=side * patch,
            patch_size=patch,
            in_channels=channels,
            embed_dim=width,
            depth=_depth(state),
            num_heads=width // _HEAD_WIDTH,
            mlp_ratio=hidden / width,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            layer_norm_eps=_ENCODER_EPS,
        )
    except AfireError as error:
        raise CheckpointError(str(error)) from error


def _decoder(state: dict[str, Tensor], encoder: ViTEncoder, heads: int) -> AnomalyRestorationDecoder:
    """Decoder of the sizes that the shapes tell, with start values. Its ε is PyTorch's 1e-5, as released."""
    dim, in_dim = _shape(state, "decoder", "embedding.weight", 2)
    pixels = _shape(state, "decoder", "image_pred.weight", 2)[0]
    hidden = _shape(state, "decoder", "blocks.0.mlp.fc1.weight", 2)[0]
    channels = pixels // encoder.patch_size**2
    if channels * encoder.patch_size**2 != pixels or dim % heads or in_dim != encoder.embed_dim:
        raise CheckpointError(
            f"decoder from width {in_dim} to {dim} and {pixels} pixels a cell; expected from {encoder.embed_dim} to a "
            f"multiple of the {heads} decoder heads, and whole channels of {encoder.patch_size}² pixels."
        )
    return AnomalyRestorationDecoder(
        in_dim=in_dim,
        grid=encoder.grid,
        patch_size=encoder.patch_size,
        channels=channels,
        dim=dim,
        depth=_depth(state),
        num_heads=heads,
        mlp_ratio=hidden / dim,
        layer_norm_eps=_DECODER_EPS,
    )


def _place(found: FoundParts, group: str, module: nn.Module, state: dict[str, Tensor], grid: tuple[int, int]) -> None:
    """Load a transformer's tensors under their names here; positions are computed here, so they are compared only."""
    renamed: dict[str, tuple[str, Tensor]] = {}
    for name, value in state.items():
        ours = name
        for pattern, replacement in _RENAMED:
            ours = pattern.sub(replacement, ours)
        renamed[ours] = (name, value)
    name, positions = renamed.pop("pos_embed", ("pos_embed", None))
    if positions is None:
        found.missing.append(f"{group}.{name}")
    elif not _are_sincos(positions, grid):
        found.unplaced.append(f"{group}.{name} (not the fixed sine-cosine positions)")
    _load(found, group, module, renamed)


def _are_sincos(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Whether (1, 1 + L, D) are zeros for the class token and the fixed positions of the grid."""
    if positions.ndim != 3 or positions.shape[0] != 1 or positions.shape[1] != 1 + grid[0] * grid[1]:
        return False
    expected = sincos_positions(grid, positions.shape[2])
    return bool(torch.allclose(positions[0, 1:], expected, atol=1e-4) and positions[0, 0].abs().max() < 1e-6)


def _load(found: FoundParts, group: str, module: nn.Module, renamed: dict[str, tuple[str, Tensor]]) -> None:
    """Load tensors by name here, given with their released names; names and shapes that do not fit are listed."""
    targets = module.state_dict()
    fitting: dict[str, Tensor] = {}
    for ours, (name, value) in renamed.items():
        if ours in targets and targets[ours].shape == value.shape:
            fitting[ours] = value
        else:
            shape = f" {tuple(value.shape)}, expected {tuple(targets[ours].shape)}" if ours in targets else ""
            found.unplaced.append(f"{group}.{name}{shape}")
    found.missing += [f"{group}.{name}" for name in targets if name not in fitting]
    module.load_state_dict(fitting, strict=False)


def _head(found: FoundParts, state: dict[str, Tensor]) -> TokenHead:
    """Token head: one stacked weight from the layers of all cells. A cosine has no length: `weight_g` must be one."""
    cells = found.encoder.grid[0] * found.encoder.grid[1]
    out_dim, bottleneck = _shape(state, "head", "last_layers.0.weight_v", 2)
    hidden, in_dim = _shape(state, "head", "mlp.0.weight", 2)
    head = TokenHead(in_dim, cells, out_dim, hidden, bottleneck)
    rows: dict[int, Tensor] = {}
    renamed: dict[str, tuple[str, Tensor]] = {}
    for name, value in state.items():
        match = re.fullmatch(r"last_layers\.(\d+)\.weight_([gv])", name)
        cell = int(match.group(1)) if match else -1
        if match is None:
            renamed[name] = (name, value)
        elif cell >= cells or (match.group(2) == "v" and value.shape != (out_dim, bottleneck)):
            found.unplaced.append(f"head.{name}")
        elif match.group(2) == "v":
            rows[cell] = value
        elif not torch.allclose(value, torch.ones_like(value)):
            found.unplaced.append(f"head.{name} (not one)")
    weight = head.weight.detach().clone()
    for cell in range(cells):
        if cell in rows:
            weight[cell] = rows[cell]
        else:
            found.missing.append(f"head.last_layers.{cell}.weight_v")
    _load(found, "head", head, {**renamed, "weight": ("last_layers", weight)})
    return head


def fold_encoder(encoder: ViTEncoder) -> ViTEncoder:
    """One-channel encoder that gives the same tokens for a grey image as this one for three equal channels.

    Normalisation differs between the channels, so it goes into the kernel and the bias. The one channel is normalised
    by the mean of the three means and of the three standard deviations.

    Args:
        encoder: with one channel (returned as it is) or more.
    """
    if encoder.in_channels == 1:
        return encoder
    mean, std = encoder.mean.flatten().double(), encoder.std.flatten().double()
    config: dict[str, Any] = {**encoder.config, "in_channels": 1, "mean": mean.mean().item(), "std": std.mean().item()}
    folded: Any = encoder_from_config(config)
    state = encoder.state_dict()
    kernel = state["patch_embed.weight"].double() / std[:, None, None]
    shift = (kernel.sum((2, 3)) * (mean.mean() - mean)).sum(1)
    state["patch_embed.weight"] = (kernel.sum(1, keepdim=True) * std.mean()).float()
    state["patch_embed.bias"] = (state["patch_embed.bias"].double() + shift).float()
    folded.load_state_dict(state)
    return folded


def fold_decoder(
    decoder: AnomalyRestorationDecoder, encoder: ViTEncoder, folded: ViTEncoder
) -> AnomalyRestorationDecoder:
    """One-channel decoder whose image is the mean of this one's channels, in the folded encoder's normalised units.

    Args:
        decoder: with one channel (returned as it is) or as many as `encoder`.
        encoder: before folding.
        folded: after folding.
    """
    if decoder.channels == 1:
        return decoder
    result = AnomalyRestorationDecoder(**{**decoder.config, "channels": 1})
    state = decoder.state_dict()
    mean, std = encoder.mean.flatten().double(), encoder.std.flatten().double()
    weight = state["image_pred.weight"].double().view(-1, decoder.channels, state["image_pred.weight"].shape[1])
    bias = state["image_pred.bias"].double().view(-1, decoder.channels)  # the channel runs fastest
    scale = folded.std.double().item()
    state["image_pred.weight"] = ((weight * std[:, None]).mean(1) / scale).float()
    state["image_pred.bias"] = (((bias * std + mean).mean(1) - folded.mean.double().item()) / scale).float()
    result.load_state_dict(state)
    return result


logger = logging.getLogger(__name__)
_KNOWN_ENTRIES = {"student", "teacher", "optimizer", "epoch", "args", "AFiRe_loss", "fp16_scaler"}
# the authors' own argument parser has neither; users who train with other decoders add one
_HEADS_NAMES = ("decoder_num_heads", "decoder_heads")
_RELEASED_HEADS = 16


@dataclass
class ImportReport:
    """Report of an import."""

    files: list[Path] = field(default_factory=list)  #: the weights files written, each with a JSON beside it
    unplaced: list[str] = field(default_factory=list)  #: names in the source that have no place here
    #: names that a network here needs and the source lacks; they kept their random start values
    missing: list[str] = field(default_factory=list)
    #: assumptions on values that neither the source nor the caller gives, in words
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

    `output` gets `encoder.safetensors` (for `load_encoder`), `head.safetensors` (for `TokenHead`),
    `prototypes.safetensors` (for `PrototypeBank`) and `restorer.safetensors` (the student's encoder and decoder, for
    `load_restorer`), as far as the checkpoint holds them, each with a JSON that describes it. Sizes follow from the
    tensors' shapes, with a square grid and encoder heads of width 64, as released. No shape tells the number of decoder
    heads: it is the caller's, else that of the checkpoint's ``args``, else 16 as released, which is logged and kept in
    the restorer's JSON as an assumption. The input is three equal channels with ImageNet's mean and deviation.

    Args:
        path: the checkpoint; no code in it runs: only tensors, plain containers and `argparse.Namespace` are read.
        output: folder to write into; created if absent.
        channels: "keep" the three channels, or "fold" them into one; a grey image gives the same tokens either way.
        part: encoder and head to export: "teacher" (the paper fine-tunes it) or "student".
        strict: fail if a name has no place or is missing. Otherwise both are listed in the report and the JSON files.
        decoder_heads: attention heads of the restoration decoder; None for the checkpoint's own.

    Raises:
        CheckpointError: if the file cannot be read, holds other types, lacks the part, names impossible decoder heads,
            or, with `strict`, does not fit (the message lists the names).
    """
    for name, value, known in (("channels", channels, ("keep", "fold")), ("part", part, ("teacher", "student"))):
        if value not in known:
            raise CheckpointError(f"{name} is {value!r}; expected one of {known}.")
    path = Path(path)
    try:
        source = read_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"'{path.name}': {error}") from error
    if part not in source:
        raise CheckpointError(f"'{path.name}' has no entry '{part}'; it holds {sorted(source)}.")
    report = ImportReport(unplaced=sorted(str(name) for name in set(source) - _KNOWN_ENTRIES))
    heads = _decoder_heads(path, source.get("args"), decoder_heads)
    names: list[str] = [name for name in ("teacher", "student") if name in source]
    parts = {name: _found(path, name, source[name], heads or _RELEASED_HEADS, report) for name in names}
    if heads is None and "student" in parts and parts["student"].decoder is not None:
        report.assumed.append(f"{_RELEASED_HEADS} decoder heads, as released: the checkpoint names none")
        logger.warning(
            "%s. With another number restored pictures are wrong although all weights fit: give it by --decoder-heads",
            report.assumed[-1],
        )
    prototypes = _prototypes(path, source.get("AFiRe_loss"), report)
    if strict and (report.unplaced or report.missing):
        raise CheckpointError(
            f"'{path.name}' does not fit. No place for: {listed(report.unplaced)}. "
            f"Missing: {listed(report.missing)}. Pass strict=False to import what fits."
        )
    sha256 = weights_hashes({"source": path})["source"]
    facts = {"source_sha256": sha256, "unplaced": report.unplaced, "missing": report.missing}
    if isinstance(source.get("epoch"), int):
        facts["epochs"] = source["epoch"]
    _write(parts, prototypes, part, channels == "fold", Path(output), {**facts, "method_name": "AFiRe"}, report)
    return report


def _decoder_heads(path: Path, args: object, given: int | None) -> int | None:
    """Number of decoder heads that the caller or the checkpoint's arguments name, None if neither does."""
    named = args if isinstance(args, Mapping) else vars(args) if isinstance(args, argparse.Namespace) else {}
    heads = given if given is not None else next((named[key] for key in _HEADS_NAMES if key in named), None)
    if heads is not None and (not isinstance(heads, int) or isinstance(heads, bool) or heads < 1):
        where = "--decoder-heads" if given is not None else f"'{path.name}', args"
        raise CheckpointError(f"{where}: {heads!r} decoder heads; a whole number of at least 1 is expected.")
    return heads


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of other people as a dictionary: tensors, plain containers and `argparse.Namespace` alone.

    Raises CheckpointError, without the name of the file: it cannot be read, or it holds something else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            source = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:Unsupported global|GLOBAL|global) :?\s*(?:GLOBAL )?([\w.]+)", str(error))
        what = f"holds {refused.group(1)}" if refused else "is damaged or holds other types"
        raise CheckpointError(
            f"it {what}; only tensors, plain containers and argparse.Namespace are read, because anything else could "
            "run code. Remove it where the file comes from and save the state dictionaries alone"
        ) from error
    except UNREADABLE as error:
        raise CheckpointError(f"it cannot be read as a PyTorch checkpoint: {error}") from error
    if not isinstance(source, dict):
        raise CheckpointError(f"it holds a {type(source).__name__}; a dictionary of tensors is expected")
    return source


def _found(path: Path, name: str, state: object, heads: int, report: ImportReport) -> FoundParts:
    """Return the networks of one part, and add to the report what did not fit."""
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
        description = {"architecture": chosen.head.config, "part": part, **facts}
        report.files.append(_save(chosen.head, output, "head", description))
    if prototypes is not None:
        description = {"format": "afire-monai prototypes 1", "shape": list(prototypes.shape), **facts}
        file = output / "prototypes.safetensors"
        report.files.append(save_module_files({"prototypes": prototypes}, description, file))
    student = parts.get("student")
    if student is not None and student.decoder is not None:
        encoder = fold_encoder(student.encoder) if fold else student.encoder
        decoder = fold_decoder(student.decoder, student.encoder, encoder) if fold else student.decoder
        both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        description = {"encoder": encoder.config, "decoder": decoder.config, "input": INPUT, **facts}
        description["assumed"] = report.assumed
        report.files.append(_save(both, output, "restorer", description))


def _save(module: nn.Module, output: Path, name: str, description: dict[str, Any]) -> Path:
    description = {"format": f"afire-monai {name} 1", **description}
    return save_module_files(module.state_dict(), description, output / f"{name}.safetensors")


def listed(names: list[str]) -> str:
    """Return up to 30 names in one line."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return (", ".join(names[:30]) + more) or "nothing"
