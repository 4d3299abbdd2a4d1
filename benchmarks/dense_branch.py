"""MLVICX's dense branch: pooled before its convolutions, as here, against written out as in the paper.

    python benchmarks/dense_branch.py                  # 224 px, batch 8, CPU
    python benchmarks/dense_branch.py --device cuda --batch 64

Both sides get the same maps and weights, are compared first, and are then timed in turns, forward and backward; the
ratio of the medians is printed, and that of the peak memory of their intermediate results.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.networks import DenseBranch, build_encoder


def literal(branch: DenseBranch, maps: list[Tensor], side: int = 64, cells: int = 4) -> Tensor:
    """Convolve each map, resize it, add, pool."""
    resized = [
        F.interpolate(convolution(x), (side, side), mode="bilinear")
        for x, convolution in zip(maps, branch.convolutions, strict=True)
    ]
    return F.adaptive_avg_pool2d(torch.stack(resized).sum(0), cells).flatten(1)


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Return the size of the tensors that the backward pass of a call keeps, each storage once."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    total = sum(sizes.values())
    del result
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=args.size).to(args.device)
    branch = DenseBranch(encoder).to(args.device)
    with torch.no_grad():
        maps = encoder.pyramid(torch.rand(args.batch, 1, args.size, args.size, device=args.device))
    maps = [m.requires_grad_() for m in maps]
    forms: dict[str, Callable[[], Tensor]] = {
        "written out": lambda: literal(branch, maps),
        "here": lambda: branch(maps),
    }
    torch.testing.assert_close(forms["here"](), forms["written out"](), atol=1e-4, rtol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(args.repeats + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            form().square().sum().backward()
            if args.device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    kept = {name: saved_bytes(form) for name, form in forms.items()}
    print(f"{args.size} px, batch {args.batch}, {args.device}, {args.threads} threads, {args.repeats} repeats")
    for name, times in seconds.items():
        print(f"{name:12s} {statistics.median(times) * 1e3:9.1f} ms   keeps {kept[name] / 2**20:8.1f} MiB for backward")
    ratio = statistics.median(seconds["written out"]) / statistics.median(seconds["here"])
    print(f"time x {ratio:.1f}, memory x {kept['written out'] / kept['here']:.1f}")


if __name__ == "__main__":
    main()
