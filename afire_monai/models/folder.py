"""The model folder: which weights it contains, how they are saved and loaded, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from afire_monai import __version__
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.files import usual_mode, whole_file
from afire_monai.models.bounds import refuse_not_finite, refuse_sizes
from afire_monai.models.shipped import model_folder
from afire_monai.networks import Encoder, encoder_from_config
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter

SHA256 = "weights_sha256"
KINDS = ("classifier", "segmenter", "detector", "restorer", "encoder", "reference")
_SCALE, _LEAST = ".scale", 4096  # of matrices in 8 bits: ending of the name, fewest values
INPUT = "images (B, C, H, W) float32 in 0…1, bright = dense, row 0 at the top; normalised inside"


def weights_in(path: str | Path, kind: str) -> Path:
    """Name a kind's weights file in a model folder, or in ``models/`` below where a run's folder is given.

    A path that is no folder is the file itself; the name of a model that comes with the package is its folder.
    """
    path = model_folder(path)
    if not path.is_dir():
        return path
    file, below = path / f"{kind}.safetensors", path / "models" / f"{kind}.safetensors"
    return below if below.is_file() and not file.is_file() else file


def model_files(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Find the weights files in model folders; return paths by kind (`KINDS`).

    Args:
        folders: searched in this order; a file that is in several is taken from the first.

    Raises:
        CheckpointError: if a folder does not exist.
    """
    found: dict[str, Path] = {}
    for folder in map(model_folder, folders):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such model folder; a run writes it as models/ below its output folder")
        for kind in KINDS:
            path = weights_in(folder, kind)
            if path.is_file():
                found.setdefault(kind, path)
    return found


def model_files_of_kind(
    folders: Sequence[str | Path], kind: str | None, kinds: Sequence[str], parts: Mapping[str, Collection[str]] = {}
) -> tuple[dict[str, Path], str]:
    """Find the weights files in model folders, and the kind of network to make of them.

    Args:
        folders: see `model_files`.
        kind: the wanted kind; None for the first of ``kinds`` that is there.
        kinds: kinds to choose from.
        parts: for a kind that other files can make up, too, the kinds of these.

    Raises:
        AfireError: for an unknown kind, or one that the folders do not hold.
        CheckpointError: if a folder does not exist.
    """
    files = model_files(folders)
    if kind is not None and kind not in kinds:
        raise AfireError(f"--kind must be one of {', '.join(kinds)}, got {kind!r}")
    able = [each for each in kinds if {each, *parts.get(each, ())} & files.keys()]
    if not able or (kind or able[0]) not in able:
        raise AfireError(f"{', '.join(map(str, folders))} has no {kind or 'model'}; it holds {names(files)}")
    return files, kind or able[0]


def used_model_files(folders: Sequence[str | Path], kinds: Collection[str] = KINDS) -> dict[str, Path]:
    """As `model_files`, without those that take no part in predictions.

    An encoder takes none where a restorer has its own, and neither encoder nor detector without a reference. Raises
    CheckpointError: also if nothing there predicts.
    """
    found = {kind: path for kind, path in model_files(folders).items() if kind in kinds}
    unused = {"encoder", "detector"}
    if "reference" in found:
        unused = {"encoder"} if "restorer" in found else {"detector"}
    used = {kind: path for kind, path in found.items() if kind not in unused}
    if not {"classifier", "segmenter", "restorer"} & used.keys() and not {"encoder", "reference"} <= used.keys():
        raise CheckpointError(
            f"{', '.join(map(str, folders))}: nothing there that predicts (it holds {names(found)}); classifier, "
            "segmenter, restorer, or encoder and reference (`afire reference`) are expected"
        )
    return used


def names(files: Mapping[str, Path]) -> str:
    """Name the files, for messages."""
    return ", ".join(path.name for path in files.values()) or "no weights"


