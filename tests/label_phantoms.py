"""Phantoms that have no symmetry, tiny models, and a store in memory: what tests of the label app use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from helpers import smooth_images, tiny_afire
from hospital_files import CR, DX, radiograph
from PIL import Image

from afire_monai.models.folder import export_encoder, export_task
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter
from afire_monai.phantom import ChestPhantom
from afire_monai.predictions.anomaly.build_reference import make_reference
from afire_monai.training.finish import export_detector, export_restorer

SHAPE = (96, 78)
"""Rows and columns of every phantom here: not square, so that nothing can be transposed unseen."""
LABELS = ["Effusion", "Nodule"]
SPOT = (slice(8, 32), slice(46, 68))
"""Where a spot is: above and to the right of the middle."""


def phantom(seed: int, finding: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A chest (rows, columns) uint8 that is cut off at the right, and its right lung (at the left): 0 or 1."""
    sample = ChestPhantom(SHAPE[0])(seed, finding)
    cut = (slice(None), slice(SHAPE[1]))
    return (sample.image[0] * 255).round().astype(np.uint8)[cut], (sample.lungs[0] == 1).astype(np.uint8)[cut]


def spotted() -> np.ndarray:
    """A smooth picture (rows, columns) uint8 with a bright spot at SPOT."""
    picture = 0.5 * smooth_images(25, SHAPE)[24, 0].numpy()  # like the normals of `write_models`, but none of them
    picture[SPOT] = 1.0
    return (picture * 255).round().astype(np.uint8)


def pictures(count: int) -> dict[str, np.ndarray]:
    """Phantoms by name, every third with an effusion, and the spotted picture."""
    chests = {f"chest{i:02d}": phantom(i, "effusion" if i % 3 == 0 else None)[0] for i in range(count)}
    return {**chests, "spot": spotted()}


def write_pngs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(count).items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def write_dicoms(folder: Path, count: int) -> dict[str, Path]:
    """The same as DICOM, CR and DX in turns, the CR as MONOCHROME1, two images a patient; files by name."""
    files = {}
    for number, (name, picture) in enumerate(pictures(count).items()):
        stored = picture.astype(np.uint16) * 16
        cr = number % 2 == 0
        dataset = radiograph(
            number,
            4080 - stored if cr else stored,
            SOPClassUID=CR if cr else DX,
            Modality="CR" if cr else "DX",
            PhotometricInterpretation="MONOCHROME1" if cr else "MONOCHROME2",
            PatientID=f"PAT7734421-{number // 2}",
            ImagerPixelSpacing=[0.4, 0.5],
        )
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        files[name] = folder / f"{name}.dcm"
        folder.mkdir(parents=True, exist_ok=True)
        dataset.save_as(files[name], enforce_file_format=True)
    return files


def write_models(folder: Path) -> Path:
    """A model folder with everything, of a few thousand untrained parameters each."""
    normals = folder.parent / "normals"
    normals.mkdir(parents=True, exist_ok=True)
    items = []
    for number, picture in enumerate(0.5 * smooth_images(24, SHAPE)[:, 0]):
        Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)).save(normals / f"n{number:02d}.png")
        items.append({"image": f"n{number:02d}.png", "label": [0], "group": str(number)})
    (normals / "list.json").write_text(json.dumps({"labels": ["Nodule"], "training": items}), encoding="utf-8")
    method = tiny_afire(2)
    export_restorer(method, folder)
    export_detector(method, folder)
    export_encoder(method.export_encoder, folder, method_name="AFiRe", epochs=1, data_sha256="0" * 64)
    make_reference(folder, normals / "list.json")
    torch.manual_seed(0)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2)
    export_task(ViTClassifier(encoder, LABELS), folder, thresholds={"Effusion": 0.5, "Nodule": 0.5})
    export_task(ViTSegmenter(encoder, ["right_lung"], width=4), folder, mask_values={"right_lung": 255})
    return folder


class FolderStore:
    """Images and labels as MONAI Label's store keeps them, without MONAI Label."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: dict[tuple[str, str], Path] = {}

    def list_images(self) -> list[str]:
        return [p.stem for p in self.folder.iterdir() if p.suffix in (".png", ".dcm")]

    def get_image_uri(self, image_id: str) -> str:
        return str(next(self.folder.glob(f"{image_id}.*")))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return {tag: i for i, tag in self.labels if i == image_id}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self.labels.get((label_id, label_tag), ""))
