"""Run the inputs that went wrong against the package, and print what happens and whether it is right.

python benchmarks/cases.py shared/cases
python benchmarks/cases.py shared/cases --before CHECKOUT

CASES is the folder with the inputs and their README. Each answer is judged by code. With --before, the same inputs are
given to an older checkout of the package, for a column beside it.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image

READERS = """
import json, sys
try:
    from afire_monai.radiographs.decode import read_picture
    from afire_monai.radiographs.masks import MaskReading
    from afire_monai.radiographs.header import Header
    from afire_monai.radiographs.judgement import judge
except ImportError:
    from afire_monai.data.decode import read_picture
    from afire_monai.tasks.masks import MaskReading
    from afire_monai.hospital.header import Header
    from afire_monai.hospital.select import judge
"""
PICTURE = "picture = read_picture({path!r}, **{options}).pixels; print(json.dumps(picture.tolist()))"
MASK = "print(json.dumps(MaskReading(None, (64, 64), {{'a': []}}).read_mask({path!r})[0].tolist()))"
HEADERS = (
    "v = [judge(Header(modality='DX', photometric='MONOCHROME2', series_texts=(t,))) for t in json.loads({texts!r})];"
    "print(json.dumps([[j.reason, j.stated] for j in v]))"
)


@dataclass
class Answer:
    """What one command said."""

    status: int
    text: str

    def refuses(self, *words: str) -> bool:
        """Whether it refuses in words, among them these."""
        return self.status != 0 and "Traceback" not in self.text and all(word in self.text for word in words)

    def line(self, pattern: str = "") -> str:
        """Return the line that matches; else the last error, else the last line."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()] or [""]
        found = [line for line in lines if re.search(pattern or r"^afire: |Error\b|^error: ", line)]
        return found[0] if found else lines[-1]


class Package:
    """A checkout of the package, and a folder to work in with a copy of the inputs."""

    def __init__(self, checkout: Path, cases: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout.resolve(), folder
        shutil.copytree(cases, folder / "cases", copy_function=shutil.copyfile)
        for path in [folder / "cases", *(folder / "cases").rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.cases = folder / "cases"

    def call(self, *words: str | Path) -> Answer:
        """Run Python with this package."""
        paths = {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, words)], cwd=self.folder, env={**os.environ, **paths}, text=True,
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        text = re.sub(r"\S*/cases/", "", done.stderr + done.stdout).replace(f"{self.folder}/", "")
        return Answer(done.returncode, text)

    def afire(self, *words: str | Path) -> Answer:
        """Run a command."""
        return self.call("-m", "afire_monai", *words)

    def values(self, code: str, **values: object) -> tuple[Any, str]:
        """Return what a line of code prints as JSON, and the error in its place."""
        answer = self.call("-c", READERS + code.format(**values))
        if answer.status:
            return None, answer.text.splitlines()[-1]
        return json.loads(answer.text.splitlines()[-1]), ""

    def picture(self, path: Path, **options: object) -> tuple[np.ndarray, str]:
        """Return a picture as the package reads it; NaN where it does not."""
        values, error = self.values(PICTURE, path=str(path), options=options)
        return np.asarray(values if values is not None else [[np.nan]]), error

    def read_list(self, path: Path) -> dict[str, Any]:
        """Return a list that the package wrote; empty if there is none."""
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def items(self, path: Path) -> list[dict[str, Any]]:
        """Return all items of a list."""
        content = self.read_list(path)
        return [item for section in ("training", "validation", "test") for item in content.get(section, [])]


Outcome = tuple[str, bool]
Check = Callable[[Package], Outcome]
CHECKS: dict[str, Check] = {}


def case(*names: str) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Register a check for inputs; with several, it gets the name as well."""

    def register(check: Callable[..., Outcome]) -> Callable[..., Outcome]:
        CHECKS.update({n: check if len(names) == 1 else functools.partial(check, name=n) for n in names})
        return check

    return register


def from_csv(package: Package, name: str) -> tuple[Answer, dict[str, Any]]:
    """Build a list of a table, and return it as image → names of its labels, None where they are not known."""
    out = package.folder / "out" / f"{Path(name).stem}.json"
    answer = package.afire("datalist", "from-csv", package.cases / name, "--out", out)
    labels = package.read_list(out).get("labels", [])
    found = {}
    for item in package.items(out):
        values = item.get("label", [])
        known = None if None in values else [label for label, v in zip(labels, values, strict=True) if v == 1]
        found[Path(item["image"]).name] = known
    return answer, found


def table(path: Path) -> dict[str, list[str]]:
    """Read a table's labels without the package."""
    lines = path.read_bytes().decode("cp1252").replace(";", ",").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("sep="))
    return {Path(row["path"]).name: sorted(row["labels"].split("|")) for row in rows}


