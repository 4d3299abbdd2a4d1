from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.datalists.file import datalist_hash
from afire_monai.evaluation.cases import read_cases, scores_of_other
from afire_monai.evaluation.evaluate import evaluate_predictions, run_evaluation
from afire_monai.predictions.format import Predictions, load_predictions


def change(small, **changes):
    content = json.loads(small.path.read_text())
    small.path.write_text(json.dumps({**content, **changes}))
    return datalist_hash(json.loads(small.path.read_text()))


def judged(small, folder=None, **options):
    predictions = load_predictions(folder or small.predictions())
    return evaluate_predictions(small.path, predictions, **{"repeats": 30, **options})


def test_figures_are_those_of_the_list(small):
    folder = small.predictions()
    results = judged(small, folder)
    scores = load_predictions(folder).scores
    known = [i for i, item in enumerate(small.items) if item["label"][1] in (0, 1)]
    truth = [small.items[i]["label"][1] for i in known]
    mass, edema, hernia = results["labels"]["labels"]
    assert (mass["name"], mass["positives"], mass["negatives"], mass["unknown"]) == ("Mass", 30, 59, 1)
    assert mass["figures"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores["Mass"][known]))
    assert hernia["status"] == "no positives among 89 cases"
    assert results["labels"]["macro_over"] == ["Mass", "Edema"]
    mean = (mass["figures"]["auroc"]["value"] + edema["figures"]["auroc"]["value"]) / 2
    assert results["labels"]["macro"]["auroc"]["value"] == pytest.approx(mean)
    assert (results["cases"], results["patients"]) == (90, 45)
    assert results["datalist"] == {
        "name": "toy",
        "section": "test",
        "sha256": datalist_hash(json.loads(small.path.read_text())),
    }
    assert {g["by"] for g in results["subgroups"]} == {"sex", "age", "view"}


@pytest.mark.parametrize(
    ("uncertain", "positives", "negatives"), [("ignore", 30, 59), ("zeros", 30, 60), ("ones", 31, 59)]
)
def test_uncertain_labels_follow_the_policy(small, uncertain, positives, negatives):
    mass = judged(small, uncertain=uncertain)["labels"]["labels"][0]
    assert (mass["positives"], mass["negatives"]) == (positives, negatives)


def test_anomaly_score_tells_any_finding_from_normal(small):
    folder = small.predictions()
    row = judged(small, folder)["anomaly"]["result"]
    normal = np.array([item["label"][0] == 1 for item in small.items])
    known = np.arange(90) != 1  # neither normal nor with a finding
    expected = roc_auc_score(~normal[known], load_predictions(folder).anomaly_percentile[known])
    assert row["figures"]["auroc"]["value"] == pytest.approx(expected)
    assert (row["positives"], row["negatives"], row["threshold"]) == ((~normal).sum() - 1, normal.sum(), 95)


def test_masks_are_judged_and_normal_images_have_empty_ones(small):
    row = judged(small)["masks"]["classes"]["foreground"]
    drawn = sum("mask" in item for item in small.items)
    assert (row["cases"], row["positives"]) == (drawn, drawn)  # no mask was predicted for normals
    assert row["dice"]["value"] == pytest.approx(2 * 18 * 20 / 800)
    folder = small.predictions()
    normal = next(i for i, item in enumerate(small.items) if item["label"][0] == 1)
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "masks" / f"{normal:05d}.png")
    row = judged(small, folder)["masks"]["classes"]["foreground"]
    assert (row["cases"], row["invented"]) == (drawn + 1, 1)


def test_heatmaps_are_judged_beside_chance(small):
    found = judged(small)["heatmaps"]
    assert list(found["boxes"]) == ["all boxes", "Mass", "Nodule"]
    assert [found["boxes"][name]["cases"] for name in found["boxes"]] == [30, 30, 15]
    assert found["boxes"]["all boxes"]["boxes"] == 45
    assert list(found["chance"]) == ["centre of the picture", "mean lesion of other patients"]
    # all first boxes are in one place, so the others' mean knows it
    assert found["chance"]["mean lesion of other patients"]["pointing"]["value"] == 1
    model = found["boxes"]["all boxes"]["pointing"]["value"]
    assert found["beyond_prior"]["pointing"]["value"] == pytest.approx(model - 1)
    with_masks = judged(small, lesion_masks=True)["heatmaps"]["boxes"]["all boxes"]
    assert with_masks["cases"] == sum(
        item["label"][1] or item["label"][2] for item in small.items if item["label"][1] != -1
    )


def test_two_models_are_compared_in_every_part(small):
    a, b = small.predictions("a"), small.predictions("b", seed=1, signal=0.1)
    other = load_predictions(b)
    results = judged(small, a, other=other)
    one, two = (judged(small, f)["labels"]["macro"]["auroc"]["value"] for f in (a, b))
    assert results["comparison"]["macro"]["auroc"]["value"] == pytest.approx(one - two)
    dice = [judged(small, f)["masks"]["classes"]["foreground"]["dice"]["value"] for f in (a, b)]
    assert results["masks"]["difference"]["foreground"]["value"] == pytest.approx(dice[0] - dice[1])
    assert results["heatmaps"]["difference"]["pointing"] == {"value": 0, "low": 0, "high": 0}
    assert set(results["anomaly"]["difference"]) >= {"auroc"}
    itself = judged(small, a, other=load_predictions(a))["comparison"]["macro"]
    assert all(figure == {"value": 0, "low": 0, "high": 0} for figure in itself.values())


