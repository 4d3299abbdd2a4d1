"""Small methods, images and loaders that several tests train; bundles as users run them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from afire_monai.core.errors import AfireError
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.losses import RestorationLoss, SelfDistillationLoss, TokenContrastiveLoss, TokenMatchLoss
from afire_monai.methods import AFiRe
from afire_monai.models.folder import export_encoder, export_task
from afire_monai.networks import AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTClassifier, ViTEncoder
from afire_monai.training.plan import TrainingPlan, parameter_groups
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.transforms import ExposureChange, LesionSettings, SyntheticLesionMaskd

PATCH = 8
CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
METADATA = str(CONFIGS / "metadata.json")


def tiny_afire(shift: int = 0, seed: int = 0, side: int = 32, **loss: object) -> AFiRe:
    """An AFiRe of a few thousand parameters on a 4 x 4 grid."""
    torch.manual_seed(seed)
    encoder = ViTEncoder(side, PATCH, embed_dim=32, depth=2, num_heads=2)
    h, w = encoder.grid
    return AFiRe(
        encoder,
        TokenHead(32, None if shift else h * w, out_dim=16, hidden_dim=32, bottleneck_dim=16),
        AnomalyRestorationDecoder(32, encoder.grid, PATCH, dim=32, depth=1, num_heads=2),
        PrototypeBank((h + shift) * (w + shift), 16),
        TokenContrastiveLoss(**loss),  # type: ignore[arg-type]
        RestorationLoss(),
        SyntheticLesionMaskd(),
        shift=shift,
    )


def full_afire(shift: int = 2, populations: Sequence[int] | None = None) -> AFiRe:
    """A tiny AFiRe with everything that is not published."""
    torch.manual_seed(0)
    encoder = ViTEncoder(32, PATCH, embed_dim=32, depth=2, num_heads=2, stem="convolutions", registers=2)
    settings = LesionSettings(lung_probability=0.5, free_probability=0.3)
    return AFiRe(
        encoder,
        TokenHead(32, None if shift else 16, out_dim=16, hidden_dim=32, bottleneck_dim=16),
        AnomalyRestorationDecoder(32, (4, 4), PATCH, dim=32, depth=1, num_heads=2),
        PrototypeBank((4 + shift) ** 2, 16, per_cell=3),
        TokenContrastiveLoss(),
        RestorationLoss(),
        SyntheticLesionMaskd(settings=settings),
        shift=shift,
        abnormal_change=0.03,
        exposure=ExposureChange(blur=1.0),
        match_loss=TokenMatchLoss(),
        class_head=TokenHead(32, None, out_dim=8, hidden_dim=16, bottleneck_dim=8),
        class_loss=SelfDistillationLoss(8),
        lesion_weight=0.5,
        latent_weight=0.5,
        koleo_weight=0.1,
        populations=populations,
    )


def guided_afire(shift: int = 2) -> AFiRe:
    """`full_afire` for at most 24 images of three kinds of people."""
    return full_afire(shift, [i * i % 3 for i in range(23)] + [2])


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Export a vision transformer with the weights that a seed gives; returns its folder."""
    torch.manual_seed(seed)
    export_encoder(ViTEncoder(32, PATCH, embed_dim=32, depth=2, num_heads=2), folder)
    return folder


def smooth_images(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """(count, 1, H, W) in 0…1: random low-frequency pictures, so that Otsu and contours have something to find."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)


def dataset_of(images: torch.Tensor) -> RadiographDataset:
    """A data set of tensors that are already there."""
    items = [{"image": f"picture{i}.png", "tensor": image} for i, image in enumerate(images)]
    return RadiographDataset(items, lambda item: {"image": item["tensor"]})


def tiny_trainer(
    method: AFiRe,
    images: torch.Tensor,
    epochs: int = 2,
    batch_size: int = 4,
    handlers: Sequence[object] = (),
    lr: float = 0.05,
    **options: object,
) -> PretrainTrainer:
    dataset = dataset_of(images)
    sampler = EpochSampler(dataset, batch_size, seed=3)
    plan = TrainingPlan(lr=lr, warmup=0.1)
    return PretrainTrainer(
        "cpu",
        epochs,
        DataLoader(dataset, batch_size, sampler=sampler),
        method,
        torch.optim.AdamW(parameter_groups(method), lr=1e-3),
        plan,
        train_handlers=handlers,
        **options,  # type: ignore[arg-type]
    )


def run_bundle(folder: Path, files: list[str] | str, **settings: object) -> None:
    """Run a bundle in `folder` as `python -m monai.bundle run` does, with its command line where it is looked for."""
    from monai.bundle import run

    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", str(files), *words])
        patch.setattr(sys, "excepthook", sys.excepthook)
        run(config_file=files, meta_file=METADATA, logging_file=False, **settings)


def cause_of(error: BaseException) -> BaseException:
    """What this package raised, behind what MONAI wrapped around it."""
    while not isinstance(error, AfireError):
        following = error.__cause__ or error.__context__
        assert following is not None, error
        error = following
    return error


def export_pneumonia_classifier(folder: Path) -> Path:
    """Write a small classifier with fresh weights; give its folder."""
    torch.manual_seed(0)
    classifier = ViTClassifier(ViTEncoder((32, 32), 8, embed_dim=16, depth=1, num_heads=2), ["Normal", "Pneumonia"])
    export_task(classifier, folder, thresholds={"Pneumonia": 0.5})
    return folder
