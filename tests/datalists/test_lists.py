"""Data lists as files: types, patients, sections, and what is written of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import Dataset
from monai.transforms import LoadImaged
from PIL import Image
from torch.utils.data import DataLoader

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError
from afire_monai.datalists.file import datalist_hash, load_datalist, save_datalist, training_items
from afire_monai.datalists.merge import merge_datalists
from afire_monai.datalists.patients import patient_of
from afire_monai.datalists.subsets import patient_folds
from afire_monai.datalists.validate import validate_datalist
from afire_monai.radiographs.reader import RadiographReader

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "json"


def noise(path: Path, seed: int = 0, scale: int = 1, dtype: type = np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (8, 6)).astype(dtype) * scale
    Image.fromarray(values.astype(dtype)).save(path)
    return path


ONE = {"image": "a.png"}


@pytest.mark.parametrize(
    ("datalist", "message"),
    [
        ({"training": [ONE | {"mask": None}]}, r"training\[0\]\.mask is null; a path is expected"),
        ({"training": [ONE | {"mask": 3}]}, r"training\[0\]\.mask is 3; a path"),
        ({"training": [ONE], "labels": None}, "'labels' is null; a list of names is expected"),
        ({"training": [ONE], "labels": [1]}, "'labels' is a list; a list of names"),
        ({"training": [ONE], "labels": 3}, "'labels' is 3"),
        ({"training": [ONE], "meta": None}, "'meta' is null; an object is expected"),
        ({"training": None}, "'training' is a NoneType; a list is expected"),
        ({"training": [7]}, r"training\[0\] has no image path"),
        ({"training": [ONE, {"image": None}]}, r"training\[1\] has no image path"),
        ({"training": [{"image": "\ud800.png"}]}, r"training\[0\]\.image is .*; a path is expected"),
        ({"training": [{"image": "a\0.png"}]}, r"training\[0\]\.image is .*; a path is expected"),
        ({"training": [ONE | {"group": ["p"]}]}, r"training\[0\]\.group is a list; a text is expected"),
    ],
)
def test_value_of_another_type_is_refused_with_its_place(
    tmp_path: Path, datalist: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "l.json"
    path.write_text(json.dumps(datalist))
    with pytest.raises(DataListError, match=r"l\.json: " + message):
        load_datalist(path)
    assert run(["check", str(path)]) == 2
    assert "l.json" in capsys.readouterr().err


def test_label_that_is_no_list_is_a_problem_of_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(tmp_path / "a.png")
    (tmp_path / "l.json").write_text(json.dumps({"training": [ONE | {"label": 1}], "labels": ["Normal", "Mass"]}))
    assert run(["check", str(tmp_path / "l.json"), "--quiet"]) == 1
    assert "unknown label: training[0]: 1. A list of 1, 0, -1 or null" in capsys.readouterr().out
    with pytest.raises(DataListError, match="--normal-label"):
        training_items(tmp_path / "l.json")


@pytest.mark.parametrize("name", ["bom", "mask_null", "labels_null", "meta_null", "label_int", "nullgroup",
                                  "normal_label_not_in_list"])  # fmt: skip
def test_shared_lists_end_in_words(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not CASES.is_dir():
        pytest.skip("no shared cases")
    status = run(["check", str(CASES / f"{name}.json"), "--quiet"])
    out, err = capsys.readouterr()
    assert status == (2 if "null" in name and name != "nullgroup" else 1)  # no image lies beside the lists
    place = {"mask_null": "training[0].mask is null", "labels_null": "'labels' is null", "meta_null": "'meta' is null"}
    assert place.get(name, "refused") in out + err
    if name == "normal_label_not_in_list":
        assert "meta.normal_label: 'No Finding'. The labels are Atelectasis, " in out
        assert "--normal-label NAME" in out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_byte_order_mark_is_no_obstacle(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "l.json").write_bytes(json.dumps({"training": [{"image": "ü.png"}]}).encode(encoding))
    assert load_datalist(tmp_path / "l.json")["training"][0]["image"].endswith("ü.png")


def test_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"training": [{"image": "a.png", "group": "1", "group": "2"}]}')
    with pytest.raises(DataListError, match="the key 'group' appears twice in one object"):
        load_datalist(tmp_path / "l.json")


def test_missing_null_and_blank_groups_are_patients_of_their_own_everywhere(tmp_path: Path) -> None:
    groups = [{}, {"group": None}, {"group": " "}, {"group": ""}, {"group": 7}, {"group": "7 "}]
    items = [{"image": f"/{i}.png", "label": [i % 2]} | group for i, group in enumerate(groups)]
    assert [patient_of(item) for item in items] == ["/0.png", "/1.png", "/2.png", "/3.png", "7", "7"]
    report = validate_datalist({"labels": ["x"], "training": items}, check_files=False)
    assert report.groups == {"training": 5}
    targets = np.array([item["label"] for item in items])
    assert len(patient_folds(items, targets, folds=5)) == 5
    with pytest.raises(DataListError, match=r"number of patients \(5\)"):
        patient_folds(items, targets, folds=6)
    for name, item in (("a", items[4]), ("b", items[5] | {"image": "/9.png"})):
        section = "training" if name == "a" else "test"
        save_datalist({"training": [{"image": f"/{name}.png"}], section: [item]}, tmp_path / f"{name}.json")
    with pytest.raises(DataListError, match="1 patients are in the training images"):
        merge_datalists([tmp_path / "a.json", tmp_path / "b.json"])


def test_patient_who_validates_one_list_and_tests_another_is_not_merged(tmp_path: Path) -> None:
    for section in ("validation", "test"):
        items = {"training": [{"image": f"/{section}0.png"}], section: [{"image": f"/{section}.png", "group": "7"}]}
        save_datalist(items, tmp_path / f"{section}.json")
    with pytest.raises(DataListError, match="1 patients are in the validation images of one list and the test images"):
        merge_datalists([tmp_path / "validation.json", tmp_path / "test.json"])


@pytest.mark.parametrize("label", ["10", True, 3])
def test_label_that_is_no_vector_stays_for_the_check_when_lists_are_merged(tmp_path: Path, label: Any) -> None:
    (tmp_path / "l.json").write_text(json.dumps({"labels": ["A", "B"], "training": [ONE | {"label": label}]}))
    assert merge_datalists([tmp_path / "l.json"])["training"][0]["label"] == label


def test_image_of_two_lists_is_not_merged_twice(tmp_path: Path) -> None:
    for name in "ab":
        save_datalist({"training": [{"image": "/x.png"}, {"image": f"/{name}.png"}]}, tmp_path / f"{name}.json")
    with pytest.raises(DataListError, match=r"1 images are in two of the lists, for instance /x\.png"):
        merge_datalists([tmp_path / "a.json", tmp_path / "b.json"])


def test_empty_section_that_is_needed_is_named(tmp_path: Path) -> None:
    path = save_datalist({"training": [], "test": [{"image": "/a.png"}]}, tmp_path / "l.json")
    with pytest.raises(DataListError, match="section 'training' is empty"):
        training_items(path)
    assert [(p.kind, p.severity) for p in validate_datalist(path, check_files=False).problems] == [
        ("empty section", "error")
    ]


def test_list_without_a_known_name_for_normal_uses_no_finding(tmp_path: Path) -> None:
    items = [{"image": "/a.png", "label": [1, 0]}, {"image": "/b.png", "label": [0, 1]}]
    path = save_datalist({"labels": ["no finding", "Mass"], "training": items}, tmp_path / "l.json")
    assert [item["image"] for item in training_items(path)] == ["/a.png"]


def test_items_of_a_section_go_through_a_plain_data_loader(tmp_path: Path) -> None:
    for i in range(4):
        noise(tmp_path / f"{i}.png", i)
    extras: list[dict[str, Any]] = [
        {"label": [1, None], "sex": "F"}, {"label": [0, 1], "age": 60, "boxes": [[1, 1, 2, 2, "x"]]},
        {"group": "p"}, {"mask": "0.png", "label": [-1, 0]},
    ]  # fmt: skip
    save_datalist(
        {"labels": ["x", "y"], "training": [{"image": str(tmp_path / f"{i}.png")} | e for i, e in enumerate(extras)]},
        tmp_path / "l.json",
    )
    items = load_datalist(tmp_path / "l.json", section="training")
    loader = DataLoader(Dataset(items, LoadImaged("image", reader=RadiographReader())), batch_size=4)
    (batch,) = list(loader)
    assert batch["image"].shape == (4, 1, 8, 6)
    labels = np.stack([np.asarray(column) for column in batch["label"]], 1)
    np.testing.assert_array_equal(labels, [[1, np.nan], [0, 1], [np.nan, np.nan], [-1, 0]])
    assert batch["sex"] == ["F", "", "", ""]
    assert batch["group"] == [items[0]["image"], items[1]["image"], "p", items[3]["image"]]
    np.testing.assert_array_equal(batch["age"], [np.nan, 60, np.nan, np.nan])


def test_file_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"r\xf6ntgen \xff#%,\n.png")
    noise(tmp_path / "a.png").rename(tmp_path / name)
    assert (
        run(["datalist", "from-folder", str(tmp_path), "--out", str(tmp_path / "l.json"), "--fractions", "1,0,0"]) == 0
    )
    (item,) = load_datalist(tmp_path / "l.json")["training"]
    assert Path(item["image"]).is_file()
    raw = json.loads((tmp_path / "l.json").read_text(encoding="utf-8"))
    assert raw["meta"]["sha256"] == datalist_hash(raw)


def test_check_writes_a_list_without_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        noise(tmp_path / f"{i}.png", i)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "black.png")
    Image.new("1", (20_001, 1)).save(tmp_path / "large.png")
    names = ["0", "1", "broken", "black", "2", "2", "3", "4"]
    masks = {"0": {"mask": "large.png"}, "1": {"mask": "broken.png"}}
    items = [{"image": f"{name}.png", **masks.get(name, {})} for name in names]
    (tmp_path / "l.json").write_text(json.dumps({"training": items}))
    assert run(["check", str(tmp_path / "l.json"), "--quiet", "--write", str(tmp_path / "good.json")]) == 1
    assert "without 3 images and 2 masks" in capsys.readouterr().out
    kept = load_datalist(tmp_path / "good.json")["training"]
    assert [Path(item["image"]).stem for item in kept] == ["0", "1", "2", "3", "4"]
    assert not any("mask" in item for item in kept)
    assert run(["check", str(tmp_path / "good.json"), "--quiet"]) == 0


def test_one_image_is_not_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(tmp_path / "a.png")
    assert run(["check", str(tmp_path), "--quiet"]) == 1
    assert "one image; a training needs at least two" in capsys.readouterr().out
    assert run(["check", str(tmp_path / "a.png"), "--quiet"]) == 0
    assert "this file can be used" in capsys.readouterr().out


def test_twelve_bits_in_sixteen_are_not_ready_until_the_white_level_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        noise(tmp_path / f"{i}.png", i, 16, np.uint16)
    folder = str(tmp_path)
    assert run(["check", folder, "--quiet"]) == 1
    assert "the 16-bit PNG hold at most 12 bits: give --png16-max 4095" in capsys.readouterr().out
    assert run(["check", folder, "--quiet", "--png16-max", "4095"]) == 0
    made = str(tmp_path / "l.json")
    assert run(["datalist", "from-folder", folder, "--out", made, "--png16-max", "4095"]) == 0
    assert run(["check", made, "--quiet"]) == 0  # the list keeps it
    assert load_datalist(made)["meta"]["reader"] == {"png16_max": 4095}
    assert run(["check", folder, "--quiet", "--png16-max", "many"]) == 2
    assert "png16_max is 'many'; 1…65535, dtype or image is expected" in capsys.readouterr().err


def test_list_without_a_normal_image_is_ready_for_fine_tuning_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        noise(tmp_path / f"{i}.png", i)
    items = [{"image": f"{i}.png", "label": [i, 1]} for i in range(2)]
    (tmp_path / "l.json").write_text(json.dumps({"labels": ["Mass", "Healthy"], "training": items}))
    assert run(["check", str(tmp_path / "l.json"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "known to be normal: 0 images" in printed
    assert "The labels are Mass, Healthy: --normal-label NAME" in printed
    assert "result:  ready for fine-tuning; pre-training needs images known to be normal" in printed


def test_lists_that_are_read_in_different_ways_are_not_merged(tmp_path: Path) -> None:
    for name, reader in (("a", {"png16_max": 4095}), ("b", {"png16_max": 4095}), ("c", {})):
        content = {"meta": {"reader": reader}, "training": [{"image": f"{name}.png", "group": name}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    merged = merge_datalists([tmp_path / "a.json", tmp_path / "b.json"])
    assert merged["meta"]["reader"] == {"png16_max": 4095}
    with pytest.raises(DataListError, match=r"4095\}, .*c\.json with standard options"):
        merge_datalists([tmp_path / "a.json", tmp_path / "c.json"])
