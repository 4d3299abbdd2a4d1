"""Data sets whose publishers chose the test images: NIH, CheXpert, MIMIC-CXR-JPG, Kermany, VinDr-CXR."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from published import dicom, groups, items, labels_of, picture, write

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.datalists.file import load_datalist, training_items
from afire_monai.datalists.public import (
    datalist_from_chexpert,
    datalist_from_kermany,
    datalist_from_mimic,
    datalist_from_nih,
    datalist_from_vindr,
)
from afire_monai.datalists.public.common import header_facts
from afire_monai.datalists.validate import validate_datalist

# ---- NIH

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Twelve patients with two pictures each; the last three are for testing; one is missing, one in no list."""
    root = tmp_path / "NIH"
    rows: list[str] = []
    train: list[str] = []
    test: list[str] = []
    for patient in range(1, 13):
        for shot in range(2):
            name = f"{patient:08d}_{shot:03d}.png"
            finding = ("No Finding", "Effusion|Mass", "Pleural_Thickening")[patient % 3]
            rows.append(f"{name},{finding},{shot},{patient},{50 + patient},{'MF'[shot]},PA,2048,2500,0.14,0.14,\n")
            (test if patient > 9 else train).append(name)
            picture(root / f"images_{1 + patient // 7:03d}" / "images" / name, (64, 128))
    rows.append("00000099_000.png,Mass,0,99,411,F,AP,2048,2500,0.14,0.14,\n")
    rows.append("00000098_000.png,Mass,0,98,40,F,AP,2048,2500,0.14,0.14,\n")
    train.append("00000099_000.png")
    write(root / "Data_Entry_2017_v2020.csv", NIH_HEADER + "".join(rows), bom=True)
    write(root / "train_val_list.txt", "\n".join(train))
    write(root / "test_list.txt", "\r\n".join(test) + "\r\n")
    box = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Infiltrate,512,256,128.0,64,,,\n"
    write(root / "BBox_List_2017.csv", box)
    return root


def test_nih_keeps_its_official_test_images(nih: Path, tmp_path: Path) -> None:
    datalist = datalist_from_nih(nih, tmp_path / "nih.json", validation=0.3)
    assert groups(datalist, "test") == {"10", "11", "12"}
    assert len(datalist["training"]) + len(datalist["validation"]) == 18
    assert not groups(datalist, "training") & groups(datalist, "validation")
    assert len(groups(datalist, "validation")) == 3
    assert datalist["meta"]["skipped"] == {"missing_image": 1, "in_no_list": 1}
    assert datalist["meta"]["split"] == "official test images"
    assert json.loads((tmp_path / "nih.json").read_text())["meta"]["sha256"]
    assert validate_datalist(tmp_path / "nih.json").ok


def test_nih_labels_facts_and_boxes_of_reduced_pictures(nih: Path) -> None:
    datalist = datalist_from_nih(nih)
    item = items(datalist)["00000001_000"]
    present = [name for name, value in labels_of(datalist, item).items() if value]
    assert present == ["Effusion", "Mass"]
    assert (item["sex"], item["age"], item["view"]) == ("M", 51, "PA")
    # the picture is 64 x 128 instead of 1024 x 1024
    assert item["boxes"] == [[32, 32, 8, 8, "Infiltration"]]
    assert labels_of(datalist, items(datalist)["00000003_001"])["Normal"] == 1
    assert datalist["labels"][0] == "Normal"
    assert len(datalist["labels"]) == 15


def test_nih_picture_with_boxes_that_is_broken_is_named(nih: Path) -> None:
    for path in nih.rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(RadiographError, match=r"\.png: broken or truncated"):
        datalist_from_nih(nih)


