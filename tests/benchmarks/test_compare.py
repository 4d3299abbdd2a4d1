from __future__ import annotations

import importlib
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_encoder
from PIL import Image
from sklearn.metrics import roc_auc_score

from afire_monai.cli.bundle import bundle_root


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain"], "--images None: no such file"),
        (["cost", "--images", "absent.json"], "--images absent.json: no such file"),
        (["pretrain", "--images", __file__, "--method", "simclr"], "unknown method 'simclr'; there are afire"),
        (["pretrain", "--images", __file__, "--method", "mae="], "NAME=EPOCHS is expected"),
        (["pretrain", "--images", __file__, "--seeds", "0"], "at least 1 of each"),
        (["evaluate"], "nothing to evaluate"),
        (["evaluate", "--task", f"a={__file__}"], "NAME=datalist.json:label is expected"),
        (["evaluate", "--segment", "a=absent.json"], "no such file absent.json"),
        (["evaluate", "--segment", f"a={__file__}", "--segment", f"a={__file__}"], "each name once"),
        (["evaluate", "--segment", f"a={__file__}"], "no finished encoder"),
        (["evaluate", "--segment", f"a={__file__}", "--share", "2/2"], "PART/PARTS is expected"),
        (["table"], "holds no results"),
        (["table", "--images", "absent.json"], "--images absent.json: no such file"),
        (["table", "--chart", "chart.svg"], "chart.svg: the name of a .png"),
        (["table", "--chart", "absent/chart.png"], "absent/chart.png: the name of a .png in a folder"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(call, words, said, tmp_path):
    with pytest.raises(SystemExit, match=said):
        call(*words, "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_result_that_was_cut_off_is_left_out_and_one_in_the_middle_is_named(tmp_path):
    stored_rows = importlib.import_module("compare_parts").stored_rows
    log = tmp_path / "results.jsonl"
    log.write_text('{"key": "a"}\n{"key": "b", "sec')
    assert stored_rows(log) == [{"key": "a"}]
    assert stored_rows(log, mend=True) == [{"key": "a"}]
    assert log.read_text() == '{"key": "a"}\n'
    log.write_text('{"key": "a"}\n{"ke\n{"key": "c"}\n')
    with pytest.raises(SystemExit, match="line 2"):
        stored_rows(log)


def test_table_of_stored_results_has_means_over_seeds_and_marks_who_is_level_with_the_best(call, tmp_path, capsys):
    (tmp_path / "scores").mkdir()
    groups, truth = np.arange(40).astype(str), np.arange(40) % 2
    rows = []
    for name, right in (("afire", 40), ("mae", 24), ("fresh", 0)):
        for seed in range(2):
            scores = np.where(np.arange(40) < right, truth, 1 - truth)[:, None].astype(float)
            dice = np.full(40, right / 100 + 0.1 * seed)
            rows.append(f'{{"key": "probe/a/{name}/1.0/{seed}"}}')
            columns = {"scores": np.repeat(scores, 4, 1), "truth": np.stack([truth] * 4, 1), "groups": groups}
            np.savez(tmp_path / "scores" / f"probe_a_{name}_1.0_{seed}.npz", **columns)
            rows.append(f'{{"key": "segmentation/b/{name}/1.0/{seed}"}}')
            np.savez(tmp_path / "scores" / f"segmentation_b_{name}_1.0_{seed}.npz", case_dice=dice, case_groups=groups)
    rows.append(rows[0])  # done by two processes, counted once
    (tmp_path / "results.jsonl").write_text("\n".join(rows) + "\n")
    content = {"labels": ["Pneumonia"], "training": [{"image": f"{n}.png", "label": [0]} for n in range(12)]}
    (tmp_path / "normals.json").write_text(json.dumps(content))
    (tmp_path / "cost.json").write_text(
        '{"afire": {"images_per_second": 0.5, "peak_gib": 1}, "mae": {"images_per_second": 2, "peak_gib": 0.5}}'
    )
    words = ["--images", str(tmp_path / "normals.json"), "--method", "afire=20", "--chart", str(tmp_path / "chart.png")]
    words += ["--csv", str(tmp_path / "all.csv")]
    call("table", "--out", str(tmp_path), "--against", "mae", *words)
    told = capsys.readouterr().out
    # 20 epochs of 12 images at half an image a second
    assert "| afire | 0.5 | 1.00 | 240 | 8 |\n| mae | 2.0 | 0.50 |  |  |" in told
    assert "| | afire | mae | fresh |" in told
    # 24 of 40 cases scored rightly are 12 positives above and 8 below the others
    assert "| probe, a, k-NN, mean | **1.000** | 0.600 | 0.000 |" in told
    assert "| segmentation, b, Dice | **0.450** | 0.290 | 0.050 |" in told
    # every patient has the same Dice, so the intervals are the seeds' alone, and cancel in the difference
    assert "| afire | **0.450 (0.400 to 0.500)** | 2 | 0.071 | +0.160 (+0.160 to +0.160) | 2 of 2 |" in told
    assert "| fresh | 0.050 (0.000 to 0.100) | 2 | 0.071 | -0.240 (-0.240 to -0.240) | 0 of 2 |" in told
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert len(lines) == 16
    assert lines[0].startswith("task,data,figure,method,mean,low,high,level_with_best,seeds,")
    assert "segmentation,b,Dice,afire,0.450,0.400,0.500,yes,2,0.071,mae,0.160,0.160,0.160,2" in lines
    assert "segmentation,b,Dice,mae,0.290,0.240,0.340,no,2,0.071,,,,," in lines
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.format == "PNG"
        # one row of three panels with three methods each
        assert chart.width > 3 * chart.height


def test_mean_over_labels_leaves_out_those_of_fewer_than_five_test_images(tmp_path):
    row_draws = importlib.import_module("compare_tables").row_draws
    (tmp_path / "scores").mkdir()
    # three labels in order; four and 36 of 40 images have the others, whose scores are the wrong way round
    truth = np.stack([np.arange(40) < some for some in (5, 35, 20, 4, 36)], 1).astype(float)
    scores = truth * [1, 1, 1, -1, -1]
    truth[0, 2] = np.nan
    row = {"key": "classification/nih/mae/0.1/0"}

    def figure(labels: list[int]) -> dict[str, float]:
        arrays = {"truth": truth[:, labels], "scores": scores[:, labels], "groups": np.arange(40).astype(str)}
        np.savez(tmp_path / "scores" / "classification_nih_mae_0.1_0.npz", **arrays)
        return {what: float(draws[0]) for what, draws in row_draws(row, tmp_path).items()}

    assert figure([0, 1, 2, 3, 4]) == {"10% of labels, 3 of 5 labels count": 1.0}
    assert figure([0, 1]) == {"10% of labels": 1.0}
    assert figure([3]) == {"10% of labels": 0.0}


def test_evaluation_is_repeated_only_for_other_weights_or_other_data(call, data, monkeypatch, tmp_path):
    done = []

    def pretend(row, path, work):
        done.append(row["key"])
        return {"scores": np.arange(20.0)[:, None], "truth": np.arange(20)[:, None] % 2, "groups": np.arange(20)}

    monkeypatch.setattr(importlib.import_module("compare_parts"), "run_job", pretend)
    out = tmp_path / "out"
    tiny_encoder(out / "mae" / "0" / "models")
    words = ["evaluate", "--out", str(out), "--task", f"a={data}:Mass", "--fraction", "0.1", "--seeds", "1", "--pixels"]
    call(*words)
    call(*words)
    assert done == [
        "probe/a/mae/1.0/0",
        "probe/a/pixels/1.0/0",
        "classification/a/mae/0.1/0",
        "classification/a/pixels/0.1/0",
    ]
    tiny_encoder(out / "mae" / "0" / "models", 1)
    call(*words)
    assert done[4:] == ["probe/a/mae/1.0/0", "classification/a/mae/0.1/0"]
    content = json.loads(data.read_text())
    data.write_text(json.dumps({**content, "test": content["test"][1:]}))
    call(*words)
    assert len(done) == 10


def test_the_image_itself_is_probed_and_classified_like_an_encoder(data):
    parts = importlib.import_module("compare_parts")
    for kind, columns in (("probe", 4), ("classification", 1)):
        found = parts.run_job({"key": f"{kind}/a/pixels/1.0/0", "task": f"{data}:Mass"}, None, data.parent / "work")
        assert found["scores"].shape == found["truth"].shape == (20, columns)
        assert found["truth"][:, 0].tolist() == [0, 1] * 10
        figures = [roc_auc_score(found["truth"][:, 0], column) for column in found["scores"].T]
        assert min(figures) > 0.85, figures


def test_run_of_other_settings_or_defaults_is_not_gone_on_with(module, data, tmp_path, monkeypatch):
    keep = partial(module.keep_settings, tmp_path / "run", images=str(data), configs=["method_mae.yaml"])
    keep({"epochs": 20})
    keep({"epochs": 20})
    with pytest.raises(SystemExit, match="other settings"):
        keep({"epochs": 100})
    text, config = (bundle_root() / "configs/method_mae.yaml").read_text(), tmp_path / "configs" / "method_mae.yaml"
    config.parent.mkdir()
    monkeypatch.setattr("compare.bundle_root", lambda: tmp_path)
    config.write_text(f"# a remark\n{text}")
    keep({"epochs": 20})
    config.write_text(f"{text}\nlr: 1.0\n")
    with pytest.raises(SystemExit, match="defaults"):
        keep({"epochs": 20})


def test_methods_are_compared_on_the_seeds_that_both_have():
    tables = importlib.import_module("compare_tables")
    # the other seeds of the first are far worse, and say nothing about the second
    first = {0: np.full(11, 0.9), 1: np.full(11, 0.9), 2: np.full(11, 0.1)}
    second = {0: np.full(11, 0.8), 1: np.full(11, 0.7)}
    gains = tables.paired(first, second)
    assert tables.seed_mean(gains)[0] == pytest.approx(0.15)
    assert tables.seeds_ahead(gains) == "2 of 2"
    assert tables.level_with_best({"first": first, "second": second}) == {"first", "second"}
    assert tables.level_with_best({"second": second, "third": {0: np.full(11, 0.9)}}) == {"third"}
    # nothing in common is no difference
    assert tables.level_with_best({"second": second, "fourth": {2: np.full(11, 0.9)}}) == {"second", "fourth"}


def test_finished_encoders_are_found_by_seed_and_those_of_the_cost_are_not(tmp_path):
    for folder in ("mae/1", "afire/1", "fresh/0", "mae/0", "other/0", "cost/afire"):
        (tmp_path / folder / "models").mkdir(parents=True)
        (tmp_path / folder / "models" / "encoder.safetensors").touch()
    found = importlib.import_module("judge").chosen_encoders(SimpleNamespace(runs=str(tmp_path), encoder=[]))
    assert [entry[:2] for entry in found] == [("afire", 1), ("fresh", 0), ("mae", 0), ("mae", 1), ("other", 0)]
    assert found[2][2] == tmp_path / "mae" / "0" / "models"
