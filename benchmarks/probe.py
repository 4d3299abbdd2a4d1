"""Frozen-encoder probes: what pre-training adds over the same encoder before it, and over raw pixels.

For one label of a data list: k-nearest neighbours and a logistic regression on frozen features, trained on the list's
training and validation images, scored on its test images (patients apart), with bootstrap 95 % intervals over patients
and paired differences.

    python benchmarks/probe.py --datalist nih.json --label Pneumonia --encoder runs/first/models

The row "before pre-training" is the same architecture with the weights that the seed gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import groups_of, pictures

from afire_monai.datalists.file import is_normal, load_datalist, normal_label
from afire_monai.evaluation.bootstrap import bootstrap_auroc, bootstrap_auroc_difference
from afire_monai.evaluation.probes import extract_features, knn_probe, linear_probe, raw_pixels
from afire_monai.models.folder import load_encoder
from afire_monai.networks import encoder_from_config


def cases(datalist: str, label: str, sections: tuple[str, ...]) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Items of the sections that are normal or have the label, with label values and patients."""
    content = load_datalist(datalist)
    place = content["labels"].index(label)
    items = [item for section in sections for item in content.get(section, [])]
    items = [i for i in items if is_normal(i, content["labels"], normal_label(content)) or i["label"][place] == 1]
    values = np.array([int(i["label"][place] == 1) for i in items])
    return items, values, groups_of(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", required=True)
    parser.add_argument("--label", default="Pneumonia")
    parser.add_argument("--encoder", required=True, nargs="+", help="folders with encoder.safetensors")
    parser.add_argument("--pooling", nargs="+", default=["mean", "regions"])
    parser.add_argument("--seed", type=int, default=0, help="of the encoder before pre-training, and of the folds")
    args = parser.parse_args()
    encoders = {path: load_encoder(path) for path in args.encoder}
    first = next(iter(encoders.values()))
    if any(encoder.config != first.config for encoder in encoders.values()):
        raise SystemExit("--encoder: one architecture, size and grey levels are expected; judge.py takes any")
    train, train_labels, train_groups = cases(args.datalist, args.label, ("training", "validation"))
    test, labels, groups = cases(args.datalist, args.label, ("test",))
    if shared := set(train_groups) & set(groups):
        raise SystemExit(f"{len(shared)} patients are in training and test images")
    train_images, test_images = (pictures(x, [first.image_size])[first.image_size].float() for x in (train, test))
    print(f"{Path(args.datalist).name}, {args.label} against normal: {len(train)} training images", end=" ")
    print(f"({train_labels.sum()} positive), {len(test)} test images ({labels.sum()} positive) ", end="")
    print(f"of {len(set(groups))} patients\n")
    torch.manual_seed(args.seed)
    before = encoder_from_config(first.config).eval()
    features = {("raw pixels, 32 x 32", "-"): (raw_pixels(train_images), raw_pixels(test_images))}
    for pooling in args.pooling:
        for name, encoder in {"before pre-training": before, **encoders}.items():
            features[name, pooling] = (
                extract_features(encoder, train_images, pooling),
                extract_features(encoder, test_images, pooling),
            )
    scores: dict[tuple[str, str, str], np.ndarray] = {}
    for (name, pooling), (a, b) in features.items():
        scores[name, pooling, "k-NN"] = knn_probe(a, train_labels, b)
        scores[name, pooling, "linear"] = linear_probe(a, train_labels, b, train_groups, args.seed)
    print("| encoder | features | probe | AUROC (95 %) | minus raw pixels | minus before pre-training |")
    print("|---|---|---|---|---|---|")
    for (name, pooling, probe), values in scores.items():
        row = [name, pooling, probe, str(bootstrap_auroc(labels, values, groups))]
        raw = scores["raw pixels, 32 x 32", "-", probe]
        row.append("" if values is raw else str(bootstrap_auroc_difference(labels, values, raw, groups)))
        base = scores.get(("before pre-training", pooling, probe))
        if base is None or base is values:
            row.append("")
        else:
            row.append(str(bootstrap_auroc_difference(labels, values, base, groups)))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
