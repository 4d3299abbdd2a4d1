"""How often the look takes what it should not for a frontal chest radiograph, and the other way round.

    python benchmarks/look.py --data ../shared/data            # error rates
    python benchmarks/look.py --data ../shared/data --fit      # weights for radiographs/frontal_look.py

Real chests of every source, and the same ones turned, inverted and cut, which must not pass; mirrored ones may.
Weights are fitted to one half of the patients, rates are of the other half. With `--fit`, each source is also left
out in turn: how many of its chests pass a look fitted to the other sources.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import RadiographError
from afire_monai.core.quiet import quiet
from afire_monai.radiographs import frontal_look as look
from afire_monai.radiographs.decode import read_picture

Picture = NDArray[np.float32]
CHESTS = ("as it is", "mirrored")
FORMS: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda p: p,
    "mirrored": lambda p: p[:, ::-1],
    "turned by 90°": lambda p: np.rot90(p),
    "turned by 270°": lambda p: np.rot90(p, -1),
    "turned by 180°": lambda p: p[::-1, ::-1],
    "upside down": lambda p: p[::-1],
    "inverted": lambda p: 1 - p,
    "left half": lambda p: p[:, : p.shape[1] // 2],
    "right half": lambda p: p[:, p.shape[1] // 2 :],
    "upper half": lambda p: p[: p.shape[0] // 2],
    "lower half": lambda p: p[p.shape[0] // 2 :],
}
PASSING = 0.997  # of the fitted half's chests


def features(picture: Picture) -> NDArray[np.float64]:
    """Return lung fields and grid, (33,), as `frontal_look` takes them."""
    reduced = look.spread(np.ascontiguousarray(picture))
    return np.concatenate([[look.lung_fields(reduced)], look.chest_grid(reduced).ravel()])


def read_chests(data: Path, most: int) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.str_], NDArray[np.bool_]]:
    """Return features (n, 33) by form, and for each of n pictures its source and whether it is of the fitted half."""
    by_source = defaultdict(list)
    with (data / "cxr" / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            by_source[row["source"]].append((row["path"], row["group"]))
    found: dict[str, list[NDArray[np.float64]]] = {form: [] for form in FORMS}
    sources, fitted = [], []
    for source, rows in sorted(by_source.items()):
        for path, group in random.Random(0).sample(rows, min(most, len(rows))):
            picture = read_picture(data / "cxr" / path).pixels
            for form, turn in FORMS.items():
                found[form].append(features(turn(picture)))
            sources.append(source)
            fitted.append(hashlib.sha256(group.encode()).digest()[-1] % 2 == 0)
    return {form: np.array(values) for form, values in found.items()}, np.array(sources), np.array(fitted)


def fit(
    found: dict[str, NDArray[np.float64]], sources: NDArray[np.str_], half: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], float]:
    """Return weights (33,), bias first, and the log odds that `PASSING` of the chests of this half have."""
    from sklearn.linear_model import LogisticRegression

    forms = [form for form in FORMS if form != "mirrored"]
    each = np.array([1 / (sources[half] == source).sum() for source in sources[half]])
    weights = np.concatenate([each if form in CHESTS else each / (len(forms) - 1) for form in forms])
    grids = np.concatenate([found[form][half, 1:] for form in forms])
    target = np.repeat([form in CHESTS for form in forms], half.sum())
    model = LogisticRegression(C=0.03, max_iter=1000).fit(grids, target, sample_weight=weights / weights.mean())
    chosen = np.concatenate([model.intercept_, model.coef_[0]]).round(2)
    return chosen, float(np.quantile(chosen[0] + found["as it is"][half, 1:] @ chosen[1:], 1 - PASSING))


def passes(values: NDArray[np.float64], weights: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    return (weights[0] + values[:, 1:] @ weights[1:] >= least) & (values[:, 0] >= look.LEAST_LUNG_FIELDS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, default=400, help="pictures of each source")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    found, sources, half = read_chests(args.data, args.most)
    weights, least = np.concatenate([[look.BIAS], look.WEIGHTS.ravel()]), look.LEAST_LIKENESS
    if args.fit:
        weights, least = fit(found, sources, half)
        print(f"bias {weights[0]}, least {least:.2f}, weights\n{weights[1:].reshape(8, 4).tolist()}")
        for source in np.unique(sources):
            one = passes(found["as it is"][sources == source], *fit(found, sources, sources != source))
            print(f"left out {source}: {one.mean():.1%} of {one.size} pass")
    for form, values in found.items():
        print(f"{form}: {passes(values[~half], weights, least).mean():.1%} of {(~half).sum()} pass")
    for source in np.unique(sources):
        chests = passes(found["as it is"][~half & (sources == source)], weights, least)
        print(f"  chests of {source}: {chests.mean():.1%} of {chests.size}")
    for path in sorted((args.data / "dicom").glob("*/*.dcm")):
        try:
            with quiet():
                picture = read_picture(path, modalities=None).pixels
        except RadiographError:
            continue
        print(f"{path.parent.name}/{path.stem}: {'passes' if look.looks_frontal(picture) else 'does not pass'}")


if __name__ == "__main__":
    main()
