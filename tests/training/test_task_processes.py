"""Two processes of batch n fine-tune as one process of batch 2n, labels with gaps and empty masks included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import run_script

JOB = """
import math, sys
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from helpers import smooth_images
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.training.plan import TrainingPlan
from afire_monai.training.startup import stop_processes
from afire_monai.networks import ViTClassifier, ViTEncoder, ViTSegmenter
from afire_monai.training.tasks import Classification
from afire_monai.training.tasks import Segmentation
from afire_monai.training.tasks import task_parameter_groups
from afire_monai.transforms import RadiographAugment

kind, batch, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
encoder = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2)
options = {"drop_path": 0.3, "augment": RadiographAugment(), "average": True}
if kind == "classification":
    task = Classification(ViTClassifier(encoder, ["a", "b"]), **options)
else:
    task = Segmentation(ViTSegmenter(encoder, ["a"], width=4), **options)
items = []
for i, image in enumerate(smooth_images(24, (32, 32))):
    target = torch.tensor([float(i % 2), math.nan if i % 3 else float(i % 2)])
    items.append({"image": str(i), "tensor": image, "target": target, "mask": (image > 0.6).float() * (i % 4 > 0)})
dataset = RadiographDataset(items, lambda i: {**i, "image": i["tensor"]}, cache=True, extras=("target", "mask"))
loader = DataLoader(dataset, batch, sampler=EpochSampler(dataset, batch, seed=3))
# plain gradient descent: an adaptive optimiser would blow up the rounding noise of gradients that are truly zero
optimizer = torch.optim.SGD(task_parameter_groups(task, 0.7), lr=0.1)
plan = TrainingPlan(lr=2.0, momentum=0.9, freeze_last_layer_epochs=0)
trainer = PretrainTrainer("cpu", 2, loader, task, optimizer, plan)
trainer.run()
if dist.get_rank() == 0:
    torch.save(trainer.method.state_dict(), out)
stop_processes()
"""


def train(kind: str, processes: int, batch: int, folder: Path) -> dict[str, torch.Tensor]:
    out = folder / f"{processes}.pt"
    run_script(JOB, folder, kind, str(batch), str(out), processes=processes)
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_two_processes_equal_one_of_twice_the_batch(kind, tmp_path):
    one, two = train(kind, 1, 8, tmp_path), train(kind, 2, 4, tmp_path)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