@case("csv/duplicate_col.csv")
def duplicate_column(package: Package) -> Outcome:
    answer, _ = from_csv(package, "csv/duplicate_col.csv")
    return answer.line(), answer.refuses("labels", "line 1")


@case("csv/extra_cell.csv")
def extra_cell(package: Package) -> Outcome:
    answer, _ = from_csv(package, "csv/extra_cell.csv")
    return answer.line(), answer.refuses("line 2")


@case("csv/nan_labels.csv")
def nan_labels(package: Package) -> Outcome:
    answer, found = from_csv(package, "csv/nan_labels.csv")
    wanted = {n: None if v == ["nan"] else v for n, v in table(package.cases / "csv/nan_labels.csv").items()}
    return answer.line("'nan'|known to be normal"), found == wanted and "'nan'" in answer.text


@case("csv/semicolon.csv", "csv/sep_line.csv", "csv/cp1252.csv")
def spreadsheet(package: Package, name: str) -> Outcome:
    answer, found = from_csv(package, name)
    return answer.line(r"read as|delimiter|^afire: |training"), found == table(package.cases / name)


@case("ingest/findings_excel_de_cp1252.csv", "ingest/findings_semicolon_utf8.csv", "ingest/findings_lost_zeros.csv")
def findings(package: Package, name: str) -> Outcome:
    source = package.folder / "accession"
    source.mkdir(exist_ok=True)
    image = pydicom.dcmread(package.cases / "dicom/burn_y.dcm")
    del image.BurnedInAnnotation
    image.AccessionNumber = "00004711" if "zeros" in name else "A1"
    image.save_as(source / "image.dcm")
    out = package.folder / "out" / Path(name).stem
    answer = package.afire(
        "ingest", source, "--out", out, "--labels", package.cases / name, "--label-columns", "Normal"
    )
    matched = [item.get("label") for item in package.items(out / "datalist.json")] == [[1]]
    if "zeros" in name:
        return answer.line("leading zero|^afire: |unmatched"), "leading zeros" in answer.text and not matched
    return answer.line("^afire: |matched"), matched


@case("masks/pal_white0.png")
def palette(package: Package) -> Outcome:
    path = package.cases / "masks/pal_white0.png"
    seen, error = package.values(MASK, path=str(path))
    wanted = np.asarray(Image.open(path).convert("L")) > 0
    alike = seen is not None and bool((np.asarray(seen) == wanted).all())
    return error or ("by colour" if alike else f"{np.mean(np.asarray(seen) != wanted):.0%} of the pixels differ"), alike


@case("masks/l1.png", "masks/i16.png")
def values_without_class(package: Package, name: str) -> Outcome:
    content = package.read_list(package.cases / "masks/list/list01.json")
    base = package.cases / "masks/list"
    for item in (item for section in ("training", "validation", "test") for item in content[section]):
        item.update(image=str(base / item["image"]), mask=str(package.cases / name))
    listed = package.folder / "masks.json"
    listed.write_text(json.dumps(content), encoding="utf-8")
    config = package.checkout / "bundle/configs/finetune_segmentation.yaml"
    answer = package.call(
        "-m", "monai.bundle", "run", "--config_file", config, "--datalist", listed, "--classes", "{'lung': [255]}",
        "--init", "random", "--epochs", "1", "--image_size", "32", "--output_dir", package.folder / Path(name).stem,
    )  # fmt: skip
    return answer.line("^error: |dice/lung"), answer.refuses("255", "65535" if "16" in name else "1")


@case("masks/list/listbad.json")
def bad_masks(package: Package) -> Outcome:
    answer = package.afire("check", package.cases / "masks/list/listbad.json")
    named = [name for name in ("size", "broken", "empty", "rgb", "pal") if f"m/{name}.png" in answer.text]
    return f"{answer.line('^result|can be read')}; named: {', '.join(named) or 'none'}", answer.refuses() and len(
        named
    ) == 5


@case("dicom/01_highbit15.dcm")
def high_bit(package: Package) -> Outcome:
    path = package.cases / "dicom/01_highbit15.dcm"
    header = pydicom.dcmread(path)
    stored = np.frombuffer(header.PixelData, "<u2").reshape(header.Rows, header.Columns) >> 4
    return compared(package.picture(path), stretched(stored))


@case("dicom/05_wc_comma.dcm", "dicom/12_pad_two.dcm")
def odd_element(package: Package, name: str) -> Outcome:
    header = pydicom.dcmread(package.cases / name)
    stored = np.frombuffer(header.PixelData, "<u2").reshape(header.Rows, header.Columns)
    text, right = compared(package.picture(package.cases / name), stretched(stored))
    counted = package.afire("check", package.cases / name)
    return text, right and ("absent" in counted.text or "not used" in counted.text)


