"""Several processes fine-tune: one of them decides and exports, and the others neither disagree nor give up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm
from helpers import CONFIGS
from training_runs import run_script

from afire_monai.phantom import write_phantom_dataset

PATIENT = """
import sys, time
from datetime import timedelta
from afire_monai.core.distributed import any_process, from_first, join_group, rank
from afire_monai.training.startup import stop_processes

# what a group gives up after stands for NCCL's minutes
join_group("gloo", timeout=timedelta(seconds=2))
first = from_first({"epochs": 3 + rank()})
flags = [any_process(rank() == 1), any_process(False)]
own = rank()
if own == 0:
    time.sleep(5)
stop_processes()
open(f"{sys.argv[1]}/{first}_{flags}_{own}", "w").close()
"""
STOP = """
import sys
from helpers import smooth_images
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.core.distributed import join_group, rank
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.training.plan import TrainingPlan
from afire_monai.training.validation import ValidationMonitor
from afire_monai.training.startup import stop_processes
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.training.tasks import Classification
from afire_monai.training.tasks import task_parameter_groups

torch.set_num_threads(1)
join_group("gloo")


class Noisy(Classification):
    # process 0 gets better until epoch 3, process 1 for ever
    def figures(self, logits, batch):
        calls.append(1)
        return {"validation_score": float(min(len(calls), 3) if rank() == 0 else len(calls))}


calls = []
torch.manual_seed(0)
task = Noisy(ViTClassifier(ViTEncoder(32, 8, embed_dim=32, depth=1, num_heads=2), ["a"]))
images = smooth_images(8, (32, 32))
items = [{"image": str(i), "tensor": x, "target": torch.tensor([i % 2.0])} for i, x in enumerate(images)]
dataset = RadiographDataset(items, lambda i: {**i, "image": i["tensor"]}, extras=("target",))
loader = DataLoader(dataset, 4, sampler=EpochSampler(dataset, 4))
optimizer = torch.optim.SGD(task_parameter_groups(task), lr=0.1)
handlers = [ValidationMonitor(dataset, patience=2), CheckpointKeeper(sys.argv[2], best_key="validation_error")]
trainer = PretrainTrainer("cpu", 9, loader, task, optimizer, TrainingPlan(), train_handlers=handlers)
trainer.run()
own, error = rank(), trainer.state.metrics["validation_error"]
kept = (trainer.state.epoch, trainer.best_epoch, error, trainer.stopped_early)
stop_processes()
open(f"{sys.argv[1]}/{own}_{kept}", "w").close()
"""


def test_processes_wait_for_one_that_works_alone_and_take_its_word(tmp_path):
    (tmp_path / "out").mkdir()
    run_script(PATIENT, tmp_path, str(tmp_path / "out"))
    names = [path.name.rpartition("_")[0] for path in (tmp_path / "out").iterdir()]
    assert names == ["{'epochs': 3}_[True, False]"] * 2


@pytest.mark.slow
def test_processes_stop_early_together_as_the_first_decides(tmp_path):
    (tmp_path / "out").mkdir()
    run_script(STOP, tmp_path, str(tmp_path / "out"), str(tmp_path / "checkpoints"))
    kept = [path.name.split("_")[1] for path in (tmp_path / "out").iterdir()]
    assert kept == ["(5, 3, -3.0, True)"] * 2


@pytest.mark.slow
def test_fine_tuning_on_two_processes_ends_with_a_calibrated_model(tmp_path):
    write_phantom_dataset(tmp_path / "data", normal=40, abnormal=40, size=48)
    files = str([str(CONFIGS / name) for name in ("finetune_classification.yaml", "multi_gpu.yaml")])
    settings = {"datalist": "data/datalist.json", "output_dir": "out", "epochs": 1, "batch_size": 4, "image_size": 32}
    settings |= {"patch_size": 8, "layer_decay": 1.0, "balance": True}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "--config_file", files, *words]
    warm.run(command, tmp_path / "log.txt", tmp_path)
    description = json.loads((Path(tmp_path) / "out" / "models" / "classifier.json").read_text())
    assert description["calibration"] == "temperature"
    assert (tmp_path / "out" / "predictions" / "test" / "predictions.csv").is_file()