def test_models_that_judged_other_images_are_compared_on_the_common_ones(small):
    full = load_predictions(small.predictions())
    keep = np.arange(10, 90)[::-1]
    part = Predictions(full.index[keep], {"Mass": full.scores["Mass"][keep]}, full.anomaly_percentile[keep], full.facts)
    cases = read_cases(small.path, full)
    scores = scores_of_other(cases, part)
    np.testing.assert_array_equal(scores[10:, 0], full.scores["Mass"][10:])
    assert np.isnan(scores[:10]).all()
    assert np.isnan(scores[:, 1:]).all()
    results = evaluate_predictions(small.path, part, other=full, repeats=10)
    assert results["notes"][0] == "10 of 90 images of the section have no prediction and are left out."
    assert results["comparison"]["macro"]["auroc"] == {"value": 0, "low": 0, "high": 0}
    nothing = Predictions(np.array([3]), {"Mass": np.array([0.5])}, facts=full.facts)
    rest = Predictions(np.array([4]), {"Mass": np.array([0.5])}, facts=full.facts)
    with pytest.raises(AfireError, match="share 0 images and 1 labels"):
        evaluate_predictions(small.path, nothing, other=rest, repeats=10)


def test_predictions_of_another_list_section_or_folder_are_refused(small):
    folder = small.predictions()
    with pytest.raises(AfireError, match="are of section 'test', not 'training'; give --section test"):
        judged(small, folder, section="training")
    with pytest.raises(DataListError, match="no image in section 'validation'; sections with images: training, test"):
        judged(small, folder, section="validation")
    of_files = small.predictions("files", section="", datalist_sha256="")
    with pytest.raises(AfireError, match="of files or a folder, not of a data list"):
        judged(small, of_files)
    change(small, labels=["Normal", "Mass", "Edema", "Other"])
    with pytest.raises(AfireError, match=r"SHA-256 .*it is another list, or was changed since.*afire predict"):
        judged(small, folder)


def test_a_patient_in_two_sections_is_refused_without_its_name(small):
    change(small, training=[{"image": "other.png", "group": small.items[0]["group"], "label": [1, 0, 0, 0]}])
    with pytest.raises(DataListError, match=r"1 patients \(or images\) are in both test and training") as caught:
        judged(small)
    assert "Jane" not in str(caught.value)


def test_a_place_that_the_section_lacks_is_refused(small):
    full = load_predictions(small.predictions())
    far = Predictions(np.array([90]), {"Mass": np.array([0.5])}, facts=full.facts)
    with pytest.raises(AfireError, match=r"name place 90; section 'test' .* has 90 images"):
        evaluate_predictions(small.path, far)


def test_labels_that_are_only_spelled_otherwise_are_named(small):
    predictions = load_predictions(small.predictions())
    renamed = {name.lower(): values for name, values in predictions.scores.items()}
    cases = read_cases(small.path, Predictions(predictions.index, renamed, None, predictions.facts))
    assert any(note.startswith("Only the spelling differs: 'mass' and 'Mass', 'edema'") for note in cases.notes)


def test_predictions_that_say_nothing_of_the_list_are_refused(small):
    full = load_predictions(small.predictions())
    with pytest.raises(AfireError, match=r"nothing can be judged.*\(Other\)"):
        evaluate_predictions(small.path, Predictions(np.array([0]), {"Other": np.array([0.5])}, facts=full.facts))
    with pytest.raises(AfireError, match="hold no image"):
        evaluate_predictions(small.path, Predictions(np.zeros(0, dtype=int), {"Mass": np.zeros(0)}, facts=full.facts))


def test_a_box_that_cannot_be_is_refused_with_its_place(small):
    good, far = [1, 1, 5, 5, "Mass"], [500, 500, 5, 5, "Mass"]
    for boxes, message in (
        ([far], "a box does not lie within"), ([good, far], "a box does not lie within"),
        ([[1, 2, 3, "Mass"]], "box .* is expected"),
    ):  # fmt: skip
        change(small, test=[{**item, "boxes": boxes} if i == 0 else item for i, item in enumerate(small.items)])
        with pytest.raises(DataListError, match=rf"test\[0\]: {message}"):
            judged(small)


def test_classes_of_masks_are_judged_each_where_the_list_tells_them_apart(small):
    folder = small.predictions(mask_values={"lung": 255, "heart": 100})
    assert set(judged(small, folder)["masks"]["classes"]) == {"lung", "heart"}
    alone = small.predictions("alone", mask_values={"lung": 255, "heart": 255})
    assert "classes cannot be told apart" in judged(small, alone)["masks"]["note"]
    other = small.predictions("other", mask_values={"lung": 1, "heart": 2})
    masks = judged(small, other)["masks"]
    assert set(masks["classes"]) == {"foreground"}
    assert "values [255]" in masks["note"]


