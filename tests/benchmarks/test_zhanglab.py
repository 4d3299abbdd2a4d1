from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import smooth_images, tiny_encoder
from PIL import Image
from sklearn.metrics import roc_auc_score

from afire_monai.predictions.format import Predictions, save_predictions


@pytest.fixture
def call(call):
    return lambda *words: call(*words, "--device", "cpu")


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder as published: 30 normal and 20 others for training, 6 and 8 for testing, patients by their names."""
    images = 0.3 * smooth_images(64, (40, 32))
    for number, image in enumerate(images):
        part, place = ("train", number) if number < 50 else ("test", number - 50)
        normal = place < (30 if part == "train" else 6)
        folder = tmp_path / "chest_xray" / part / ("NORMAL" if normal else "PNEUMONIA")
        folder.mkdir(parents=True, exist_ok=True)
        if not normal:
            image[:, 10:20, 8:24] += 0.5
        name = f"IM-{number:04d}-0001" if normal else f"person{number}_virus_1"
        Image.fromarray((image[0] * 255).byte().numpy()).save(folder / f"{name}.jpeg")
    return tmp_path / "chest_xray"


def test_given_encoders_are_scored_by_normal_training_images_and_printed_beside_published_figures(
    call, root, tmp_path, capsys
):
    folders = [str(tiny_encoder(tmp_path / f"m{seed}", seed)) for seed in range(2)]
    words = [
        "--out",
        str(tmp_path / "out"),
        "--root",
        str(root),
        "--encoder",
        f"tiny={folders[0]}",
        f"tiny={folders[1]}",
    ]
    call("one-class", *words)
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "one_class.json").read_text())
    assert [item["label"] for item in content["training"]] == [[1, 0]] * 30
    assert (len(content["test"]), "validation" in content) == (14, False)
    figures = []
    for seed in range(2):
        saved = np.load(tmp_path / "out" / "scores" / f"one-class_tiny_{seed}.npz")
        assert saved["truth"].tolist() == [0] * 6 + [1] * 8
        figures.append(roc_auc_score(saved["truth"], saved["neighbours"]))
    assert "6 normal, 8 abnormal, 14 patients; AUROC" in shown
    assert "| encoder | seeds | tokens | neighbours | density | sum |" in shown
    assert f"{np.mean(figures):.3f} (" in shown
    assert "| AnatPaste | 0.921 |" in shown
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["one-class/tiny/0", "one-class/tiny/1"]
    call("one-class", *words)  # what is there is not repeated, unless settings change
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2
    call("one-class", *words, "--parts", "density")
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4


def test_pretraining_has_given_settings_and_is_not_repeated_or_mixed_with_others(
    call, module, root, tmp_path, monkeypatch
):
    runs = []

    def pretend(command, **_):
        words = dict(zip(command[4::2], command[5::2], strict=True))
        runs.append(words)
        tiny_encoder(Path(words["--output_dir"]) / "models", int(words["--seed"]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", pretend)
    words = ["one-class", "--out", str(tmp_path / "out"), "--root", str(root), "--parts", "density"]
    for seeds in ("1", "2"):
        call(*words, "--seeds", seeds, "--set", "epochs=3", "shift=0")
    assert [run["--seed"] for run in runs] == ["0", "1"]
    assert {run["--epochs"] for run in runs} == {"3"}
    assert (runs[0]["--resume"], runs[0]["--device"]) == ("True", "$torch.device('cpu')")
    assert "method_afire.yaml" in runs[0]["--config_file"]
    assert Path(runs[0]["--datalist"]) == tmp_path / "out" / "one_class.json"
    with pytest.raises(SystemExit, match="pre-trained with other settings"):
        call(*words, "--set", "epochs=4")
    with pytest.raises(SystemExit, match="--set epochs: NAME=VALUE is expected"):
        call(*words, "--set", "epochs")


def test_accuracy_is_at_the_threshold_that_fine_tuning_chose(call, module, root, tmp_path, monkeypatch, capsys):
    scores = np.array([0.1, 0.2, 0.1, 0.5, 0.2, 0.1, 0.9, 0.6, 0.7, 0.35, 0.9, 0.8, 0.7, 0.6])

    def pretend(configs, settings, log):
        assert configs == ["finetune_classification.yaml"]
        assert (settings["epochs"], settings["labels"]) == ("2", ["Pneumonia"])
        content = json.loads(Path(settings["datalist"]).read_text())
        assert 0 < len(content["validation"]) < len(content["training"])
        facts = {"section": "test", "thresholds": {"Pneumonia": 0.4}}
        predictions = Predictions(np.arange(14), {"Pneumonia": scores}, None, facts)
        save_predictions(predictions, settings["output_dir"] / "predictions" / "test")

    monkeypatch.setattr(module, "run_bundle", pretend)
    words = ["--out", str(tmp_path / "out"), "--root", str(root), "--encoder", f"tiny={tiny_encoder(tmp_path / 'm')}"]
    call("supervised", *words, "--tune", "epochs=2")
    shown = capsys.readouterr().out
    # at 0.4 one of 6 normal and one of 8 others are on the wrong side; 47 of 48 pairs are in order
    assert f"**{12 / 14:.3f} (" in shown
    assert f"**{47 / 48:.3f} (" in shown
    assert "| AutoML | 0.991 |" in shown


def test_a_probe_leaves_the_encoder_as_it_is_and_is_judged_alike(call, module, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "run_bundle", lambda *_: pytest.fail("nothing is to be trained"))
    words = ["--out", str(tmp_path / "out"), "--root", str(root), "--encoder", f"tiny={tiny_encoder(tmp_path / 'm')}"]
    call("supervised", *words, "--probe")
    shown = capsys.readouterr().out
    (run,) = (tmp_path / "out" / "tuned").iterdir()
    known = json.loads((run / "predictions" / "test" / "predictions.json").read_text())
    scores = np.loadtxt(run / "predictions" / "test" / "predictions.csv", delimiter=",", skiprows=1)[:, 1]
    right = (scores >= known["thresholds"]["Pneumonia"]) == (np.arange(14) >= 6)
    assert f"**{right.mean():.3f} (" in shown


@pytest.mark.parametrize("words", [("--set", "epochs=3"), ("--config", "method_mae.yaml")])
def test_settings_of_a_pretraining_that_is_not_done_are_refused(words, call, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("one-class", "--out", str(tmp_path / "out"), "--root", str(tmp_path), "--encoder", "x", *words)
    assert "--set and --config are those of pre-training, and with --encoder there is none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_patient_of_both_folders_is_refused(call, root, tmp_path):
    first = next((root / "train" / "NORMAL").iterdir())
    (root / "test" / "NORMAL" / first.name).write_bytes(first.read_bytes())
    with pytest.raises(SystemExit, match="1 in training and test"):
        call("one-class", "--out", str(tmp_path / "out"), "--root", str(root), "--encoder", "x")


def test_pneumoniamnist_is_read_from_its_file(call, tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("val", 4), ("test", 8)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    words = ["--out", str(tmp_path / "out"), "--medmnist", str(tmp_path / "pneumoniamnist.npz"), "--parts", "density"]
    call("one-class", *words, "--encoder", str(tiny_encoder(tmp_path / "m")))
    assert "one-class, official test**: 4 normal, 4 abnormal, 8 patients" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "one_class.json").read_text())
    assert len(content["training"]) == 22


def test_bmad_is_trained_on_its_normal_training_images_alone(call, tmp_path, capsys):
    counts = {"train/good": 20, "valid/good": 2, "valid/Ungood": 2, "test/good": 4, "test/Ungood": 4}
    for place, count in counts.items():
        folder = tmp_path / "RSNA" / place
        folder.mkdir(parents=True)
        for number, image in enumerate(smooth_images(count, (32, 32), seed=len(place))):
            Image.fromarray((image[0] * 255).byte().numpy()).save(folder / f"{number}.png")
    words = ["--out", str(tmp_path / "out"), "--bmad", str(tmp_path / "RSNA"), "--parts", "density"]
    call("one-class", *words, "--encoder", str(tiny_encoder(tmp_path / "m")))
    shown = capsys.readouterr().out
    assert "4 normal, 4 abnormal" in shown
    assert "| CS-Flow | 0.832 |" in shown
    assert len(json.loads((tmp_path / "out" / "one_class.json").read_text())["training"]) == 20
    with pytest.raises(SystemExit):
        call("supervised", *words, "--encoder", "x")


@pytest.mark.real_data
def test_real_lists_have_all_normal_training_images_and_half_of_the_official_test(module, real_data, tmp_path):
    if not (real_data / "cxr" / "kermany_test_open").is_dir():
        pytest.skip("no kermany_test_open among the real data")
    args = SimpleNamespace(root=None, medmnist=None, bmad=None, cxr=str(real_data / "cxr"), out=str(tmp_path))
    content = module.write_lists(args)
    assert (len(content["training"]), len(content["test"])) == (1084, 309)
    assert sum(item["label"][0] == 1 for item in content["test"]) == 109
    labelled = json.loads((tmp_path / "supervised.json").read_text())
    patients = [{item["group"] for item in labelled[name]} for name in ("training", "validation", "test")]
    assert not patients[0] & patients[1]
    assert not (patients[0] | patients[1]) & patients[2]
    assert len(labelled["training"]) + len(labelled["validation"]) == 1870
