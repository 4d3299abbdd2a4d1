"""Classifiers from few labels: what `afire probe` makes of frozen features, with and without the distance from normals.

    python benchmarks/few_labels.py --data adults=nih.json --data children=kermany.json --encoder mine=runs/mine/models

For each number of labelled training images, half of them abnormal, that many are drawn again and again, and the same
ones for every encoder. All normal images of the training section count as known to be normal, as in pre-training.
Printed is the AUROC of abnormal against normal on the test section: mean and standard deviation over draws, without
and with the distance; *pixels* are the grey levels of 32 x 32 averages in place of features. Strength and trust were
chosen by `--section validation`.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from judging import PIXELS, Population, read_population
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.evaluation.probes import extract_features, raw_pixels
from afire_monai.models.folder import load_encoder
from afire_monai.networks import Encoder, ViTClassifier, ViTEncoder
from afire_monai.training.probe import fit_distance, fit_head, logits_of


def draws(truth: np.ndarray, count: int, number: int) -> list[np.ndarray]:
    """Return the places of ``count`` images, half of them abnormal, ``number`` times; all if there are no more."""
    if count >= len(truth):
        return [np.arange(len(truth))]
    rng = np.random.default_rng(count)
    kinds = [np.flatnonzero(truth == kind) for kind in (0, 1)]
    return [np.concatenate([rng.choice(kind, count // 2, False) for kind in kinds]) for _ in range(number)]


def scores(
    encoder: Encoder, features: dict[str, Tensor], population: Population, section: str, count: int, number: int
) -> np.ndarray:
    """Return (draws, 2) AUROC without and with the distance from normal images; features are those of the encoder."""
    train, scored = population.training, population.scored[section]
    known = dict(enumerate(features["training"]))
    normal = np.flatnonzero(train.abnormal == 0).tolist()
    found = []
    for places in draws(train.abnormal, count, number):
        chosen = [{"place": int(k), "target": [float(train.abnormal[k])]} for k in places]
        row = []
        for some in ([], normal):
            network: Any = ViTClassifier(encoder, ["abnormal"], "summary", normality=True)
            distance = fit_distance(network.normality, known, some, [train.groups[k] for k in some])
            fit_head(network, known, distance, chosen, "training")
            row.append(roc_auc_score(scored.abnormal, logits_of(network, features[section])[:, 0]))
        found.append(row)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="NAME=datalist.json with labels")
    parser.add_argument("--encoder", action="append", default=[], help="NAME=model folder")
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 28, 86, 10_000], help="labelled images")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--section", default="test", choices=("validation", "test"))
    args = parser.parse_args()
    encoders = {name: load_encoder(folder) for name, folder in (pair.split("=", 1) for pair in args.encoder)}
    sizes = [PIXELS, *(encoder.image_size for encoder in encoders.values())]
    pixels = ViTEncoder(16, 16, embed_dim=32 * 32, depth=1, num_heads=1)  # only for the width of its summary
    for name, path in (pair.split("=", 1) for pair in args.data):
        population = read_population(path, sizes)
        sections = {"training": population.training, args.section: population.scored[args.section]}
        counts = sorted({min(count, len(population.training.abnormal)) for count in args.counts})
        print(f"\n**{name}, {args.section}**\n\n| features | " + " | ".join(f"{count} labels" for count in counts))
        print("|---" * (len(counts) + 1) + "|")
        for label in (*encoders, "pixels"):
            features = {}
            for section, cases in sections.items():
                if label == "pixels":
                    flat = torch.from_numpy(raw_pixels(cases.pictures[PIXELS].float()))
                    features[section] = flat.repeat(1, 4)
                else:
                    pictures = cases.pictures[encoders[label].image_size]
                    features[section] = torch.from_numpy(extract_features(encoders[label], pictures, "summary"))
            cells = []
            for count in counts:
                encoder = encoders.get(label, pixels)
                values = scores(encoder, features, population, args.section, count, args.draws)
                (without, with_it), deviation = values.mean(0), values.std(0)
                cells.append(f"{without:.3f} ± {deviation[0]:.3f}, {with_it:.3f} ± {deviation[1]:.3f}")
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
