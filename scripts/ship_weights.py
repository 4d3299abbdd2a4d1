r"""Put an encoder into the package, with references of normal radiographs and the list of what it was trained on.

    python scripts/ship_weights.py MODELS --name chest-s16-1 --trained-on pretrain.json \
        --reference adults=adults.json --reference children=children.json

Matrices are kept in 8 bits. `training_images.csv` names each training image by its SHA-256 and source, which shows
whether a picture was among them and says nothing of a patient.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

from afire_monai.models.folder import load_module_files, save_module_files
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
    parser.add_argument("models", type=Path, help="model folder with encoder.safetensors")
    parser.add_argument("--name", required=True)
    parser.add_argument("--trained-on", type=Path, required=True, help="data list of the pre-training")
    parser.add_argument("--reference", action="append", default=[], help="POPULATION=datalist.json of normals")
    args = parser.parse_args()
    folder = WEIGHTS / args.name
    tensors, description = load_module_files(args.models)
    description |= {"name": args.name, "matrices": "int8 with a scale a row", "use": "research only, no medical device"}
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
