"""Model files and settings that are damaged or cannot be meant end in words, before work is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from afire_monai.cli.crossvalidate import crossvalidate, summarise
from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, CheckpointError, DataListError, user_error
from afire_monai.models.folder import export_encoder, export_task, load_classifier, load_encoder
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.radiographs.masks import MaskReading
from afire_monai.training import settings
from afire_monai.training.calibration import CalibrationMethod, ThresholdRule
from afire_monai.training.task_data import classification_data


def tiny() -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(16, 8, embed_dim=16, depth=1, num_heads=2)


@pytest.mark.parametrize(
    "text", ["5", "[1]", '{"architecture": [1]}', '{"architecture": {}}', '{"architecture": null}', "{", b"\xff\xfe"]
)
def test_a_description_that_is_none_is_named(tmp_path, text):
    path = export_encoder(tiny(), tmp_path)
    path.with_suffix(".json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=r"encoder\.json|architecture"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("changes", [{"depth": "x"}, {"foo": 1}, {"patch_size": 0}, {"image_size": [16]}])
def test_an_architecture_that_cannot_be_built_is_named(tmp_path, changes):
    path = export_encoder(tiny(), tmp_path).with_suffix(".json")
    description = json.loads(path.read_text(encoding="utf-8"))
    description["architecture"].update(changes)
    path.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(AfireError):
        load_encoder(tmp_path)


@pytest.mark.parametrize("wrong", [[1], {"a": "x"}, {"a": float("nan")}, {"a": 5}, {"a": True}])
def test_thresholds_that_are_none_are_refused_and_may_be_absent(tmp_path, wrong):
    export_task(ViTClassifier(tiny(), ["a"]), tmp_path, thresholds=wrong)
    with pytest.raises(CheckpointError, match=r"classifier\.json: 'thresholds'"):
        load_classifier(tmp_path)
    export_task(ViTClassifier(tiny(), ["a"]), tmp_path)
    assert load_classifier(tmp_path)[0].labels == ["a"]


def test_weights_that_cannot_be_written_leave_the_earlier_ones(tmp_path, monkeypatch):
    path = export_encoder(tiny(), tmp_path, epochs=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write = Path.write_text

    def full(self, *arguments, **options):
        write(self, "{", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export_encoder(tiny(), path, epochs=2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_weights_never_stand_beside_the_description_of_others(tmp_path, monkeypatch):
    import afire_monai.core.files as module

    path = export_encoder(tiny(), tmp_path, epochs=1)
    replace, done = module.os.replace, []

    def killed(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export_encoder(tiny(), path, epochs=2)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_a_full_disk_is_an_error_for_users_and_a_missing_attribute_is_none():
    full = OSError(errno.ENOSPC, "No space left on device", "out/table.csv")
    wrapped = RuntimeError("config")
    wrapped.__cause__ = full
    assert str(user_error(wrapped)).startswith("out/table.csv: No space left on device; make room")
    assert user_error(AttributeError("x")) is None


def test_a_file_in_the_place_of_a_folder_is_an_error_for_users(tmp_path, capsys):
    (tmp_path / "file").touch()
    wanted = ["--format", "torchscript", "--kind", "encoder", "--compared", "3"]
    assert run(["export", "chest-s16-1", *wanted, "--out", str(tmp_path / "file/x")]) == 2
    assert capsys.readouterr().err.startswith(f"afire: {tmp_path / 'file/x'}: Not a directory; make room or give")


@pytest.mark.parametrize("key", ["calibration", "threshold_rule"])
def test_what_the_end_of_a_run_looks_at_is_refused_at_its_start(key):
    with pytest.raises(AfireError, match=f"--{key} x: one of"):
        settings.refuse_wrong_values({key: "none"}, {key: "x"})
    for value in get_args(CalibrationMethod if key == "calibration" else ThresholdRule):
        settings.refuse_wrong_values({key: "none"}, {key: value})


@pytest.mark.parametrize(("key", "value"), [("validate_every", "0"), ("patience", "-1"), ("fold", "-1")])
def test_counts_below_the_least_are_refused(key, value):
    with pytest.raises(AfireError, match=f"--{key} {value}"):
        settings.refuse_wrong_values({key: 1}, {key: value})


@pytest.mark.parametrize("name", ["index", "anomaly_percentile", ""])
def test_labels_that_cannot_be_columns_are_refused_before_training(tmp_path, name):
    items = [{"image": f"{i}.png", "label": [i % 2, i % 2]} for i in range(4)]
    content = {"labels": ["a", name], "training": items, "validation": items}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataListError, match="label names must be different"):
        classification_data(path)
    assert classification_data(path, labels=["a"]).labels == ["a"]


def test_white_of_a_mask_with_one_bit_is_255(tmp_path):
    Image.new("1", (8, 8), 1).save(tmp_path / "mask.png")
    reading = MaskReading(lambda item: {}, (2, 2), {"lung": [255]})
    assert reading.read_mask(str(tmp_path / "mask.png")).tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize("classes", ["lung", ["lung"], {"a": 5}, {"a": [True]}, {"a": "x"}])
def test_classes_that_are_no_lists_of_values_are_refused(classes):
    with pytest.raises(DataListError, match="classes must name mask values"):
        MaskReading(lambda item: {}, (2, 2), classes)


def test_folds_of_another_list_and_damaged_ones_are_refused(tmp_path):
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"labels": ["a"], "training": [{"image": "0.png"}]}), encoding="utf-8")
    for fold in range(2):
        (tmp_path / f"fold_{fold}" / "models").mkdir(parents=True)
        (tmp_path / f"fold_{fold}" / "predictions" / "validation").mkdir(parents=True)
        (tmp_path / f"fold_{fold}" / "predictions" / "validation" / "predictions.json").write_text("{}")
        told = {"validation": {}, "data_sha256": "0" * 64, "folds": 2, "fold": fold, "seed": 0}
        (tmp_path / f"fold_{fold}" / "models" / "classifier.json").write_text(json.dumps(told))
    with pytest.raises(AfireError, match="another data list"):
        crossvalidate(str(datalist), out=str(tmp_path), folds=2)
    (tmp_path / "fold_0" / "models" / "classifier.json").write_text("{")
    with pytest.raises(CheckpointError, match="to run it again"):
        crossvalidate(str(datalist), out=str(tmp_path), folds=2)
    with pytest.raises(DataListError, match="no data list"):
        crossvalidate("nowhere.json", out=str(tmp_path), folds=2)


def test_a_figure_that_no_fold_has_is_left_out():
    assert summarise([{"validation_auroc/a": float("nan")}, {}]) == {}


def test_boxes_that_are_no_list_are_refused():
    from afire_monai.evaluation.cases import box_names

    with pytest.raises(DataListError, match="'boxes' of an item is 4"):
        box_names([{"boxes": 4}])
