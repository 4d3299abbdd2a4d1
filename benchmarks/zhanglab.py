"""Public yardsticks with published figures: ZhangLab, PneumoniaMNIST, and the chest radiographs of BMAD.

    python benchmarks/zhanglab.py one-class --out zhanglab --root chest_xray --set epochs=20 --seeds 3
    python benchmarks/zhanglab.py supervised --out zhanglab --root chest_xray
    python benchmarks/zhanglab.py one-class --out others --root chest_xray --encoder mine=runs/mine/models
    python benchmarks/zhanglab.py supervised --out mnist --medmnist pneumoniamnist_224.npz
    python benchmarks/zhanglab.py one-class --out bmad --bmad RSNA

`one-class`: pre-train on the normal images of the training folder alone, once for each seed; the same images are the
reference; score the test folder; AUROC of abnormal against normal. The only label used is that training images are
normal, and no figure of the test chooses anything: `--parts` is given beforehand.
`supervised`: fine-tune these encoders on the training folder with labels; AUROC, and accuracy at the threshold of
Youden's index on a tenth of the training patients, which also choose the epoch. With `--probe` the encoders stay as
they are, and a logistic regression is fitted (`afire probe`): minutes on a CPU.

`--root` is the folder as published (train, test, each with NORMAL and PNEUMONIA). `--cxr` is a folder with
manifest.csv that names the sources kermany and kermany224 (training) and with kermany_test_open/manifest.csv, half of
the test patients; its groups do not show whether a patient is in both. `--medmnist` is a file of PneumoniaMNIST, whose
pictures are unpacked into OUT; `--bmad` a folder with train, valid and test, of which valid is not used. Pictures are
squashed to the encoder's size. `--config` and `--set key=value` are those of the
bundle, `--tune key=value` those of fine-tuning. With `--encoder NAME=FOLDER` (NAME again: another seed) nothing is
pre-trained. What is finished is not repeated, and what was cut off goes on.

Table: mean over seeds, 95 % bootstrap interval over patients and seeds, with published figures below it. Scores of
single images are in OUT/scores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import bundle_command, keep_settings
from compare_parts import stored_rows
from compare_tables import Seeds, auroc_draws, mean_draws
from judge import WAYS, chosen_encoders, print_columns
from judging import anomaly_scores, cases_of, named, reference_of, refuse_shared

from afire_monai.datalists.file import datalist_hash, normal_of, read_raw, save_datalist
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.public import datalist_from_bmad, datalist_from_kermany, datalist_from_medmnist
from afire_monai.models.folder import model_files, weights_hashes
from afire_monai.predictions.anomaly.detector import PARTS, load_detector
from afire_monai.predictions.format import load_predictions
from afire_monai.training.probe import fit_probe

PUBLISHED = {
    "bmad": {
        "BMAD, RSNA, image": "AUROC",
        "CS-Flow": "0.832",
        "CutPaste": "0.826",
        "PatchCore": "0.761",
        "DRAEM": "0.677",
    },
    "one-class": {
        "official test of 234 normal and 390 with pneumonia, trained on 1,349 normals": "AUROC",
        "MemAE": "0.778",
        "SALAD": "0.827",
        "SQUID (epoch chosen by images with pneumonia)": "0.876 (s.d. 0.015)",
        "SimSID (likewise)": "about 0.91",
        "AnatPaste": "0.921",
        "CheXzero (supervised by text)": "0.927",
        "PPAD (supervised by text)": "0.967",
        "logistic regression on 32 x 32 pixels (supervised)": "0.912",
    },
    "supervised": {
        "PneumoniaMNIST: the same images, 4,708 / 524 / 624": "AUROC",
        "ResNet-18, 28 px": "0.944",
        "ResNet-18, 224 px": "0.956",
        "AutoML": "0.991",
        "highest accuracy": "0.946",
    },
}


def sections_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the data list: training, test, and for ZhangLab's folder validation, a tenth of the training patients."""
    if args.root:
        return datalist_from_kermany(args.root, validation=0.1)
    if args.medmnist:
        return datalist_from_medmnist(args.medmnist, images=Path(args.out) / "images")
    if args.bmad:
        return {**datalist_from_bmad(args.bmad), "validation": []}
    folder = Path(args.cxr)
    training: Any = datalist_from_csv(
        folder / "manifest.csv", source=["kermany", "kermany224"], fractions=(0.9, 0.1, 0), name="zhanglab", keep=None
    )
    manifest = folder / "kermany_test_open" / "manifest.csv"
    test: Any = datalist_from_csv(manifest, base_dir=folder, fractions=(0, 0, 1), keep=None)
    return {**training, "test": test["test"]}