@case("dicom/burn_y.dcm", "dicom/burn_y.dcm, ImageType SCREEN SAVE")
def burned_in(package: Package, name: str) -> Outcome:
    source = package.folder / Path(name).stem
    source.mkdir(exist_ok=True)
    image = pydicom.dcmread(package.cases / "dicom/burn_y.dcm")
    if "SCREEN" in name:
        del image.BurnedInAnnotation
        image.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    image.save_as(source / "image.dcm")
    out = package.folder / "out" / source.name
    answer = package.afire("ingest", source, "--out", out)
    return answer.line("left out|kept: 1|none of"), answer.refuses("screen" if "SCREEN" in name else "burned-in text")


@case("png/02_g12in16.png")
def twelve_bits(package: Package) -> Outcome:
    folder, out = package.folder / "twelve", package.folder / "out/twelve.json"
    for number in range(4):
        folder.mkdir(exist_ok=True)
        shutil.copyfile(package.cases / "png/02_g12in16.png", folder / f"{number}.png")
    answer = package.afire("check", folder)
    package.afire("datalist", "from-folder", folder, "--out", out, "--png16-max", "4095")
    kept = package.read_list(out).get("meta", {}).get("reader") == {"png16_max": 4095}
    return answer.line("png16|result|can be read"), answer.refuses("4095") and kept


@case("png/04_rgb16_12bit.png")
def deep_colour(package: Package) -> Outcome:
    pixels, error = package.picture(package.cases / "png/04_rgb16_12bit.png", png16_max=4095)
    levels = len(np.unique(pixels))
    return error or f"{levels} levels, at most {pixels.max():.3f}", levels > 256 and 0.9 < float(pixels.max()) <= 1.0


@case("png/08_g8_trns.png")
def transparent(package: Package) -> Outcome:
    path = package.cases / "png/08_g8_trns.png"
    pixels, error = package.picture(path)
    stored = Image.open(path)
    clear = pixels[np.asarray(stored) == stored.info["transparency"]] if pixels.size > 1 else pixels
    return error or f"transparent pixels are {clear.min():.3f} to {clear.max():.3f}", bool((clear == 0).all())


@case("nifti/none_affine.nii.gz")
def no_orientation(package: Package) -> Outcome:
    path = package.cases / "nifti/none_affine.nii.gz"
    return compared(package.picture(path), stretched(np.asarray(nibabel.load(path).dataobj).T))


def stretched(values: np.ndarray) -> np.ndarray:
    """Bring values from their least and largest to 0…1."""
    values = values.astype(np.float64)
    return (values - values.min()) / (values.max() - values.min())


def compared(read: tuple[np.ndarray, str], wanted: np.ndarray) -> Outcome:
    """Compare a picture with the right one."""
    pixels, error = read
    if pixels.shape != wanted.shape:
        return error or f"shape {pixels.shape}, not {wanted.shape}", False
    worst = float(np.abs(pixels - wanted).max())
    return f"read; largest difference from the right picture {worst:.3f}", worst < 1e-3


def with_images(package: Package, name: str) -> Path:
    """Write the pictures that a list of the inputs names."""
    path = package.cases / name
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    for seed, item in enumerate(i for s in ("training", "validation", "test") for i in content.get(s, [])):
        image = path.parent / item["image"]
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32), dtype=np.uint8)).save(image)
    return path


@case("json/bom.json")
def byte_order_mark(package: Package) -> Outcome:
    answer = package.afire("check", with_images(package, "json/bom.json"))
    return answer.line("^afire: |^result|can be read"), answer.status == 0


@case("json/mask_null.json", "json/labels_null.json", "json/meta_null.json", "json/label_int.json")
def wrong_type(package: Package, name: str) -> Outcome:
    answer = package.afire("check", with_images(package, name))
    key = {"mask": "training[0].mask", "labels": "'labels'", "meta": "'meta'", "label": "training[0]"}
    return answer.line(), answer.refuses(key[Path(name).stem.split("_")[0]])


@case("json/nullgroup.json")
def null_group(package: Package) -> Outcome:
    answer = package.afire("check", with_images(package, "json/nullgroup.json"))
    return answer.line("^training:|^afire: "), "training: 8 images of 8 patients" in answer.text


@case("json/normal_label_not_in_list.json")
def no_normal_label(package: Package) -> Outcome:
    answer = package.afire("check", with_images(package, "json/normal_label_not_in_list.json"))
    return answer.line("normal"), answer.refuses("--normal-label", "Pneumothorax")


