"""A checkpoint that was changed since it was written is taken up as it was, or refused in words."""

from __future__ import annotations

import copy
import logging
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer
from training_runs import assert_same_state

from afire_monai.core.errors import CheckpointError
from afire_monai.training.checkpoint import list_checkpoints, load_checkpoint
from afire_monai.training.checkpoint_keeper import CheckpointKeeper

IMAGES = smooth_images(8, (48, 48))


def trainer(folder: Path, epochs: int = 2):
    return tiny_trainer(tiny_afire(shift=2), IMAGES, epochs, handlers=[CheckpointKeeper(folder, best_key=None)])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).run()
    return folder


def change_bytes(path: Path, chance: random.Random) -> None:
    """Turn a bit, overwrite a stretch, cut, or double a stretch."""
    data = bytearray(path.read_bytes())
    place, length = chance.randrange(len(data)), chance.randrange(1, 500)
    how = chance.choice(["bit", "stretch", "cut", "double"])
    if how == "bit":
        data[place] ^= 1 << chance.randrange(8)
    elif how == "stretch":
        data[place : place + length] = chance.randbytes(len(data[place : place + length]))
    elif how == "cut":
        del data[place:]
    else:
        data[place:place] = data[place : place + length]
    path.write_bytes(data)


def places(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    """Where there is something in nested dictionaries and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in entries for place in [(*above, key), *places(inner, *above, key)]]


def change_parts(path: Path, chance: random.Random) -> None:
    """Take out a part, or put something of another kind or shape in its place."""
    state = torch.load(path, weights_only=True)
    by_part = [[place for place in places(state) if place[0] == part] for part in state]
    *above, last = chance.choice(chance.choice(by_part))
    inner = state
    for key in above:
        inner = inner[key]
    how = chance.choice(["remove", "none", "text", "shape"])
    if how == "remove":
        del inner[last]
    else:
        inner[last] = {"none": None, "text": "wrong", "shape": torch.zeros(3, 1, 2)}[how]
    torch.save(state, path)


def flat(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All leaves of a state by their place, plain values as tensors of their text."""
    leaves = {}
    for place in places(state):
        value: Any = state
        for key in place:
            value = value[key]
        if not isinstance(value, (dict, list)):
            text = torch.tensor(list(repr(value).encode()))
            leaves[repr(place)] = value if isinstance(value, torch.Tensor) else text
    return leaves


@pytest.mark.parametrize("change", [change_bytes, change_parts])
def test_changed_checkpoint_is_taken_up_as_it_was_or_refused_in_words(change, written, tmp_path):
    newest = list_checkpoints(written)[-1]
    original = flat(load_checkpoint(newest))
    fresh = trainer(tmp_path)
    refused = 0
    for seed in range(75):
        path = tmp_path / newest.name
        path.write_bytes(newest.read_bytes())
        change(path, random.Random(seed))
        other = copy.copy(fresh)
        try:
            other.resume(tmp_path, str(path))
        except CheckpointError:
            refused += 1
        else:
            assert_same_state(flat(other.checkpoint_state()), original)
    assert refused > 37


def test_every_tensor_has_a_checksum(written):
    with zipfile.ZipFile(list_checkpoints(written)[-1]) as archive:
        assert all(record.CRC for record in archive.infolist() if "/data/" in record.filename and record.file_size)


def test_one_wrong_bit_in_the_newest_checkpoint_is_named_and_the_one_before_is_taken(written, tmp_path, caplog):
    for path in list_checkpoints(written):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before, newest = list_checkpoints(tmp_path)
    with zipfile.ZipFile(newest) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    data = bytearray(newest.read_bytes())
    data[largest.header_offset + 1000] ^= 1
    newest.write_bytes(data)
    resumed = trainer(tmp_path)
    with caplog.at_level(logging.INFO):
        resumed.resume(tmp_path, True)
    assert f"{newest.name} is not a checkpoint that can be read (wrong checksum" in caplog.text
    assert "trying the one before it" in caplog.text
    assert f"continuing from {before.name}" in caplog.text
    assert resumed.state.epoch == 1
