from __future__ import annotations

import json

import pytest
import torch
import yaml
from PIL import Image

import afire_monai
from afire_monai.cli import demo
from afire_monai.cli import main as cli
from afire_monai.cli.bundle import CONFIGS, bundle_root, run_configs
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.training.handlers import read_csv_log

TINY = demo.DEMO_SETTINGS | {
    "image_size": 32, "patch_size": 8, "batch_size": 4, "head_hidden": 16, "prototype_dim": 16, "decoder_dim": 32,
    "decoder_depth": 1, "decoder_heads": 2, "epochs": 1, "health_every": 1, "checkpoint_every": 1, "health_images": 4,
    "seed": 0,
}  # fmt: skip
FEW = {"normal": 14, "abnormal": 4, "size": 40}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "demo"
    page = demo.run_demo(folder, TINY, FEW)
    return folder, page


def test_the_demo_leaves_a_page_pictures_an_encoder_and_its_settings(finished):
    folder, page = finished
    assert page == folder / "report.html"
    assert "Lesions removed" in page.read_text(encoding="utf-8")
    for name in ("restoration", "prototypes", "losses"):
        Image.open(folder / "pictures" / f"{name}.png").verify()
    encoder = afire_monai.load_encoder(folder / "models")
    assert encoder(torch.rand(1, 1, 32, 32)).shape == (1, 1 + 16, 192)
    assert yaml.safe_load((folder / "settings.yaml").read_text())["image_size"] == 32
    assert len(json.loads((folder / "phantoms" / "datalist.json").read_text())["training"]) == 10


def test_nothing_half_written_is_left(finished):
    assert not list(finished[0].rglob("*.part"))


def test_an_earlier_demo_is_not_overwritten_unless_told_so(finished, capsys):
    folder, _ = finished
    before = (folder / "log.csv").read_bytes()
    assert cli.run(["demo", "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "--resume" in said
    assert "--overwrite" in said
    assert (folder / "log.csv").read_bytes() == before


def test_resume_trains_the_same_demo_for_longer(finished):
    folder, _ = finished
    first = read_csv_log(folder / "log.csv")
    demo.run_demo(folder, TINY | {"epochs": 2}, FEW, resume=True)
    log = read_csv_log(folder / "log.csv")
    assert [row["epoch"] for row in log] == [1, 2]
    assert log[0] == first[0]
    with pytest.raises(CheckpointError, match="seed"):
        demo.run_demo(folder, TINY | {"epochs": 3, "seed": 1}, FEW, resume=True)


def test_overwriting_deletes_the_demo_and_leaves_what_is_not_its_own(tmp_path):
    folder = tmp_path / "demo"
    (folder / "phantoms").mkdir(parents=True)
    (folder / "phantoms" / "datalist.json").write_text('{"name": "phantom"}')
    (folder / "checkpoints").mkdir()
    (folder / "worth.json").touch()
    (folder / "notes.txt").write_text("mine")
    demo.make_way(folder, resume=False, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, capsys, option):
    (tmp_path / "thesis.txt").write_text("mine")
    assert cli.run(["demo", "--output", str(tmp_path), option]) == 2
    assert "something other than a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_with_an_interrupted_start_can_be_resumed(tmp_path):
    (tmp_path / "phantoms" / "images").mkdir(parents=True)
    demo.make_way(tmp_path, resume=True, overwrite=False)


def test_an_interrupt_removes_half_written_files(tmp_path, monkeypatch):
    import afire_monai.phantom as phantom

    def interrupted(folder, **options):
        folder.mkdir(parents=True)
        (folder / "p0001.part").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "write_phantom_dataset", interrupted)
    assert cli.run(["demo", "--output", str(tmp_path / "demo")]) == 130
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("words", "said"),
    [("--resume --overwrite", "exclude each other"), ("--epochs 0", "at least 1"), ("--seed -1", "at least 0")],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, capsys, words, said):
    assert cli.run(["demo", "--output", str(tmp_path / "d"), *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_the_bundle_is_found_and_a_setting_that_it_lacks_is_refused(tmp_path):
    assert all((bundle_root() / "configs" / name).is_file() for name in CONFIGS)
    with pytest.raises(AfireError, match="epochz"):
        run_configs({"output_dir": str(tmp_path), "epochz": 3})