def test_nih_lists_that_share_a_patient_are_refused_unless_official(nih: Path) -> None:
    write(nih / "my_test.txt", "00000001_001.png\n")
    train = (nih / "train_val_list.txt").read_text().replace("00000001_001.png\n", "")
    write(nih / "my_train.txt", train)
    with pytest.raises(DataListError, match="1 patients are in both"):
        datalist_from_nih(nih, train_list="my_train.txt", test_list="my_test.txt", validation=0)
    with pytest.raises(DataListError, match=r"1 images are in both train_val_list\.txt and my_test\.txt"):
        datalist_from_nih(nih, test_list="my_test.txt")
    write(nih / "train_val_list.txt", train)
    write(nih / "test_list.txt", "00000001_001.png\n")
    assert datalist_from_nih(nih)["meta"]["patients_in_two_sections"] == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Data_Entry_2017_v2020.csv", None, r"Data_Entry_2017\*.csv is not in it"),
        ("Data_Entry_2017_v2020.csv", "Image,Labels\n", "no column 'Image Index', .*its columns are Image, Labels"),
        ("Data_Entry_2017_v2020.csv", NIH_HEADER + "00000001_000.png,Flu,0,1,5,F,PA,1,1,1,1,\n", "line 2.*'Flu'"),
        ("test_list.txt", None, "test_list.txt: not readable.*one a line"),
        ("test_list.txt", "", "test_list.txt: it is empty"),
        ("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h]\n1.png,Mass,a,1,1,1\n", "line 2.*: x, y, wi"),
        ("BBox_List_2017.csv", "Image Index,Finding Label,Bbox\n1.png,Mass,1\n", "3 columns; image, finding, x"),
    ],
)
def test_nih_errors_name_file_and_what_was_expected(nih: Path, file: str, text: str | None, message: str) -> None:
    (nih / file).unlink()
    if text is not None:
        write(nih / file, text)
    with pytest.raises(DataListError, match=message):
        datalist_from_nih(nih)


def test_linked_folders_are_followed_and_circles_are_not(nih: Path) -> None:
    before = items(datalist_from_nih(nih))
    (nih / "images_001").rename(nih.parent / "elsewhere")
    (nih / "images_001").symlink_to(nih.parent / "elsewhere")
    (nih / "images_002" / "round").symlink_to(nih)
    assert items(datalist_from_nih(nih)).keys() == before.keys()


def test_nih_without_pictures_is_refused_with_their_number(nih: Path) -> None:
    for path in nih.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataListError, match="none of the 25 images"):
        datalist_from_nih(nih)


def test_the_command_writes_the_list_and_says_what_was_left_out(nih: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(["datalist", "nih", str(nih), "--out", str(tmp_path / "l.json"), "--validation", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "training 12, validation 6, test 6; left out, missing image: 1" in said
    assert len(load_datalist(tmp_path / "l.json", section="test")) == 6
    assert run(["datalist", "nih", str(tmp_path / "gone"), "--out", str(tmp_path / "l.json")]) == 2
    assert "no such folder" in capsys.readouterr().err


# ---- CheXpert and MIMIC

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)


@pytest.fixture
def chexpert(tmp_path: Path) -> Path:
    root = tmp_path / "renamed"
    train = []
    for patient in range(1, 11):
        for view in ("frontal", "lateral"):
            path = f"train/patient{patient:05d}/study1/view1_{view}.jpg"
            picture(root / path)
            train.append(
                f"CheXpert-v1.0-small/{path},Female,6{patient % 10},{view.title()},{'AP' if view == 'frontal' else ''},"
                f"{'1.0' if patient % 2 else ''},,,{'' if patient % 2 else '-1.0'},,,0.0,,,,,,,\n"
            )
    picture(root / "valid/patient64541/study1/view1_frontal.jpg")
    cells = ",".join(["0.0"] * 13 + ["1.0"])
    valid = f"CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,0,Frontal,PA,{cells}\n"
    write(root / "train.csv", CHEXPERT_HEADER + "".join(train))
    write(root / "valid.csv", CHEXPERT_HEADER + valid)
    return root


def test_chexpert_takes_frontal_views_and_tests_on_valid(chexpert: Path, tmp_path: Path) -> None:
    datalist = datalist_from_chexpert(chexpert, tmp_path / "c.json", validation=0.2)
    assert [len(datalist[s]) for s in ("training", "validation", "test")] == [8, 2, 1]
    assert groups(datalist, "test") == {"patient64541"}
    assert datalist["meta"]["skipped"]["lateral_view"] == 10
    test_item = datalist["test"][0]
    assert (test_item["sex"], test_item.get("age"), test_item["view"]) == ("M", None, "PA")
    assert labels_of(datalist, test_item)["Support Devices"] == 1
    assert len(datalist_from_chexpert(chexpert, lateral=True, validation=0)["training"]) == 20
    assert len(training_items(tmp_path / "c.json")) == 4


@pytest.mark.parametrize(("unmentioned", "blank"), [("negative", 0), ("missing", None)])
def test_chexpert_keeps_uncertain_and_reads_blank_as_told(chexpert: Path, unmentioned: str, blank: int | None) -> None:
    datalist = datalist_from_chexpert(chexpert, unmentioned=unmentioned)  # type: ignore[arg-type]
    by_patient = {item["group"]: labels_of(datalist, item) for item in items(datalist, ["training"]).values()}
    by_patient |= {i["group"]: labels_of(datalist, i) for s in ("training", "validation") for i in datalist.get(s, [])}
    assert by_patient["patient00002"] | {"Normal": blank} == by_patient["patient00002"]
    assert by_patient["patient00002"]["Lung Opacity"] == -1
    assert by_patient["patient00002"]["Consolidation"] == 0
    assert by_patient["patient00002"]["Edema"] is blank
    assert by_patient["patient00001"]["Normal"] == 1


def test_chexpert_five_labels_are_those_of_the_competition(chexpert: Path) -> None:
    datalist = datalist_from_chexpert(chexpert, labels="chexpert5")
    assert datalist["labels"] == ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]
    assert all(len(item["label"]) == 5 for item in items(datalist).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "five"}, "labels are 'five'; one of chexpert14, chexpert5"),
        ({"unmentioned": "zero"}, "unmentioned is 'zero'; negative"),
        ({"validation": 1}, "validation is 1; a share"),
    ],
)
def test_wrong_chexpert_options_are_refused(chexpert: Path, options: dict, message: str) -> None:
    with pytest.raises(DataListError, match=message):
        datalist_from_chexpert(chexpert, **options)


