"""Is a step on a GPU the step on the CPU? Asserted, from the same numbers; the exit status says so.

    python benchmarks/devices.py                    # CPU against CUDA
    python benchmarks/devices.py --device cpu       # both sides are the CPU: a trial of the script itself

- Losses and gradient of one step of every method and of every task: float32 (TF32 off) within 1e-4 of the CPU's, losses
  in bfloat16 within 5e-2, and the gradient in bfloat16 no farther from float32 than 1.5 times the CPU's own is. Where
  a last bit of pictures and weights changes the CPU's own gradient by more than 1e-4 (batch norm and ReLU with eight
  pictures), ten times that change is allowed.
- Scores of the anomaly detector.
- A training with `deterministic: true`, twice: the same weights, bit by bit; killed and resumed: the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import METHODS as COMPARED
from torch import Tensor

from afire_monai.cli.bundle import bundle_root
from afire_monai.core.precision import set_precision
from afire_monai.networks import ResNetEncoder, ViTClassifier, ViTEncoder, ViTSegmenter
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.training.planning import build_training
from afire_monai.training.tasks import Classification, Segmentation
from afire_monai.transforms import RadiographAugment
from afire_monai.transforms.anatomy import anatomy_of

CONFIGS = bundle_root() / "configs"
METHODS = {name: COMPARED[name] for name in ("afire", "afire_published", "peac", "mlvicx", "mae", "dino")}
ALL = {"exposure": 1.0, "lesion_weight": 1.0, "lesion_free": 0.3, "lesion_lungs": 0.5, "abnormal_change": 0.012}
METHODS["afire_all"] = ("method_afire.yaml", ALL)


def build_method(name: str) -> Any:
    file, settings = METHODS[name]
    return build_training([CONFIGS / "pretrain.yaml", CONFIGS / file], {"device": "cpu", **settings})[0]


def build_task(task: type, network: type, resnet: bool) -> Any:
    encoder = ResNetEncoder(128) if resnet else ViTEncoder(128, 16, embed_dim=192, depth=6, num_heads=3)
    return task(network(encoder, ["a", "b"]), augment=RadiographAugment())


TASKS: dict[str, Callable[[], Any]] = {
    "classification_vit": lambda: build_task(Classification, ViTClassifier, False),
    "classification_resnet": lambda: build_task(Classification, ViTClassifier, True),
    "segmentation_vit": lambda: build_task(Segmentation, ViTSegmenter, False),
    "segmentation_resnet": lambda: build_task(Segmentation, ViTSegmenter, True),
}


STEPS: dict[str, Callable[[], Any]] = {**{m: partial(build_method, m) for m in METHODS}, **TASKS}
BATCH = 8


def batch_for(method: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Images, anatomy, targets and masks, and the uniform numbers of a step; the same at each call."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(BATCH, 1, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, method.canvas_size, mode="bilinear")
    images = (images + 0.1 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    target = (torch.rand(BATCH, 2, generator=generator) > 0.5).float()
    mask = (images > torch.tensor([0.5, 0.7])[:, None, None]).float()
    uniforms = torch.rand(BATCH, method.draws, generator=generator)
    return {"image": images, "anatomy": anatomy_of(images), "target": target, "mask": mask}, uniforms


def one_step(
    build: Callable[[], Any], device: str, precision: str, noise: float = 0.0
) -> tuple[dict[str, float], Tensor]:
    """Losses and the gradient as one vector on the CPU, from seeded weights, images and draws."""
    torch.manual_seed(0)
    method = build()
    batch, uniforms = batch_for(method)
    with torch.no_grad():
        for tensor in (batch["image"], *method.parameters()):
            tensor.mul_(1 + noise * torch.randn(tensor.shape))
    method = method.to(device).train()
    method.network_dtype = set_precision(precision)
    losses = method.batch_losses({k: v.to(device) for k, v in batch.items()}, uniforms.to(device), first_epoch=True)
    torch.stack([losses[name].double() * weight for name, weight in method.loss_weights.items()]).sum().backward()
    gradient = torch.cat([p.grad.flatten().double().cpu() for _, p in method.trainable() if p.grad is not None])
    return {name: loss.item() for name, loss in losses.items()}, gradient


class Report:
    """Collects what was compared; prints and writes it as it goes."""

    def __init__(self, path: str | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.path = path

    def compare(self, what: str, seen: float, limit: float) -> None:
        passed = bool(seen <= limit)
        self.rows.append({"what": what, "difference": seen, "limit": limit, "passed": passed})
        print(f"{'ok    ' if passed else 'FAILED'} {what}: {seen:.1e} (limit {limit:.1e})", flush=True)
        if self.path:
            Path(self.path).write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    @property
    def failed(self) -> int:
        return sum(not row["passed"] for row in self.rows)


def apart(seen: Tensor, expected: Tensor) -> float:
    return float((seen - expected).norm() / expected.norm().clamp(min=1e-12))


def compare_steps(report: Report, device: str, chosen: list[str]) -> None:
    """Methods and tasks, float32 and bfloat16."""
    for name, build in STEPS.items():
        if chosen and name not in chosen:
            continue
        losses, gradient = one_step(build, "cpu", "float32")
        _, rounded = one_step(build, "cpu", "bfloat16")
        sensitivity = apart(one_step(build, "cpu", "float32", noise=2.0**-23)[1], gradient)
        for precision, limit in (("float32", 1e-4), ("bfloat16", 5e-2)):
            seen, seen_gradient = one_step(build, device, precision)
            worst = max(abs(seen[k] - v) / max(abs(v), 1e-6) for k, v in losses.items())
            report.compare(f"{name}, {precision}, losses", worst, limit)
            allowed = max(1e-4, 10 * sensitivity) if precision == "float32" else 1.5 * apart(rounded, gradient) + 1e-2
            report.compare(f"{name}, {precision}, gradient", apart(seen_gradient, gradient), allowed)


def compare_detector(report: Report, device: str) -> None:
    """Tokens of the anomaly detector."""
    scores = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        set_precision("float32")
        method = build_method("afire")
        batch, _ = batch_for(method)
        detector = AnomalyDetector(method.teacher.encoder, 2).eval().to(where)
        with torch.no_grad():
            found = detector.features(batch["image"].to(where))
        scores.append(found.tokens.double().cpu())
    report.compare("detector, float32, tokens", apart(scores[1], scores[0]), 1e-4)


def train(folder: Path, device: str, epochs: int, **settings: object) -> subprocess.Popen[bytes]:
    """Start a small training of the laptop default in a process of its own."""
    overrides: dict[str, object] = {
        **{"output_dir": folder, "epochs": epochs, "use_mlflow": False, "deterministic": True, "datalist": "phantom"},
        **{"dataset_dir": "", "device": f"$torch.device('{device}')", "health_every": 100, "panel_every": 100},
        **{"image_size": 64, "batch_size": 32, "encoder_preset": "vit_ti6", **settings},
    }
    files = [str(CONFIGS / "pretrain.yaml"), str(CONFIGS / "method_afire.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    command += [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def weights_of(folder: Path) -> Tensor:
    newest = sorted((folder / "checkpoints").glob("checkpoint_*.pt"))[-1]
    state = torch.load(newest, map_location="cpu", weights_only=True)["method"]
    return torch.cat([v.flatten().double() for v in state.values()])


def compare_runs(report: Report, device: str) -> None:
    """The same seed twice, and killed and resumed; the three trainings run side by side."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("once", "twice", "killed")]
        runs = [train(f, device, 6, checkpoint_every_iterations=5) for f in folders]
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and runs[2].poll() is None:
            if len(list((folders[2] / "checkpoints").glob("checkpoint_*.pt"))) >= 2:
                runs[2].kill()
                break
            time.sleep(0.02)
        runs[2].wait()
        runs[2] = train(folders[2], device, 6, checkpoint_every_iterations=5, resume=True)
        status = [run.wait() for run in runs]
        for folder, code in zip(folders, status, strict=True):
            if code:
                print((folder.parent / f"{folder.name}.log").read_text()[-2000:])
        report.compare("trainings that failed", float(sum(code != 0 for code in status)), 0)
        if not any(status):
            once, twice, killed = (weights_of(folder) for folder in folders)
            report.compare("same seed twice, deterministic", float((once != twice).sum()), 0)
            report.compare("killed and resumed, deterministic", float((once != killed).sum()), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--json", help="file for the comparisons")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[], help="methods and tasks; all if none is named")
    parser.add_argument("--no-steps", action="store_true", help="leave out the steps and the detector")
    parser.add_argument("--no-runs", action="store_true", help="leave out the trainings")
    args = parser.parse_args()
    report = Report(args.json)
    if not args.no_steps:
        compare_steps(report, args.device, args.steps)
        compare_detector(report, args.device)
    if not args.no_runs:
        compare_runs(report, args.device)
    print(f"{len(report.rows)} comparisons, {report.failed} failed")
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
