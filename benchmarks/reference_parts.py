"""What a reference should judge by and draw: the choice behind the references that come with the package.

    python benchmarks/reference_parts.py MODELS --data adults=nih.json --data children=kermany.json

First table: AUROC of abnormal against normal for each combination of `tokens`, `density` and `class_density`.
Second table, where pictures have boxes: share of pictures whose map is highest in a box, and AUROC of pixels, for the
distance of tokens after half, three quarters and all of the blocks to the normals of their cell; less the cell's own
mean (`cell`) or one mean for all cells (`one`), in standard deviations of the cell; as it is, and smoothed. Below them
are two maps that see no picture: the mean distance of normal radiographs, and the mean lesion of other patients.
Combinations are chosen on the validation section, maps on the boxes of the training and validation sections; after a
slash is the test section.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from judging import Cases, anomaly_scores, localisation, named, read_population, reference_of
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.evaluation.localisation import prior_figures
from afire_monai.predictions.anomaly.build_reference import FOLDS
from afire_monai.predictions.anomaly.detector import (
    AnomalyDetector,
    enlarge_cells,
    heat_of,
    load_detector,
    smooth_cells,
)
from afire_monai.predictions.anomaly.normals import fit_tokens

PARTS = ("tokens", "density", "class_density")
SIDE = (256, 256)


@torch.no_grad()
def tokens_of(detector: AnomalyDetector, cases: Cases, places: Sequence[int], blocks: Sequence[int]) -> list[Tensor]:
    """Return for each block the tokens (n, N, D) of these images."""
    kept: list[list[Tensor]] = [[] for _ in blocks]
    for some in cases.pictures[detector.canvas_size][list(places)].split(16):
        found = detector.features(some.float(), ("tokens",), layers=blocks)
        for block, tokens in zip(blocks, kept, strict=True):
            tokens.append((found.tokens if block == detector.encoder.depth - 1 else found.layers[block]).half())
    return [torch.cat(tokens) for tokens in kept]


def print_maps(detector: AnomalyDetector, normals: Cases, known: Sequence[Cases], test: Cases) -> None:
    """Print the second table."""
    depth = detector.encoder.depth
    blocks = [depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    grid = detector.canvas.canvas_grid
    sections = [*known, test]
    names = {name: place for place, name in enumerate(dict.fromkeys(normals.groups.tolist()))}
    fold = torch.tensor([names[group] for group in normals.groups.tolist()]) % FOLDS
    of_normals = tokens_of(detector, normals, range(len(normals.groups)), blocks)
    seen = [tokens_of(detector, cases, list(cases.lesions), blocks) for cases in sections]

    def show(name: str, maps: Sequence[Tensor]) -> None:
        figures = []
        for some in (range(len(known)), range(len(known), len(sections))):
            lesions = dict(enumerate(case for k in some for case in sections[k].lesions.values()))
            heat = heat_of(enlarge_cells(torch.cat([maps[k] for k in some]), grid, SIDE)).numpy()
            found = localisation(heat, lesions, repeats=1).per_case
            figures.append((found["pointing"].mean(), found["pixel_auroc"].mean()))
        columns = (f"{known_figure:.3f} / {figure:.3f}" for known_figure, figure in zip(*figures, strict=True))
        print(f"| {name} | {' | '.join(columns)} |", flush=True)

    print("\n| map | points | pixel AUROC |\n|---|---|---|")
    for k, block in enumerate(blocks):
        gaussian, distances = fit_tokens(of_normals[k], fold)
        own, std = distances.mean(0), distances.std(0)
        values = [gaussian.distance(tokens[k].float()) for tokens in seen]
        for words, mean in (("cell", own), ("one", distances.mean())):
            maps = [(value - mean) / std for value in values]
            show(f"block {block + 1} of {depth}, {words}", maps)
            show(f"block {block + 1} of {depth}, {words}, smoothed", [smooth_cells(some, grid) for some in maps])
        alone = (own - own.mean()) / own.std()
        show(f"block {block + 1}, mean of normals", [alone.expand(len(value), -1) for value in values])
    sees_none = ([case for cases in known for case in cases.lesions.values()], [*test.lesions.values()])
    prior = (np.mean([figures.pointing for figures in prior_figures(cases)]) for cases in sees_none)
    print(f"| mean lesion of others | {' / '.join(f'{value:.3f}' for value in prior)} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder")
    parser.add_argument("--data", action="append", required=True, help="NAME=datalist.json with labels")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    detector = load_detector(args.model)
    for data, path in named("--data", args.data).items():
        population = read_population(path, [detector.canvas_size], needed=("training", "validation", "test"))
        print(f"\n{data}: {len(population.normals.groups)} normals\n\n| parts | AUROC |\n|---|---|")
        for count in (1, 2, 3):
            for parts in itertools.combinations(PARTS, count):
                reference = reference_of(detector, population.normals, parts)
                found = (
                    roc_auc_score(cases.abnormal, anomaly_scores(detector, reference, cases)[0]["sum"])
                    for cases in population.scored.values()
                )
                print(f"| {', '.join(parts)} | {' / '.join(f'{value:.3f}' for value in found)} |", flush=True)
        known = [population.training, population.scored["validation"]]
        if population.scored["test"].lesions:
            print_maps(detector, population.normals, known, population.scored["test"])


if __name__ == "__main__":
    main()
