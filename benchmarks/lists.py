"""The data lists of the benchmarks, from a collection of radiographs with a manifest.

    python benchmarks/lists.py CXR OUT       # CXR: folder with manifest.csv (docs/data.md has its columns)

Writes into OUT:

- ``adults.json`` (source ``nih``) and ``children.json`` (``kermany``) with sections training, validation and test. The
  test section is that of docs/results.md. Settings are chosen on validation patients alone; normals of the training
  section are the reference of anomaly scores.
- ``pretrain.json``: some 1,826 normals that are in no section of these lists, so that the reference is of patients that
  pre-training did not see: ``crd_normal`` (adults) and ``kermany224`` (children), patients of the other lists left out.
- ``pretrain_all.json``: all normals but those of the validation and test patients, for an encoder that is passed on:
  only sources whose terms allow that (NIH ChestX-ray14 and what derives from it, and the paediatric set).
- ``jsrt.json``, ``tb_pk.json``, ``cohen.json`` where the collection has them: other sources, half of their patients for
  testing; of ``cohen``, which has hardly any normal image, all.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from afire_monai.datalists.file import save_datalist
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.splits import split_by_group

JUDGED = {"adults": "nih", "children": "kermany"}
OTHERS = {"jsrt": 0.5, "tb_pk": 0.5, "cohen": 0.0}
"""Share of the images that are for training."""
PRETRAIN_IMAGES = 1826


def judged_list(cxr: Path, source: str) -> dict[str, Any]:
    """Return a list whose test section is that of docs/results.md and whose validation section is large enough."""
    datalist: Any = datalist_from_csv(
        cxr / "manifest.csv", source=source, fractions=(0.55, 0.05, 0.4), boxes_csv=cxr / "boxes.csv",
        mask_column="lung_mask",
    )  # fmt: skip
    rest = [*datalist["training"], *datalist["validation"]]
    groups, strata = [item["group"] for item in rest], [str(item["label"]) for item in rest]
    split = split_by_group(groups, strata, (0.6, 0.4), seed=1)
    for number, section in enumerate(("training", "validation")):
        datalist[section] = [item for item, part in zip(rest, split, strict=True) if part == number]
    return dict(datalist)


def normals(cxr: Path, source: str, left_out: set[str]) -> list[dict[str, Any]]:
    """Return the normal images of a source whose patients are not left out."""
    datalist: Any = datalist_from_csv(cxr / "manifest.csv", source=source, fractions=(1, 0, 0))
    place = datalist["labels"].index("Normal")
    return [i for i in datalist["training"] if i["label"][place] == 1 and i["group"] not in left_out]


def write_pretraining(path: Path, items: list[dict[str, Any]]) -> None:
    """Write a list of normals, a twentieth of them (every twentieth) for validation."""
    bare = [{key: item[key] for key in ("image", "group", "source") if key in item} for item in items]
    datalist: Any = {"labels": [], "training": [item for place, item in enumerate(bare) if place % 20]}
    groups = {item["group"] for item in datalist["training"]}
    datalist["validation"] = [item for item in bare[::20] if item["group"] not in groups]
    save_datalist({"name": path.stem, "meta": {}, "test": [], **datalist}, path)
    counts = {name: len(datalist[name]) for name in ("training", "validation")}
    print(f"{path.name}: {counts['training']} normals to train on, {counts['validation']} for health checks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cxr", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    cxr, out = args.cxr.resolve(), args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    judged: set[str] = set()
    unseen: set[str] = set()
    training: list[dict[str, Any]] = []
    for name, source in JUDGED.items():
        datalist = judged_list(cxr, source)
        save_datalist(datalist, out / f"{name}.json")
        place = datalist["labels"].index("Normal")
        training += [item for item in datalist["training"] if item["label"][place] == 1]
        judged |= {item["group"] for section in ("training", "validation", "test") for item in datalist[section]}
        unseen |= {item["group"] for section in ("validation", "test") for item in datalist[section]}
        print(f"{name}.json: " + ", ".join(f"{s} {len(datalist[s])}" for s in ("training", "validation", "test")))
    adults, children = normals(cxr, "crd_normal", judged), normals(cxr, "kermany224", judged)
    count = round(PRETRAIN_IMAGES * 20 / 19)
    write_pretraining(out / "pretrain.json", [*adults, *children[: max(0, count - len(adults))]])
    everything = [*adults, *normals(cxr, "kermany224", unseen), *training]
    write_pretraining(out / "pretrain_all.json", everything)
    with (cxr / "manifest.csv").open(encoding="utf-8", newline="") as file:
        sources = {row["source"] for row in csv.DictReader(file)}
    for source, share in OTHERS.items():
        if source in sources:
            shares = (share, 0, 1 - share)
            other = datalist_from_csv(cxr / "manifest.csv", source=source, fractions=shares, mask_column="lung_mask")
            save_datalist(other, out / f"{source}.json")


if __name__ == "__main__":
    main()
