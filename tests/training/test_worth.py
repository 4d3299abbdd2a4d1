"""Whether pre-training was worth it: figures against scikit-learn's, and what is said of them."""

import json

import numpy as np
import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError, DataListError
from afire_monai.evaluation.bootstrap import Interval
from afire_monai.models.folder import export_encoder
from afire_monai.networks import ViTEncoder
from afire_monai.predictions.features import Embedding, FeatureReader
from afire_monai.training.label_probe import LabelProbe, knn_auroc
from afire_monai.training.worth import (
    FRESH,
    OWN,
    PIXELS,
    STRENGTH,
    Comparison,
    CrossFitted,
    Labelled,
    compare_encoders,
    labelled_images,
    mean_auroc,
    out_of_fold,
)

SIDE = 32


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Pictures with and without a bright square, two of each patient; one file cannot be read."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    content = {"name": "squares", "labels": ["Square", "Rare", "Normal"], "training": [], "validation": []}
    for number in range(48):
        square = number % 4 > 1
        picture = np.linspace(40, 120, SIDE)[:, None] + rng.normal(0, 20, (SIDE, SIDE))
        picture[8:16, 8:16] += 20 * square
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        label = [int(square), int(number == 2), int(not square)]
        content["validation"].append({"image": f"{number}.png", "group": f"v{number // 2}", "label": label})
    content["training"] = [{"image": "0.png", "group": "t", "label": [0, 0, 1]}]
    (folder / "5.png").write_bytes(b"no picture")
    (folder / "list.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    encoder = ViTEncoder(SIDE, 8, embed_dim=24, depth=1, num_heads=2)
    export_encoder(encoder, folder / "models", method_name="AFiRe", epochs=1)
    return folder


def test_the_figure_is_that_of_scikit_learn_out_of_fold(study):
    done = compare_encoders(study / "list.json", study / "models")
    images = labelled_images(study / "list.json")
    reader = FeatureReader({PIXELS: Embedding.of_pixels()}, workers=0)
    found = reader.features(images.items, "validation")[PIXELS]
    rows, places = torch.stack([*found.values()]).numpy(), [*found]
    truth, groups = images.targets[places, 0].astype(int), images.patients[places]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, rows, truth, groups=groups, cv=folds, method="decision_function")
    tests = [test for _, test in folds.split(truth, truth, groups)]
    pairs = [truth[test].sum() * (1 - truth[test]).sum() for test in tests]
    each = [roc_auc_score(truth[test], scores[test]) for test in tests]
    assert done.figures[PIXELS].value == pytest.approx(np.average(each, weights=pairs), abs=1e-9)
    assert done.images == 47
    assert done.left_out == 1
    assert done.labels == {"Square": 24 - int(5 % 4 > 1)}
    assert list(done.figures) == [OWN, FRESH, "chest-s16-1", PIXELS]


def test_a_label_of_few_images_is_not_judged_and_a_list_without_labels_is_refused_in_words(study):
    content = json.loads((study / "list.json").read_text())
    assert labelled_images(study / "list.json").labels == ["Square"]
    content["validation"] = content["validation"][:12]
    (study / "few.json").write_text(json.dumps(content))
    assert "no label has 10 images" in labelled_images(study / "few.json")
    with pytest.raises(AfireError, match="--section is 'tests'; one of validation, test, training"):
        compare_encoders(study / "list.json", study / "models", section="tests")
    with pytest.raises(AfireError, match="--images is 5; at least 20"):
        compare_encoders(study / "list.json", study / "models", images=5)
    with pytest.raises(DataListError, match=r"few\.json: encoders cannot be compared"):
        compare_encoders(study / "few.json", study / "models")
    for section in ("training", "validation"):
        for item in content[section]:
            del item["label"]
    del content["labels"]
    (study / "none.json").write_text(json.dumps(content))
    assert labelled_images(study / "none.json") == "the data list has no labels"


def test_too_few_images_that_can_be_read_are_told_in_words_and_end_no_training(study, caplog):
    content = json.loads((study / "list.json").read_text())
    for item in content["validation"][4:]:
        item["image"] = "5.png"  # not a picture
    (study / "damaged.json").write_text(json.dumps(content))
    with pytest.raises(DataListError, match=r"damaged\.json: too few validation images can be used"):
        compare_encoders(study / "damaged.json", study / "models")
    handlers = [LabelProbe(study / "damaged.json", every_epochs=1)]
    run = tiny_trainer(tiny_afire(), smooth_images(8, (32, 32)), epochs=1, handlers=handlers)
    run.run()
    assert "label_auroc" not in run.state.metrics
    assert "too few of the labelled validation images" in caplog.text