def test_chexpert_errors_name_line_and_column(chexpert: Path) -> None:
    text = (chexpert / "train.csv").read_text()
    write(chexpert / "train.csv", text.replace("-1.0", "u", 1))
    with pytest.raises(DataListError, match=r"train.csv: line \d+, column 'Lung Opacity': 'u'; 1 \(present\)"):
        datalist_from_chexpert(chexpert)
    write(chexpert / "train.csv", text.replace(",Edema,", ",Oedema,"))
    with pytest.raises(DataListError, match="no column 'Edema'; its columns are Path, Sex"):
        datalist_from_chexpert(chexpert)


def mimic(root: Path, suffix: str = ".csv.gz") -> Path:
    splits = {"a": "train", "b": "validate", "c": "test", "d": "train", "e": "train", "f": "train"}
    views = {"a": "PA", "b": "AP", "c": "AP", "d": "LATERAL", "e": "PA", "f": "PA"}
    split, metadata = "dicom_id,study_id,subject_id,split\n", "dicom_id,subject_id,study_id,ViewPosition,Rows\n"
    chexpert = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    chexpert += (
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices\n"
    )
    for number, name in enumerate("abcdef", start=1):
        subject, study = f"1{number:07d}", f"5{number:07d}"
        split += f"{name},{study},{subject},{splits[name]}\n"
        metadata += f"{name},{subject},{study},{views[name]},2500\n"
        if name != "e":
            chexpert += f"{subject},{study}," + (",,,,,,,,1.0,,,,,\n" if name == "a" else "1.0,-1.0,0.0,,,,,,,,,,,\n")
        if name != "f":
            picture(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg")
    for name, text in {"split": split, "metadata": metadata, "chexpert": chexpert}.items():
        write(root / f"mimic-cxr-2.0.0-{name}{suffix}", text)
    return root


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_mimic_keeps_its_official_split_and_joins_study_labels(tmp_path: Path, suffix: str) -> None:
    datalist = datalist_from_mimic(mimic(tmp_path / "m", suffix), tmp_path / "m.json")
    assert [list(items(datalist, [s])) for s in ("training", "validation", "test")] == [["a"], ["b"], ["c"]]
    assert datalist["meta"]["skipped"] == {
        "missing_image": 1, "other_view": 1, "no_report_label": 1
    }  # fmt: skip
    first, second = items(datalist)["a"], items(datalist)["b"]
    assert first["group"] == "p10000001"
    assert first["view"] == "PA"
    assert labels_of(datalist, first) == {name: int(name == "Normal") for name in datalist["labels"]}
    values = labels_of(datalist, second)
    assert (values["Atelectasis"], values["Cardiomegaly"], values["Edema"]) == (1, -1, 0)
    assert len(training_items(tmp_path / "m.json")) == 1
    assert validate_datalist(tmp_path / "m.json", check_files=False).ok


def test_mimic_patient_in_two_official_parts_is_reported(tmp_path: Path) -> None:
    root = mimic(tmp_path, ".csv")
    path = root / "mimic-cxr-2.0.0-split.csv"
    write(path, path.read_text().replace("50000003,10000003", "50000001,10000001"))
    picture(root / "files/p10/p10000001/s50000001/c.jpg")
    assert datalist_from_mimic(root)["meta"]["patients_in_two_sections"] == 1


def test_mimic_unknown_part_is_refused(tmp_path: Path) -> None:
    root = mimic(tmp_path, ".csv")
    path = root / "mimic-cxr-2.0.0-split.csv"
    write(path, path.read_text().replace("validate", "val"))
    with pytest.raises(DataListError, match="line 3, column 'split': 'val'; one of train, validate, test"):
        datalist_from_mimic(root)


def test_damaged_gzip_is_refused_by_name(tmp_path: Path) -> None:
    root = mimic(tmp_path)
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataListError, match=r"split\.csv\.gz: not a readable CSV"):
        datalist_from_mimic(root)