def weights_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each weights file, by kind."""
    hashes = {}
    for kind, path in files.items():
        with path.open("rb") as file:
            hashes[kind] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def save_module_files(tensors: dict[str, Any], description: dict[str, Any], path: Path, int8: bool = False) -> Path:
    """Write tensors to ``path`` and their description beside it (``.json``), each atomically.

    Both are written aside before either is put in place, and an earlier description is gone before the weights change:
    whatever interrupts this, old weights never stand beside a new description or the other way round. The description
    gets the SHA-256 of the weights file as ``weights_sha256``, by which reading knows that the file is whole.

    Args:
        tensors: tensors by name.
        description: description of the tensors; plain values.
        path: a ``.safetensors`` file; its folder is made if absent.
        int8: keep matrices as whole numbers of 8 bits (`pack_int8`), a quarter of the size.

    Raises:
        CheckpointError: if the disk is full or writing is not allowed; earlier files are left as they are.
    """
    described = path.with_suffix(".json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(described) as facts, whole_file(path) as weights:
            kept = pack_int8(tensors) if int8 else tensors
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}, weights)
            weights.chmod(usual_mode())  # the library makes a file that only its owner may read
            text = json.dumps(description | {SHA256: weights_hashes({"": weights})[""]}, indent=2)
            facts.write_text(text + "\n", encoding="utf-8")
            described.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({getattr(error, 'strerror', None) or error}); make room in {path.parent}, or "
            "give a folder that can be written to"
        ) from error
    return path


@contextlib.contextmanager
def weights_that_fit(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong when a network is built from a description and weights into words.

    Raises CheckpointError: naming the file; errors of this kind pass as they are.
    """
    try:
        yield
    except CheckpointError:
        raise
    except AfireError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        message = " ".join(str(reason).split())
        short = message if len(message) < 400 else f"{message[:400]}…"
        message = f"{message!r} is missing" if isinstance(error, KeyError) else short
        raise CheckpointError(
            f"{path}: the weights do not fit their description in {path.with_suffix('.json').name}: {message}. Copy "
            "both from where they were made, or make them again"
        ) from error


