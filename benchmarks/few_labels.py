"""Classifiers from few labels: `afire probe`, with and without the distance from normals, or fine-tuning.

    python benchmarks/few_labels.py --data adults=nih.json --data children=kermany.json --encoder mine=runs/mine/models
    python benchmarks/few_labels.py --data adults=nih.json --encoder mine=runs/mine/models --tune OUT --set lr=0.0016

For each number of labelled training images, half of them abnormal, that many are drawn repeatedly, and the same ones
for every encoder. All normal images of the training section count as known to be normal, as in pre-training.
Printed is the AUROC of abnormal against normal on the test section: mean and standard deviation over draws, without
and with the distance; *pixels* are the grey levels of 32 x 32 averages in place of features. Strength and trust were
chosen by `--section validation`.

With `--tune OUT` the drawn images fine-tune each encoder by the bundle's config instead: a fifth of their patients,
at least one of each kind, validates (no label outside the drawn ones is used), and one figure is printed. Results are
kept in OUT/results.jsonl; what is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_parts import stored_rows
from judging import PIXELS, Items, Population, known_items, named, read_population
from sklearn.metrics import roc_auc_score
from torch import Tensor

from afire_monai.cli.bundle import run_configs
from afire_monai.datalists.file import abnormality, datalist_hash, load_datalist, normal_label, save_datalist
from afire_monai.datalists.patients import patient_of
from afire_monai.evaluation.probes import extract_features, raw_pixels
from afire_monai.models.folder import load_encoder, model_files, weights_hashes
from afire_monai.networks import Encoder, ViTClassifier, ViTEncoder
from afire_monai.predictions.format import load_predictions
from afire_monai.training.probe import STRENGTH, TRUST, fit_distance, fit_head, logits_of
from afire_monai.training.settings import parse_value


def draws(truth: np.ndarray, count: int, number: int) -> list[np.ndarray]:
    """Return the places of ``count`` images, half of them abnormal, ``number`` times; all if there are no more."""
    if count >= len(truth):
        return [np.arange(len(truth))]
    rng = np.random.default_rng(count)
    kinds = [np.flatnonzero(truth == kind) for kind in (0, 1)]
    if count // 2 > min(map(len, kinds)):
        raise SystemExit(f"--counts {count}: there are {len(kinds[0])} normal and {len(kinds[1])} abnormal images")
    return [np.concatenate([rng.choice(kind, count // 2, False) for kind in kinds]) for _ in range(number)]


def counts_of(counts: Sequence[int], images: int) -> list[int]:
    """Return the numbers of labels that can be drawn: even ones, or all images."""
    return sorted({count - count % 2 if count < images else images for count in counts})


def scores(
    encoder: Encoder,
    features: dict[str, Tensor],
    population: Population,
    count: int,
    args: argparse.Namespace,
) -> np.ndarray:
    """Return (draws, 2) AUROC without and with the distance from normal images; features are those of the encoder."""
    train, scored = population.training, population.scored[args.section]
    known = dict(enumerate(features["training"]))
    normal = np.flatnonzero(train.abnormal == 0).tolist()
    found = []
    for places in draws(train.abnormal, count, args.draws):
        chosen = [{"place": int(k), "target": [float(train.abnormal[k])]} for k in places]
        row = []
        for some in ([], normal):
            network: Any = ViTClassifier(encoder, ["abnormal"], "summary", normality=True)
            distance = fit_distance(network.normality, known, some, [train.groups[k] for k in some])
            fit_head(network, known, distance, chosen, "training", args.strength, args.trust)
            row.append(roc_auc_score(scored.abnormal, logits_of(network, features[args.section])[:, 0]))
        found.append(row)
    return np.array(found)


def drawn_list(content: Any, places: Sequence[int], section: str, seed: int) -> dict[str, Any]:
    """Return a list of the drawn training images, a fifth of whose patients validate; its one label is abnormal."""
    labels, normal = content["labels"], normal_label(content)

    def judged(items: Items) -> Items:
        return [
            {"image": i["image"], "group": patient_of(i), "label": [int(abnormality(i, labels, normal))]} for i in items
        ]

    chosen = judged([content["training"][place] for place in places])
    held_back: set[str] = set()
    for kind in (0, 1):
        patients = sorted({patient_of(item) for item in chosen if item["label"][0] == kind} - held_back)
        np.random.default_rng(seed).shuffle(patients)
        held_back.update(patients[: max(1, len(patients) // 5)])
    return {
        "labels": ["abnormal"],
        "meta": content.get("meta", {}),
        "training": [item for item in chosen if patient_of(item) not in held_back],
        "validation": [item for item in chosen if patient_of(item) in held_back],
        "test": judged(known_items(content, content[section], section)),
    }


def tuned(folder: str, drawn: dict[str, Any], work: Path, settings: dict[str, Any]) -> float:
    """Fine-tune once; return the AUROC of the test section."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_datalist(drawn, work / "drawn.json")
    size = load_encoder(folder).image_size[0]
    given = {"datalist": str(work / "drawn.json"), "output_dir": str(work), "init": folder, "image_size": size}
    run_configs({**given, **settings}, ("finetune_classification.yaml",))
    found = load_predictions(work / "predictions" / "test")
    truth = [drawn["test"][place]["label"][0] for place in found.index]
    return float(roc_auc_score(truth, found.scores["abnormal"]))


