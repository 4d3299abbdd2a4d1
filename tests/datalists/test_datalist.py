from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import Dataset, load_decathlon_datalist
from monai.transforms import LoadImaged
from PIL import Image

from afire_monai.core.errors import DataListError
from afire_monai.datalists.build import datalist_from_folder
from afire_monai.datalists.file import SECTIONS, datalist_hash, load_datalist, save_datalist, training_items
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.merge import merge_datalists
from afire_monai.datalists.validate import validate_datalist
from afire_monai.radiographs.reader import RadiographReader


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 6), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two sources, 30 patients with two images each; one row without file, one mask without file."""
    rows = []
    for i in range(60):
        source = "a" if i < 40 else "b"
        path = picture(tmp_path / "data" / source / f"{i}.png", seed=i)
        labels = ("Normal", "Pneumonia", "Effusion|Pneumonia")[(i // 2) % 3]
        mask = picture(tmp_path / "data" / "masks" / "0.png").name if i == 0 else "gone.png" if i == 1 else ""
        rows.append((f"{source}/{path.name}", source, f"patient {i // 2}", labels, mask and f"masks/{mask}"))
    rows.append(("a/missing.png", "a", "patient 99", "Normal", ""))
    with (tmp_path / "data" / "manifest.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "source", "group", "labels", "mask"))
        writer.writerows(rows)
    return tmp_path / "data" / "manifest.csv"


def all_items(datalist: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for section in SECTIONS for item in datalist.get(section, [])]


def kinds(datalist: Any, **options: Any) -> list[str]:
    return [problem.kind for problem in validate_datalist(datalist, **options).problems]


# ---- from CSV


def test_csv_becomes_items_with_labels_groups_and_masks(manifest: Path) -> None:
    datalist = datalist_from_csv(manifest, mask_column="mask")
    assert datalist["labels"] == ["Normal", "Effusion", "Pneumonia"]
    items = {Path(item["image"]).name: item for item in all_items(datalist)}
    assert len(items) == 60
    assert items["0.png"]["label"] == [1, 0, 0]
    assert items["2.png"]["label"] == [0, 0, 1]
    assert items["4.png"]["label"] == [0, 1, 1]
    assert items["4.png"]["group"] == "patient 2"
    assert items["0.png"]["mask"].endswith("masks/0.png")
    assert "mask" not in items["1.png"]
    assert datalist["meta"]["skipped"] == {"missing_image": 1, "missing_mask": 1}


def test_patients_stay_in_one_section_and_fractions_hold(manifest: Path) -> None:
    datalist = datalist_from_csv(manifest, fractions=(0.6, 0.2, 0.2))
    groups = [{item["group"] for item in datalist[section]} for section in SECTIONS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert [len(datalist[section]) for section in SECTIONS] == pytest.approx([36, 12, 12], abs=2)


def test_one_list_for_each_source(manifest: Path, tmp_path: Path) -> None:
    lists = datalist_from_csv(manifest, out=tmp_path / "lists", by_source=True)
    assert {source: len(all_items(part)) for source, part in lists.items()} == {"a": 40, "b": 20}
    assert sorted(path.name for path in (tmp_path / "lists").iterdir()) == ["a.json", "b.json"]
    assert all("/a/" in item["image"] for item in all_items(load_datalist(tmp_path / "lists" / "a.json")))
    only_b = datalist_from_csv(manifest, source="b")
    assert all_items(only_b) == all_items(lists["b"])


def test_seed_decides_the_split(manifest: Path) -> None:
    assert datalist_from_csv(manifest, seed=1) == datalist_from_csv(manifest, seed=1)
    assert datalist_from_csv(manifest, seed=1)["training"] != datalist_from_csv(manifest, seed=2)["training"]


def test_empty_label_cell_is_not_known_and_empty_group_is_the_image(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "m.csv").write_text("path,group,labels\na.png,,Normal\nb.png,,\n")
    items = {Path(item["image"]).name: item for item in all_items(datalist_from_csv(tmp_path / "m.csv"))}
    assert items["a.png"]["label"] == [1]
    assert items["b.png"]["label"] == [None]
    assert items["a.png"]["group"] != items["b.png"]["group"]


def test_boxes_are_joined_by_path(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "m.csv").write_text("path,group,labels\na.png,1,Nodule\n")
    (tmp_path / "boxes.csv").write_text("path,label,x,y,width,height\na.png,Nodule,1,2,3,4.5\na.png,Mass,0,0,1,1\n")
    (item,) = all_items(datalist_from_csv(tmp_path / "m.csv", boxes_csv=tmp_path / "boxes.csv"))
    assert item["boxes"] == [[1, 2, 3, 4.5, "Nodule"], [0, 0, 1, 1, "Mass"]]
    (tmp_path / "tables").mkdir()
    for name in ("m.csv", "boxes.csv"):  # paths that lead out of the tables' folder
        table = (tmp_path / name).read_text().replace("a.png", "../a.png")
        (tmp_path / "tables" / name).write_text(table)
    outside = datalist_from_csv(tmp_path / "tables" / "m.csv", boxes_csv=tmp_path / "tables" / "boxes.csv")
    assert [other["boxes"] for other in all_items(outside)] == [item["boxes"]]
    assert "box_without_image" not in outside["meta"]["skipped"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "file"}, "no column 'file'; its columns are path, source, group, labels, mask"),
        ({"labels_column": "findings"}, "no column 'findings'"),
        ({"source": "c"}, "no source c in column 'source'; it has a, b"),
        ({"source": "a", "source_column": None}, "source_column is None"),
        ({"fractions": (0.5, 0.4)}, "three, for training, validation, test"),
        ({"fractions": (0.5, 0.4, 0.2)}, "sum to 1"),
        ({"base_dir": "/nowhere"}, "base_dir"),
    ],
)
def test_wrong_csv_options_are_refused_with_what_is_there(
    manifest: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataListError, match=message):
        datalist_from_csv(manifest, **options)


def table(tmp_path: Path, text: str) -> Path:
    """A manifest whose first column names pictures that are there."""
    for line in text.splitlines()[1:]:
        picture(tmp_path / line.split(",")[0])
    (tmp_path / "m.csv").write_text(text)
    return tmp_path / "m.csv"


def test_facts_are_kept_where_the_csv_has_columns_of_their_names(tmp_path: Path) -> None:
    path = table(
        tmp_path, "path,group,labels,sex,age,view\na.png,1,x,Female,57,PA\nb.png,2,x,?,058Y,\nc.png,3,x,m,411,AP\n"
    )
    datalist = datalist_from_csv(path)
    items = {Path(item["image"]).name: item for item in all_items(datalist)}
    assert [items["a.png"].get(key) for key in ("sex", "age", "view", "source")] == ["F", 57, "PA", None]
    assert [items["b.png"].get(key) for key in ("sex", "age", "view")] == [None, 58, None]
    assert [items["c.png"].get(key) for key in ("sex", "age", "view")] == ["M", None, "AP"]
    assert datalist["meta"]["unusable"] == {"age": 1}
    assert validate_datalist(datalist, check_files=False).ok


def test_facts_can_be_renamed_or_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,group,labels,sex,Years\na.png,1,x,F,57\n")
    (item,) = all_items(datalist_from_csv(path, keep=["age=Years"]))
    assert item["age"] == 57
    assert "sex" not in item
    (item,) = all_items(datalist_from_csv(path, keep=None))
    assert {"sex", "age"}.isdisjoint(item)


def test_one_column_a_label_keeps_uncertain_and_unknown_apart(tmp_path: Path) -> None:
    text = "path,group,Edema,Mass,No Finding\na.png,1,1.0,,0\nb.png,2,-1.0,0,\nc.png,3,0,0,1\n"
    datalist = datalist_from_csv(
        table(tmp_path, text), label_columns=["No Finding", "Mass", "Edema"], normal_label="No Finding"
    )
    items = {Path(item["image"]).name: item["label"] for item in all_items(datalist)}
    assert datalist["labels"] == ["No Finding", "Mass", "Edema"]
    assert items == {"a.png": [0, None, 1], "b.png": [None, 0, -1], "c.png": [1, 0, 0]}
    assert validate_datalist(datalist, check_files=False).ok


def test_gzipped_csv_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, "path,group,labels\na.png,1,x\n")
    with gzip.open(tmp_path / "m.csv.gz", "wt") as file:
        file.write(path.read_text())
    assert all_items(datalist_from_csv(tmp_path / "m.csv.gz")) == all_items(datalist_from_csv(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_columns": ["Edema", "Oedema"]}, "no column 'Oedema'; its columns are path, group, Edema"),
        ({"label_columns": ["Edema"]}, r"line 3, column 'Edema': 'maybe'; 1 \(present\)"),
        ({"label_columns": []}, "at least one"),
        ({"labels_column": None, "keep": ["gender"]}, "keep names 'gender'; sex, age, view, source"),
        ({"labels_column": None, "keep": ["sex"]}, "no column 'sex'"),
        ({"labels_column": None, "keep": ["auto", "sex"]}, "'auto' alone"),
    ],
)
def test_wrong_facts_and_label_columns_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = table(tmp_path, "path,group,Edema\na.png,1,1\nb.png,2,maybe\n")
    with pytest.raises(DataListError, match=message):
        datalist_from_csv(path, **options)


# ---- from a folder


def test_folder_with_group_pattern_and_labels_from_folders(tmp_path: Path) -> None:
    for patient in range(20):
        for shot in range(2):
            picture(tmp_path / ("NORMAL" if patient < 10 else "PNEUMONIA") / f"person{patient}_{shot}.png")
    datalist = datalist_from_folder(tmp_path, group_pattern=r"person(\d+)_", labels_from_folders=True)
    assert datalist["labels"] == ["Normal", "PNEUMONIA"]
    assert len(all_items(datalist)) == 40
    assert "patient in two splits" not in kinds(datalist)
    assert all(item["label"] == ([1, 0] if int(item["group"]) < 10 else [0, 1]) for item in all_items(datalist))


def test_folder_without_pattern_takes_each_image_for_a_patient(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / f"{i}.png")
    datalist = datalist_from_folder(tmp_path, fractions=(0.5, 0.5, 0))
    assert {"labels", "test"}.isdisjoint(datalist)
    assert [len(datalist["training"]), len(datalist["validation"])] == [5, 5]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "not a regular expression"), (r"p(\d+)", "finds no patient in 1 of 1"), (r"(\d*)", "no patient in 1 of 1")],
)
def test_wrong_group_pattern_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(DataListError, match=message):
        datalist_from_folder(tmp_path, group_pattern=pattern)


def test_folder_without_radiographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match="no PNG, JPEG, NIfTI or DICOM"):
        datalist_from_folder(tmp_path)


# ---- the file


def test_saved_list_is_relative_loads_absolute_and_feeds_monai(manifest: Path, tmp_path: Path) -> None:
    built = datalist_from_csv(manifest, mask_column="mask", out=tmp_path / "lists" / "all.json")
    raw = json.loads((tmp_path / "lists" / "all.json").read_text())
    assert raw["training"][0]["image"].startswith("../data/")
    assert all_items(load_datalist(tmp_path / "lists" / "all.json")) == all_items(built)
    items = load_datalist(tmp_path / "lists" / "all.json", section="training")
    assert Dataset(items, LoadImaged("image", reader=RadiographReader()))[0]["image"].shape == (1, 8, 6)


def test_monai_reads_the_same_items(manifest: Path, tmp_path: Path) -> None:
    datalist_from_csv(manifest, out=tmp_path / "all.json", mask_column="mask")
    for section in SECTIONS:
        theirs = load_decathlon_datalist(tmp_path / "all.json", is_segmentation=False, data_list_key=section)
        assert theirs == load_datalist(tmp_path / "all.json")[section]


def test_base_dir_replaces_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"test": ["a.png", {"image": "/abs/b.png", "mask": "m.png"}]}))
    items = load_datalist(tmp_path / "l.json", base_dir="/base")["test"]
    assert items == [{"image": "/base/a.png"}, {"image": "/abs/b.png", "mask": "/base/m.png"}]


def test_interrupted_save_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_datalist({"training": [{"image": "/a.png"}]}, tmp_path / "l.json")
    before = path.read_text()

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_datalist({"training": [{"image": "/b.png"}]}, path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["l.json"]


def test_hash_follows_content_and_not_key_order_or_meta() -> None:
    one = {"labels": ["x"], "training": [{"image": "a", "label": [1]}], "meta": {"seed": 1}}
    same = {"meta": {}, "training": [{"label": [1], "image": "a"}], "labels": ["x"]}
    other = {"labels": ["x"], "training": [{"image": "a", "label": [0]}]}
    assert datalist_hash(one) == datalist_hash(same) != datalist_hash(other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "JSON data list is expected"),
        ("{", "not JSON"),
        ("[]", "a list at the top"),
        ('{"name": "x"}', "none of training, validation, test"),
        ('{"training": {}}', "a list is expected"),
        ('{"training": [{"label": 1}]}', r"training\[0\] has no image path"),
    ],
)
def test_broken_list_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataListError, match=rf"bad\.json.*{message}"):
        load_datalist(tmp_path / "bad.json")


def test_missing_section_is_refused_with_those_present(tmp_path: Path) -> None:
    path = save_datalist({"training": [{"image": "a.png"}]}, tmp_path / "l.json")
    with pytest.raises(DataListError, match="no section 'test'; it has training"):
        load_datalist(path, section="test")


# ---- normal images


def test_pretraining_takes_normal_images_only(manifest: Path, tmp_path: Path) -> None:
    datalist_from_csv(manifest, out=tmp_path / "l.json", fractions=(1, 0, 0))
    assert len(training_items(tmp_path / "l.json")) == 20
    assert len(load_datalist(tmp_path / "l.json")["training"]) == 60


def test_without_a_normal_label_all_zero_is_normal_and_unknown_is_not(tmp_path: Path) -> None:
    items = [{"image": str(i), "label": label} for i, label in enumerate([[0, 0], [0, 1], [0, -1]])]
    path = save_datalist({"labels": ["Mass", "Nodule"], "training": [*items, {"image": "x"}]}, tmp_path / "l.json")
    assert [Path(item["image"]).name for item in training_items(path)] == ["0"]


def test_list_without_labels_is_all_normal_and_no_normal_image_is_an_error(tmp_path: Path) -> None:
    assert len(training_items(save_datalist({"training": [{"image": "a"}]}, tmp_path / "l.json"))) == 1
    sick = {"labels": ["Normal", "Mass"], "training": [{"image": "a", "label": [0, 1]}]}
    with pytest.raises(DataListError, match="no normal image"):
        training_items(save_datalist(sick, tmp_path / "m.json"))


# ---- joining


def test_label_that_a_list_does_not_know_is_null_unless_the_image_is_normal(tmp_path: Path) -> None:
    one = save_datalist(
        {"labels": ["Normal", "Mass"], "training": [{"image": "a", "label": [1, 0]}, {"image": "b", "label": [0, -1]}]},
        tmp_path / "one.json",
    )
    two = save_datalist({"labels": ["Edema"], "training": [{"image": "c", "label": [1]}]}, tmp_path / "two.json")
    merged = merge_datalists([one, two])
    assert merged["labels"] == ["Normal", "Mass", "Edema"]
    assert [item["label"] for item in merged["training"]] == [[1, 0, 0], [0, -1, None], [None, None, 1]]


def test_an_image_that_is_normal_in_its_own_list_is_so_in_the_joined_one(tmp_path: Path) -> None:
    """Whatever the list calls it, whether it has a label for it, or any label at all."""
    mine = {"image": "a", "label": [1, 0]}, {"image": "b", "label": [0, 1]}
    lists = [
        {"labels": ["gesund", "Mass"], "meta": {"normal_label": "gesund"}, "training": list(mine)},
        {
            "labels": ["No Finding", "Edema"],
            "training": [{"image": "c", "label": [1, 0]}, {"image": "d", "label": [0, 1]}],
        },
        {"labels": ["Edema"], "training": [{"image": "e", "label": [0]}, {"image": "f", "label": [1]}]},
        {"training": [{"image": "g"}]},
    ]
    paths = [save_datalist(datalist, tmp_path / f"{number}.json") for number, datalist in enumerate(lists)]
    merged = merge_datalists(paths, tmp_path / "all.json")
    assert (merged["labels"], merged["meta"]["normal_label"]) == (["gesund", "Mass", "Edema"], "gesund")
    assert [item["label"] for item in merged["training"]] == [
        [1, 0, 0], [0, 1, None], [1, 0, 0], [0, None, 1], [1, None, 0], [None, None, 1], [1, None, None],
    ]  # fmt: skip
    assert [Path(item["image"]).name for item in training_items(tmp_path / "all.json")] == ["a", "c", "e", "g"]
    both = {"labels": ["Normal", "gesund"], "training": [{"image": "i", "label": [1, 1]}]}
    twice = save_datalist(both, tmp_path / "t.json")
    with pytest.raises(DataListError, match="both 'Normal' and 'gesund' mean that nothing was found"):
        merge_datalists([paths[0], twice])
    unlabelled = save_datalist({"training": [{"image": "h"}]}, tmp_path / "unlabelled.json")
    assert (
        merge_datalists([paths[3], unlabelled])["training"]
        == load_datalist(paths[3])["training"] + load_datalist(unlabelled)["training"]
    )
    assert len(training_items(save_datalist(merge_datalists([paths[2], unlabelled]), tmp_path / "two.json"))) == 2


# ---- validation


def test_sound_list_has_no_problem(manifest: Path, tmp_path: Path) -> None:
    datalist_from_csv(manifest, out=tmp_path / "l.json", mask_column="mask")
    report = validate_datalist(tmp_path / "l.json", decode=True)
    assert report.problems == []
    assert report.ok
    assert sum(report.counts.values()) == 60
    assert sum(report.groups.values()) == 30
    assert report.labels == {"Normal": 20, "Effusion": 20, "Pneumonia": 40}
    assert "no problem found" in report.summary()


def two(first: dict[str, Any], second: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"training": [{"image": "a.png"} | first], "test": [{"image": "b.png"} | second], **top}


@pytest.mark.parametrize(
    ("datalist", "kind", "severity"),
    [
        (two({"group": "p"}, {"group": "p"}), "patient in two splits", "error"),
        (two({}, {"image": "./a.png"}), "duplicate file", "error"),
        (two({"label": [1]}, {"label": [1, 0]}, labels=["x", "y"]), "label length", "error"),
        (two({"label": [2]}, {}, labels=["x"]), "unknown label", "error"),
        (two({"label": "Mass"}, {}, labels=["x"]), "unknown label", "error"),
        (two({"boxes": [[1, 2, 3, 4, "Mass"]]}, {}, labels=["x"]), "unknown label", "warning"),
        (two({"boxes": [[1, 2, 0, 4, "x"]]}, {}, labels=["x"]), "wrong box", "error"),
        (two({"boxes": [[10**400, 2, 3, 4, "x"]]}, {}, labels=["x"]), "wrong box", "error"),
        (two({"sex": "female"}, {}), "wrong fact", "error"),
        (two({"age": "57"}, {"age": 57.5, "sex": "M", "view": "PA", "source": "a"}), "wrong fact", "error"),
        (two({"age": 411}, {}), "wrong fact", "error"),
        (two({"view": 1}, {}), "wrong fact", "error"),
        (two({"label": [True]}, {}, labels=["x"]), "unknown label", "error"),
        (two({"lable": [1]}, {}), "unknown key", "warning"),
        (two({}, {}, trainning=[]), "unknown key", "warning"),
        (two({}, {}, validation=[]), "empty section", "warning"),
    ],
)
def test_each_problem_is_found(datalist: dict[str, Any], kind: str, severity: str) -> None:
    report = validate_datalist(datalist, check_files=False)
    assert [(problem.kind, problem.severity) for problem in report.problems] == [(kind, severity)]
    assert report.ok is (severity == "warning")
    assert kind in report.summary()


def test_missing_file_is_found_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    report = validate_datalist({"training": [{"image": "a.png", "mask": "m.png"}, {"image": "b.png"}]}, tmp_path)
    assert [(p.kind, Path(p.seen).name) for p in report.problems] == [
        ("missing file", "m.png"),
        ("missing file", "b.png"),
    ]


def test_box_beside_its_picture_is_found(tmp_path: Path) -> None:
    with Image.open(picture(tmp_path / "a.png")) as image:
        width, height = image.size
    boxes = [[width - 2, 0, 3, height, "x"], [2 * width, 1, 2, 2, "x"], [1, 2 * height, 2, 2, "x"]]
    problems = validate_datalist({"training": [{"image": str(tmp_path / "a.png"), "boxes": boxes}]}).problems
    assert [(p.kind, p.seen) for p in problems] == [("wrong box", str(box)) for box in boxes[1:]]
    none = {"training": [{"image": str(tmp_path / "a.png"), "boxes": -1}]}
    assert [(p.kind, p.seen) for p in validate_datalist(none).problems] == [("wrong box", "-1")]


def test_same_content_under_two_names_is_an_error_across_sections_only(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name, seed=1)
    picture(tmp_path / "d.png", seed=2)
    datalist = {"training": [{"image": "a.png"}, {"image": "b.png"}, {"image": "d.png"}], "test": [{"image": "c.png"}]}
    report = validate_datalist(datalist, tmp_path)
    assert [(p.kind, p.severity, Path(p.seen).name) for p in report.problems] == [
        ("duplicate file", "error", "c.png"),
        ("duplicate file", "warning", "b.png"),
    ]


def test_unreadable_image_is_found_by_decoding(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    datalist = {"training": [{"image": "a.png"}, {"image": "b.png"}]}
    assert kinds(datalist, base_dir=tmp_path) == []
    assert kinds(datalist, base_dir=tmp_path, decode=True) == ["not readable"]


def test_list_edited_after_saving_is_noticed(tmp_path: Path) -> None:
    path = save_datalist({"training": [{"image": "a.png"}]}, tmp_path / "l.json")
    assert kinds(path, check_files=False) == []
    path.write_text(path.read_text().replace("a.png", "b.png"))
    assert kinds(path, check_files=False) == ["hash differs"]


# ---- real data


@pytest.mark.real_data
def test_real_manifest_becomes_sound_lists_one_a_source(real_data: Path, tmp_path: Path) -> None:
    cxr = real_data / "cxr"
    lists = datalist_from_csv(
        cxr / "manifest.csv", tmp_path, by_source=True, mask_column="lung_mask", boxes_csv=cxr / "boxes.csv"
    )
    assert {source: len(all_items(part)) for source, part in lists.items()} == {
        "cohen": 401,
        "crd_covid": 578,
        "crd_normal": 1501,
        "jsrt": 200,
        "kermany": 797,
        "kermany224": 1073,
        "nih": 806,
        "nih64": 744,
        "tb_pk": 972,
    }
    kermany = validate_datalist(tmp_path / "kermany.json")
    assert kermany.ok, kermany.summary()
    assert kermany.labels == {"Normal": 324, "Pneumonia": 473}
    assert sum(kermany.groups.values()) == 697
    items = all_items(load_datalist(tmp_path / "kermany.json"))
    assert sum("mask" in item for item in items) == 793
    assert sum("boxes" in item for item in all_items(lists["jsrt"])) == 123
    for section in SECTIONS:
        share = np.mean([item["label"][0] for item in lists["kermany"][section]])
        assert share == pytest.approx(324 / 797, abs=0.03)


@pytest.mark.parametrize(
    "path",
    ["a.png", "a/b.png", "./a.png", "../a.png", "a/../b.png", "a//b.png", "a/./b.png", ".hidden.png", "a/.hidden.png",
     "a/", "/abs/a.png", "/abs/../a.png", "a..png", "a/b..c/d.png"],
)  # fmt: skip
def test_paths_are_resolved_as_the_standard_library_does(tmp_path: Path, path: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": path, "mask": path}]}))
    item = load_datalist(tmp_path / "list.json", section="training")[0]
    expected = os.path.abspath(os.path.join(tmp_path, path))
    assert (item["image"], item["mask"]) == (expected, expected)


def test_label_vectors_that_look_equal_but_are_not_stay_apart(tmp_path: Path) -> None:
    labels = [[1, 0], [True, 0], [1.0, 0], [1, 0], [1, None]]
    items = [{"image": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    (tmp_path / "list.json").write_text(json.dumps({"labels": ["a", "b"], "training": items}))
    read = [item["label"] for item in load_datalist(tmp_path / "list.json")["training"]]
    assert [[type(v) for v in label] for label in read] == [[type(v) for v in label] for label in labels]
    assert read[0] is read[3]
    report = validate_datalist(tmp_path / "list.json", check_files=False)
    assert [p.where for p in report.problems if p.kind == "unknown label"] == ["training[1]"]


@pytest.mark.parametrize("count", [0, 1, 9_999, 10_000, 20_001])
def test_hash_is_that_of_canonical_json_in_one_piece(count):
    items = [{"image": f"{i}.png", "group": "ü", "label": [i % 2, None]} for i in range(count)]
    content = {"validation": items[:1], "training": items, "labels": ["b", "a"]}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert datalist_hash({**content, "name": "x"}) == hashlib.sha256(canonical.encode()).hexdigest()
    assert datalist_hash({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("value", ["x", "1", [1], {}, "\ud800"])
def test_a_label_that_is_no_number_is_refused_when_a_section_is_read(tmp_path: Path, value: Any) -> None:
    picture(tmp_path / "a.png")
    items = [{"image": "a.png", "group": "p", "label": [value]}]
    (tmp_path / "list.json").write_text(json.dumps({"labels": ["Mass"], "training": items}))
    with pytest.raises(DataListError, match=r"list.json: a label in training is neither a number nor null"):
        load_datalist(tmp_path / "list.json", section="training")
