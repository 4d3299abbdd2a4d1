from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_images, tiny_encoder
from PIL import Image

from afire_monai.models.folder import export_encoder
from afire_monai.networks import ResNetEncoder


@pytest.fixture
def data(tmp_path) -> Path:
    """80 pictures of 32 x 32, two of each patient, every second patient with a bright square; 60 and 20 in sections."""
    items = []
    for number, image in enumerate(0.2 * smooth_images(80, (32, 32))):
        abnormal = number // 2 % 2
        if abnormal:
            image[:, 8:16, 16:24] += 0.6
        Image.fromarray((image[0] * 255).byte().numpy()).save(tmp_path / f"{number}.png")
        label = [1 - abnormal, abnormal]
        items.append({"image": f"{number}.png", "label": label, "group": f"patient {number // 2}"})
    content = {"labels": ["No Finding", "Mass"], "training": items[:60], "test": items[60:]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path / "list.json"


def test_probes_of_any_encoder_are_printed_by_number_of_labels(call, module, data, tmp_path, capsys):
    tiny_encoder(tmp_path / "vit")
    export_encoder(ResNetEncoder(32, blocks=[1, 1, 1, 1]), tmp_path / "resnet")
    words = [word for name in ("vit", "resnet") for word in ("--encoder", f"{name}={tmp_path / name}")]
    call("--data", f"a={data}", *words, "--counts", "5", "100", "--draws", "2")
    lines = capsys.readouterr().out.splitlines()
    assert "| features | 4 labels | 60 labels |" in lines
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if "±" in line}
    assert [*rows] == ["vit", "resnet", "pixels"]
    assert rows["pixels"].split(" | ")[2].startswith("1.000 ± 0.000, 1.000")
    with pytest.raises(SystemExit, match="there are 10 normal and 2 abnormal"):
        module.draws(np.array([0] * 10 + [1] * 2), 8, 1)


def test_fine_tuning_uses_no_label_outside_the_drawn_ones_and_is_not_repeated(
    call, module, data, tmp_path, monkeypatch, capsys
):
    tiny_encoder(tmp_path / "vit")
    lists = []

    def pretend(folder, drawn, work, settings):
        lists.append(drawn)
        return 0.5 + 0.1 * int(settings["seed"])

    monkeypatch.setattr(module, "tuned", pretend)
    words = ["--data", f"a={data}", "--encoder", f"vit={tmp_path / 'vit'}", "--tune", str(tmp_path / "out")]
    words += ["--counts", "20", "--draws", "2"]
    call(*words, "--set", "epochs=3")
    assert "| vit | 0.550 ± 0.050 |" in capsys.readouterr().out
    for drawn in lists:
        patients = [{item["group"] for item in drawn[section]} for section in ("training", "validation", "test")]
        assert not patients[0] & patients[1]
        assert len(drawn["training"]) + len(drawn["validation"]) == 20
        for section in ("training", "validation", "test"):
            assert {item["label"][0] for item in drawn[section]} == {0, 1}
    assert lists[0]["training"] != lists[1]["training"]
    call(*words, "--set", "epochs=3")
    assert len(lists) == 2
    call(*words, "--set", "epochs=4")
    assert len(lists) == 4


def test_fine_tuning_of_a_draw_gives_the_figure_of_its_test_images(module, data, tmp_path, monkeypatch):
    tiny_encoder(tmp_path / "vit")
    content = module.load_datalist(data)
    drawn = module.drawn_list(content, range(0, 60, 3), "test", 0)
    settings = {"epochs": 2, "batch_size": 8, "device": "cpu", "seed": 0}
    figure = module.tuned(str(tmp_path / "vit"), drawn, tmp_path / "work", settings)
    table = np.genfromtxt(tmp_path / "work" / "predictions" / "test" / "predictions.csv", delimiter=",", names=True)
    assert len(table) == 20
    assert figure == 1.0
