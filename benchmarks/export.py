"""Start-up time and speed of an encoder in PyTorch, as TorchScript, exported program and ONNX, in one run.

    python benchmarks/export.py --preset vit_ti --size 224

Each runtime has a process of its own, which imports only what it needs, loads the model and computes one image; that is
the start-up. Then it computes batches on one thread. Rounds alternate between runtimes; the best of each is printed,
with ratios to PyTorch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOADERS = {
    "eager": "import torch, afire_monai; net = afire_monai.load_encoder(path)",
    "torchscript": "import torch; net = torch.jit.load(path)",
    "torch_export": "import torch; net = torch.export.load(path).module()",
    "onnx": (
        "import onnxruntime; options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1\n"
        "session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])\n"
        "net = lambda images: session.run(None, {'images': images})"
    ),
}
RUN = """
import sys, time, contextlib, warnings
warnings.simplefilter('ignore')
import numpy as np
path, side, batch, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
{loader}
torch = sys.modules.get('torch')
if torch is not None:
    torch.set_num_threads(1)
images = np.random.default_rng(0).random((batch, 1, side, side), dtype=np.float32)
images = images if torch is None else torch.from_numpy(images)
with contextlib.nullcontext() if torch is None else torch.inference_mode():
    net(images[:1])
    print(time.time(), flush=True)
    net(images)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        net(images)
        count += batch
    print(count / (time.process_time() - start))
"""


def measure(runtime: str, path: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return seconds from the start of the process to the first result, and images a second of processor time."""
    code = RUN.replace("{loader}", LOADERS[runtime])
    command = [sys.executable, "-c", code, str(path), str(args.size), str(args.batch), str(args.seconds)]
    start = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return float(output[-2]) - start, float(output[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vit_ti")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from afire_monai.models.export import SUFFIXES, export_graph
    from afire_monai.models.folder import export_encoder
    from afire_monai.networks import build_encoder
    from afire_monai.predictions.exportable import comparison_images, load_exportable

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_encoder(build_encoder(args.preset, image_size=args.size), folder)
        paths = {"eager": folder}
        exportable = load_exportable(folder, "encoder")
        images = comparison_images(exportable.size, (), "test", 4)
        for form, suffix in SUFFIXES.items():
            start = time.time()
            report = export_graph(exportable, images, folder / f"exported{suffix}", form)
            paths[form] = report.path
            difference = report.differences["tokens"]
            print(f"{form}: exported in {time.time() - start:.1f} s, differs by {difference:.1e}", flush=True)
        found: dict[str, list[tuple[float, float]]] = {runtime: [] for runtime in LOADERS}
        for _ in range(args.rounds):
            for runtime, measured in found.items():
                measured.append(measure(runtime, paths[runtime], args))
    best = {name: (min(m[0] for m in some), max(m[1] for m in some)) for name, some in found.items()}
    first_start, first_speed = best["eager"]
    print(f"\n{args.preset}, {args.size} px, batches of {args.batch}, one thread, best of {args.rounds} rounds")
    print("| runtime | start-up s | ratio | images/s | ratio |\n|---|---|---|---|---|")
    for runtime, (start_up, speed) in best.items():
        print(
            f"| {runtime} | {start_up:.2f} | {start_up / first_start:.2f} | {speed:.1f} | {speed / first_speed:.2f} |"
        )


if __name__ == "__main__":
    main()
