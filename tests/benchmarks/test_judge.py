from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth_images, tiny_encoder
from PIL import Image
from sklearn.metrics import roc_auc_score

from afire_monai.evaluation.probes import extract_features, knn_probe
from afire_monai.models.folder import load_encoder


@pytest.fixture
def data(tmp_path) -> Path:
    """70 pictures of 32 x 32, every second with a bright square that has a box: 50, 10 and 10 in the sections."""
    images = 0.2 * smooth_images(70, (32, 32))
    items = []
    for number, image in enumerate(images):
        abnormal = number % 2
        if abnormal:
            image[:, 8:16, 16:24] += 0.6
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / f"{number}.png")
        item = {"image": f"{number}.png", "label": [abnormal], "group": f"patient {number}"}
        items.append({**item, **({"boxes": [[16, 8, 8, 8, "Mass"]]} if abnormal else {})})
    content = {"labels": ["Mass"], "training": items[:50], "validation": items[50:60], "test": items[60:]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    # four normals of the list, so that 21 others remain, and a list with 10 of them, which leaves too few
    for name, count in (("few", 8), ("many", 20)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"labels": ["Mass"], "training": items[:count]}))
    return tmp_path


def test_encoders_are_judged_once_with_scores_of_each_image_and_again_when_weights_change(data, tmp_path, call, capsys):
    for seed in range(2):
        tiny_encoder(tmp_path / "runs" / "tiny" / str(seed) / "models", seed)
    words = ["--out", str(tmp_path / "out"), "--data", f"kids={data / 'list.json'}", "--pretraining"]
    words += [str(data / "few.json"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    call("run", *words)
    rows = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["tiny/0", "tiny/1"]
    assert rows[0]["reference"] == {"kids": {"normals": 21, "unseen": True}}
    truth = np.arange(10) % 2
    saved = np.load(tmp_path / "out" / "scores" / "tiny_1.npz")
    figures = rows[1]["figures"]
    for what in ("linear, mean", "k-NN, class and mean", "tokens", "neighbours", "density", "sum"):
        for section in ("validation", "test"):
            expected = roc_auc_score(truth, saved[f"kids/{section}/{what}"])
            assert figures[f"kids/{section}/{what}"] == pytest.approx(expected, abs=1e-4)
    # a square that is the same in each picture is found by its place
    assert figures["kids/test/points: neighbours"] == figures["kids/test/points: sum"] == 1
    assert figures["kids/test/neighbours"] == 1

    pixels = torch.stack([torch.from_numpy(np.array(Image.open(data / f"{n}.png")) / 255) for n in range(70)])
    encoder = load_encoder(tmp_path / "runs" / "tiny" / "1" / "models")
    features = extract_features(encoder, pixels[:, None].half().float(), "class_mean")
    expected = knn_probe(features[:50], np.arange(50) % 2, features[60:])
    np.testing.assert_allclose(saved["kids/test/k-NN, class and mean"], expected, atol=1e-3)

    call("run", *words)
    assert len((tmp_path / "out" / "judged.jsonl").read_text().splitlines()) == 2
    tiny_encoder(tmp_path / "runs" / "tiny" / "1" / "models", 7)
    call("run", *words)
    rows = [json.loads(line) for line in (tmp_path / "out" / "judged.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["tiny/0", "tiny/1", "tiny/1"]
    capsys.readouterr()

    call("table", "--out", str(tmp_path / "out"))
    shown = capsys.readouterr().out
    validation, test = shown.index("kids, validation** (choices are made here"), shown.index("kids, test** (no choice")
    assert validation < test
    assert "21 normals, not seen by pre-training" in shown
    mean = np.mean([row["figures"]["kids/test/linear, mean"] for row in (rows[0], rows[2])])
    assert f"{mean:.3f} (" in shown[test:]


def test_settings_are_chosen_by_the_mean_over_figures_and_seeds_of_validation_patients(tmp_path, call, capsys):
    def row(key: str, *values: float) -> str:
        names = ("k-NN, class and mean", "linear, class and mean", "tokens", "density")
        figures = {f"kids/validation/{what}": value for what, value in zip(names, values, strict=True)}
        return json.dumps(
            {
                "key": key,
                "settings": {"data": {"kids": "hash"}},
                "figures": {**figures, "kids/test/tokens": 1.0, "kids/validation/sum": 1.0},
            }
        )

    rows = [row("slow/0", 0.5, 0.5, 0.5, 0.5), row("fast/0", 0.9, 0.8, 0.7, 0.6), row("fast/1", 0.7, 0.8, 0.9, 0.6)]
    (tmp_path / "judged.jsonl").write_text("\n".join(rows) + "\n")
    call("choose", "--out", str(tmp_path))
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| fast | 2 | 0.800 | 0.800 | 0.800 | 0.600 | 0.750 |",
        "| slow | 1 | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 |",
    ]


def test_reference_takes_what_pretraining_saw_where_too_few_others_remain(data, tmp_path, call):
    folder = tiny_encoder(tmp_path / "models")
    words = ["--data", f"kids={data / 'list.json'}", "--encoder", f"a={folder}", "--parts", "density"]
    for options, expected in (([str(data / "many.json")], (25, False)), ([], (25, None))):
        seen = ["--pretraining", *options] if options else []
        call("run", "--out", str(tmp_path / "out"), "--device", "cpu", *words, *seen)
        row = json.loads((tmp_path / "out" / "judged.jsonl").read_text().splitlines()[-1])
        assert tuple(row["reference"]["kids"].values()) == expected
    # a part of the whole image points nowhere, and is the same as the sum of itself
    assert not any(name.startswith("kids/test/points") for name in row["figures"])


def test_lists_are_judged_by_one_another_and_by_fresh_weights_and_pixels(data, tmp_path, call, capsys):
    content = json.loads((data / "list.json").read_text())
    others = [{**item, "group": f"other {item['group']}"} for item in content["test"]]
    (data / "alone.json").write_text(json.dumps({"labels": ["Mass"], "test": others}))
    tiny_encoder(tmp_path / "models")
    words = ["--out", str(tmp_path / "out"), "--device", "cpu", "--parts", "density"]
    words += ["--encoder", f"a={tmp_path}/models"]
    words += ["--data", f"here={data / 'list.json'}", "--data", f"there={data / 'alone.json'}"]
    with pytest.raises(SystemExit, match="section training is missing"):
        call("run", *words)
    call("run", *words, "--cross", "--baselines", "1")
    rows = {row["key"]: row for row in map(json.loads, (tmp_path / "out" / "judged.jsonl").read_text().splitlines())}
    assert [*rows] == ["a/0", "fresh/0", "fresh_patches/0", "fresh_resnet/0", "pixels/0"]
    # the other list has the same pictures, and none of its own to learn from
    figures = rows["a/0"]["figures"]
    assert {name.split("/")[0] for name in figures} == {"here"}
    assert figures["here/there/density"] == figures["here/here/density"]
    truth, pixels = np.arange(10) % 2, np.load(tmp_path / "out" / "scores" / "pixels_0.npz")
    assert rows["pixels/0"]["figures"]["here/there/k-NN, mean"] == roc_auc_score(truth, pixels["here/there/k-NN, mean"])
    assert "here/there/density" not in rows["pixels/0"]["figures"]
    capsys.readouterr()
    call("table", "--out", str(tmp_path / "out"))
    shown = capsys.readouterr().out
    assert "**here, there** (no choice" in shown
    assert "| pixels | 1 |" in shown


def test_normals_alone_give_no_probe_and_unknown_labels_are_left_out(data, tmp_path, call, capsys):
    content = json.loads((data / "list.json").read_text())
    content["labels"] = ["No Finding", "Mass"]
    for section in ("training", "validation", "test"):
        for item in content[section]:
            item["label"] = [1 - item["label"][0], item["label"][0]]
    content["training"] = content["training"][::2]
    content["test"][0]["label"] = [None, None]
    (data / "normals.json").write_text(json.dumps(content))
    words = ["--data", f"kids={data / 'normals.json'}", "--encoder", f"a={tiny_encoder(tmp_path / 'models', 0)}"]
    call("run", "--out", str(tmp_path / "out"), "--device", "cpu", "--parts", "density", *words)
    assert "1 of 10 images are neither known to be normal nor abnormal" in capsys.readouterr().out
    (row,) = map(json.loads, (tmp_path / "out" / "judged.jsonl").read_text().splitlines())
    assert row["reference"]["kids"]["normals"] == 25
    assert "kids/test/density" in row["figures"]
    assert not [name for name in row["figures"] if "linear" in name]
    saved = np.load(tmp_path / "out" / "scores" / "a_0.npz")
    assert saved["kids/test/abnormal"].tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "no finished encoder in OUT"),
        (["run", "--encoder", "a=absent"], "NAME=FOLDER with encoder.safetensors"),
        (["run", "--encoder", "a=MODELS"], "nothing to judge by: give --data"),
        (["run", "--encoder", "a=MODELS", "--data", "x=absent.json"], "--data x=absent.json: no such file"),
        (["run", "--encoder", "a=MODELS", "--data", f"x={__file__}", "--share", "1/1"], "PART/PARTS is expected"),
        (["run", "--encoder", "a=MODELS", "--pretraining", "absent.json"], "--pretraining absent.json: no such file"),
        (["table"], "holds no results"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(words, message, call, tmp_path):
    folder = tiny_encoder(tmp_path / "models")
    with pytest.raises(SystemExit, match=message):
        call(*[w.replace("MODELS", str(folder)) for w in words], "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_patient_in_two_sections_is_refused(data, tmp_path, call):
    content = json.loads((data / "list.json").read_text())
    content["test"][0]["group"] = "patient 3"
    (data / "list.json").write_text(json.dumps(content))
    folder = tiny_encoder(tmp_path / "models")
    words = ["--encoder", f"a={folder}", "--data", f"kids={data / 'list.json'}", "--device", "cpu"]
    with pytest.raises(SystemExit, match="a patient is in two sections"):
        call("run", *words, "--out", str(tmp_path / "out"))
