"""Fine-tuning as users run it: from the configs and from the command that cross-validates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIGS, METADATA, cause_of, run_bundle
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afire_monai.cli.main import run
from afire_monai.datalists.file import load_datalist
from afire_monai.models.folder import export_encoder, load_classifier, load_segmenter
from afire_monai.networks import ViTEncoder
from afire_monai.phantom import write_phantom_dataset
from afire_monai.predictions.format import load_predictions
from afire_monai.radiographs.masks import MaskReading
from afire_monai.training.handlers import read_csv_log
from afire_monai.training.startup import reading
from afire_monai.training.worth import STRENGTH

CLASSIFY, SEGMENT = str(CONFIGS / "finetune_classification.yaml"), str(CONFIGS / "finetune_segmentation.yaml")
TINY = {"epochs": 2, "batch_size": 8, "image_size": 32, "patch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """A data list with findings and their masks in each section."""
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=50, abnormal=50, size=64)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A model folder as pre-training leaves it."""
    torch.manual_seed(0)
    net = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2)
    return export_encoder(
        net, tmp_path_factory.mktemp("models"), method_name="AFiRe", epochs=3, data_sha256="0" * 64
    ).parent


@pytest.fixture(scope="module")
def classified(phantoms, foreign, encoder) -> Path:
    run_bundle(foreign, CLASSIFY, datalist=str(phantoms), init=str(encoder), output_dir="classifier", **TINY)
    return foreign / "classifier"


def test_the_zoo_finds_the_same_config_under_its_own_name():
    assert (CONFIGS / "train.yaml").read_bytes() == Path(CLASSIFY).read_bytes()


