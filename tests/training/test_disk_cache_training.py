"""Training from a cache on disk: what loads the pictures, and a restart, make no difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIGS, run_bundle, smooth_images, tiny_afire
from ignite.engine import Events
from PIL import Image
from torch.utils.data import DataLoader

from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.phantom import write_phantom_dataset
from afire_monai.training import startup
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.plan import TrainingPlan, parameter_groups
from afire_monai.training.trainer import PretrainTrainer


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("pictures")
    names = [folder / f"{i}.png" for i in range(13)]
    for name, image in zip(names, smooth_images(13, (60, 52)), strict=True):
        Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(name)
    names[5].write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    return [{"image": str(name)} for name in names]


def train(
    folder: Path,
    items: list[dict[str, str]],
    workers: int,
    resume: bool = False,
    stop: int = 0,
    cache: bool | str = "disk",
):
    place = folder.parent / "cache" if cache == "disk" else ""
    dataset = RadiographDataset(items, startup.reading((48, 48)), cache=cache, cache_dir=place)
    method = tiny_afire(shift=2)
    sampler = EpochSampler(dataset, 4, seed=3)
    trainer = PretrainTrainer(
        "cpu",
        2,
        DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=dataset.collate),
        method,
        torch.optim.AdamW(parameter_groups(method), lr=1e-3),
        TrainingPlan(lr=0.05, warmup=0.1),
        train_handlers=[CheckpointKeeper(folder, every_iterations=2, keep=2)],
    )
    trainer.resume(folder, resume)
    if not stop:
        trainer.run()
        return method.state_dict()

    @trainer.on(Events.ITERATION_COMPLETED(once=stop))
    def end() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    return method.state_dict()


def test_weights_are_the_same_with_workers_and_after_a_restart(tmp_path, items):
    whole = train(tmp_path / "whole", items, workers=0)
    train(tmp_path / "parts", items, workers=1, stop=5)
    resumed = train(tmp_path / "parts", items, workers=2, resume=True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_caches_and_workers_give_the_same_bits_but_for_float16_in_memory(tmp_path):
    names = [tmp_path / f"{i}.png" for i in range(13)]
    for name, image in zip(names, smooth_images(13, (48, 48)), strict=True):  # 8 bits, at the size that is read
        Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(name)
    items = [{"image": str(name)} for name in names]
    found = {
        (cache, workers): train(tmp_path / f"{cache}{workers}", items, workers, cache=cache)
        for cache in (False, True, "disk")
        for workers in (0, 2)
    }

    def same(one: tuple[bool | str, int], other: tuple[bool | str, int]) -> bool:
        return all(torch.equal(value, found[other][name]) for name, value in found[one].items())

    assert same((False, 0), (False, 2))
    assert same((True, 0), (True, 2))
    assert same(("disk", 0), ("disk", 2))
    assert same((False, 0), ("disk", 0))
    assert not same((False, 0), (True, 0))


def test_bundle_trains_from_disk_and_the_next_run_finds_the_cache(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=24, abnormal=2, size=64)
    tiny = {"epochs": 1, "image_size": 48, "batch_size": 4, "health_images": 4, "use_mlflow": False}
    tiny |= {"prototype_dim": 16, "head_hidden": 32, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    files = [str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "method_afire.yaml")]
    stamps = []
    for run in ("one", "two"):
        run_bundle(tmp_path, files, datalist="data/datalist.json", output_dir=run, cache="disk", **tiny)
        (cache,) = (tmp_path / "data" / "datalist.cache").iterdir()
        assert cache.name == "80x80_uint8"  # 48 px and a shift of two cells
        stamps.append((cache / "pixels.bin").stat().st_mtime_ns)
    assert stamps[0] == stamps[1]
    weights = [(tmp_path / run / "models" / "encoder.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]
