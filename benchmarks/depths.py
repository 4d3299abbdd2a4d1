"""Which blocks a classifier on frozen features should read: the choice behind `Encoder.summary`.

    python benchmarks/depths.py MODELS --data adults=nih.json --data children=kermany.json

Class and mean patch token of some blocks, each through the last norm, side by side; with *zones*, the mean tokens of
six regions (three rows, two columns) as well. Labels are drawn as in few_labels.py, and the distance from normal
radiographs, that of the last block's mean token, is given as `afire probe` gives it. Printed is the AUROC of abnormal
against normal for each strength C of the logistic regression: on the validation section, which decides, and after a
slash on the test section.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from few_labels import counts_of, draws
from judging import named, read_population
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.models.folder import load_encoder
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import NormalDistance
from afire_monai.training.probe import TRUST, fit_distance

CHOICES = {  # shares of the depth
    "1": (1.0,),
    "1/2, 1": (0.5, 1.0),
    "1/3, 2/3, 1": (1 / 3, 2 / 3, 1.0),
    "1/2, 3/4, 1": (0.5, 0.75, 1.0),
    "1/4, 1/2, 3/4, 1": (0.25, 0.5, 0.75, 1.0),
}


@torch.no_grad()
def tokens_of(encoder: ViTEncoder, images: Tensor) -> Tensor:
    """Return (n, blocks, 8, D): class token, mean token, and the means of six regions after each block."""
    found = []
    for some in images.split(16):
        states = [
            encoder.norm(s) for s in encoder.hidden_states(some.float().expand(-1, encoder.in_channels, -1, -1))[1:]
        ]
        grids = [s[:, 1:].transpose(1, 2).unflatten(2, encoder.grid) for s in states]
        zones = [torch.nn.functional.adaptive_avg_pool2d(g, (3, 2)).flatten(2).transpose(1, 2) for g in grids]
        parts = [
            torch.cat([s[:, :1], s[:, 1:].mean(1, keepdim=True), z], 1) for s, z in zip(states, zones, strict=True)
        ]
        found.append(torch.stack(parts, 1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder with the encoder of a vision transformer")
    parser.add_argument("--data", action="append", required=True, help="NAME=datalist.json with labels")
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 28, 86, 10_000], help="labelled images")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.01, 0.003, 0.001], help="strengths C to try")
    parser.add_argument("--draws", type=int, default=20)
    args = parser.parse_args()
    encoder = load_encoder(args.model)
    if not isinstance(encoder, ViTEncoder):
        raise SystemExit(f"{args.model}: the encoder is a {type(encoder).__name__}; a vision transformer is expected")
    for name, path in named("--data", args.data).items():
        population = read_population(path, [encoder.image_size], needed=("training", "validation", "test"))
        counts = counts_of(args.counts, len(population.training.abnormal))
        sections = {"training": population.training, **population.scored}
        tokens = {s: tokens_of(encoder, cases.pictures[encoder.image_size]) for s, cases in sections.items()}
        truth = {s: cases.abnormal for s, cases in sections.items()}
        distance = distances(tokens, truth["training"], population.training.groups)
        header = " | ".join(["blocks, C", *(f"{count} labels" for count in counts)])
        print(f"\n**{name}, validation / test**\n\n| {header} |\n{'|---' * (len(counts) + 1)}|")
        for choice, shares in CHOICES.items():
            for zones, parts in (("", 2), (", zones", 8)):
                blocks = [round(share * encoder.depth) - 1 for share in shares]
                features = {s: t[:, blocks, :parts].flatten(1).numpy() for s, t in tokens.items()}
                center, scale = features["training"].mean(0), features["training"].std(0) + 1e-6
                rows = {s: np.c_[(f - center) / scale, TRUST * distance[s]] for s, f in features.items()}
                for strength in args.strengths:
                    cells = [cell(rows, truth, count, args.draws, strength) for count in counts]
                    print(f"| {choice}{zones}, {strength:g} | {' | '.join(cells)} |", flush=True)


def distances(tokens: dict[str, Tensor], abnormal: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Return how unlike normal radiographs the images of each section are; see `fit_distance`."""
    normality = NormalDistance(tokens["training"].shape[-1])
    known = np.flatnonzero(abnormal == 0).tolist()
    means = {s: t[:, -1, 1] for s, t in tokens.items()}
    own = fit_distance(normality, dict(enumerate(means["training"])), known, [groups[k] for k in known])
    found = {s: normality(mean)[:, 0].numpy() for s, mean in means.items()}
    return {**found, "training": np.array([own[place] for place in range(len(abnormal))])}


def cell(rows: dict[str, np.ndarray], truth: dict[str, np.ndarray], count: int, number: int, strength: float) -> str:
    """Return the mean AUROC over draws, as text."""
    values = []
    for places in draws(truth["training"], count, number):
        model = LogisticRegression(C=strength, max_iter=1000).fit(rows["training"][places], truth["training"][places])
        values.append([roc_auc_score(truth[s], model.decision_function(rows[s])) for s in ("validation", "test")])
    return "{:.3f} / {:.3f}".format(*np.mean(values, 0))


if __name__ == "__main__":
    main()