# ---- Kermany


def kermany(root: Path) -> Path:
    for number in range(1, 11):
        picture(root / "chest_xray/train/PNEUMONIA" / f"person{number}_bacteria_{number}.jpeg")
        picture(root / "chest_xray/train/PNEUMONIA" / f"person{number}_bacteria_{number + 100}.jpeg")
        picture(root / "chest_xray/train/NORMAL" / f"IM-{number:04d}-0001-0002.jpeg")
    picture(root / "chest_xray/val/NORMAL/NORMAL2-IM-1427-0001.jpeg")
    picture(root / "chest_xray/test/PNEUMONIA/person1_virus_6.jpeg")
    picture(root / "chest_xray/test/NORMAL/IM-0011-0001.jpeg")
    return root


def test_kermany_patients_come_from_names_and_validation_from_train(tmp_path: Path) -> None:
    datalist = datalist_from_kermany(kermany(tmp_path), validation=0.2)
    assert groups(datalist, "test") == {"virus 1", "IM-0011"}
    assert len(datalist["training"]) + len(datalist["validation"]) == 31
    assert "NORMAL2-IM-1427" in groups(datalist, "training") | groups(datalist, "validation")
    assert not groups(datalist, "training") & groups(datalist, "validation")
    by_name = items(datalist)
    assert by_name["person3_bacteria_3"]["group"] == by_name["person3_bacteria_103"]["group"] == "bacteria 3"
    assert by_name["person3_bacteria_3"]["label"] == [0, 1]
    assert by_name["IM-0003-0001-0002"]["label"] == [1, 0]
    assert datalist["meta"]["patients_in_two_sections"] == 0


def test_kermany_patient_in_train_and_test_is_reported(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    root = kermany(tmp_path)
    picture(root / "chest_xray/test/PNEUMONIA/person2_bacteria_200.jpeg")
    assert run(["datalist", "kermany", str(root), "--out", str(tmp_path / "k.json")]) == 0
    assert "note: 1 patients are in two sections" in capsys.readouterr().out


def test_kermany_original_names_are_understood_and_strange_ones_refused(tmp_path: Path) -> None:
    root = kermany(tmp_path)
    picture(root / "chest_xray/train/PNEUMONIA/BACTERIA-1008087-0001.jpeg")
    assert items(datalist_from_kermany(root))["BACTERIA-1008087-0001"]["group"] == "BACTERIA-1008087"
    picture(root / "chest_xray/train/PNEUMONIA/scan7.jpeg")
    with pytest.raises(DataListError, match=r"scan7\.jpeg: the patient is not in its name"):
        datalist_from_kermany(root)


def test_kermany_without_its_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match="no folders train and test"):
        datalist_from_kermany(tmp_path)


# ---- VinDr


