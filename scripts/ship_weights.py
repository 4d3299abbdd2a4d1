r"""Put an encoder into the package, with references of normal radiographs and the list of what it was trained on.

    python scripts/ship_weights.py MODELS --name chest-s16-1 --trained-on pretrain.json \
        --reference adults=adults.json --reference children=children.json --parts density class_density places
    python scripts/ship_weights.py --name chest-s16-1 --task children=runs/probe/models --task .=runs/lungs/models

Matrices are kept in 8 bits. `training_images.csv` names each training image by its SHA-256 and source, which shows
whether a picture was among them and says nothing of a patient. `--task` adds a classifier or segmenter whose encoder
is the shipped one, which training left as it was (`afire probe`, `frozen_encoder=True`); only the rest is kept.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

import torch

from afire_monai.models.folder import load_module_files, model_files, save_module_files, weights_hashes
from afire_monai.models.shipped import WEIGHTS
from afire_monai.predictions.anomaly.build_reference import make_reference


def training_images(datalist: Path, out: Path) -> int:
    """Write SHA-256 and source of each training image; return how many there are."""
    items = json.loads(datalist.read_text(encoding="utf-8"))["training"]
    rows = []
    for item in items:
        path = datalist.parent / item["image"]
        rows.append((hashlib.sha256(path.read_bytes()).hexdigest(), item.get("source", "")))
    with out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("sha256", "source"), *sorted(rows)])
    return len(rows)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", help="model folder with encoder.safetensors")
    parser.add_argument("--name", required=True)
    parser.add_argument("--trained-on", type=Path, help="data list of the pre-training")
    parser.add_argument("--reference", action="append", default=[], help="POPULATION=datalist.json of normals")
    parser.add_argument("--parts", nargs="+", help="what references of this encoder judge by, unless users name others")
    parser.add_argument(
        "--task", action="append", default=[], help="FOLDER=model folder with a classifier or segmenter"
    )
    args = parser.parse_args()
    folder = WEIGHTS / args.name
    if args.models:
        ship_encoder(args, folder)
    for pair in args.task:
        place, _, models = pair.partition("=")
        ship_task(folder, folder / place, model_files([models]))


def ship_task(shipped: Path, folder: Path, files: dict[str, Path]) -> None:
    """Keep what is not the encoder of a classifier and a segmenter; ends the program if the encoder is another one."""
    weights, encoder = shipped / "encoder.safetensors", load_module_files(shipped)[0]
    for kind in ("classifier", "segmenter"):
        if kind not in files:
            continue
        tensors, description = load_module_files(files[kind])
        own = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
        if not all(torch.equal(tensor, encoder[name]) for name, tensor in own.items()):
            raise SystemExit(f"{files[kind]}: its encoder is not the shipped one")
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.")}
        description["encoder_sha256"] = weights_hashes({"encoder": weights})["encoder"]
        description["use"] = "research only, not a medical device"
        path = save_module_files(rest, description, folder / f"{kind}.safetensors")
        print(f"{kind}: {path.stat().st_size / 1e6:.1f} MB in {folder}")


def ship_encoder(args: argparse.Namespace, folder: Path) -> None:
    """Write encoder, references and the list of training images."""
    tensors, description = load_module_files(args.models)
    description |= {
        "name": args.name,
        "matrices": "int8 with a scale a row",
        "use": "research only, not a medical device",
    }
    if args.parts:
        description["reference_parts"] = args.parts
    save_module_files(tensors, description, folder / "encoder.safetensors", int8=True)
    print(f"{training_images(args.trained_on, folder / 'training_images.csv')} training images")
    for pair in args.reference:
        population, _, datalist = pair.partition("=")
        made = make_reference(folder, datalist, progress=True)
        (folder / population).mkdir(exist_ok=True)
        for suffix in (".safetensors", ".json"):
            made.path.with_suffix(suffix).rename(folder / population / f"reference{suffix}")
        print(f"{population}: {made.reference.count} normals, parts {', '.join(made.reference.parts)}")


if __name__ == "__main__":
    main()
