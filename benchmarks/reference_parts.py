"""What a reference should judge by and draw: the choice behind the references that come with the package.

    python benchmarks/reference_parts.py MODELS --data adults=nih.json --data children=kermany.json

First table: AUROC of abnormal against normal for each combination of at most three of `--parts`.
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
from typing import Any

import numpy as np
import torch
from judging import Cases, Population, localisation, named, read_population
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.evaluation.localisation import prior_figures
from afire_monai.predictions.anomaly.build_reference import FOLDS, build_reference
from afire_monai.predictions.anomaly.detector import (
    PARTS,
    AnomalyDetector,
    AnomalyFeatures,
    enlarge_cells,
    heat_of,
    load_detector,
    smooth_cells,
)
from afire_monai.predictions.anomaly.normals import fit_tokens

SIDE = (256, 256)


class Remembered:
    """What a detector sees in pictures, computed once: a detector whose images are places among them."""

    def __init__(self, detector: AnomalyDetector, pictures: Tensor, parts: Sequence[str]) -> None:
        self.parts, self.canvas = detector.parts, detector.canvas
        seen = [detector.features(some.float(), parts) for some in pictures.split(16)]
        self.tokens = torch.cat([found.tokens for found in seen])
        self.class_token = torch.cat([found.class_token for found in seen if found.class_token is not None])
        self.cells = {name: torch.cat([found.cells[name] for found in seen]) for name in seen[0].cells}

    def features(self, places: Tensor, *args: object, **kwargs: object) -> AnomalyFeatures:
        """Return the features of the pictures at these places."""
        cells = {name: values[places] for name, values in self.cells.items()}
        grid = self.canvas.canvas_grid
        return AnomalyFeatures(self.tokens[places], grid, cells, class_token=self.class_token[places])


def print_combinations(detector: AnomalyDetector, population: Population, parts: Sequence[str]) -> None:
    """Print the first table."""
    kept = {"normals": population.normals, **population.scored}
    seen: Any = {
        name: Remembered(detector, cases.pictures[detector.canvas_size], parts) for name, cases in kept.items()
    }
    print("| parts | AUROC |\n|---|---|")
    for count in range(1, min(3, len(parts)) + 1):
        for some in itertools.combinations(parts, count):
            normals = torch.arange(len(population.normals.groups))
            reference = build_reference(seen["normals"], [normals], list(population.normals.groups), some)
            figures = []
            for name, cases in population.scored.items():
                features = seen[name].features(torch.arange(len(cases.abnormal)))
                figures.append(roc_auc_score(cases.abnormal, reference.judge(features, SIDE).score))
            print(f"| {', '.join(some)} | {' / '.join(f'{value:.3f}' for value in figures)} |", flush=True)


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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["tokens", "density", "class_density"])
    parser.add_argument("--maps", action=argparse.BooleanOptionalAction, default=True, help="print the second table")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    detector = load_detector(args.model)
    for data, path in named("--data", args.data).items():
        population = read_population(path, [detector.canvas_size], needed=("training", "validation", "test"))
        print(f"\n{data}: {len(population.normals.groups)} normals\n")
        print_combinations(detector, population, args.parts)
        known = [population.training, population.scored["validation"]]
        if args.maps and population.scored["test"].lesions:
            print_maps(detector, population.normals, known, population.scored["test"])


if __name__ == "__main__":
    main()