def test_a_single_class_with_the_value_to_ignore_is_judged(small):
    for path in small.path.parent.glob("mask*.png"):
        Image.fromarray(np.eye(50, dtype=np.uint8)[:40] * 127).save(path)
    row = judged(small, small.predictions(mask_values={"heart": 127}))["masks"]["classes"]["heart"]
    assert row["positives"] == row["missed"] == row["cases"]


def test_folders_of_the_machine_stay_out_of_the_results(small):
    model = {"encoder": "/home/me/runs/a/models", "other": {"path": ["C:\\me\\b"]}, "kind": "ViT-Ti/6", "n": 3}
    folder = small.predictions(model=model)
    assert judged(small, folder)["model"] == {"encoder": "models", "other": {"path": ["b"]}, "kind": "ViT-Ti/6", "n": 3}


def test_same_seed_same_results_and_single_image_is_survived(small):
    folder = small.predictions()
    assert judged(small, folder, seed=3) == judged(small, folder, seed=3)
    full = load_predictions(folder)
    single = Predictions(
        full.index[:1], {k: v[:1] for k, v in full.scores.items()}, full.anomaly_percentile[:1], full.facts, folder
    )
    results = evaluate_predictions(small.path, single, repeats=10)
    assert results["labels"]["macro"] == {}
    assert results["labels"]["labels"][0]["status"] == "no negatives among 1 cases"
    json.dumps(results, allow_nan=False)


def test_files_hold_all_figures_and_no_names(small, tmp_path):
    out = tmp_path / "out" / "evaluation"
    results = run_evaluation(small.predictions("a"), small.path, "test", out, small.predictions("b", 1), repeats=100)
    assert json.loads((out / "evaluation.json").read_text()) == json.loads(json.dumps(results, allow_nan=False))
    with (out / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {
        "labels",
        "subgroups",
        "difference",
        "anomaly",
        "masks",
        "heatmaps",
        "chance",
    }
    found = next(r for r in rows if (r["part"], r["label"], r["figure"]) == ("labels", "Mass", "auroc"))
    assert float(found["low"]) == results["labels"]["labels"][0]["figures"]["auroc"]["low"]
    assert next(r for r in rows if r["label"] == "Hernia")["status"].startswith("no positives")
    for name in ("evaluation.json", "evaluation.csv", "evaluation.html"):
        text = re.sub(r"base64,[^']*", "", (out / name).read_text()).lower()
        assert "jane" not in text
        assert "doe" not in text
        assert str(tmp_path).lower() not in text
    assert not list(out.glob(".*"))


def test_command_line_says_the_area_of_a_single_finding_once(small, tmp_path, capsys):
    content = json.loads(small.path.read_text())
    for i, item in enumerate(content["test"]):
        item["label"] = [None, i % 2, None, None]  # has nothing to do with the scores
        item.pop("boxes", None)
    small.path.write_text(json.dumps(content))
    arguments = ["--datalist", str(small.path), "--out", str(tmp_path / "out"), "--repeats", "100", "--no-pictures"]
    assert run(["evaluate", str(small.predictions()), *arguments]) == 0
    said = capsys.readouterr().out
    assert said.count("Mass: AUROC") == 1
    assert "Chance is not excluded" in said
    assert "Edema: not judged" in said


def test_command_line(small, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "evaluate",
        str(small.predictions()),
        "--datalist",
        str(small.path),
        "--out",
        str(out),
        "--repeats",
        "100",
    ]
    assert run([*arguments, "--no-pictures"]) == 0
    said = capsys.readouterr().out
    assert "toy, test: 90 images of 45 patients" in said
    assert "Hernia: not judged: no positives among 89 cases" in said
    assert "Mean of 2 findings: AUROC" in said
    assert "not shown to find lesions better than a guess by place" in said
    assert (out / "evaluation.html").is_file()
    assert run([*arguments, "--section", "training"]) == 2
    assert "give --section test" in capsys.readouterr().err
    assert run([*arguments, "--uncertain", "maybe"]) == 2
    assert run([*arguments[:-1], "5"]) == 2
    assert "at least 100" in capsys.readouterr().err


def test_names_that_are_no_text_are_written_as_numbers(small, tmp_path):
    boxes = [[1, 1, 5, 5, "\ud800"]]
    change(small, test=[{**item, "boxes": boxes} if i == 0 else item for i, item in enumerate(small.items)])
    run_evaluation(small.predictions(), small.path, out=tmp_path / "out", repeats=100, pictures=False)
    assert "\\ud800" in (tmp_path / "out" / "evaluation.csv").read_text()


def test_a_folder_that_cannot_be_written_is_refused(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AfireError, match="can be written"):
        run_evaluation(small.predictions(), small.path, out=tmp_path / "file" / "x", repeats=100, pictures=False)


def test_list_that_was_saved_again_in_other_order_of_keys_is_the_same_list(small):
    folder = small.predictions()
    content = json.loads(small.path.read_text())
    small.path.write_text(json.dumps(dict(reversed(content.items())), indent=2))
    assert judged(small, folder)["cases"] == 90
