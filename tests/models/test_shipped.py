"""What comes with the package works without a path, and is what its card says."""

import csv
import hashlib
from pathlib import Path

import pytest
import torch

import afire_monai
from afire_monai.cli.main import run
from afire_monai.cli.predictions import model_folders
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.initial import initial_encoder, origin_of
from afire_monai.models.shipped import (
    DEFAULT,
    POPULATIONS,
    model_folder,
    shipped_folder,
    shipped_models,
    shipped_names,
    with_shipped,
)
from afire_monai.phantom.chest import write_phantom_dataset


def test_encoder_loads_without_a_path_and_encodes():
    encoder = afire_monai.load_encoder()
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder(images)
    assert tokens.shape == (2, 197, 384)
    assert tokens.isfinite().all()


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("name", [None, "chest-ti16-1"])
def test_prediction_by_the_packages_models_names_what_it_used(name, population, tmp_path, capsys):
    write_phantom_dataset(tmp_path / "in", normal=10, abnormal=1, size=96)
    command = ["predict", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--population", population, "--quiet"]
    assert run([*command, "--model", name] if name else command) == 0
    printed = capsys.readouterr().out
    assert (name or "chest-s16-1") in printed
    assert "research only" in printed
    assert f"normal radiographs of {population}" in printed
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert len(rows) >= 11
    assert all(0 <= float(row["Pneumonia"]) <= 1 for row in rows)
    assert all(0 <= float(row["anomaly_percentile"]) <= 100 for row in rows)


def test_other_names_and_populations_are_refused_with_those_there_are():
    with pytest.raises(CheckpointError, match="chest-s16-1"):
        shipped_folder("chest-xl")
    with pytest.raises(CheckpointError, match="adults or children"):
        shipped_models("cats")


def test_a_name_stands_for_its_folders_wherever_it_is_among_others():
    folders = shipped_models(name=DEFAULT)
    assert with_shipped((DEFAULT, "runs/a")) == [*folders, "runs/a"]
    assert with_shipped(("runs/a", DEFAULT)) == ["runs/a", *folders]
    assert model_folders(("chest-ti16-1",), "children") == tuple(map(str, shipped_models("children", "chest-ti16-1")))
    with pytest.raises(AfireError, match="leave one of the two out"):  # its own reference would count
        model_folders(("runs/a", "chest-ti16-1"), "children")


def test_a_copy_of_a_model_beside_which_one_works_is_meant_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).mkdir()
    assert model_folder(DEFAULT) == Path(DEFAULT)
    assert model_folders((DEFAULT,), None) == (DEFAULT,)
    assert model_folder() == shipped_folder()


@pytest.mark.parametrize("name", shipped_names())
def test_an_encoder_loads_by_its_name_wherever_one_is_wanted(name):
    encoder = afire_monai.load_encoder(name)
    assert encoder.config == afire_monai.load_encoder(shipped_folder(name)).config
    assert initial_encoder(name, "vit_b", 0, 8, list).config == encoder.config
    assert origin_of(name)["name"] == name


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path, capsys):
    assert run(["probe", __file__, "--model", "chest-xl", "--out", str(tmp_path / "out")]) == 2
    assert "chest-s16-1 and chest-ti16-1 come with the package" in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_names())
def test_each_file_is_small_enough_to_be_shipped(name):
    assert all(path.stat().st_size <= 25_000_000 for path in shipped_folder(name).rglob("*") if path.is_file())


@pytest.mark.real_data
@pytest.mark.parametrize("name", shipped_names())
def test_no_image_of_the_official_test_was_trained_on(name, real_data):
    rows = csv.DictReader((shipped_folder(name) / "training_images.csv").open())
    trained = {row["sha256"] for row in rows}
    open_test = real_data / "cxr" / "kermany_test_open"
    tested = {hashlib.sha256(path.read_bytes()).hexdigest() for path in open_test.rglob("*.jp*g")}
    assert tested
    assert not trained & tested


def test_a_population_is_refused_beside_a_model_that_has_its_own_reference(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    command = ["predict", str(tmp_path / "in"), "--model", str(tmp_path), "--population", "children"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