def test_classification_has_all_properties_that_monai_asks_for(monkeypatch, phantoms, encoder, foreign, tmp_path):
    import sys

    from monai.bundle import ConfigWorkflow

    monkeypatch.chdir(foreign)
    monkeypatch.setattr(sys, "argv", ["monai.bundle"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = {**TINY, "datalist": str(phantoms), "init": str(encoder), "output_dir": str(tmp_path)}
    flow = ConfigWorkflow(str(CONFIGS / "train.yaml"), METADATA, logging_file=False, workflow_type="train", **settings)
    flow.initialize()
    assert flow.check_properties() == []
    assert flow.max_epochs == 2


def test_classification_leaves_a_calibrated_model_and_its_predictions(classified, phantoms):
    network, description = load_classifier(classified / "models")
    content = load_datalist(phantoms)
    assert network.labels == [label for label in content["labels"] if label != "Normal"]
    assert set(description["thresholds"]) == set(network.labels)
    assert all(0 <= t <= 1 for t in description["thresholds"].values())
    assert description["encoder"] == {"method_name": "AFiRe", "epochs": 3, "data_sha256": "0" * 64}
    for section in ("validation", "test"):
        predictions = load_predictions(classified / "predictions" / section)
        assert predictions.section == section
        assert len(predictions) == len(content[section])
        assert all(((s >= 0) & (s <= 1)).all() for s in predictions.scores.values())


def test_predictions_are_the_exported_networks_probabilities_in_the_order_of_the_list(classified, phantoms):
    from afire_monai.training.startup import reading

    network, _ = load_classifier(classified / "models")
    predictions = load_predictions(classified / "predictions" / "test")
    read = reading((32, 32))
    items = load_datalist(phantoms)["test"]
    images = torch.stack([read({"image": items[i]["image"]})["image"] for i in predictions.index])
    with torch.no_grad():
        expected = network.probabilities(images).numpy()
    found = np.stack(list(predictions.scores.values()), 1)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # pictures are cached with 11 bits


def test_the_log_has_validation_figures(classified):
    rows = read_csv_log(classified / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert 0 <= rows[-1]["validation_macro_auroc"] <= 1


def test_nothing_that_is_written_names_files_or_groups(classified, phantoms):
    content = load_datalist(phantoms)
    item = content["test"][0]
    secrets = {Path(item["image"]).stem, str(phantoms.parent)}
    for path in classified.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".csv", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert not [s for s in secrets if s in text], path


@pytest.mark.parametrize(
    "settings",
    [
        {"frozen_encoder": True, "calibration": "platt", "threshold_rule": "specificity95"},
        {"fraction": 0.1, "average": True, "balance": True, "smoothing": 0.1},
        {"folds": 3, "fold": 1, "pooling": "class", "labels": ["Consolidation"], "augment": False},
        {"init": "random", "encoder_preset": "vit_ti6", "layer_decay": 1.0, "drop_path": 0.0},
    ],
)
def test_each_switch_runs(phantoms, foreign, encoder, settings, tmp_path):
    content = load_datalist(phantoms)
    if "labels" in settings:
        settings = {**settings, "labels": [content["labels"][-1]]}
    given = {**TINY, "init": str(encoder), "epochs": 1, **settings}
    run_bundle(foreign, CLASSIFY, datalist=str(phantoms), output_dir=str(tmp_path), **given)
    _, description = load_classifier(tmp_path / "models")
    assert description["fraction"] == settings.get("fraction", 1.0)
    assert description.get("fold") == settings.get("fold")


def test_training_starts_from_the_head_that_scikit_learn_fits_to_the_encoder_as_it_is(
    phantoms, foreign, encoder, tmp_path
):
    given = {**TINY, "init": str(encoder), "epochs": 1, "lr": 0.0, "final_lr": 0.0}
    label = load_datalist(phantoms)["labels"][-1]
    ways = {"fitted": {}, "balanced": {"balance": True}, "random": {"head_first": False}}
    for name, way in ways.items():
        settings = {**given, **way, "labels": [label], "output_dir": str(tmp_path / name)}
        run_bundle(foreign, CLASSIFY, datalist=str(phantoms), **settings)
    heads = {name: load_classifier(tmp_path / name / "models")[0] for name in ways}
    content = load_datalist(phantoms)
    read = reading((32, 32))
    images = torch.stack([read(item)["image"] for item in content["training"]])
    truth = [item["label"][content["labels"].index(label)] for item in content["training"]]
    weight = truth.count(0) / truth.count(1)
    assert weight != 1
    for name, of_positives in (("fitted", 1), ("balanced", weight)):
        with torch.no_grad():
            columns = heads[name].features(images).numpy()
            logits = heads[name](images)[:, 0].numpy()
        regression = LogisticRegression(C=STRENGTH, max_iter=1000, class_weight={1: of_positives})
        expected = make_pipeline(StandardScaler(), regression).fit(columns, truth)
        np.testing.assert_allclose(logits, expected.decision_function(columns), atol=1e-3)
    assert not torch.equal(heads["fitted"].head.weight, heads["random"].head.weight)


def test_same_seed_same_model_and_another_seed_another(phantoms, foreign, encoder, classified, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        given = {**TINY, "init": str(encoder), "seed": seed}
        run_bundle(foreign, CLASSIFY, datalist=str(phantoms), output_dir=str(tmp_path / name), **given)
    weights = [(f / "models" / "classifier.safetensors").read_bytes() for f in (classified, tmp_path / "same")]
    assert weights[0] == weights[1]
    assert weights[0] != (tmp_path / "other" / "models" / "classifier.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ["Efusion"]}, "Efusion"),
        ({"init": "nowhere"}, "nowhere"),
        ({"layer_decay": 2.0}, "layer_decay"),
        ({"uncertain": "maybe"}, "maybe"),
        ({"fold": 7, "folds": 5}, "fold 7 of 5"),
        ({"image_size": 30}, "multiple of the patch size"),
    ],
)
def test_wrong_settings_end_in_words(phantoms, foreign, encoder, tmp_path, settings, words):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(
            foreign,
            CLASSIFY,
            datalist=str(phantoms),
            output_dir=str(tmp_path),
            **{**TINY, "init": str(encoder), **settings},
        )
    assert words in str(cause_of(caught.value))


# segmentation ---------------------------------------------------------------------------------------------------------


def test_segmentation_leaves_a_model_and_masks(phantoms, foreign, encoder):
    given = {**TINY, "init": str(encoder), "decoder_width": 4}
    run_bundle(foreign, SEGMENT, datalist=str(phantoms), output_dir="segmenter", **given)
    folder = foreign / "segmenter"
    network, description = load_segmenter(folder / "models")
    assert network.classes == ["lesion"]
    assert description["mask_values"] == {"lesion": 255}
    result = json.loads((folder / "segmentation.json").read_text(encoding="utf-8"))
    assert 0 <= result["test"]["dice/lesion"] <= 1
    predictions = load_predictions(folder / "predictions" / "test")
    mask = predictions.mask(int(predictions.index[0]))
    assert mask is not None
    assert mask.shape == (32, 32)
    # normal images count as empty masks, so all images of the section are there
    assert len(predictions) == len(load_datalist(phantoms)["test"])
    images = result["test"]["images"]
    assert images["place"] == predictions.index.tolist()
    assert np.mean(images["dice/lesion"]) == pytest.approx(result["test"]["dice/lesion"], abs=1e-6)
    for key, (low, high) in result["test"]["intervals"].items():
        assert low <= result["test"][key] <= high
    # an image whose mask was written has the Dice of that mask
    item = load_datalist(phantoms)["test"][images["place"][0]]
    truth = MaskReading(reading((32, 32)), (32, 32), {"lesion": []}, 127)(item)["mask"].numpy()[0] > 0
    total = truth.sum() + (mask > 0).sum()
    assert images["dice/lesion"][0] == pytest.approx(2 * (truth & (mask > 0)).sum() / total if total else 1.0)


def test_segmentation_refuses_a_class_that_no_mask_has(phantoms, foreign, encoder):
    given = {**TINY, "init": str(encoder), "classes": {"lesion": [3]}}
    with pytest.raises(Exception) as caught:  # MONAI wraps it
        run_bundle(foreign, SEGMENT, datalist=str(phantoms), output_dir="empty", **given)
    assert "'lesion' is 3, but the masks have the values 0, " in str(cause_of(caught.value))
    assert not (foreign / "empty" / "models").exists()


# cross-validation -----------------------------------------------------------------------------------------------------


def test_cross_validation_runs_each_fold_once_and_sums_up(phantoms, encoder, tmp_path, capsys):
    words = ["crossvalidate", str(phantoms), "--init", str(encoder), "--out", str(tmp_path / "cv"), "--folds", "3"]
    words += ["--settings", "epochs=1,batch_size=8,image_size=32,device=cpu"]
    assert run(words) == 0
    summary = json.loads((tmp_path / "cv" / "crossvalidation.json").read_text(encoding="utf-8"))
    macro = summary["figures"]["macro_auroc"]
    folds = [json.loads((tmp_path / "cv" / f"fold_{k}" / "models" / "classifier.json").read_text()) for k in range(3)]
    values = [fold["validation"]["validation_macro_auroc"] for fold in folds]
    assert macro["values"] == values
    assert macro["mean"] == pytest.approx(np.mean(values))
    assert macro["sd"] == pytest.approx(np.std(values, ddof=1))
    seen: list[int] = []
    for k in range(3):
        with (tmp_path / "cv" / f"fold_{k}" / "log.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 1
        seen += load_predictions(tmp_path / "cv" / f"fold_{k}" / "predictions" / "validation").index.tolist()
    content = load_datalist(phantoms)
    assert sorted(seen) == list(range(len(content["training"]) + len(content["validation"])))
    stamp = (tmp_path / "cv" / "fold_0" / "models" / "classifier.json").stat().st_mtime_ns
    assert run(words) == 0
    assert (tmp_path / "cv" / "fold_0" / "models" / "classifier.json").stat().st_mtime_ns == stamp
    assert run([*words[:-1], words[-1].replace("epochs=1", "epochs=2")]) == 2
    told = capsys.readouterr().err
    assert "holds folds of --settings epochs=1,batch_size=8,image_size=32,device=cpu, not epochs=2," in told
    assert run([*words, "--seed", "4"]) == 2
    assert "give another --out" in capsys.readouterr().err
    words[words.index("--init") + 1] = "random"
    assert run(words) == 2
    assert "from another encoder than random" in capsys.readouterr().err


def test_cross_validation_refuses_settings_of_its_own_and_unknown_ones(phantoms, tmp_path, capsys):
    start = ["crossvalidate", str(phantoms), "--out", str(tmp_path)]
    assert run([*start, "--settings", "fold=2"]) == 2
    assert "set by the command itself" in capsys.readouterr().err
    assert run([*start, "--settings", "epoch=2"]) == 2
    assert "nearest: epochs" in capsys.readouterr().err
    assert run([*start, "--settings", "epochs=0"]) == 2  # and what was refused is not what the folds are held to
    assert "holds folds of" not in capsys.readouterr().err
    assert run([*start, "--folds", "1"]) == 2


# evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_has_all_properties_that_monai_asks_for(monkeypatch, classified, phantoms, foreign, tmp_path):
    import sys

    from monai.bundle import ConfigWorkflow

    monkeypatch.chdir(foreign)
    monkeypatch.setattr(sys, "argv", ["monai.bundle"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = {"model": [str(classified / "models")], "datalist": str(phantoms), "output_dir": str(tmp_path)}
    config = str(CONFIGS / "evaluate.yaml")
    flow = ConfigWorkflow(config, METADATA, logging_file=False, workflow_type="infer", **settings)
    flow.initialize()
    assert flow.check_properties() == []
    assert flow.network_def.labels == load_classifier(classified / "models")[0].labels
    assert len(flow.dataset.files) == len(load_datalist(phantoms)["test"])


def test_evaluation_predicts_and_judges_in_one_run(classified, phantoms, foreign):
    model = [str(classified / "models")]
    given = {"model": model, "device": "cpu", "repeats": 100, "output_dir": "judged"}
    run_bundle(foreign, str(CONFIGS / "evaluate.yaml"), datalist=str(phantoms), **given)
    result = json.loads((foreign / "judged" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert result["cases"] == len(load_datalist(phantoms)["test"])
    assert (foreign / "judged" / "evaluation" / "evaluation.html").stat().st_size > 10_000
    # what the training run predicted itself, up to the rounding of its cache
    own = load_predictions(classified / "predictions" / "test")
    again = load_predictions(foreign / "judged" / "predictions")
    assert own.index.tolist() == again.index.tolist()
    for label, scores in own.scores.items():
        np.testing.assert_allclose(again.scores[label], scores, atol=2e-3)
