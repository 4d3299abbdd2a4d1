"""Which weights there are in model folders, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from afire_monai.core.errors import CheckpointError

KINDS = ("classifier", "segmenter", "detector", "restorer", "encoder", "reference")


def model_files(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Find the weights files in model folders.

    Args:
        folders: searched in this order; a file that is in several is taken from the first.

    Returns:
        Paths by kind (`KINDS`).

    Raises:
        CheckpointError: if a folder is not there.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such model folder; a run writes it as models/ below its output folder")
        for kind in KINDS:
            path = folder / f"{kind}.safetensors"
            if path.is_file():
                found.setdefault(kind, path)
    return found


def used_model_files(folders: Sequence[str | Path], kinds: Collection[str] = KINDS) -> dict[str, Path]:
    """As `model_files`, without those that take no part in predictions.

    An encoder takes none where a restorer has its own, and neither encoder nor detector without a reference.

    Args:
        folders: searched in this order.
        kinds: the others are passed over.

    Raises:
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
    """Give the SHA-256 of each weights file, by kind."""
    hashes = {}
    for kind, path in files.items():
        with path.open("rb") as file:
            hashes[kind] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