def load_module_files(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the files of :func:`save_module_files`.

    Args:
        path: the ``.safetensors`` file, or a folder with ``encoder.safetensors``, itself or in its ``models/``.

    Raises:
        CheckpointError: if one of the two files is missing or damaged, a weight is not finite, or the description says
            that it was written for another weights file.
    """
    path = weights_in(path, "encoder")
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = unpack_int8(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} and {path.with_suffix('.json').name} beside it must both be there and whole: {error}"
        ) from error
    if not isinstance(description, dict):
        raise CheckpointError(
            f"{path.with_suffix('.json')}: a {type(description).__name__}; the object that was written beside the "
            "weights is expected. Copy both files again from where they were made"
        )
    expected = description.get(SHA256)
    if expected is not None and expected != (seen := weights_hashes({"": path})[""]):
        raise CheckpointError(
            f"{path} has changed since it was written: its SHA-256 is {seen[:12]}…, and {str(expected)[:12]}… in "
            f"{path.with_suffix('.json').name}. Copy both files again from where they were made"
        )
    refuse_not_finite(tensors, path)
    return tensors, description


def export_encoder(encoder: Encoder, path: str | Path, int8: bool = False, **facts: Any) -> Path:
    """Write an encoder for later use.

    Args:
        encoder: the encoder to write.
        path: a ``.safetensors`` file, or a folder to write ``encoder.safetensors`` into.
        int8: keep matrices in 8 bits (see `save_module_files`).
        facts: plain values to keep in the JSON: method, training-data hash, epochs.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / "encoder.safetensors"
    description = {
        "format": "afire-monai encoder 1",
        "version": __version__,
        "architecture": encoder.config,
        "input": INPUT,
        "output": "tokens (B, 1 + L, D): class token, then patch tokens row by row",
        **facts,
    }
    return save_module_files(encoder.state_dict(), description, path, int8)


def load_encoder(path: str | Path | None = None, **overrides: Any) -> Encoder:
    """Return an exported encoder, in evaluation mode.

    It maps images (B, C, H, W) in 0…1 to tokens (B, 1 + L, D), and refuses images in another range.

    Args:
        path: ``encoder.safetensors``, the folder that holds it, or the run's folder above; the name of a model that
            comes with the package (`afire_monai.models.shipped`), None for the first of them.
        overrides: arguments of the encoder's class to change, for example ``image_size``: positions of a transformer
            are stretched to span the picture as they did in training.

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
        AfireError: for an override that the encoder's class does not have.

    Example:
        >>> import torch
        >>> encoder = load_encoder()  # the one that comes with the package
        >>> with torch.inference_mode():
        ...     encoder(torch.rand(1, 1, 224, 224)).shape
        torch.Size([1, 197, 384])
    """
    file = weights_in(model_folder(path), "encoder")
    tensors, description = load_module_files(file)
    if "architecture" not in description:
        raise CheckpointError(f"{file}: its JSON lacks 'architecture', so it does not describe an encoder")
    trained = description["architecture"]
    with weights_that_fit(file):
        refuse_sizes(trained, tensors, file)
        if trained.get("kind", "vit") == "vit" and "position_grid" not in trained:
            # at another size, positions still count the trained grid's cells
            trained = {**trained, "position_grid": [side // trained["patch_size"] for side in trained["image_size"]]}
        encoder = encoder_from_config(trained, **{"check_range": True, **overrides})
        encoder.load_state_dict(tensors)
    return encoder.eval()


_KINDS: dict[str, type[ViTClassifier] | type[ViTSegmenter]] = {"classifier": ViTClassifier, "segmenter": ViTSegmenter}


def export_task(
    network: ViTClassifier | ViTSegmenter, folder: str | Path, frozen: str | Path | None = None, **facts: Any
) -> Path:
    """Write ``classifier.safetensors`` or ``segmenter.safetensors`` and its JSON into a model folder.

    Args:
        network: the network to write.
        folder: the model folder; made if absent.
        frozen: a file with the network's encoder, if training left the encoder unchanged: it is copied into the folder
            with its JSON, and the network's file holds only the rest.
        facts: plain values to keep in the JSON: ``thresholds`` (label to probability), validation figures, data hash.
    """
    kind = "classifier" if isinstance(network, ViTClassifier) else "segmenter"
    description = {
        "format": f"afire-monai {kind} 1",
        "version": __version__,
        kind: network.config,
        "input": INPUT,
        **facts,
    }
    tensors = network.state_dict()
    if frozen is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
        description |= {"encoder_sha256": weights_hashes({"encoder": Path(frozen)})["encoder"]}
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in (Path(frozen), Path(frozen).with_suffix(".json")):
            with whole_file(Path(folder) / f"encoder{file.suffix}") as copied:
                shutil.copyfile(file, copied)
    return save_module_files(tensors, description, Path(folder) / f"{kind}.safetensors")


def load_classifier(path: str | Path) -> tuple[ViTClassifier, dict[str, Any]]:
    """Read a classifier, in evaluation mode; it refuses images outside 0…1.

    Args:
        path: ``classifier.safetensors`` or the model folder that holds it.

    Returns:
        The classifier and its description, with ``thresholds`` (label to probability).

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
    """
    return _load(path, "classifier")


def load_segmenter(path: str | Path) -> tuple[ViTSegmenter, dict[str, Any]]:
    """Read a segmenter as `load_classifier` does; the description has ``mask_values`` (class to value in a mask)."""
    return _load(path, "segmenter")


def _load(path: str | Path, kind: str) -> tuple[Any, dict[str, Any]]:
    path = weights_in(path, kind)
    tensors, description = load_module_files(path)
    if kind not in description:
        raise CheckpointError(f"{path}: its JSON lacks {kind!r}, so it does not describe a {kind}")
    with weights_that_fit(path):
        if sha256 := description.get("encoder_sha256"):
            shared = load_module_files(_encoder_of(path, sha256))[0]
            tensors = {**tensors, **{f"encoder.{name}": tensor for name, tensor in shared.items()}}
        refuse_sizes(description[kind], tensors, path)
        network = _KINDS[kind].from_config(description[kind], check_range=True)
        network.load_state_dict(tensors)
    for key in ("thresholds", "mask_values"):
        _refuse_wrong_numbers(description.get(key) or {}, key, path)
    return network.eval(), description


def _encoder_of(path: Path, sha256: str) -> Path:
    """Find the encoder that the file at ``path`` was made with: beside it, or a folder above."""
    for folder in (path.parent, path.parent.parent):
        file = folder / "encoder.safetensors"
        if file.is_file() and weights_hashes({"encoder": file})["encoder"] == sha256:
            return file
    raise CheckpointError(
        f"{path} holds no encoder, and the one that it was made with (SHA-256 {sha256[:12]}…) is neither beside it nor "
        "a folder above; copy the whole model folder"
    )


def _refuse_wrong_numbers(values: Any, key: str, path: Path) -> None:
    """Refuse thresholds outside 0…1 and mask values outside 0…255; both may be absent."""
    kinds, most = ((int, float), 1) if key == "thresholds" else ((int,), 255)
    fine = isinstance(values, dict) and all(
        isinstance(v, kinds) and not isinstance(v, bool) and 0 <= v <= most for v in values.values()
    )
    if not fine:
        raise CheckpointError(
            f"{path.with_suffix('.json')}: {key!r} is {str(values)[:100]}; a number in 0…{most} for each name is "
            "expected. Copy the file again from where it was made, or mend it"
        )


def pack_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with large matrices as int8 and a scale for each row (output channel).

    A weight w of a row becomes round(w / s) with s = max |w| / 127, so it moves by at most s / 2. Vectors and small
    tensors stay as they are.

    Args:
        tensors: float32, by name.

    Returns:
        The same names; for each matrix (N, …) also ``NAME.scale`` (N,), float32.
    """
    packed = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < _LEAST or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
        packed[name + _SCALE] = scale
    return packed


def unpack_int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `pack_int8` packed, as float32; other tensors are unchanged."""
    scales = {name + _SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    return {
        name: tensor.float() * tensors[name + _SCALE].reshape(-1, *[1] * (tensor.ndim - 1))
        if tensor.dtype == torch.int8
        else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }
