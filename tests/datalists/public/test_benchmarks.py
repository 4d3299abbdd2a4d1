"""Small published benchmarks (MedMNIST, BMAD) and PadChest, in the layouts that users have."""

from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import groups, items, labels_of, picture, write

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import load_datalist, training_items
from afire_monai.datalists.public import datalist_from_bmad, datalist_from_medmnist, datalist_from_padchest
from afire_monai.datalists.validate import validate_datalist

# ---- MedMNIST


def npz(path: Path, columns: int, side: int = 28, **changes: np.ndarray) -> tuple[Path, dict[str, np.ndarray]]:
    """Eight, two and four pictures; the first column is present in every second one."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 8), ("val", 2), ("test", 4)):
        arrays[f"{part}_images"] = draw.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = np.zeros((count, columns), np.uint8)
        labels[::2, 0] = 1
        arrays[f"{part}_labels"] = labels
    arrays |= changes
    np.savez_compressed(path, **arrays)
    return path, arrays


@pytest.mark.parametrize("side", [28, 64, 128, 224])
def test_pneumoniamnist_of_each_size_keeps_pixels_labels_and_split(tmp_path: Path, side: int) -> None:
    name = "pneumoniamnist.npz" if side == 28 else f"pneumoniamnist_{side}.npz"
    path, arrays = npz(tmp_path / name, 1, side)
    datalist = datalist_from_medmnist(path, tmp_path / "list.json")
    assert datalist["labels"] == ["Normal", "Pneumonia"]
    for part, section in (("train", "training"), ("val", "validation"), ("test", "test")):
        assert len(datalist[section]) == len(arrays[f"{part}_images"])
        for number, item in enumerate(datalist[section]):
            assert np.array_equal(np.asarray(Image.open(item["image"])), arrays[f"{part}_images"][number])
            assert item["label"] == [1 - arrays[f"{part}_labels"][number, 0], arrays[f"{part}_labels"][number, 0]]
    assert validate_datalist(tmp_path / "list.json", decode=True).ok
    assert len(training_items(tmp_path / "list.json")) == 4


def test_chestmnist_has_the_fourteen_findings_and_normal_where_none_is_present(tmp_path: Path) -> None:
    path, _ = npz(tmp_path / "chestmnist_64.npz", 14, 64)
    assert (
        run(["datalist", "medmnist", str(path), "--out", str(tmp_path / "c.json"), "--images", str(tmp_path / "p")])
        == 0
    )
    datalist = load_datalist(tmp_path / "c.json")
    assert datalist["labels"][:2] == ["Normal", "Atelectasis"]
    assert datalist["labels"][-1] == "Hernia"
    assert [item["label"][:3] for item in datalist["test"]] == [[0, 1, 0], [1, 0, 0]] * 2
    assert Path(datalist["test"][0]["image"]).is_relative_to(tmp_path / "p")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_labels": np.zeros((2, 2), np.uint8)}, r"val_labels.npy is \(2, 2\)"),
        ({"val_labels": np.full((2, 1), 7, np.uint8)}, "holds 7; 0 and 1"),
        ({"test_images": np.zeros((4, 28, 28, 3), np.uint8)}, r"\(4, 28, 28, 3\)"),
        ({"test_images": np.zeros((3, 28, 28), np.uint8)}, r"\(3, 28, 28\); \(4, side, side\)"),
        ({"test_images": np.zeros((4, 28, 28))}, "float64; uint8"),
        ({"test_images": np.array([{}], dtype=object)}, "object; uint8"),
    ],
)
def test_other_content_is_refused_by_name(tmp_path: Path, changes: dict[str, np.ndarray], words: str) -> None:
    path, _ = npz(tmp_path / "pneumoniamnist.npz", 1, **changes)
    with pytest.raises(DataListError, match=f"pneumoniamnist.npz: .*{words}"):
        datalist_from_medmnist(path, tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()


def test_broken_and_other_files_are_refused(tmp_path: Path) -> None:
    path, _ = npz(tmp_path / "pneumoniamnist.npz", 1)
    with pytest.raises(DataListError, match="must become files"):
        datalist_from_medmnist(path)
    whole = path.read_bytes()
    for number in range(0, len(whole), 301):  # one damaged byte, or cut off
        for data in (whole[:number], whole[:number] + bytes([whole[number] ^ 0x55]) + whole[number + 1 :]):
            path.write_bytes(data)
            with contextlib.suppress(DataListError):  # anything else is a fault
                datalist_from_medmnist(path, tmp_path / "list.json")
    cut = io.BytesIO()
    np.save(cut, np.zeros((8, 28, 28), np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        label = io.BytesIO()
        np.save(label, np.zeros((8, 1), np.uint8))
        archive.writestr("train_labels.npy", label.getvalue())
        archive.writestr("train_images.npy", cut.getvalue()[:-5])
    with pytest.raises(DataListError, match=r"train_images\.npy is cut off"):
        datalist_from_medmnist(path, tmp_path / "list.json")
    for name in ("breastmnist.npz", "missing/pneumoniamnist.npz"):
        if "/" not in name:
            (tmp_path / name).write_bytes(whole)
        with pytest.raises(DataListError, match=name):
            datalist_from_medmnist(tmp_path / name, tmp_path / "list.json")


# ---- BMAD


def bmad(root: Path, below: bool, valid: str = "valid") -> Path:
    for part, kind, count in (("train", "good", 6), (valid, "good", 2), (valid, "Ungood", 2), ("test", "good", 3),
                              ("test", "Ungood", 4)):  # fmt: skip
        for number in range(count):
            place = root / part / kind
            value = 10 + number + 20 * (kind == "good") + 40 * ("train", valid, "test").index(part)
            picture(place / "img" / f"{number}.png" if below else place / f"{number}.png", value=value)
            if below and kind == "Ungood" and number:
                picture(place / "label" / f"{number}.png", value=255)
    return root


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("valid", ["valid", "val"])
def test_bmad_keeps_its_sections_and_finds_masks(tmp_path: Path, below: bool, valid: str) -> None:
    bmad(tmp_path / "BMAD" / "Chest", below, valid)
    bmad(tmp_path / "BMAD" / "Brain", below)
    made = datalist_from_bmad(tmp_path / "BMAD", tmp_path / "b.json")
    assert made == datalist_from_bmad(tmp_path / "BMAD" / "Chest")
    assert [len(made[section]) for section in ("training", "validation", "test")] == [6, 4, 7]
    assert all("Chest" in item["image"] for item in made["training"])
    assert [item["label"] for item in made["test"]] == [[0, 1]] * 4 + [[1, 0]] * 3
    masks = {item["image"]: item["mask"] for item in made["test"] if "mask" in item}
    assert len(masks) == (3 if below else 0)
    assert all(Path(image).name == Path(mask).name and "label" in mask for image, mask in masks.items())
    assert made["meta"]["skipped"]["no_mask_but_kept"] == (2 if below else 0)
    assert validate_datalist(tmp_path / "b.json").ok
    assert len(training_items(tmp_path / "b.json")) == 6


def test_bmad_names_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match="no train/good in it"):
        datalist_from_bmad(tmp_path)
    bmad(tmp_path, False)
    picture(tmp_path / "test" / "other" / "1.png")
    with pytest.raises(DataListError, match="other: folders good and Ungood"):
        datalist_from_bmad(tmp_path)


# ---- PadChest

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
LABELS = ["['normal']", "['pleural effusion', 'cardiomegaly ']", "['normal', 'unchanged']", "['aortic elongation']"]


def padchest(root: Path, layout: str, packed: bool = False) -> Path:
    """Twenty patients with two images; further rows of other views, without labels, excluded and missing."""
    rows = [
        ",ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,MethodLabel,Labels"
    ]

    def add(
        name: str, patient: int, labels: str, view: str = "PA", method: str = "Physician", here: bool = True
    ) -> None:
        cells = f'{len(rows)},{name},{patient % 3},20140915,{patient},1950.0,M,{view},"un, informe",{method},"{labels}"'
        rows.append(cells)
        if here:
            picture(root / layout.format(patient % 3) / name)

    for patient in range(20):
        for shot in range(2):
            add(f"{patient}_{shot}.png", patient, LABELS[patient % 4], method=("Physician", "RNN_model")[shot])
    add("side.png", 30, "['normal']", "L")
    add("none.png", 31, "")
    add("nan.png", 32, "nan")
    add("same.png", 33, "['unchanged']")
    add("odd.png", 34, "['exclude', 'nodule']")
    add("gone.png", 35, "['normal']", here=False)
    write(root / f"{PADCHEST}{'.gz' if packed else ''}", "\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("layout", ["{}", ".", "images-224", "images/{}"])
def test_padchest_is_found_in_each_layout(tmp_path: Path, layout: str) -> None:
    made = datalist_from_padchest(padchest(tmp_path, layout, packed=layout == "."), at_least=10)
    assert made["labels"] == ["Normal", "aortic elongation", "cardiomegaly", "pleural effusion"]
    found = items(made)
    assert len(found) == 40
    assert labels_of(made, found["1_0"]) == {
        "Normal": 0,
        "aortic elongation": 0,
        "cardiomegaly": 1,
        "pleural effusion": 1,
    }
    assert labels_of(made, found["2_1"])["Normal"] == 1
    assert (found["0_0"]["sex"], found["0_0"]["age"], found["0_0"]["view"]) == ("M", 64, "PA")
    skipped = {"missing_image": 1, "other_view": 1, "no_report_label": 3, "excluded": 1}
    assert made["meta"]["skipped"] == skipped
    assert not groups(made, "training") & groups(made, "test")


def test_padchest_options(tmp_path: Path) -> None:
    root, out = padchest(tmp_path / "set", "{}"), tmp_path / "p.json"
    words = ["--at-least", "11", "--physicians-only", "--png16-max", "4095"]
    assert run(["datalist", "padchest", str(root), "--out", str(out), *words]) == 0
    made = load_datalist(out)
    # a finding too rare for a label does not make its image normal
    assert made["labels"] == ["Normal"]
    assert len(items(made)) == 20
    assert sum(item["label"] == [1] for item in items(made).values()) == 10
    assert made["meta"]["reader"] == {"png16_max": 4095}
    assert validate_datalist(out).ok


def test_padchest_refuses_what_could_be_read_in_two_ways(tmp_path: Path) -> None:
    root = padchest(tmp_path, "{}")
    picture(root / "images-224" / "0_0.png")
    with pytest.raises(DataListError, match=r"could both be '0_0\.png'"):
        datalist_from_padchest(root)
    table = root / PADCHEST
    table.write_text(table.read_text().replace("['normal']", "normal", 1))
    with pytest.raises(DataListError, match=r"line 2, column 'Labels'.*\['normal'\] is expected"):
        datalist_from_padchest(root)
