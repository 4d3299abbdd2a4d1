"""Pre-training and fine-tuning by one word, from a folder that holds nothing."""

import json

import pytest

from afire_monai.cli.main import run
from afire_monai.models.folder import load_encoder
from afire_monai.phantom.chest import write_phantom_dataset

TINY = ["image_size=32", "epochs=1", "batch_size=4", "use_mlflow=False"]
SMALL = ["encoder_preset=vit_ti6", "head_hidden=16", "prototype_dim=16", "decoder_dim=16", "panel_every=9"]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return str(write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=16, abnormal=40, size=48))


def test_one_word_pretrains_and_says_which_line_of_monai_does_the_same(datalist, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["pretrain", datalist, "--out", "mine", *TINY, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "python -m monai.bundle run --config_file" in printed
    assert "--epochs 1" in printed
    assert load_encoder("mine/models").image_size == (32, 32)
    assert (tmp_path / "mine" / "report.html").exists()


def test_fine_tuning_starts_at_the_model_that_is_named(datalist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--init", "random", *TINY, "encoder_preset=vit_ti6", "folds=2"]
    assert run(["finetune", datalist, "--out", "tuned", *words]) == 0
    assert json.loads((tmp_path / "tuned" / "models" / "classifier.json").read_text())["encoder"] == "random"


@pytest.mark.parametrize(
    "words",
    [
        ["mine.json", "--out", "a", "--epochs", "3", "--init", "x/y", "--final-lr=-1", "lr=2"],
        ["--epochs", "3", "--init=x/y", "--final_lr", "-1", "mine.json", "--out", "a", "lr=2"],
        ["mine.json", "--out", "a", "--resume", "--epochs", "3", "--init=x/y", "--final_lr", "-1", "lr=2"],
        ["mine.json", "--resume", "epochs=3", "--init=x/y", "--final_lr", "-1", "lr=2", "--out", "a"],
        ["mine.json", "--out", "a", "-r", "--epochs", "3", "--init=x/y", "--final_lr", "-1", "lr=2"],
        ["mine.json", "--resume", "true", "epochs=3", "--init=x/y", "--final_lr", "-1", "lr=2", "--out", "a"],
    ],
)
def test_settings_can_be_written_as_for_the_bundle_runner(words, monkeypatch):
    seen = {}
    monkeypatch.setattr("afire_monai.cli.runs._run", lambda _, settings, given, __: seen.update(given, s=settings) or 0)
    assert run(["pretrain", *words]) == 0
    assert (seen["datalist"], seen["output_dir"], seen["resume"]) == (
        "mine.json",
        "a",
        bool({"--resume", "-r"} & {*words}),
    )
    assert set(seen["s"]) == {"epochs=3", "init=x/y", "final_lr=-1", "lr=2"}


def test_the_last_of_two_values_of_a_setting_counts(monkeypatch):
    seen = []
    monkeypatch.setattr("afire_monai.cli.runs._run", lambda _, settings, *rest: seen.extend(settings) or 0)
    assert run(["pretrain", "mine.json", "--out", "a", "--epochs", "3", "epochs=5", "--epochs=7"]) == 0
    assert seen == ["epochs=3", "epochs=5", "epochs=7"]


@pytest.mark.parametrize("words", [["--out", "--epochs", "3"], ["--epochs", "3", "--out"], ["--out", "a", "--preset"]])
def test_an_option_without_its_value_takes_no_setting_for_one(words, capsys):
    assert run(["pretrain", "mine.json", *words]) == 2
    assert "needs a value" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "simclr"], "afire, peac, mlvicx, mae, dino"),
        (["--preset", "huge"], "gpu, paper"),
        (["epochs"], "key=value"),
        (["datalist=other.json"], "own option"),
        (["--logging_file", "x"], "own option"),
        (["epoch=3"], "epoch"),
        (["--epoch", "3"], "nearest: epochs"),
        (["--metod", "mae"], "did you mean --method?"),
        (["--epochs"], "unknown option --epochs"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(words, message, datalist, tmp_path, capsys):
    assert run(["pretrain", datalist, "--out", str(tmp_path / "mine"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine" / "checkpoints").exists()


def test_bundle_can_be_found_and_copied(tmp_path, capsys):
    assert run(["bundle", "path"]) == 0
    assert capsys.readouterr().out.strip().endswith("bundle")
    assert run(["bundle", "copy", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "configs" / "metadata.json").exists()
    assert run(["bundle", "copy", str(tmp_path / "mine")]) == 2


def test_version_is_printed(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("afire-monai 0.")
