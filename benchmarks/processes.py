"""One, two and four processes with the same global batch: are the losses the same, and what do collectives cost?

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 2 --config preset_paper --batch 4 --steps 2   # the paper's messages

Each number of processes trains the laptop default for a few steps on the same synthetic images. Printed: the largest
relative difference of a step's loss from one process; the messages of a step (gradients, which are summed during the
backward pass, and the small ones inside the losses, which are waited for); the time of each, measured alone on this
machine's backend; and from these messages, on paper, the efficiency on 8, 64 and 512 GPUs.

On paper: the faster of a ring, 2 (N − 1) / N · bytes / bandwidth + 2 (N − 1) · hop latency, and a tree, 2 bytes /
bandwidth + 2 log2 N · hop latency; gradients hide behind the backward pass (two thirds of the step), small messages are
added. Bandwidths and latencies are arguments, not measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def worker(args: argparse.Namespace) -> None:
    """Train a few steps in this process and write what was seen (process 0)."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DataLoader

    from afire_monai.cli.bundle import bundle_root
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.loading.sampler import EpochSampler
    from afire_monai.training.plan import TrainingPlan
    from afire_monai.training.planning import build_training
    from afire_monai.training.trainer import PretrainTrainer

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    folder = bundle_root() / "configs"
    configs = [folder / "pretrain.yaml", folder / f"method_{args.method}.yaml"]
    configs += [folder / f"{args.config}.yaml"] if args.config else []
    method, optimizer = build_training(configs, {"device": "cpu"})
    coarse = torch.rand(args.batch * args.steps, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, method.canvas_size, mode="bilinear")
    items = [{"image": f"{i}.png", "tensor": image} for i, image in enumerate(images)]
    dataset = RadiographDataset(items, lambda item: {"image": item["tensor"]})
    batch = args.batch // dist.get_world_size()
    sampler = EpochSampler(dataset, batch, seed=1)
    loader = DataLoader(dataset, batch, sampler=sampler)
    trainer = PretrainTrainer("cpu", 1, loader, method, optimizer, TrainingPlan(lr=0.008))
    losses, messages, seconds = watched(trainer)
    gradients = sum(p.numel() * 4 for _, p in method.trainable())
    small = messages[min(1, len(messages) - 1)]  # the last ones of an epoch sum its figures
    seen = {
        "losses": losses,
        "gradient_bytes": gradients,
        "small_bytes": small,
        "gradient_seconds": timed_reduction([gradients]),
        "small_seconds": timed_reduction(small),
        "step_seconds": seconds / args.steps,
    }
    if dist.get_rank() == 0:
        Path(args.worker).write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


def watched(trainer: Any) -> tuple[list[float], list[list[int]], float]:
    """Train; return each step's loss and sizes of its messages in bytes, and the seconds of all steps."""
    import torch.distributed as dist
    from ignite.engine import Events

    losses: list[float] = []
    messages: list[list[int]] = []
    reduce = dist.all_reduce

    def counted(tensor: Any, *others: Any, **named: Any) -> Any:
        messages[-1].append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *others, **named)

    def end(engine: Any) -> None:
        total = engine.state.output["loss"].clone()
        reduce(total)  # not counted
        losses.append(total.item() / dist.get_world_size())

    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: messages.append([]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
    dist.all_reduce = counted
    start = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - start
    dist.all_reduce = reduce
    return losses, messages, seconds


def timed_reduction(sizes: list[int]) -> float:
    """Seconds of summing messages of these bytes one after the other, median of nine; 0 without a partner."""
    import torch
    import torch.distributed as dist

    tensors = [torch.ones(max(1, size // 4)) for size in sizes]
    times = []
    for _ in range(9):
        dist.barrier()
        start = time.perf_counter()
        for tensor in tensors:
            dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    return statistics.median(times) if dist.get_world_size() > 1 else 0.0


def launch(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run ``count`` processes and give what process 0 saw."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seen.json"
        words = ["--method", args.method, "--batch", str(args.batch), "--steps", str(args.steps), "--worker", str(out)]
        words += ["--config", args.config]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return dict(json.loads(out.read_text()))


def efficiency(count: int, seen: dict[str, Any], args: argparse.Namespace) -> float:
    """Share of the step that is computation on ``count`` GPUs, on paper."""
    bandwidth, latency = (args.inside, args.inside_latency) if count <= 8 else (args.between, args.between_latency)

    def reduction(size: float) -> float:
        sent = 2 * size / (bandwidth * 1e9)
        ring = (count - 1) / count * sent + 2 * (count - 1) * latency * 1e-6
        return min(ring, sent + 2 * math.log2(count) * latency * 1e-6)

    gradients = max(0.0, reduction(seen["gradient_bytes"]) - args.step * 2 / 3)
    return args.step / (args.step + gradients + sum(reduction(size) for size in seen["small_bytes"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--method", default="afire")
    parser.add_argument("--config", default="", help="a further config, preset_gpu or preset_paper")
    parser.add_argument("--batch", type=int, default=16, help="global batch, whatever the number of processes")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--step", type=float, default=0.3, help="seconds of a step on one GPU, for the paper figures")
    parser.add_argument("--inside", type=float, default=200, help="GB/s between GPUs of a node")
    parser.add_argument("--inside-latency", type=float, default=2, help="microseconds a hop")
    parser.add_argument("--between", type=float, default=20, help="GB/s of a node's network")
    parser.add_argument("--between-latency", type=float, default=5, help="microseconds a hop")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    runs = {count: launch(count, args) for count in args.processes}
    first = runs[args.processes[0]]["losses"]
    print(
        f"{args.method} {args.config}, global batch {args.batch}, {args.steps} steps, gloo, one thread each, "
        f"{os.cpu_count()} cores"
    )
    print("| processes | largest relative difference of a loss | step | gradients | small messages |")
    print("|---|---|---|---|---|")
    for count, seen in runs.items():
        apart = max(abs(a - b) / abs(b) for a, b in zip(seen["losses"], first, strict=True))
        print(
            f"| {count} | {apart:.1e} | {seen['step_seconds'] * 1e3:.0f} ms | "
            f"{seen['gradient_seconds'] * 1e3:.1f} ms | {seen['small_seconds'] * 1e3:.2f} ms |"
        )
    seen = runs[args.processes[-1]]
    small = ", ".join(f"{size / 1024:.1f}" for size in seen["small_bytes"])
    print(f"messages of a step: gradients {seen['gradient_bytes'] / 2**20:.1f} MiB; small ones {small} KiB")
    for count in (8, 64, 512):
        print(
            f"on paper, {count} GPUs, a step of {args.step * 1e3:.0f} ms: {efficiency(count, seen, args):.1%} efficient"
        )


if __name__ == "__main__":
    main()