@case("other/siim_rerun")
def siim_twice(package: Package) -> Outcome:
    folder, seen = package.cases / "other/siim_rerun", []
    with (folder / "train-rle.csv").open() as file:
        names = sorted({row["ImageId"] for row in csv.DictReader(file)})
    (folder / "dicom-images-train").mkdir()
    image = pydicom.dcmread(package.cases / "dicom/05_wc_comma.dcm")
    for name in names:
        image.Rows, image.Columns, image.PixelData = 1024, 1024, np.arange(1 << 20, dtype="<u2").tobytes()
        image.save_as(folder / "dicom-images-train" / f"{name}.dcm")
    for _ in range(2):
        answer = package.afire("datalist", "siim", folder, "--out", folder / "siim.json")
        seen.append(sorted(item["image"] for item in package.items(folder / "siim.json")))
    right = seen[0] == seen[1] and len(seen[1]) == len(names) and not any("mask" in image for image in seen[1])
    masks = sum("mask" in image for image in seen[1])
    return f"{answer.line('^afire: |training')}; masks among the images: {masks}", right


@case("other/rsna_masks_beside")
def rsna_masks(package: Package) -> Outcome:
    out = package.folder / "out/rsna.json"
    answer = package.afire("datalist", "rsna", package.cases / "other/rsna_masks_beside", "--out", out)
    images = [item["image"] for item in package.items(out)]
    masks = sum("stage_2_train_masks" in image for image in images)
    return f"{answer.line('^afire: |training')}; masks among the images: {masks}", len(images) == 10 and not masks


@case("other/chexpert_batches")
def chexpert_batches(package: Package) -> Outcome:
    out = package.folder / "out/chexpert.json"
    answer = package.afire("datalist", "chexpert", package.cases / "other/chexpert_batches", "--out", out)
    content = package.read_list(out)
    return answer.line("^afire: |training"), len([*content.get("training", []), *content.get("validation", [])]) == 8


@case("ingest/issuer.py")
def issuers(package: Package) -> Outcome:
    package.call(package.cases / "ingest/issuer.py", package.folder / "issuer")
    out = package.folder / "out/issuer"
    answer = package.afire("ingest", package.folder / "issuer", "--out", out)
    content = package.read_list(out / "datalist.json")
    groups = [{item["group"] for item in content.get(s, [])} for s in ("training", "validation", "test")]
    together = sum(map(len, groups)) == len(set().union(*groups)) == 12
    return answer.line("kept:"), together and "issuer" in answer.text


@case("ingest/series_descriptions.tsv")
def descriptions(package: Package) -> Outcome:
    lines = (package.cases / "ingest/series_descriptions.tsv").read_text(encoding="utf-8").splitlines()
    kinds, texts = zip(*(line.split("\t") for line in lines if line), strict=True)
    verdicts, error = package.values(HEADERS, texts=json.dumps(texts))
    if error:
        return error, False
    # what names two body parts is left out; what names both views is left to the picture, and listed
    left = [bool(reason) or ("frontal" in text.lower() and not stated)
            for text, (reason, stated) in zip(texts, verdicts, strict=True)]  # fmt: skip
    counts = {kind: [k == kind and out for k, out in zip(kinds, left, strict=True)] for kind in ("other", "lateral")}
    lost = [t for k, t, (reason, _) in zip(kinds, texts, verdicts, strict=True) if k == "frontal" and reason]
    found = {kind: f"{sum(values)} of {kinds.count(kind)}" for kind, values in counts.items()}
    right = all(sum(values) == kinds.count(kind) for kind, values in counts.items())
    text = f"left out: {found['other']} of other parts, {found['lateral']} laterals; lost: {len(lost)} frontal"
    return text, right and lost in ([], ["ABDOMEN AND CHEST 1 VIEW NEONATE"])


def run(checkout: Path, cases: Path, wanted: Iterable[str]) -> dict[str, Outcome]:
    """Feed the inputs to one checkout of the package."""
    with tempfile.TemporaryDirectory() as folder:
        package = Package(checkout, cases, Path(folder))
        return {name: CHECKS[name](package) for name in wanted}


def cell(outcome: Outcome) -> str:
    """Write an outcome as a cell of the table."""
    text = outcome[0].replace("|", "\\|")
    return f"{'right' if outcome[1] else '**wrong**'}: {text[:157] + '…' if len(text) > 158 else text}"


def main() -> int:
    """Print the table; 1 if an answer of the package is not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--only", default="", help="part of the inputs' names")
    options = parser.parse_args()
    wanted = [name for name in CHECKS if options.only in name]
    now = run(Path(__file__).parents[1], options.cases, wanted)
    columns = [now] if options.before is None else [run(options.before, options.cases, wanted), now]
    print("| Input |" + " Before |" * (len(columns) - 1) + " Now |")
    print("|---" * (len(columns) + 1) + "|")
    for name in wanted:
        print(f"| `{name}` | " + " | ".join(cell(column[name]) for column in columns) + " |")
    wrong = [name for name in wanted if not now[name][1]]
    print(f"\n{len(wanted) - len(wrong)} of {len(wanted)} are right." + (f" Not: {', '.join(wrong)}." if wrong else ""))
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
