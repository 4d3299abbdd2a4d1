"""Checkpoint files: everything that an exact resume needs, written completely or not at all."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from afire_monai.core.errors import CheckpointError
from afire_monai.core.files import whole_file

logger = logging.getLogger(__name__)
PARTS = ("method", "optimizer", "progress", "random")
_NAME = re.compile(r"checkpoint_(\d+)\.pt")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a reader sees the old file or the whole new one, never half of it.

    Raises CheckpointError if there is no room, or no permission to write; older files are left as they are.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, shared=True, sync=True) as part, part.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter if a disk is full
        if isinstance(error.__context__, KeyboardInterrupt):  # or if it could not finish its archive
            raise error.__context__ from None
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).split("\n")[0][:150]
        raise CheckpointError(
            f"{path.name} cannot be written ({reason}); earlier checkpoints are whole. Make room in {path.parent}, "
            "then continue with --resume true"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``, to the CPU, once its checksums have been found right.

    The file is a ZIP archive with a CRC-32 of each tensor, which PyTorch writes but does not check. Raises
    CheckpointError if the file cannot be read, is damaged, or is not from this project.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}: --resume true finds the newest of output_dir")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside torch's reader
        reason = str(error).split(". ")[0][:150]  # torch adds remarks on file systems
        raise CheckpointError(f"{path.name} is not a checkpoint that can be read ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in PARTS):
        raise CheckpointError(f"{path.name} is not a checkpoint of this project: it lacks one of {', '.join(PARTS)}")
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_*.pt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def set_aside_later(folder: Path, iteration: int) -> bool:
    """Rename the checkpoints after an iteration: none of them is the newest or best of a run that went back to it.

    Returns:
        Whether the best one is among them.
    """
    later = [path for path in list_checkpoints(folder) if int(path.stem.rpartition("_")[2]) > iteration]
    best = folder / "best.pt"
    if best.is_file() and load_checkpoint(best)["progress"]["iteration"] > iteration:
        later.append(best)
    for path in later:
        logger.warning("%s is later than the checkpoint to continue from: renamed abandoned_%s", *[path.name] * 2)
        path.replace(path.with_name(f"abandoned_{path.name}"))
    return best in later


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that can be read, with its content; a damaged one is passed over with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before it", error)
    return None
