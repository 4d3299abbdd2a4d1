"""Anomalies without labels: what a pre-trained encoder adds over fresh weights, over raw pixels, and over chance.

For one data list: the normal radiographs of its training section are the reference; test images are scored; AUROC of
abnormal against normal images, and, where test images have boxes, whether heatmaps point at them. Patients apart,
bootstrap 95 % intervals over patients.

    python benchmarks/anomaly.py --datalist nih.json --model afire=runs/first/models

Rows: each model with the parts tokens and density (the default where a model names none) and with tokens alone; fresh
weights of the same architecture (tokens; several seeds, each judged by itself, their figures averaged); principal
components of raw pixels (squared error of the reconstruction from 32 components); and two maps that see no picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from judging import Cases, anomaly_scores, localisation, named, reference_and_test, reference_of
from sklearn.decomposition import PCA
from torch import Tensor

from afire_monai.evaluation.bootstrap import Interval, bootstrap_auroc
from afire_monai.evaluation.localisation import centre_figures, prior_figures, summarise
from afire_monai.networks import Encoder, encoder_from_config
from afire_monai.predictions.anomaly.detector import DEFAULT_PARTS, AnomalyDetector, load_detector

Scored = tuple[np.ndarray, np.ndarray]  # scores (n,), heatmaps (n, h, w) in 0…1


def by_detector(detector: AnomalyDetector, parts: Sequence[str], normal: Cases, test: Cases) -> Scored:
    """Score with the project's detector and reference."""
    scores, heat = anomaly_scores(detector, reference_of(detector, normal, parts), test)
    return scores["sum"], heat["sum"]


def by_pixels(normal: Tensor, test: Tensor, components: int = 32) -> Scored:
    """Score by the error of a reconstruction from the principal components of normal pictures of 64 x 64 pixels."""
    small = [F.interpolate(x, (64, 64), mode="area")[:, 0] for x in (normal, test)]
    model = PCA(min(components, len(normal) - 1), random_state=0).fit(small[0].flatten(1).numpy())
    restored = model.inverse_transform(model.transform(small[1].flatten(1).numpy())).reshape(small[1].shape)
    error = torch.from_numpy((small[1].numpy() - restored) ** 2)
    smooth = F.avg_pool2d(error[:, None].float(), 9, 1, 4, count_include_pad=False)[:, 0]
    return error.mean((1, 2)).numpy(), (smooth / smooth.max()).numpy()


def averaged(intervals: list[Interval]) -> str:
    """Mean of figures over seeds; the interval is that of the seeds' own, averaged bound by bound."""
    mean = Interval(*(float(np.mean([interval[k] for interval in intervals])) for k in range(3)))
    spread = f", s.d. over seeds {np.std([i.value for i in intervals], ddof=1):.3f}" if len(intervals) > 1 else ""
    return f"{mean}{spread}"


def row(name: str, runs: list[Scored], test: Cases) -> str:
    """Write the figures of one way of scoring, averaged over its seeds."""
    cells = [name, averaged([bootstrap_auroc(test.abnormal, score, test.groups) for score, _ in runs])]
    if test.lesions:
        found = [localisation(heat, test.lesions) for _, heat in runs]
        cells += [averaged([f.pointing for f in found]), averaged([f.pixel_auroc for f in found])]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", required=True)
    parser.add_argument("--model", action="append", default=[], required=True, help="NAME=model folder")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of fresh weights")
    args = parser.parse_args()
    detectors = {name: load_detector(folder) for name, folder in named("--model", args.model, "folder").items()}
    sizes = {detector.canvas_size for detector in detectors.values()}
    normal, test = reference_and_test(args.datalist, sizes)
    abnormal, cases = test.abnormal, test.lesions
    print(f"{args.datalist}: {len(normal.groups)} normal images as reference, {len(abnormal)} test images")
    print(f"({abnormal.sum()} abnormal, {len(cases)} with boxes) of {len(set(test.groups))} patients\n")
    print("| scored by | AUROC (95 %) |" + (" pointing | pixel AUROC |" if cases else ""))
    print("|---|---|" + ("---|---|" if cases else ""))
    show: Callable[..., None] = lambda name, runs: print(row(name, runs, test), flush=True)  # noqa: E731
    architectures: dict[str, tuple[Encoder, int]] = {}
    for name, detector in detectors.items():
        for parts in dict.fromkeys([DEFAULT_PARTS, ("tokens",)]):
            show(f"{name}, {' and '.join(parts)}", [by_detector(detector, parts, normal, test)])
        shift = detector.canvas.shift
        architectures.setdefault(str((detector.encoder.config, shift)), (detector.encoder, shift))
    for encoder, shift in architectures.values():
        fresh = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            detector = AnomalyDetector(encoder_from_config(encoder.config), shift).eval()
            fresh.append(by_detector(detector, ("tokens",), normal, test))
        show("fresh weights, tokens", fresh)
    pixels = [some.pictures[max(sizes)].float() for some in (normal, test)]
    show("raw pixels, principal components", [by_pixels(pixels[0], pixels[1])])
    if cases:
        for name, figures in (("centre of the picture", centre_figures), ("mean lesion of others", prior_figures)):
            made = summarise(figures(list(cases.values())), list(cases.values()))
            print(f"| {name} | sees no picture | {made.pointing} | {made.pixel_auroc} |")


if __name__ == "__main__":
    main()