def write_lists(args: argparse.Namespace) -> dict[str, Any]:
    """Write OUT/supervised.json and OUT/one_class.json, whose training section is all normals; return the latter."""
    out, content = Path(args.out), sections_of(args)
    if len(content["labels"]) != 2 or content["labels"][0] != "Normal":
        raise SystemExit(f"labels {content['labels']}; Normal and one other are expected")
    normal = [item for name in ("training", "validation") for item in normal_of(content, name)]
    alone = {"name": "zhanglab", "labels": content["labels"], "training": normal, "test": content["test"]}
    refuse_shared({name: content[name] for name in ("training", "validation", "test")}, out)
    save_datalist(content, out / "supervised.json")
    save_datalist(alone, out / "one_class.json")
    return alone


def pretrain(args: argparse.Namespace) -> None:
    """Pre-train on the normal training images, once for each seed, unless another run of OUT already has."""
    out, settings = Path(args.out), named("--set", args.set, None)
    for seed in range(args.seeds):
        folder = out / "runs" / args.name / str(seed)
        configs = ["pretrain.yaml", *args.config]
        keep_settings(folder, {"set": settings}, str(out / "one_class.json"), configs)
        if (folder / "models" / "encoder.safetensors").exists():
            continue
        given: dict[str, Any] = {"datalist": out / "one_class.json", "output_dir": folder, "resume": True, "seed": seed}
        given |= {"use_mlflow": False, "device": f"$torch.device('{args.device}')", **settings}
        print(f"pre-training, seed {seed}; see {folder / 'output.txt'}", flush=True)
        run_bundle(configs, given, folder / "output.txt")


def run_bundle(configs: list[str], settings: dict[str, Any], log: Path) -> None:
    """Run the bundle in a process of its own, whose output is added to a file; ends the program if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        if subprocess.run(bundle_command(configs, settings), stdout=file, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"the bundle failed; see {log}")


def one_class(folder: Path, args: argparse.Namespace, content: dict[str, Any]) -> dict[str, Any]:
    """Score the test images by an encoder's distance to the normal training images."""
    detector = load_detector(folder).to(args.device)
    normals, test = (cases_of(content, content[name], [detector.canvas_size]) for name in ("training", "test"))
    ways = {name: getattr(args, name) for name in WAYS}
    reference = reference_of(detector, normals, args.parts, **ways)
    scores, _ = anomaly_scores(detector, reference, test)
    scores = scores if len(args.parts) > 1 else {name: scores[name] for name in args.parts}
    return {"truth": test.abnormal, "groups": test.groups, **scores}


