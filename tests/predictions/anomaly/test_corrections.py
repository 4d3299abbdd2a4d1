"""Marked false alarms and misses: what they change in the reference, and what is said of it."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_afire
from PIL import Image
from scipy.stats import percentileofscore

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.models.folder import export_encoder, export_task, load_encoder
from afire_monai.networks import ViTClassifier, ViTEncoder
from afire_monai.predictions.anomaly.build_reference import make_reference
from afire_monai.predictions.anomaly.corrections import alarm_percentile, marked_items
from afire_monai.predictions.anomaly.reference import percentiles
from afire_monai.training.finish import export_restorer

SIDE = 32


@pytest.fixture
def study(tmp_path):
    """Normals; a kind of picture that is normal but looks unusual (a stripe); and one that is not normal (a square)."""
    rng = np.random.default_rng(0)

    def write(name, count, paint):
        items = []
        for number in range(count):
            picture = np.linspace(40, 120, SIDE)[:, None] + rng.normal(0, 8, (SIDE, SIDE))
            paint(picture)
            file = f"{name}_{number}.png"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / file)
            items.append({"image": file, "group": f"{name}{number}"})
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "training": items}))
        return items

    def stripe(picture):
        picture[:, 4:7] += 60

    def square(picture):
        picture[12:22, 12:22] += 60

    normals = write("normals", 40, lambda picture: None)
    write("alarms", 20, stripe)
    misses = write("misses", 8, square)
    content = {"name": "normals", "training": normals + misses[:2]}  # two of them were taken for normal
    (tmp_path / "normals.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    export_encoder(ViTEncoder(SIDE, 8, embed_dim=24, depth=2, num_heads=2), tmp_path / "models", epochs=1)
    return tmp_path


def test_marked_normals_join_the_reference_and_marked_misses_leave_it(study):
    before = make_reference(study / "models", study / "normals.json", parts=["density"])
    assert before.corrections is None
    assert before.reference.count == 42
    done = make_reference(
        study / "models",
        study / "normals.json",
        parts=["density"],
        normal=study / "alarms.json",
        not_normal=study / "misses.json",
    )
    told = done.corrections
    assert done.reference.count == 40 + 20
    assert (told.normal, told.not_normal) == (20, 8)
    assert told.normal_alarms[0] == 20  # all were alarms of the reference before
    assert told.normal_alarms[1] < 10
    assert told.not_normal_alarms[1] >= 7
    description = json.loads((study / "models/reference.json").read_text())
    assert description["corrections"] == {"normal": 20, "not_normal": 8, "alarm_percentile": told.alarm}
    words = done.reference.in_words(told.alarm)
    assert (words["alarm_percentile"], words["alarm"]) == (told.alarm, True)
    assert done.reference.in_words(told.alarm - 1)["alarm"] is False
    assert "alarm" not in before.reference.in_words(99.0)


def test_a_model_names_what_references_of_it_judge_by_unless_the_user_does(study):
    models, normals = study / "models", study / "normals.json"
    assert make_reference(models, normals).reference.parts == ("tokens", "density", "class_density")
    path = models / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reference_parts": ["density", "places"]}))
    assert make_reference(models, normals).reference.parts == ("density", "places")
    assert make_reference(models, normals, parts=["tokens"]).reference.parts == ("tokens",)
    path.write_text(json.dumps({**json.loads(path.read_text()), "reference_parts": [3]}))
    with pytest.raises(AfireError, match="has no 3; it has tokens"):
        make_reference(models, normals)


def test_what_an_encoder_names_counts_beside_a_restorer_too(study):
    method = tiny_afire(2)
    export_encoder(method.export_encoder, study / "run", epochs=1)
    export_restorer(method, study / "run")
    path = study / "run" / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reference_parts": ["density"]}))
    assert make_reference(study / "run", study / "normals.json").reference.parts == ("density",)


def test_a_reference_of_a_runs_folder_lies_beside_the_weights_and_takes_the_place_of_an_earlier_one(study):
    made = make_reference(study, study / "normals.json")
    assert made.path == study / "models/reference.safetensors"
    made.reference.save(study)
    assert make_reference(study, study / "normals.json").path == study / "reference.safetensors"


def test_a_folder_without_an_encoder_is_told_with_what_it_holds(study, capsys):
    folder = study / "tuned"
    export_task(ViTClassifier(load_encoder(study / "models"), ["a"]), folder)
    assert run(["reference", "--model", str(folder), "--datalist", str(study / "normals.json")]) == 2
    told = capsys.readouterr().err
    assert f"{folder}/classifier.safetensors: neither restorer.safetensors nor encoder.safetensors is there" in told


def test_the_command_says_what_the_marks_changed(study, capsys):
    models, normals = str(study / "models"), str(study / "normals.json")
    words = ["reference", "--model", models, "--datalist", normals, "--parts", "density"]
    assert run(words) == 0
    capsys.readouterr()
    assert run([*words, "--normal", str(study / "alarms.json"), "--not-normal", str(study / "misses.json")]) == 0
    printed = capsys.readouterr().out
    assert "of 20 at or above percentile" in printed
    assert "20 by the reference before" in printed
    assert "not normal: " in printed


def test_the_alarm_is_where_misses_and_normals_are_told_apart_best():
    rng = np.random.default_rng(0)
    for _ in range(20):
        misses = torch.from_numpy(rng.uniform(0, 100, 9))
        candidates = np.sort(misses.numpy())
        youden = [np.mean(misses.numpy() >= c) + c / 100 - 1 for c in candidates]
        assert alarm_percentile(misses) == pytest.approx(candidates[int(np.argmax(youden))])
    assert alarm_percentile(torch.tensor([60.0, 60, 60, 60])) == 95.0  # too few to tell
    assert alarm_percentile(torch.tensor([90.0, 90, 90, 90, 90])) == 90.0


def test_percentiles_are_scipys():
    rng = np.random.default_rng(0)
    normals, scores = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 20).astype(float)
    expected = [percentileofscore(normals, score, "mean") for score in scores]
    assert percentiles(torch.from_numpy(scores), torch.from_numpy(normals)).tolist() == pytest.approx(expected)


def test_an_empty_list_of_marks_is_refused_by_name(tmp_path):
    (tmp_path / "marks.json").write_text('{"name": "marks", "training": []}')
    with pytest.raises(DataListError, match=r"marks\.json"):
        marked_items(tmp_path / "marks.json")
