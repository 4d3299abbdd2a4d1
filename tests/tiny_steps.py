"""A small step of each method and task, by name: what is trained and a batch for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from helpers import PATCH, full_afire, smooth_images, tiny_afire
from tiny_mlvicx import tiny_mlvicx
from tiny_peac import tiny_peac
from torch.utils.data import DataLoader

from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.losses import SelfDistillationLoss
from afire_monai.methods import DINO, MAE, Method
from afire_monai.methods.peac import PEAC, OverlappingViews
from afire_monai.networks import (
    AnomalyRestorationDecoder,
    Encoder,
    ResNetEncoder,
    TokenHead,
    ViTClassifier,
    ViTEncoder,
    ViTSegmenter,
)
from afire_monai.networks.swin import SwinEncoder
from afire_monai.training.plan import LARS, TrainingPlan, parameter_groups
from afire_monai.training.tasks import Classification, Segmentation, task_parameter_groups
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.transforms import RadiographAugment, RandomViews, ViewAugment
from afire_monai.transforms.anatomy import anatomy_of
from afire_monai.transforms.perturb import AppearancePerturbation

COUNT = 4


def tiny_vit() -> ViTEncoder:
    return ViTEncoder(32, PATCH, embed_dim=32, depth=2, num_heads=2)


def tiny_resnet() -> ResNetEncoder:
    return ResNetEncoder(64, blocks=(1, 1, 1, 1))


def tiny_swin() -> SwinEncoder:
    return SwinEncoder(64, embed_dim=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 2), window=2)


def tiny_swin_peac() -> PEAC:
    encoder = tiny_swin()
    views = OverlappingViews(encoder.grid, encoder.patch_size, 1, AppearancePerturbation())
    return PEAC(encoder, views, projector_dim=16, predictor_dim=16)


def tiny_mae() -> MAE:
    encoder = tiny_vit()
    decoder = AnomalyRestorationDecoder(32, encoder.grid, PATCH, dim=32, depth=1, num_heads=2)
    return MAE(encoder, decoder, view=ViewAugment(32, scale=(0.5, 1.0)))


def tiny_dino() -> DINO:
    return DINO(
        tiny_vit(),
        TokenHead(32, None, out_dim=24, hidden_dim=32, bottleneck_dim=16),
        SelfDistillationLoss(24),
        RandomViews([ViewAugment(32, scale=(0.5, 1.0)) for _ in range(2)]),
        RandomViews([ViewAugment(16, scale=(0.1, 0.5)) for _ in range(2)]),
    )


def tiny_classification(encoder: Encoder) -> Classification:
    return Classification(ViTClassifier(encoder, ["a", "b"]), augment=RadiographAugment(), drop_path=0.3, average=True)


def tiny_segmentation(encoder: Encoder) -> Segmentation:
    return Segmentation(ViTSegmenter(encoder, ["a"], width=4), augment=RadiographAugment(), drop_path=0.3, average=True)


METHODS: dict[str, Callable[[], Method]] = {
    "afire_published": lambda: tiny_afire(shift=0),
    "afire_shifted": lambda: tiny_afire(shift=2),
    "afire_full": full_afire,
    "peac_vit": lambda: tiny_peac(predictor_dim=16),
    "peac_swin": tiny_swin_peac,
    "mlvicx": tiny_mlvicx,
    "mae": tiny_mae,
    "dino": tiny_dino,
}
TASKS: dict[str, Callable[[], Method]] = {
    "classification_vit": lambda: tiny_classification(tiny_vit()),
    "classification_resnet": lambda: tiny_classification(tiny_resnet()),
    "segmentation_vit": lambda: tiny_segmentation(tiny_vit()),
    "segmentation_resnet": lambda: tiny_segmentation(tiny_resnet()),
}
STEPS = METHODS | TASKS


def build(name: str) -> Method:
    """The method or task of that name, the same at each call."""
    torch.manual_seed(0)
    return STEPS[name]()


def batch_for(method: Method) -> dict[str, torch.Tensor]:
    """Images, their anatomy for lesions, and targets and masks with gaps, on the CPU."""
    images = smooth_images(COUNT, method.canvas_size)
    target = torch.tensor([[1.0, 0.0], [0.0, math.nan], [1.0, 1.0], [0.0, 0.0]])
    mask = (images > 0.6).float()
    mask[1] = 0
    mask[2, :, :8] = math.nan
    return {"image": images, "target": target, "mask": mask, "anatomy": anatomy_of(images)}


def optimizer_for(method: Method) -> torch.optim.Optimizer:
    """The optimiser that the method's config has."""
    if isinstance(method, (Classification, Segmentation)):
        return torch.optim.AdamW(task_parameter_groups(method, 0.7), lr=1e-3, fused=True)
    if type(method).__name__ == "MLVICX":
        return LARS(parameter_groups(method))
    return torch.optim.AdamW(parameter_groups(method), lr=1e-3, fused=True)


def trainer_for(method: Method, epochs: int = 1, **options: Any) -> PretrainTrainer:
    """A trainer that takes the batch of `batch_for` in one step an epoch."""
    batch = batch_for(method)
    items = [
        {"image": f"{i}.png", "tensor": batch["image"][i], **{k: v[i] for k, v in batch.items() if k != "image"}}
        for i in range(COUNT)
    ]
    extras = ("target", "mask") if isinstance(method, (Classification, Segmentation)) else ("anatomy",)
    dataset = RadiographDataset(items, lambda item: {**item, "image": item["tensor"]}, extras=extras)
    return PretrainTrainer(
        "cpu",
        epochs,
        DataLoader(dataset, COUNT, sampler=EpochSampler(dataset, COUNT)),
        method,
        optimizer_for(method),
        TrainingPlan(lr=0.05, warmup=0.1),
        **options,
    )
