"""Throughput of ``afire predict`` beside its two parts: decoding alone, and the network alone.

    python benchmarks/predict.py
    python benchmarks/predict.py --images FOLDER --model runs/mine/models --repeats 5

Without arguments phantoms are drawn and a network with random weights is used (ViT-Ti/6 at 128 px, a classifier; with
``--anomaly`` a detector with its reference). The three are measured in turn, so that other work on the machine falls on
all of them. Decoding has threads of its own, the network has PyTorch's: ``--workers`` and ``--threads`` should together
not be more than the cores. The aim is 85 % of the slower part.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from afire_monai.losses import RestorationLoss, TokenContrastiveLoss
from afire_monai.methods import AFiRe
from afire_monai.models.folder import export_task
from afire_monai.networks import ENCODER_PRESETS, AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier
from afire_monai.phantom import write_phantom_dataset
from afire_monai.predictions.anomaly.build_reference import make_reference
from afire_monai.predictions.predict import predict
from afire_monai.predictions.reading import Radiograph, ahead, read_radiograph
from afire_monai.predictions.scoring import Scorer
from afire_monai.radiographs.decode import list_images
from afire_monai.training.finish import export_restorer


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        images = Path(arguments.images) if arguments.images else phantoms(work, arguments.size)
        model = Path(arguments.model) if arguments.model else random_model(work, arguments.anomaly)
        files = [str(f) for f in list_images(images)][: arguments.count]
        measure(files, model, work / "out", arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of radiographs; phantoms unless given")
    parser.add_argument("--model", help="model folder; random weights unless given")
    parser.add_argument("--anomaly", action="store_true", help="random detector in place of a random classifier")
    parser.add_argument("--size", type=int, default=512, help="side of the phantoms in pixels")
    parser.add_argument("--count", type=int, default=128, help="use so many images")
    parser.add_argument("--heatmap", default="none")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def phantoms(folder: Path, size: int) -> Path:
    return write_phantom_dataset(folder / "phantoms", normal=64, abnormal=0, size=size).parent / "images"


def random_model(folder: Path, anomaly: bool) -> Path:
    torch.manual_seed(0)
    encoder = ViTEncoder(image_size=128, **ENCODER_PRESETS["vit_ti6"])
    model = folder / "model"
    if not anomaly:
        export_task(ViTClassifier(encoder, ["A", "B"]), model)
        return model
    decoder = AnomalyRestorationDecoder(192, encoder.grid, 16, dim=128, depth=2, num_heads=4)
    head, bank = TokenHead(192, None, hidden_dim=384), PrototypeBank(100)
    export_restorer(AFiRe(encoder, head, decoder, bank, TokenContrastiveLoss(), RestorationLoss(), None, 2), model)
    make_reference(model, write_phantom_dataset(folder / "normals", normal=40, abnormal=0, size=160))
    return model


def measure(files: list[str], model: Path, out: Path, arguments: argparse.Namespace) -> None:
    scorer = Scorer([model], heatmap=arguments.heatmap)

    def decode() -> None:
        depth = 2 * arguments.batch_size
        for _ in ahead(lambda f: read_radiograph(0, f, scorer.sizes), files, arguments.workers, depth):
            pass

    ready = [r for r in (read_radiograph(i, f, scorer.sizes) for i, f in enumerate(files)) if isinstance(r, Radiograph)]
    batches = [ready[i : i + arguments.batch_size] for i in range(0, len(ready), arguments.batch_size)]

    def compute() -> None:
        for batch in batches:
            scorer.score(batch)

    def whole() -> None:
        shutil.rmtree(out, ignore_errors=True)
        predict(
            files, [model], out, heatmap=arguments.heatmap, batch_size=arguments.batch_size, workers=arguments.workers
        )

    parts: dict[str, Callable[[], None]] = {"decoding": decode, "network": compute, "afire predict": whole}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    processor: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(arguments.repeats + 1):
        for name, run in parts.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - busy)
    report(seconds, processor, len(files), arguments)


def report(
    seconds: dict[str, list[float]], processor: dict[str, list[float]], count: int, arguments: argparse.Namespace
) -> None:
    print(f"{count} images, batch {arguments.batch_size}, {arguments.workers} readers, {arguments.threads} threads")
    print(f"{'':14s} {'images/s':>9s} {'lowest':>8s} {'highest':>8s} {'CPU ms/image':>13s}")
    for name, values in seconds.items():
        rates = sorted(count / s for s in values)
        cost = 1000 * statistics.median(processor[name]) / count
        print(f"{name:14s} {statistics.median(rates):9.1f} {rates[0]:8.1f} {rates[-1]:8.1f} {cost:13.1f}")
    turns = zip(*seconds.values(), strict=True)
    ratios = [max(decoding, network) / total for decoding, network, total in turns]
    print(f"{'ratio':14s} {statistics.median(ratios):9.2f} {min(ratios):8.2f} {max(ratios):8.2f}  (of the slower part)")


if __name__ == "__main__":
    main()