def supervised(folder: Path, args: argparse.Namespace, content: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune an encoder on the training images; score the test images."""
    out, key = Path(args.out), row["key"]
    # a run of its own for each encoder and settings, as only the same ones can go on
    identity = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]
    run = out / "tuned" / f"{key.partition('/')[2].replace('/', '_')}_{identity}"
    if args.probe:
        fit_probe(out / "supervised.json", run, folder, progress=True)
    else:
        settings: dict[str, Any] = {"datalist": out / "supervised.json", "output_dir": run, "init": folder}
        settings |= {"resume": True, "seed": int(key.rpartition("/")[2]), "device": f"$torch.device('{args.device}')"}
        settings |= {"labels": content["labels"][1:], **named("--tune", args.tune, None)}
        print(f"fine-tuning, {key}; see {run / 'output.txt'}", flush=True)
        run_bundle(["finetune_classification.yaml"], settings, run / "output.txt")
    predictions = load_predictions(run / "predictions" / "test")
    if len(predictions.index) < len(content["test"]):
        raise SystemExit(f"{run}: {len(content['test']) - len(predictions.index)} test images could not be used")
    items = [content["test"][place] for place in predictions.index]
    truth = np.array([item["label"][1] for item in items])
    scores, groups = predictions.scores["Pneumonia"], np.array([str(item["group"]) for item in items])
    right = (scores >= predictions.thresholds["Pneumonia"]) == (truth == 1)
    return {"truth": truth, "groups": groups, "scores": scores, "accuracy": right.astype(float)}


def table(args: argparse.Namespace, keys: list[str]) -> None:
    """Print the figures of these results, and what others have published."""
    columns: dict[str, dict[str, Seeds]] = {}
    for key in keys:
        name, _, seed = key.partition("/")[2].rpartition("/")
        with np.load(Path(args.out) / "scores" / f"{key.replace('/', '_')}.npz") as saved:
            truth, groups = saved["truth"].astype(float), saved["groups"]
            for what in (w for w in saved if w not in ("truth", "groups")):
                if what == "accuracy":
                    draws = mean_draws(saved[what], groups)
                else:
                    draws = auroc_draws(truth[:, None], saved[what][:, None], groups)[0]
                columns.setdefault("AUROC" if what == "scores" else what, {}).setdefault(name, {})[int(seed)] = draws
    part = "half of the official test" if args.cxr else "official test"
    print(f"\n**{args.what}, {part}**: {(truth == 0).sum()} normal, {(truth == 1).sum()} abnormal, ", end="")
    print(f"{len(set(groups))} patients{'; AUROC' if args.what == 'one-class' else ''}")
    print_columns(columns)
    published = PUBLISHED["bmad" if args.bmad else args.what]
    header, *rows = (f"| {name} | {figure} |" for name, figure in published.items())
    print("\n".join([header, "|---|---|", *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["one-class", "supervised"])
    parser.add_argument("--out", required=True, help="folder of runs and results")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--root", help="the folder chest_xray as published")
    data.add_argument("--cxr", help="folder with manifest.csv and kermany_test_open/manifest.csv")
    data.add_argument("--medmnist", help="pneumoniamnist.npz of any size")
    data.add_argument("--bmad", help="BMAD's folder of chest radiographs")
    parser.add_argument("--name", default="pretrained", help="name of this pre-training in the table")
    parser.add_argument("--config", nargs="+", help="config files after pretrain.yaml; without: method_afire.yaml")
    parser.add_argument("--set", nargs="+", default=[], action="extend", help="key=value of pre-training")
    parser.add_argument("--tune", nargs="+", default=[], action="extend", help="key=value of fine-tuning")
    parser.add_argument("--probe", action="store_true", help="with `supervised`: do not train the encoder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoder", nargs="+", default=[], action="extend", help="NAME=model folder, or a folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["tokens", "neighbours", "density"])
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="blocks judged besides the encoder's output")
    parser.add_argument("--scales", type=int, nargs="+", default=[1], help="cells over which tokens are averaged; odd")
    parser.add_argument("--window", type=int, default=0, help="cells around a cell that `neighbours` looks at")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.bmad and args.what == "supervised":
        parser.error("BMAD has no abnormal images to train on; give one-class")
    if args.encoder and (args.set or args.config):
        parser.error("--set and --config are those of pre-training, and with --encoder there is none; leave them out")
    args.config = args.config or ["method_afire.yaml"]
    out = Path(args.out)
    (out / "scores").mkdir(parents=True, exist_ok=True)
    content = write_lists(args)
    if not args.encoder:
        pretrain(args)
    args.runs = None if args.encoder else str(out / "runs")
    used = ("parts", *WAYS) if args.what == "one-class" else ("tune", "probe")
    options = {name: getattr(args, name) for name in used}
    done = {row["key"]: row for row in stored_rows(out / "results.jsonl", mend=True)}
    options["data"] = datalist_hash(read_raw(out / f"{args.what.replace('-', '_')}.json"))
    keys = []
    for name, seed, folder in chosen_encoders(args):
        weights = weights_hashes(model_files([folder]))
        row = {"key": f"{args.what}/{name}/{seed}", "weights": weights, **options}
        keys.append(row["key"])
        if not row.items() <= done.get(row["key"], {}).items():
            if args.what == "one-class":
                scores = one_class(folder, args, content)
            else:
                scores = supervised(folder, args, content, row)
            np.savez(out / "scores" / f"{row['key'].replace('/', '_')}.npz", **scores)
            with (out / "results.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
    table(args, keys)


if __name__ == "__main__":
    main()
