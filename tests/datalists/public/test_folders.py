"""Images of public sets come from the published folders, never from masks or the command's own output."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afire_monai.core.errors import DataListError
from afire_monai.datalists.public import datalist_from_chexpert, datalist_from_rsna, datalist_from_siim

OTHER = Path(__file__).resolve().parents[4] / "shared" / "cases" / "other"
FINDINGS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def picture(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side), np.uint8)).save(path)
    return path


def images(datalist: dict) -> set[str]:
    return {item["image"] for section in ("training", "validation", "test") for item in datalist.get(section, [])}


def siim(root: Path, folder: str = "") -> Path:
    for name in "abcdefghij":
        picture(root / folder / f"{name}.png")
    (root / "train-rle.csv").write_text(
        "ImageId, EncodedPixels\n" + "".join(f"{n}, {'10 5' if n < 'f' else '-1'}\n" for n in "abcdefghij")
    )
    return root


@pytest.mark.parametrize("folder", ["", "dicom-images-train", "siim/dicom-images-train"])
def test_siim_never_takes_its_own_masks_for_images(tmp_path: Path, folder: str) -> None:
    root = siim(tmp_path / "set", folder)
    first = datalist_from_siim(root, out=root / "list.json")
    assert datalist_from_siim(root, out=root / "list.json") == first
    assert images(first) == {str(root / folder / f"{n}.png") for n in "abcdefghij"}
    odd = datalist_from_siim(root, out=root / "list.json", masks=root / "outlines")
    assert images(datalist_from_siim(root, out=root / "list.json", masks=root / "outlines")) == images(odd)


def test_two_files_that_could_be_meant_are_an_error(tmp_path: Path) -> None:
    root = siim(tmp_path / "set")
    picture(root / "copy" / "a.png")
    with pytest.raises(DataListError, match=r"a\.png and .*a\.png could both be 'a"):
        datalist_from_siim(root)


def test_rsna_takes_images_from_their_folder_only(tmp_path: Path) -> None:
    for name in "abcdefghij":
        picture(tmp_path / "stage_2_train_images" / f"{name}.png")
        picture(tmp_path / "stage_2_train_masks" / f"{name}.png")
        picture(tmp_path / "resized" / f"{name}.jpg")
    (tmp_path / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\n" + "".join(f"{n},,,,,0\n" for n in "abcdefghij")
    )
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\n" + "".join(f"{n},Normal\n" for n in "abcdefghij")
    )
    found = images(datalist_from_rsna(tmp_path))
    assert {Path(path).parent.name for path in found} == {"stage_2_train_images"}
    assert len(found) == 10


def chexpert_batches(root: Path) -> Path:
    first = root / "CheXpert-v1.0 batch 1 (validate & csv)"
    rows = {"train": [], "valid": []}
    for patient in range(1, 21):
        part = "valid" if patient > 16 else "train"
        below = f"patient{patient:05d}/study1/view1_frontal.jpg"
        batch = (
            first / "valid"
            if part == "valid"
            else root / f"CheXpert-v1.0 batch {2 + patient % 2} (train {patient % 2})"
        )
        picture(batch / below)
        rows[part].append(f"CheXpert-v1.0/{part}/{below},Female,61,Frontal,AP,1.0" + "," * 13)
    for part, lines in rows.items():
        (first / f"{part}.csv").write_text("\n".join([f"Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDINGS}", *lines, ""]))
    return root


def test_chexpert_is_found_as_it_unpacks_from_each_level(tmp_path: Path) -> None:
    root = chexpert_batches(tmp_path / "chexpertchestxrays-u20210408")
    lists = [datalist_from_chexpert(place, validation=0.25)
             for place in (root, tmp_path, root / "CheXpert-v1.0 batch 1 (validate & csv)")]  # fmt: skip
    assert [len(lists[0][section]) for section in ("training", "validation", "test")] == [12, 4, 4]
    assert images(lists[0]) == images(lists[1]) == images(lists[2])
    for batch in (2, 3):
        shutil.rmtree(next(root.glob(f"*batch {batch}*")))
    with pytest.raises(DataListError, match="no training image was found, only 4 of test"):
        datalist_from_chexpert(root)


def test_shared_layouts(tmp_path: Path) -> None:
    if not OTHER.is_dir():
        pytest.skip("no shared cases")
    made = datalist_from_chexpert(OTHER / "chexpert_batches", validation=0.25)
    assert sum(len(made[section]) for section in ("training", "validation")) == 8
    assert {Path(p).parent.name for p in images(datalist_from_rsna(OTHER / "rsna_masks_beside"))} == {
        "stage_2_train_images"
    }
