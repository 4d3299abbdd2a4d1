"""Data sets without published test labels: SIIM-ACR, RSNA, JSRT, Shenzhen, Montgomery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published import dicom, items, labels_of, picture, write

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError
from afire_monai.datalists.public import (
    datalist_from_jsrt,
    datalist_from_montgomery,
    datalist_from_rsna,
    datalist_from_shenzhen,
    datalist_from_siim,
)
from afire_monai.datalists.validate import validate_datalist


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- SIIM-ACR


def siim(root: Path, name: str = "train-rle.csv", rows: str = "") -> Path:
    for image in ("1.2.3", "1.2.4", "1.2.5"):
        dicom(root / "dicom-images-train" / f"s{image}" / f"e{image}" / f"{image}.dcm")
    # column 0: rows 2 and 3; column 1: row 1024 + 4 - 1024 = 4; a second row of the table: row 0 of column 2
    table = f"1.2.3,2 2 1024 1\n1.2.3,2048 1\n1.2.4, -1\n1.2.5,-1\n9.9.9,-1\n{rows}"
    write(root / name, f"ImageId, EncodedPixels\n{table}")
    return root


@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_train.csv"])
def test_siim_run_lengths_become_masks_and_the_rest_has_none(tmp_path: Path, name: str) -> None:
    datalist = datalist_from_siim(siim(tmp_path / "s", name), tmp_path / "lists" / "siim.json")
    by_name = items(datalist)
    positive = by_name["1.2.3"]
    assert (positive["label"], by_name["1.2.4"]["label"], by_name["1.2.5"]["label"]) == ([1], [0], [0])
    assert Path(positive["mask"]) == tmp_path / "lists" / "siim_masks" / "1.2.3.png"
    mask = pixels(positive["mask"])
    assert mask.shape == (1024, 1024)
    assert set(zip(*np.nonzero(mask == 255), strict=True)) == {(2, 0), (3, 0), (4, 1), (0, 2)}
    assert np.count_nonzero(mask) == 4
    assert "mask" not in by_name["1.2.4"]
    assert datalist["meta"]["skipped"] == {"missing_image": 1}
    assert validate_datalist(tmp_path / "lists" / "siim.json").ok


def test_siim_without_a_place_writes_no_masks(tmp_path: Path) -> None:
    assert not any("mask" in item for item in items(datalist_from_siim(siim(tmp_path))).values())


def test_siim_mask_and_empty_for_one_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match=r"1\.2\.5 has both a mask and -1"):
        datalist_from_siim(siim(tmp_path, rows="1.2.5,1 1\n"))
    dicom(tmp_path / "dicom-images-train" / "1.2.6.dcm")
    with pytest.raises(DataListError, match=r"train-rle\.csv: 1\.2\.6: '1 1 1'; pairs of gap and length"):
        datalist_from_siim(siim(tmp_path, rows="1.2.6,1 1 1\n"))


# ---- RSNA


def rsna(root: Path) -> Path:
    classes = {"a": "Lung Opacity", "b": "Normal", "c": "No Lung Opacity / Not Normal", "gone": "Normal"}
    detailed = "patientId,class\n" + "".join(f"{k},{v}\n" for k, v in classes.items()) + "a,Lung Opacity\n"
    labels = "patientId,x,y,width,height,Target\na,264.0,152.0,213.0,379.0,1\na,562.0,152.0,256.0,453.0,1\n"
    write(root / "stage_2_train_labels.csv", labels + "b,,,,,0\nc,,,,,0\ngone,,,,,0\n")
    write(root / "stage_2_detailed_class_info.csv", detailed)
    for name in "abc":
        dicom(root / "stage_2_train_images" / f"{name}.dcm")
    return root


def test_rsna_has_three_classes_and_boxes_of_opacity(tmp_path: Path) -> None:
    datalist = datalist_from_rsna(rsna(tmp_path / "r"), tmp_path / "r.json", read_headers=True)
    by_name = items(datalist)
    assert datalist["labels"] == ["Normal", "Lung Opacity", "No Lung Opacity / Not Normal"]
    assert [by_name[name]["label"] for name in "abc"] == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert by_name["a"]["boxes"] == [[264, 152, 213, 379, "Lung Opacity"], [562, 152, 256, 453, "Lung Opacity"]]
    assert "boxes" not in by_name["b"]
    assert by_name["b"]["sex"] == "F"
    assert datalist["meta"]["skipped"] == {"missing_image": 1}
    assert validate_datalist(tmp_path / "r.json", check_files=False).ok


def test_rsna_errors_name_line_and_what_is_expected(tmp_path: Path) -> None:
    root = rsna(tmp_path)
    write(root / "stage_2_detailed_class_info.csv", "patientId,class\na,Opacity\n")
    with pytest.raises(DataListError, match="line 2, column 'class': 'Opacity'; one of Normal, Lung Opacity"):
        datalist_from_rsna(root)
    write(root / "stage_2_detailed_class_info.csv", "patientId,class\na,Normal\na,Lung Opacity\n")
    with pytest.raises(DataListError, match="line 3, column 'class': another value than in line 2"):
        datalist_from_rsna(root)
    write(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target\na,1,1,,1,1\n")
    with pytest.raises(DataListError, match="line 2, column 'width': box: 1, 1, , 1; numbers"):
        datalist_from_rsna(root)


# ---- JSRT


def jsrt(root: Path, side: int = 256) -> Path:
    """Three films; the table has the end of one line run into the next name, as the published one does."""
    for name in ("JPCLN001", "JPCLN002", "JPCNN001"):
        picture(root / "images" / f"{name}.png", (side, side))
    write(
        root / "CLNDAT_EN.txt",
        "JPCLN001.IMG\t5\t14\t53\tMale\t1634\t692\tmalignant\tl.upper lobe\tlung cancerJPCLN002.IMG\t5\t30\t?\tFemale"
        "\t20\t1090\tbenign\tl.upper lobe(S5)\tpulmonary hematoma\n",
    )
    write(root / "CNNDAT_EN.TXT", "JPCNN001.IMG\t66\tfemale\tnon-nodule\nJPCNN093.IMG\t40\tmale\tnon-nodule\n")
    for name, fold in (("JPCLN001", "fold1"), ("JPCNN001", "fold2")):
        for lung, left in (("left lung", True), ("right lung", False)):
            mask = np.zeros((64, 64), dtype=np.uint8)
            mask[16:48, 32 : 48 if left else 34] = 255
            path = root / "SCR" / fold / "masks" / lung / f"{name}.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask if left else mask[:, ::-1]).save(path)
    return root


def test_jsrt_boxes_follow_centre_and_diameter_at_the_size_of_the_picture(tmp_path: Path) -> None:
    datalist = datalist_from_jsrt(jsrt(tmp_path / "j"), tmp_path / "j.json")
    by_name = items(datalist)
    # 14 mm are 80 pixels of 0.175 mm; the picture is an eighth of 2048
    assert by_name["JPCLN001"]["boxes"] == [[(1634 - 40) / 8, (692 - 40) / 8, 10, 10, "Nodule"]]
    left, _, width, height, _ = by_name["JPCLN002"]["boxes"][0]
    assert left == 0
    assert width < height
    assert (by_name["JPCLN001"]["sex"], by_name["JPCLN001"]["age"]) == ("M", 53)
    assert (by_name["JPCLN002"]["sex"], by_name["JPCLN002"].get("age")) == ("F", None)
    assert (by_name["JPCNN001"]["sex"], by_name["JPCNN001"]["age"]) == ("F", 66)
    assert labels_of(datalist, by_name["JPCNN001"]) == {"Normal": 1, "Nodule": 0}
    assert labels_of(datalist, by_name["JPCLN001"]) == {"Normal": 0, "Nodule": 1}
    assert datalist["meta"]["skipped"] == {"missing_image": 1}
    assert validate_datalist(tmp_path / "j.json").ok


def test_jsrt_lungs_are_joined_at_the_size_of_the_picture(tmp_path: Path) -> None:
    by_name = items(datalist_from_jsrt(jsrt(tmp_path / "j"), masks=tmp_path / "m"))
    mask = pixels(by_name["JPCLN001"]["mask"])
    expected = np.zeros((256, 256), dtype=np.uint8)
    expected[64:192, 128:192] = 255
    expected[64:192, 120:128] = 255
    np.testing.assert_array_equal(mask, expected)
    assert "mask" not in by_name["JPCLN002"]


def test_jsrt_takes_no_outline_or_own_mask_for_a_picture_and_no_picture_twice(tmp_path: Path) -> None:
    root = jsrt(tmp_path / "j")
    for part in ("heart", "left lung"):
        picture(root / part / "JPCLN001.png")
    for _ in range(2):
        by_name = items(datalist_from_jsrt(root, masks=root / "drawn"))
        assert by_name["JPCLN001"]["image"] == str(root / "images" / "JPCLN001.png")
    picture(root / "small" / "JPCLN001.png")
    with pytest.raises(DataListError, match=r"could both be 'JPCLN001\.png'. Keep one"):
        datalist_from_jsrt(root, masks=root / "drawn")


def test_jsrt_with_films_only_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "JPCLN001.IMG").write_bytes(b"\0" * 8)
    with pytest.raises(DataListError, match="Convert them to 16-bit PNG"):
        datalist_from_jsrt(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataListError, match="no image of jsrt was found"):
        datalist_from_jsrt(tmp_path / "empty")


# ---- tuberculosis


def test_shenzhen_label_is_the_last_digit_and_readings_give_sex_and_age(tmp_path: Path) -> None:
    root = tmp_path / "ChinaSet_AllFiles"
    for name in ("CHNCXR_0001_0", "CHNCXR_0327_1", "CHNCXR_0328_1"):
        picture(root / "CXR_png" / f"{name}.png")
    write(root / "ClinicalReadings/CHNCXR_0001_0.txt", "male 45yrs\r\nnormal")
    write(root / "ClinicalReadings/CHNCXR_0327_1.txt", "Female, 18 months\nPTB in the right upper field")
    picture(root / "mask" / "CHNCXR_0327_1_mask.png")
    datalist = datalist_from_shenzhen(root, tmp_path / "s.json")
    by_name = items(datalist)
    assert labels_of(datalist, by_name["CHNCXR_0001_0"]) == {"Normal": 1, "Tuberculosis": 0}
    assert labels_of(datalist, by_name["CHNCXR_0327_1"]) == {"Normal": 0, "Tuberculosis": 1}
    assert (by_name["CHNCXR_0001_0"]["sex"], by_name["CHNCXR_0001_0"]["age"]) == ("M", 45)
    assert (by_name["CHNCXR_0327_1"]["sex"], by_name["CHNCXR_0327_1"]["age"]) == ("F", 1.5)
    assert {"sex", "age"}.isdisjoint(by_name["CHNCXR_0328_1"])
    assert by_name["CHNCXR_0327_1"]["mask"].endswith("mask/CHNCXR_0327_1_mask.png")
    assert len(by_name) == 3


def test_montgomery_masks_of_both_lungs_become_one(tmp_path: Path) -> None:
    root = tmp_path / "MontgomerySet"
    for name in ("MCUCXR_0001_0", "MCUCXR_0104_1"):
        picture(root / "CXR_png" / f"{name}.png", (8, 6))
        write(root / "ClinicalReadings" / f"{name}.txt", "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n")
    for side, columns in (("leftMask", slice(0, 2)), ("rightMask", slice(5, 7))):
        mask = np.zeros((6, 8), dtype=np.uint8)
        mask[1:4, columns] = 255
        path = root / "ManualMask" / side / "MCUCXR_0001_0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(mask).save(path)
    assert run(["datalist", "montgomery", str(root), "--out", str(tmp_path / "m.json")]) == 0
    by_name = items(datalist_from_montgomery(root, tmp_path / "m.json"))
    expected = np.zeros((6, 8), dtype=np.uint8)
    expected[1:4, [0, 1, 5, 6]] = 255
    np.testing.assert_array_equal(pixels(by_name["MCUCXR_0001_0"]["mask"]), expected)
    assert "mask" not in by_name["MCUCXR_0104_1"]
    assert (by_name["MCUCXR_0104_1"]["sex"], by_name["MCUCXR_0104_1"]["age"]) == ("F", 27)
    (root / "CXR_png").rename(root / "a pictures")
    for _ in range(2):  # the second time, the masks of the first are there
        by_name = items(datalist_from_montgomery(root, masks=root / "Drawn"))
        assert Path(by_name["MCUCXR_0001_0"]["image"]).parent == root / "a pictures"


def test_tuberculosis_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    for build in (datalist_from_shenzhen, datalist_from_montgomery):
        with pytest.raises(DataListError, match="no picture named like"):
            build(tmp_path)


def test_random_splits_refuse_wrong_fractions(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match="three, for training"):
        datalist_from_rsna(rsna(tmp_path), fractions=(0.5, 0.5))