def test_no_patient_is_judged_by_what_was_fitted_to_it():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(30).astype(str), 3)
    targets = np.repeat(rng.integers(0, 2, 30), 3).astype(np.float32)[:, None]
    images = Labelled([], ["a"], targets, patients, {})
    seen = []

    def predict(train, truth, test):
        seen.append({int(v) for v in train[:, 0]} & {int(v) for v in test[:, 0]})
        return test[:, 0]

    scored = out_of_fold(patients.astype(float)[:, None], images, predict)
    assert seen == [set()] * 5
    assert scored.scores[:, 0].tolist() == patients.astype(float).tolist()
    assert [len({*scored.folds[patients == name, 0]}) for name in np.unique(patients)] == [1] * 30


def test_the_mean_is_over_labels_and_unknown_ones_do_not_count():
    truth = np.array([[1, 0], [0, 1], [1, np.nan], [0, 0], [1, 1], [0, 0]], dtype=np.float32)
    scores = np.array([[0.9, 0.2], [0.1, 0.1], [0.4, np.nan], [0.5, 0.3], [0.8, 0.9], [0.3, 0.3]])
    images = Labelled([], ["a", "b"], truth, np.array(list("uvwxyz")), {})
    known = ~np.isnan(scores[:, 1])
    expected = [roc_auc_score(truth[:, 0], scores[:, 0]), roc_auc_score(truth[known, 1], scores[known, 1])]
    scored = CrossFitted(scores, np.zeros(scores.shape, dtype=int))
    assert mean_auroc(images, scored)[0] == pytest.approx(np.mean(expected))
    assert len(mean_auroc(images, scored, 20)) == 21


def test_a_rare_label_that_features_do_not_tell_is_at_chance_and_not_below_it():
    rng = np.random.default_rng(0)
    values = []
    for _ in range(30):
        truth = rng.permutation(np.repeat([1.0, 0.0], [8, 52])).astype(np.float32)
        images = Labelled([], ["a"], truth[:, None], np.arange(60).astype(str), {})
        values.append(knn_auroc(rng.normal(size=(60, 5)), images))
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / np.sqrt(30)


def test_neighbours_among_other_patients_tell_a_clear_label_and_not_a_random_one():
    rng = np.random.default_rng(0)
    patients = np.arange(80).astype(str)
    clear = rng.integers(0, 2, 80)
    features = np.stack([clear, rng.normal(size=80)], 1) + rng.normal(0, 0.1, (80, 2))
    images = Labelled([], ["a"], clear[:, None].astype(np.float32), patients, {})
    assert knn_auroc(features, images) > 0.95
    random = Labelled([], ["a"], rng.integers(0, 2, (80, 1)).astype(np.float32), patients, {})
    assert abs(knn_auroc(features, random) - 0.5) < 0.2


def comparison(fresh, pixels, shipped):
    figures = {OWN: (0.8, 0.7, 0.9), FRESH: (0.7, 0.6, 0.8), "chest-s16-1": (0.8, 0.7, 0.9), PIXELS: (0.6, 0.5, 0.7)}
    gains = {FRESH: fresh, "chest-s16-1": shipped, PIXELS: pixels}
    asked = ({name: Interval(*value) for name, value in group.items()} for group in (figures, gains))
    return Comparison("validation", 100, 60, {"Mass": 20}, *asked)


MORE, LEVEL, LESS = (0.1, 0.05, 0.15), (0.0, -0.1, 0.1), (-0.1, -0.2, -0.05)


@pytest.mark.parametrize(
    ("gains", "verdict", "advice"),
    [
        ((MORE, MORE, MORE), "Worth it", "Use this encoder"),
        ((MORE, MORE, LEVEL), "Worth it", "are level on your labels"),
        ((MORE, MORE, LESS), "Worth it", "is better on your labels: use it frozen"),
        ((LEVEL, MORE, LEVEL), "Not shown to be worth it", "Train for longer"),
        ((LESS, MORE, LEVEL), "Not worth it", "Train for longer"),
    ],
)
def test_verdict_and_advice_follow_the_intervals(tmp_path, gains, verdict, advice):
    done = comparison(*gains)
    assert done.sentence().startswith(f"{verdict}: on your labels (Mass; 100 validation images of 60 patients)")
    assert advice in done.advice()
    done.write(tmp_path / "worth.json")
    assert Comparison.read(tmp_path / "worth.json") == done


def test_the_command_prints_a_row_for_each(study, capsys):
    assert run(["worth", str(study / "list.json"), "--model", str(study / "models"), "-q"]) == 0
    printed = capsys.readouterr().out
    for name in (OWN, FRESH, PIXELS, "chest-s16-1"):
        assert f"\n{name}" in printed
