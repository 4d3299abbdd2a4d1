"""Sound checkpoints and model folders for `damaged.py`, and what takes them up."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from damaged_inputs import Kind
from torch.utils.data import DataLoader

from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.losses import RestorationLoss, TokenContrastiveLoss
from afire_monai.methods import AFiRe
from afire_monai.models.folder import export_encoder, export_task, load_encoder
from afire_monai.models.foreign import load_foreign
from afire_monai.networks import AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter
from afire_monai.predictions.anomaly.build_reference import build_reference
from afire_monai.predictions.anomaly.detector import load_detector
from afire_monai.predictions.reading import Radiograph
from afire_monai.predictions.scoring import Scorer
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.finish import export_detector, export_restorer
from afire_monai.training.plan import TrainingPlan, parameter_groups
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.transforms import SyntheticLesionMaskd

SIDE, PATCH, SHIFT = 32, 8, 2
CHECKPOINT = "checkpoint_00000004.pt"


def images(count: int, side: int) -> torch.Tensor:
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)


def encoder() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(SIDE, PATCH, embed_dim=32, depth=2, num_heads=2)


def method() -> AFiRe:
    """An AFiRe of a few thousand parameters on a grid of 4 × 4 cells."""
    backbone = encoder()
    head = TokenHead(32, None, out_dim=16, hidden_dim=32, bottleneck_dim=16)
    decoder = AnomalyRestorationDecoder(32, backbone.grid, PATCH, dim=32, depth=1, num_heads=2)
    bank = PrototypeBank((4 + SHIFT) ** 2, 16)
    losses = TokenContrastiveLoss(), RestorationLoss()
    return AFiRe(backbone, head, decoder, bank, *losses, SyntheticLesionMaskd(), shift=SHIFT)


def trainer(folder: Path) -> PretrainTrainer:
    items = [{"image": f"{n}.png", "tensor": image} for n, image in enumerate(images(8, SIDE + SHIFT * PATCH))]
    dataset = RadiographDataset(items, lambda item: {"image": item["tensor"]})
    loader = DataLoader(dataset, 4, sampler=EpochSampler(dataset, 4, seed=3))
    network = method()
    optimizer = torch.optim.AdamW(parameter_groups(network), lr=1e-3)
    keeper = CheckpointKeeper(folder, best_key=None)
    return PretrainTrainer("cpu", 2, loader, network, optimizer, TrainingPlan(lr=0.05), train_handlers=[keeper])


def read_checkpoint(folder: Path) -> object:
    resumed = trainer(folder)
    resumed.resume(folder, str(folder / CHECKPOINT))
    return resumed


def make_foreign(folder: Path) -> None:
    """A transformer as timm names its weights."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 17, 32),
        "norm.weight": (32,),
        "norm.bias": (32,),
    }
    shapes |= {"patch_embed.proj.weight": (32, 3, 8, 8), "patch_embed.proj.bias": (32,)}
    for block in range(2):
        parts: dict[str, tuple[int, ...]] = {
            "norm1.weight": (32,),
            "norm1.bias": (32,),
            "norm2.weight": (32,),
            "norm2.bias": (32,),
        }
        parts |= {"attn.qkv.weight": (96, 32), "attn.qkv.bias": (96,), "attn.proj.weight": (32, 32)}
        parts |= {"attn.proj.bias": (32,), "mlp.fc1.weight": (128, 32), "mlp.fc1.bias": (128,)}
        parts |= {"mlp.fc2.weight": (32, 128), "mlp.fc2.bias": (32,)}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    torch.save({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / "vit.pth")
    settings = {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(settings))


def read_foreign(folder: Path) -> object:
    return load_foreign(folder / "vit.pth").encoder.eval()(images(1, SIDE))


def finite(values: torch.Tensor) -> torch.Tensor:
    if not values.isfinite().all():
        raise ArithmeticError("numbers that are not finite were handed on")
    return values


def make_models(folder: Path) -> None:
    network = method()
    export_encoder(network.export_encoder, folder, shift=SHIFT)
    export_restorer(network, folder)
    export_detector(network, folder)
    labels = ["Mass", "Normal"]
    export_task(ViTClassifier(encoder(), labels), folder / "task", thresholds=dict.fromkeys(labels, 0.5))
    export_task(ViTSegmenter(encoder(), ["lung"]), folder / "task", mask_values={"lung": 255})
    normals = images(24, SIDE + SHIFT * PATCH)
    parts = ("tokens", "neighbours", "residual", "prototypes")
    detector = load_detector(folder)
    build_reference(detector, normals.split(8), [str(n) for n in range(24)], parts, window=1).save(folder)


def read_encoder(folder: Path) -> object:
    return finite(load_encoder(folder)(images(1, SIDE)))


def ask(folder: Path) -> object:
    """Ask for a prediction of a radiograph, as `afire predict` does."""
    scorer = Scorer([folder], heatmap="auto")
    pictures = {size: images(1, SIDE)[0] for size in scorer.sizes}
    pictures = {
        size: torch.nn.functional.interpolate(picture[None], size, mode="bilinear")[0]
        for size, picture in pictures.items()
    }
    (answer,) = scorer.score([Radiograph(0, pictures, (SIDE, SIDE))])
    for values in (answer.heatmap, answer.restored, answer.masks):
        finite(values if values is not None else torch.zeros(()))
    return answer


def files_of(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}.{suffix}" for kind in kinds for suffix in ("safetensors", "json"))


NOT_FINITE = ("its weights are damaged",)
"""What is said where numbers come out that are not finite, as several files may be at fault."""
MODELS: dict[str, Kind] = {
    "checkpoint": Kind(lambda folder: trainer(folder).run(), (CHECKPOINT,), read_checkpoint),
    "weights from elsewhere": Kind(make_foreign, ("vit.pth", "config.json"), read_foreign, ("JSON file beside",)),
    "model folder, encoder": Kind(make_models, files_of("encoder"), read_encoder),
    "model folder, classifier and segmenter": Kind(
        make_models, files_of("task/classifier", "task/segmenter"), lambda folder: ask(folder / "task"), NOT_FINITE
    ),
    "model folder, anomaly": Kind(make_models, files_of("restorer", "detector", "reference"), ask, NOT_FINITE),
}