def vindr(root: Path) -> Path:
    """Image a: two of three readers see a nodule, one sees fibrosis; b and t are without finding."""
    rows = [
        "a,R1,1,0,0,0", "a,R2,1,1,0,0", "a,R3,0,0,0,1", "b,R1,0,0,0,1", "b,R2,0,0,0,1", "b,R3,0,0,,1", "gone,R1,0,0,0,1"
    ]  # fmt: skip
    header = "image_id,rad_id,Nodule/Mass,Pulmonary fibrosis,{},No finding\n"
    write(root / "annotations/image_labels_train.csv", header.format("Other diseases") + "\n".join(rows) + "\n")
    write(
        root / "annotations/image_labels_test.csv",
        "image_id,Other disease,Nodule/Mass,Pulmonary fibrosis,No finding\nt,0,0,0,1\nu,1,1,0,0\n",
    )
    corners = "x_min,y_min,x_max,y_max"
    boxes = (
        "a,R1,Nodule/Mass,1,2,4,6\na,R2,Nodule/Mass,1,1,4,6.5\na,R2,Pulmonary fibrosis,0,0,2,2\nb,R1,No finding,,,,\n"
    )
    write(root / "annotations/annotations_train.csv", f"image_id,rad_id,class_name,{corners}\n{boxes}")
    write(root / "annotations/annotations_test.csv", f"image_id,class_name,{corners}\nu,Other disease,0,0,3,3\n")
    for name in "ab":
        dicom(root / "train" / f"{name}.dicom")
    for name in "tu":
        dicom(root / "test" / f"{name}.dicom", sex="M", age="007Y", view="AP")
    return root


def test_vindr_labels_are_the_majority_of_readers_with_boxes_of_what_is_present(tmp_path: Path) -> None:
    datalist = datalist_from_vindr(vindr(tmp_path / "v"), tmp_path / "v.json", validation=0)
    assert datalist["labels"] == ["Nodule/Mass", "Pulmonary fibrosis", "Other diseases", "Normal"]
    by_name = items(datalist)
    assert labels_of(datalist, by_name["a"]) == {
        "Nodule/Mass": 1, "Pulmonary fibrosis": 0, "Other diseases": 0, "Normal": 0
    }  # fmt: skip
    assert by_name["a"]["boxes"] == [[1, 2, 3, 4, "Nodule/Mass"], [1, 1, 3, 5.5, "Nodule/Mass"]]
    assert labels_of(datalist, by_name["b"])["Normal"] == 1
    assert by_name["u"]["label"] == [1, 0, 1, 0]
    assert by_name["u"]["boxes"] == [[0, 0, 3, 3, "Other diseases"]]
    assert set(items(datalist, ["test"])) == {"t", "u"}
    assert datalist["meta"]["skipped"] == {"missing_image": 1}
    assert validate_datalist(tmp_path / "v.json").ok


def test_header_with_a_damaged_element_gives_the_others(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm")
    sex = b"\x10\x00\x40\x00"
    path.write_bytes(path.read_bytes().replace(sex + b"CS", sex + b"CZ"))
    assert header_facts(path) == {"age": 45, "view": "PA"}
    assert header_facts(dicom(tmp_path / "b.dcm", age="000Y")) == {"sex": "F", "view": "PA"}


def test_headers_give_sex_age_and_view_and_nothing_else(tmp_path: Path) -> None:
    vindr(tmp_path / "v")
    datalist = datalist_from_vindr(tmp_path / "v", tmp_path / "v.json", read_headers=True)
    item = items(datalist)["t"]
    assert (item["sex"], item["age"], item["view"]) == ("M", 7, "AP")
    assert "lanted" not in (tmp_path / "v.json").read_text().lower().replace(str(tmp_path).lower(), "")


def test_vindr_tables_with_different_labels_are_refused(tmp_path: Path) -> None:
    path = vindr(tmp_path) / "annotations/image_labels_test.csv"
    write(path, path.read_text().replace("Pulmonary fibrosis", "ILD"))
    with pytest.raises(DataListError, match="differ in ILD, Pulmonary fibrosis"):
        datalist_from_vindr(tmp_path)


# ---- real data


@pytest.mark.real_data
def test_real_children_names_are_understood(real_data: Path, tmp_path: Path) -> None:
    """The collection keeps the published names; its pictures stand in for the unpacked archive."""
    import csv

    with (real_data / "cxr" / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "kermany"]
    for row in rows:
        link = tmp_path / row["repo_path"]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real_data / "cxr" / row["path"])
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "test" / label).mkdir(parents=True)
    datalist = datalist_from_kermany(tmp_path)
    published = {Path(row["repo_path"]).stem: row["labels"] for row in rows}
    assert {name: datalist["labels"][item["label"].index(1)] for name, item in items(datalist).items()} == published
    with Image.open(datalist["training"][0]["image"]) as image:
        assert image.mode == "L"
