"""Full AFiRe step against the bare networks and against a step that loops over tokens in Python.

All sides are measured in turns in one process, and the ratios of their medians are printed:

- ``bare``: teacher encoder forward; student encoder and decoder forward and backward under a squared error; clipping,
  AdamW and teacher average over those parameters.
- ``full``: the whole step as the trainer does it: lesions, both heads, prototypes, Sinkhorn, all losses.
- ``search``: ``full`` with the search for the lesions' texture in each step, instead of once when an image is read.
- ``float32``: ``full`` with networks in float32, beside a ``full`` in bfloat16.
- ``stem``: ``full`` with a stem of convolutions, in networks of its own.
- ``loop``: ``full`` with one head layer per cell called in a loop and a loss that goes through the tokens one by one,
  as the released code does it (cross-entropy only).

    python benchmarks/step.py                  # ViT-B/16, 224 px, CPU
    python benchmarks/step.py --precision bfloat16 --no-loop --preset vit_s --shift 2
    python benchmarks/step.py --device cuda --precision bfloat16 --batch 64 --compile
    python benchmarks/step.py --memory         # peak memory at small batches, and what 64 would take
    python benchmarks/step.py --profile        # where the full step spends its time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from afire_monai.core.precision import PRECISIONS, set_precision
from afire_monai.losses import RestorationLoss, TokenContrastiveLoss
from afire_monai.methods import AFiRe
from afire_monai.networks import ENCODER_PRESETS, AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.networks.blocks import compile_networks
from afire_monai.training.plan import parameter_groups
from afire_monai.training.trainer import clip_each
from afire_monai.transforms import SyntheticLesionMaskd
from afire_monai.transforms.anatomy import anatomy_of


def build(
    preset: str, size: int, shift: int, device: torch.device, decoder: str = "512,8,16", stem: str = "patches"
) -> AFiRe:
    """The paper's networks, in the published or the grid-shifted form; width, depth and heads of the decoder."""
    torch.manual_seed(0)
    encoder = ViTEncoder(image_size=size, stem=stem, **ENCODER_PRESETS[preset])
    h, w = encoder.grid
    dim, depth, heads = (int(number) for number in decoder.split(","))
    return AFiRe(
        encoder,
        TokenHead(encoder.embed_dim, None if shift else h * w),
        AnomalyRestorationDecoder(encoder.embed_dim, encoder.grid, dim=dim, depth=depth, num_heads=heads),
        PrototypeBank((h + shift) * (w + shift)),
        TokenContrastiveLoss(),
        RestorationLoss(),
        SyntheticLesionMaskd(),
        shift=shift,
    ).to(device)


