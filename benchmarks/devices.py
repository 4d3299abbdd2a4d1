"""Is a step on a GPU the step on the CPU? Losses and gradients of every method, on both, from the same numbers.

    python benchmarks/devices.py                 # CPU against CUDA, where there is a GPU
    python benchmarks/devices.py --precision bfloat16

Prints for each method the relative difference of each loss and of the gradient as a whole. Without a GPU both sides are
the CPU: differences are then 0 in float32, and those of bfloat16 otherwise.
"""

from __future__ import annotations

import argparse

import torch

from afire_monai.commands.bundle import bundle_root
from afire_monai.engines.planning import build_training
from afire_monai.precision import PRECISIONS, set_precision

METHODS = ("afire", "peac", "mlvicx", "mae", "dino")


def losses_and_gradient(
    method: str, device: str, dtype: torch.dtype, precision: str
) -> tuple[dict[str, float], torch.Tensor]:
    """One step of the laptop default from seeded weights, images and draws; the gradient as one vector on the CPU."""
    folder = bundle_root() / "configs"
    torch.manual_seed(0)
    built, _ = build_training([folder / "pretrain.yaml", folder / f"method_{method}.yaml"], {"device": "cpu"})
    built = built.to(device, dtype).train()
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(8, 1, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, built.canvas_size, mode="bilinear").to(device, dtype)
    uniforms = torch.rand(8, built.draws, generator=generator).to(device)
    built.network_dtype = set_precision(precision)
    losses = built.losses(images, uniforms, first_epoch=True)
    torch.stack([losses[name].double() * weight for name, weight in built.loss_weights.items()]).sum().backward()
    gradient = torch.cat([p.grad.flatten().double().cpu() for _, p in built.trainable() if p.grad is not None])
    return {name: loss.item() for name, loss in losses.items()}, gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"CPU, float32, against {device}, {args.precision}")
    for name in args.method:
        base, expected = losses_and_gradient(name, "cpu", torch.float32, "float32")
        seen, gradient = losses_and_gradient(name, device, torch.float32, args.precision)
        apart = ", ".join(f"{k} {abs(seen[k] - v) / max(abs(v), 1e-12):.1e}" for k, v in base.items())
        relative = float((gradient - expected).norm() / expected.norm())
        print(f"{name:7} losses: {apart}; gradient {relative:.1e}")


if __name__ == "__main__":
    main()
