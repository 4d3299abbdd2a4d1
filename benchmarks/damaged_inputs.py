"""Sound inputs for `damaged.py`, and what reads them: pictures, masks, tables, lists, settings, caches, predictions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from afire_monai.datalists.file import load_datalist, normal_of
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.paths import ImagePaths
from afire_monai.datalists.validate import validate_datalist
from afire_monai.hospital.ingest import ingest
from afire_monai.loading.cache import DiskCache
from afire_monai.loading.cache_build import build_cache
from afire_monai.predictions.format import Predictions, load_predictions, save_predictions
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.masks import read_mask

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
GREY = np.random.default_rng(0).integers(0, 255, (48, 40), dtype=np.uint8)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: writes sound files into an empty folder.
        changed: names of those that are damaged, in turn.
        read: what a command does with the folder.
        named: words, one of which a refusal holds if it does not name the file.
    """

    make: Callable[[Path], object]
    changed: tuple[str, ...]
    read: Callable[[Path], object]
    named: tuple[str, ...] = ()


def saved(values: np.ndarray[Any, Any], form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format=form)
    return buffer.getvalue()


def dicom(syntax: str, number: int = 0) -> bytes:
    """A computed radiograph of a chest, of patient `number`."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    pixels = np.roll(GREY, number)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.BodyPartExamined, data.ViewPosition = ComputedRadiographyImageStorage, "CHEST", "PA"
    for level in ("SOP", "Study", "Series"):
        setattr(data, f"{level}InstanceUID", generate_uid(entropy_srcs=["damaged", level, str(number)]))
    data.PatientID, data.StudyDate, data.AccessionNumber = f"P{number}", "20210304", f"A{number}"
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CR", "MONOCHROME2", 1
    data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 48, 40, 8, 8, 7
    data.PixelRepresentation, data.WindowCenter, data.WindowWidth = 0, 120, 200
    data.PixelData = pixels.tobytes() if syntax == ExplicitVRLittleEndian else encapsulate([saved(pixels, "JPEG")])
    data["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def one_file(name: str, data: Callable[[], bytes], read: Callable[[Path], object]) -> Kind:
    return Kind(lambda folder: (folder / name).write_bytes(data()), (name,), lambda folder: read(folder / name))


def nifti() -> bytes:
    import nibabel

    return bytes(nibabel.Nifti1Image(GREY, np.eye(4)).to_bytes())


def make_list(folder: Path) -> None:
    for name in [*(f"{n}.png" for n in range(8)), "m.png"]:
        (folder / name).write_bytes(saved(GREY, "PNG"))
    table = "path,group,labels,sex,age,mask\n" + "".join(
        f"{n}.png,p{n // 2},{'Normal' if n % 2 else 'Mass|Edema'},F,5{n},m.png\n" for n in range(8)
    )
    (folder / "table.csv").write_text(table)
    items = [{"image": f"{n}.png", "group": f"p{n}", "label": [n % 2, 0], "mask": "m.png"} for n in range(6)]
    (folder / "list.json").write_text(json.dumps({"labels": ["Normal", "Mass"], "training": items}))


def read_list(folder: Path) -> object:
    path = folder / "list.json"
    report = validate_datalist(path)
    return report, load_datalist(path, section="training"), normal_of(load_datalist(path), "training")


SETTINGS = {
    **{"epochs": "5", "batch_size": "4", "image_size": "64", "lr": "0.01", "warmup": "0.1", "seed": "3"},
    **{"deterministic": "True", "cache": "disk", "precision": "float32", "minutes": "1.5", "output_dir": "run"},
    **{"run_name": "name", "best_figure": "validation_restoration", "encoder_preset": "vit_ti6", "shift": "2"},
    **{"resume": "True", "checkpoint_keep": "2", "num_workers": "0", "init": "random", "datalist": "phantom"},
}


def make_settings(folder: Path) -> None:
    for key, value in SETTINGS.items():
        (folder / f"{key}.setting").write_text(f"{key}={value}")


def read_settings(folder: Path) -> None:
    """Check a start's settings, as a run does before it does anything else."""
    from afire_monai.training import run_folder, startup

    files = str([str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")])
    words = ["run", "--config_file", files]
    for path in folder.glob("*.setting"):
        key, _, value = path.read_bytes().decode("utf-8", "surrogateescape").partition("=")
        words += [f"--{key}", value]
    try:
        startup.prepare_run(folder / "out", words)
    finally:
        run_folder.release(folder / "out")


SIZE = (16, 12)


def cached_paths(folder: Path) -> ImagePaths:
    return ImagePaths(str(folder.parent / f"p{n}.png") for n in range(6))


def make_cache(folder: Path) -> None:
    """A cache of pictures that are no longer there, so that it alone gives them."""
    for n, path in enumerate(cached_paths(folder)):
        Path(path["image"]).write_bytes(saved(np.roll(GREY, n), "PNG"))
    build_cache(cached_paths(folder), folder, SIZE, workers=0)
    for path in cached_paths(folder):
        Path(path["image"]).unlink()
    (folder / "folder.txt").write_text(str(folder.parent))


def read_cache(folder: Path) -> object:
    paths = cached_paths(Path((folder / "folder.txt").read_text()) / "x")
    build_cache(paths, folder, SIZE, workers=0)
    cache = DiskCache(folder, paths)
    pictures = cache.gather(range(len(cache)))
    if not (pictures.min(initial=0) >= 0 and pictures.max(initial=0) <= 1):
        raise ArithmeticError("a picture outside 0…1")
    return pictures


def make_predictions(folder: Path) -> None:
    scores = {"Mass": np.array([0.25, 0.5, np.nan]), "Edema": np.array([0.0, 1.0, 0.125])}
    facts = {"section": "test", "datalist_sha256": "0" * 64, "model": {"version": "1"}, "thresholds": {"Mass": 0.5}}
    found = Predictions(np.arange(3), scores, np.array([1.0, 50.0, 99.5]), facts)
    save_predictions(found, folder, [GREY / 255] * 3, [GREY] * 3)


def read_predictions(folder: Path) -> object:
    found = load_predictions(folder)
    pictures = [(found.heatmap(i), found.mask(i)) for i in found.index.tolist()]
    return found.section, found.datalist_sha256, found.thresholds, found.labels, pictures


def make_ingest(folder: Path) -> None:
    from pydicom.uid import ExplicitVRLittleEndian

    (folder / "in").mkdir()
    for number in range(4):
        (folder / "in" / f"{number}.dcm").write_bytes(dicom(ExplicitVRLittleEndian, number))
    (folder / "in" / "4.dcm").write_bytes(b"no DICOM file")
    (folder / "root.txt").write_text(str(folder / "in"))
    run_ingest(folder)


def run_ingest(folder: Path) -> object:
    """Ingest the folder of the first time again: files that the state knows are not read."""
    return ingest((folder / "root.txt").read_text(), folder / "out", workers=0, max_side=64)


EXPLICIT, BASELINE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
INPUTS: dict[str, Kind] = {
    "PNG": one_file("a.png", lambda: saved(GREY, "PNG"), read_picture),
    "16-bit PNG": one_file("a.png", lambda: saved(GREY.astype(np.uint16) * 200, "PNG"), read_picture),
    "JPEG": one_file("a.jpg", lambda: saved(GREY, "JPEG"), read_picture),
    "NIfTI": one_file("a.nii", nifti, read_picture),
    "DICOM": one_file("a.dcm", partial(dicom, EXPLICIT), read_picture),
    "DICOM JPEG": one_file("a.dcm", partial(dicom, BASELINE), read_picture),
    "mask PNG": one_file("a.png", lambda: saved((GREY > 99).astype(np.uint8), "PNG"), read_mask),
    "mask JPEG": one_file(
        "a.jpg", lambda: saved(np.kron((GREY > 99) * 255, np.ones((8, 8))).astype(np.uint8), "JPEG"), read_mask
    ),
    "table": Kind(make_list, ("table.csv",), lambda folder: datalist_from_csv(folder / "table.csv")),
    "list": Kind(make_list, ("list.json",), read_list, ("item ",)),
    "settings": Kind(make_settings, tuple(f"{key}.setting" for key in SETTINGS), read_settings, ("--",)),
    "disk cache": Kind(make_cache, ("index.npz", "pixels.bin"), read_cache, ("pixels",)),
    "predictions": Kind(
        make_predictions,
        ("predictions.csv", "predictions.json", "heatmaps/00001.png", "masks/00001.png"),
        read_predictions,
    ),
    "ingest state": Kind(make_ingest, ("out/private/state.sqlite", "out/private/key"), run_ingest, ("damaged/out",)),
}