class Steps:
    """All kinds of steps over one set of weights, so that they can be timed in turns."""

    def __init__(self, method: AFiRe, images: Tensor, precision: str) -> None:
        self.method, self.images = method, images
        self.device = images.device
        method.network_dtype = set_precision(precision)
        self.bf16 = method.network_dtype == torch.bfloat16
        student = method.student
        self.optimizer = torch.optim.AdamW(parameter_groups(method), lr=1e-6, fused=True)
        bare = [*student.encoder.parameters(), *student.decoder.parameters()]
        self.bare_optimizer = torch.optim.AdamW(bare, lr=1e-6, fused=True)
        self.bare_teacher: list[Tensor] = [*method.teacher.encoder.parameters()]
        self.bare_student: list[Tensor] = [*student.encoder.parameters()]
        self.abnormal = torch.rand(len(images), student.decoder.grid[0] * student.decoder.grid[1]) < 0.35
        self.abnormal = self.abnormal.to(self.device)
        self.uniforms = torch.rand(len(images), method.draws, device=self.device)
        self.anatomy = anatomy_of(images)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def crop(self) -> Tensor:
        height, width = self.method.student.encoder.image_size
        return self.images[:, :, :height, :width]

    def bare(self) -> None:
        images, student = self.crop(), self.method.student
        with self.autocast():
            with torch.no_grad():
                self.method.teacher.encoder(images)
            restored = student.decoder(student.encoder(images), self.abnormal)
            loss = F.mse_loss(restored.float(), images)
        loss.backward()
        clip_each(self.bare_optimizer, 3.0)
        self.bare_optimizer.step()
        self.bare_optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.bare_teacher, self.bare_student, 0.004)

    def full(self) -> None:
        self._step(self.anatomy)

    def search(self) -> None:
        self._step(None)

    def float32(self) -> None:
        chosen, self.method.network_dtype = self.method.network_dtype, torch.float32
        self._step(self.anatomy)
        self.method.network_dtype = chosen

    def _step(self, anatomy: Tensor | None) -> None:
        losses = self.method.losses(self.images, self.uniforms, False, anatomy)
        torch.stack([losses[n] * w for n, w in self.method.loss_weights.items()]).sum().backward()
        self._finish()

    def loop(self) -> None:
        method, student = self.method, self.method.student
        v = method.views(self.images, self.uniforms, self.anatomy)
        with self.autocast():
            with torch.no_grad():
                teacher_logits = loop_head(method.teacher.head, method.teacher.encoder(v.normal)[:, 1:])
                method.prototypes.update(teacher_logits, v.teacher_cells)
                assignment = method.prototypes.assignment()
            tokens = student.encoder(v.twin)
            logits = loop_head(student.head, tokens[:, 1:]).float() / 0.1
            restored = student.decoder(tokens, v.abnormal)
        total, count = torch.zeros((), device=self.device), 0
        for i, j in torch.nonzero(~v.abnormal):
            total = total - (assignment[j] * F.log_softmax(logits[i, j], dim=-1)).sum()
            count += 1
        (total / count + F.mse_loss(restored.float(), v.clean)).backward()
        self._finish()

    def _finish(self) -> None:
        clip_each(self.optimizer, 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.update_teacher(0.996)


def loop_head(head: TokenHead, tokens: Tensor) -> Tensor:
    """The token head with one call of a weight-normalised layer per cell."""
    x = F.normalize(head.mlp(tokens), dim=-1)
    layers = [F.normalize(head.weight[0 if head.cells is None else j], dim=-1) for j in range(x.shape[1])]
    return torch.stack([F.linear(x[:, j], layer) for j, layer in enumerate(layers)], dim=1)


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Floating-point operations a second of a large matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(timed(lambda: torch.mm(a, b), device, clock) for _ in range(5))


def timed(step: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    clock = time.process_time if args.processor_time else time.perf_counter
    method = build(args.preset, args.size, args.shift, device, args.decoder)
    images = torch.rand(args.batch, 1, *method.canvas_size).to(device)
    steps = Steps(method, images, args.precision)
    sides = {"bare": steps.bare, "full": steps.full}
    networks = [method.student, method.teacher]
    sides |= ({"search": steps.search} if args.search else {}) | ({"float32": steps.float32} if steps.bf16 else {})
    if args.stem:
        other = build(args.preset, args.size, args.shift, device, args.decoder, "convolutions")
        networks += [other.student, other.teacher]
        sides["stem"] = Steps(other, images, args.precision).full
    sides |= {} if args.no_loop else {"loop": steps.loop}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with FlopCounterMode(display=False) as counter:
        steps.bare()
    flops = counter.get_total_flops()
    if args.compile:  # after counting, which a compiled network hides its products from
        compile_networks(*networks)
    for name, step in sides.items():
        for _ in range(1 if name == "loop" else args.warmup):
            step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for turn in range(args.repeats):
        for name, step in sides.items():
            if name != "loop" or turn < args.loop_repeats:
                times[name].append(timed(step, device, clock))
    rate = matrix_rate(device, torch.bfloat16 if steps.bf16 else torch.float32, clock)
    if args.processor_time:
        print("processor time, not the clock's")
    print(
        f"{args.preset}, {args.size} px, shift {args.shift}, decoder {args.decoder}, batch {args.batch}, "
        f"{args.precision}, compile {args.compile}, {device}, {torch.get_num_threads()} threads, {args.repeats} repeats"
    )
    print(f"matrix product: {rate / 1e9:.1f} GFLOP/s; bare step: {flops / 1e9:.1f} GFLOP")
    bare = statistics.median(times["bare"])
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:7} {median * 1e3:9.1f} ms  {args.batch / median:8.2f} images/s  {median / bare:6.3f} x bare  "
            f"(min {min(values) * 1e3:.1f}, max {max(values) * 1e3:.1f}; "
            f"{flops / median / rate:.0%} of the matrix rate for the bare step's work)"
        )
    paired = [f / b for f, b in zip(times["full"], times["bare"], strict=True)]
    print(f"overhead of head, prototypes, losses and lesions: {statistics.median(paired) - 1:+.1%} (median of pairs)")
    if steps.bf16:
        paired = [e / f for e, f in zip(times["float32"], times["full"], strict=True)]
        print(f"float32 takes {statistics.median(paired):.2f} x the time of bfloat16 (median of pairs)")
    if args.stem:
        paired = [s / f for s, f in zip(times["stem"], times["full"], strict=True)]
        print(f"a stem of convolutions takes {statistics.median(paired):.2f} x the time of patches (median of pairs)")
    if peak is not None:
        print(f"peak memory: {peak:.2f} GiB")
    if args.json:
        facts = {
            key: getattr(args, key) for key in ("preset", "size", "shift", "decoder", "batch", "precision", "compile")
        }
        medians = {name: statistics.median(values) for name, values in times.items()}
        row = {**facts, "seconds": medians, "matrix_rate": rate, "bare_flops": flops, "peak_gib": peak}
        with open(args.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def profile(args: argparse.Namespace) -> None:
    """Print the operations that take most of three full steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    device = torch.device(args.device)
    method = build(args.preset, args.size, args.shift, device, args.decoder)
    if args.compile:
        compile_networks(method.student, method.teacher)
    steps = Steps(method, torch.rand(args.batch, 1, *method.canvas_size).to(device), args.precision)
    for _ in range(max(1, args.warmup)):
        steps.full()
    gpu = device.type == "cuda"
    with watch(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        for _ in range(3):
            steps.full()
        if gpu:
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


def measure_memory(args: argparse.Namespace) -> None:
    """Peak memory of whole processes that do three full steps, and the line through the two largest batches."""
    if args.one_memory:
        method = build(args.preset, args.size, args.shift, torch.device("cpu"), args.decoder)
        steps = Steps(method, torch.rand(args.batch, 1, *method.canvas_size), args.precision)
        for _ in range(3):
            steps.full()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    points = []
    for batch in (4, 8, 16):
        command = [sys.executable, __file__, "--memory", "--one-memory", "--batch", str(batch)]
        command += ["--preset", args.preset, "--size", str(args.size), "--shift", str(args.shift)]
        command += ["--decoder", args.decoder]
        points.append((batch, float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)))
        print(f"batch {batch}: {points[-1][1]:.2f} GiB")
    # the smallest batch may peak while the networks are built, so the line is through the two largest
    slope = (points[-1][1] - points[-2][1]) / (points[-1][0] - points[-2][0])
    at_64 = points[-1][1] + slope * (64 - points[-1][0])
    print(f"per image {slope * 1024:.0f} MiB; batch 64 by the line: {at_64:.1f} GiB (float32)")
    tokens = (args.size // 16) ** 2
    print(f"a (B, L, L, K) tensor alone would take {64 * tokens**2 * 256 * 4 / 2**30:.1f} GiB at batch 64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_b")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--shift", type=int, default=0)
    parser.add_argument("--decoder", default="512,8,16", help="width, depth and heads of the restoration decoder")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-loop", action="store_true", help="leave out the step that loops over tokens")
    parser.add_argument("--stem", action="store_true", help="measure the step with a stem of convolutions as well")
    parser.add_argument("--loop-repeats", type=int, default=5, help="of that step, at most --repeats")
    parser.add_argument("--search", action="store_true", help="measure the step that searches the texture as well")
    parser.add_argument(
        "--processor-time", action="store_true", help="of this process, on a CPU that others use as well (one thread)"
    )
    parser.add_argument("--json", help="file that gets a line of figures")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--profile", action="store_true", help="print where the full step spends its time")
    parser.add_argument("--one-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    (profile if args.profile else measure_memory if args.memory else measure)(args)


if __name__ == "__main__":
    main()