def tune(args: argparse.Namespace) -> None:
    """Fine-tune each encoder on each draw, and print the table."""
    out, encoders, lists = Path(args.tune), named("--encoder", args.encoder, "folder"), named("--data", args.data)
    settings = {key: parse_value(value) for key, value in named("--set", args.set, None).items()}
    out.mkdir(parents=True, exist_ok=True)
    done = {row["key"]: row["auroc"] for row in stored_rows(out / "results.jsonl", mend=True)}
    for name, path in lists.items():
        content: Any = load_datalist(path)
        content["training"] = known_items(content, content["training"], f"{path}, training")
        truth = np.array([abnormality(i, content["labels"], normal_label(content)) for i in content["training"]])
        counts = counts_of(args.counts, len(truth))
        print(
            f"\n**{name}, {args.section}, fine-tuned**\n\n| encoder | "
            + " | ".join(f"{c} labels" for c in counts)
            + " |"
        )
        print("|---" * (len(counts) + 1) + "|")
        for encoder, folder in encoders.items():
            weights = weights_hashes(model_files([folder]))["encoder"][:16]
            cells = []
            for count in counts:
                values = []
                for number in range(args.draws):  # of all images, a draw is another choice of those that validate
                    places = draws(truth, count, args.draws)[number if count < len(truth) else 0]
                    about = [datalist_hash(content)[:16], args.section, count, number, weights, settings]
                    key = json.dumps(about, sort_keys=True)
                    if key not in done:
                        drawn = drawn_list(content, places.tolist(), args.section, number)
                        done[key] = tuned(folder, drawn, out / "work", {"seed": number, **settings})
                        with (out / "results.jsonl").open("a") as file:
                            file.write(json.dumps({"key": key, "auroc": done[key], "encoder": encoder}) + "\n")
                    values.append(done[key])
                cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
            print(f"| {encoder} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="NAME=datalist.json with labels")
    parser.add_argument("--encoder", action="append", default=[], help="NAME=model folder")
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8, 28, 86, 10_000], help="labelled images")
    parser.add_argument("--draws", type=int, default=20, help="choices of the labelled images")
    parser.add_argument("--section", default="test", choices=("validation", "test"))
    parser.add_argument("--strength", type=float, default=STRENGTH, help="C of the logistic regression")
    parser.add_argument("--trust", type=float, default=TRUST, help="scale of the distance among the features")
    parser.add_argument("--tune", help="folder of results: fine-tune in place of `afire probe`")
    parser.add_argument("--set", nargs="+", default=[], help="key=value of finetune_classification.yaml, with --tune")
    args = parser.parse_args()
    if args.tune:
        tune(args)
        return
    encoders = {name: load_encoder(folder) for name, folder in named("--encoder", args.encoder, "folder").items()}
    sizes = [PIXELS, *(encoder.image_size for encoder in encoders.values())]
    pixels = ViTEncoder(16, 16, embed_dim=32 * 32, depth=1, num_heads=1)  # only for the width of its summary
    for name, path in named("--data", args.data).items():
        population = read_population(path, sizes, needed=("training", args.section))
        sections = {"training": population.training, args.section: population.scored[args.section]}
        counts = counts_of(args.counts, len(population.training.abnormal))
        print(
            f"\n**{name}, {args.section}**\n\n| features | " + " | ".join(f"{count} labels" for count in counts) + " |"
        )
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
                values = scores(encoder, features, population, count, args)
                (without, with_it), deviation = values.mean(0), values.std(0)
                cells.append(f"{without:.3f} ± {deviation[0]:.3f}, {with_it:.3f} ± {deviation[1]:.3f}")
            print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
