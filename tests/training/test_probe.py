"""A classifier from few labels against scikit-learn's own, and what it leaves in its folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from afire_monai.core.errors import CheckpointError, DataListError
from afire_monai.models.folder import export_encoder, load_classifier
from afire_monai.networks import ViTEncoder
from afire_monai.predictions.anomaly.normals import fit_images
from afire_monai.predictions.format import load_predictions
from afire_monai.training.probe import STRENGTH, TRUST, fit_probe

SIDE = 32


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Normal pictures and pictures with a bright square, two of each patient, and a model folder."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    sections = {"training": 60, "validation": 16, "test": 40}
    content = {"name": "squares", "labels": ["Square", "Normal"], **{section: [] for section in sections}}
    for section, count in sections.items():
        for number in range(count):
            square = number % 4 > 1
            picture = np.linspace(40, 120, SIDE)[:, None] + rng.normal(0, 15, (SIDE, SIDE))
            if square:
                picture[8:16, 8:16] += 30
            name = f"{section}_{number}.png"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / name)
            content[section].append(
                {"image": name, "group": f"{section}:{number // 2}", "label": [int(square), int(not square)]}
            )
    (folder / "list.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    encoder = ViTEncoder(SIDE, 8, embed_dim=24, depth=2, num_heads=2)
    export_encoder(encoder, folder / "models", method_name="AFiRe", epochs=1)
    return folder, content, encoder.eval()


def pictures(folder, items):
    return torch.stack(
        [torch.from_numpy(np.array(Image.open(folder / i["image"])) / 255.0)[None] for i in items]
    ).float()


def slow_summary(encoder, images):
    middle, end = encoder.norm(encoder.hidden_states(images)[1]), encoder(images)
    parts = (middle[:, 0], middle[:, 1:].mean(1), end[:, 0], end[:, 1:].mean(1))
    return torch.cat(parts, 1).double().numpy()


def slow_probe(folder, content, encoder):
    """Decision values of the test images: all by scikit-learn on the features."""
    with torch.no_grad():
        features = {s: slow_summary(encoder, pictures(folder, content[s])) for s in ("training", "test")}
    train, items = features["training"], content["training"]
    normal = [place for place, item in enumerate(items) if item["label"][1]]
    means = train[:, 72:]
    every = LedoitWolf().fit(means[normal])

    def distance(rows, center, covariance):
        difference = rows - center
        return np.sqrt((difference @ np.linalg.inv(covariance) * difference).sum(1))

    numbers = torch.tensor([int(items[place]["group"].split(":")[1]) for place in normal])
    own = fit_images(torch.from_numpy(means[normal])[:, None], numbers)[1][:, 0].numpy()  # has tests of its own
    logs = np.log(own)
    unlike = {s: np.log(distance(f[:, 72:], every.location_, every.covariance_)) for s, f in features.items()}
    unlike["training"][normal] = logs
    center, scale = train.mean(0), train.std(0)
    columns = {
        s: np.c_[(features[s] - center) / scale, TRUST * (unlike[s] - logs.mean()) / logs.std(ddof=1)] for s in features
    }
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit(columns["training"], [item["label"][0] for item in items])
    return model.decision_function(columns["test"])


def test_classifier_decides_as_a_slow_reference_and_its_file_as_its_predictions(study, tmp_path):
    folder, content, encoder = study
    done = fit_probe(folder / "list.json", tmp_path, folder / "models")
    assert (done.labelled, done.normals, done.left_out) == (60, 30, {})
    network, description = load_classifier(tmp_path / "models")
    assert description["probe"]["normals"] == 30
    assert not any(name.startswith("encoder.") for name in load_file(tmp_path / "models" / "classifier.safetensors"))
    with torch.no_grad():
        logits = network(pictures(folder, content["test"]))[:, 0]
        probabilities = network.probabilities(pictures(folder, content["test"]))[:, 0]
    np.testing.assert_allclose(logits.numpy(), slow_probe(folder, content, encoder), atol=2e-3)
    stored = load_predictions(tmp_path / "predictions" / "test")
    np.testing.assert_allclose(stored.scores["Square"], probabilities.numpy(), atol=1e-5)
    assert roc_auc_score([item["label"][0] for item in content["test"]], logits) > 0.9


def test_classifier_without_its_own_encoder_is_refused(study, tmp_path):
    folder, _, encoder = study
    fit_probe(folder / "list.json", tmp_path, folder / "models")
    export_encoder(encoder, tmp_path / "models", method_name="AFiRe", epochs=1)  # the same once more
    load_classifier(tmp_path / "models")
    torch.manual_seed(1)
    export_encoder(ViTEncoder(SIDE, 8, embed_dim=24, depth=2, num_heads=2), tmp_path / "models")
    with pytest.raises(CheckpointError, match="whole model folder"):
        load_classifier(tmp_path / "models")


def test_a_share_of_the_labels_leaves_all_normal_images_to_measure_from(study, tmp_path):
    folder, _, _ = study
    done = fit_probe(folder / "list.json", tmp_path, folder / "models", fraction=0.1)
    assert done.labelled < 12
    assert done.normals == 30


def test_too_few_normal_images_leave_the_distance_out(study, tmp_path):
    folder, content, _ = study
    few = {**content, "training": [i for k, i in enumerate(content["training"]) if k % 4 > 1 or k < 12]}
    (folder / "few.json").write_text(json.dumps(few))
    done = fit_probe(folder / "few.json", tmp_path, folder / "models")
    assert done.normals == 0
    assert load_classifier(tmp_path / "models")[0].head.weight[0, -1] == 0


def test_files_that_cannot_be_read_are_counted_and_the_rest_is_used(study, tmp_path):
    folder, content, _ = study
    (folder / "broken.png").write_bytes(b"no picture")
    worse = {**content, "training": [*content["training"], {**content["training"][0], "image": "broken.png"}]}
    (folder / "worse.json").write_text(json.dumps(worse))
    done = fit_probe(folder / "worse.json", tmp_path, folder / "models")
    assert list(done.left_out["training"]) == [60]
    assert done.labelled == 60


@pytest.mark.parametrize("section", ["training", "validation"])
def test_a_section_without_any_file_that_can_be_read_is_refused_in_words(study, tmp_path, section):
    folder, content, _ = study
    (folder / "broken.png").write_bytes(b"no picture")
    worse = {**content, section: [{**item, "image": "broken.png"} for item in content[section]]}
    (folder / "worst.json").write_text(json.dumps(worse))
    with pytest.raises(DataListError, match=f"no labelled {section} image can be used"):
        fit_probe(folder / "worst.json", tmp_path, folder / "models")


def test_a_label_of_one_kind_is_refused(study, tmp_path):
    folder, content, _ = study
    one = {**content, "training": [i for i in content["training"] if i["label"][0]]}
    (folder / "one.json").write_text(json.dumps(one))
    with pytest.raises(DataListError, match="Square"):
        fit_probe(folder / "one.json", tmp_path, folder / "models", labels=["Square"])


@pytest.mark.parametrize("meta", [{}, {"meta": {"normal_label": "Healthy"}}])
def test_normal_images_are_those_of_the_lists_own_label(study, tmp_path, meta):
    folder, content, _ = study
    named = {**content, "labels": ["Square", "Healthy" if meta else "No Finding"], **meta}
    (folder / "named.json").write_text(json.dumps(named))
    assert fit_probe(folder / "named.json", tmp_path, folder / "models").normals == 30


def test_normal_images_of_one_patient_leave_the_distance_out(study, tmp_path):
    folder, content, _ = study
    one = [{**item, "group": "one"} if item["label"][1] else item for item in content["training"]]
    (folder / "one_patient.json").write_text(json.dumps({**content, "training": one}))
    assert fit_probe(folder / "one_patient.json", tmp_path, folder / "models").normals == 0
