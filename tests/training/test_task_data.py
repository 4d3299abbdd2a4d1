"""What a task is given: label policies, shares, folds and masks; never a patient on both sides."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.radiographs.masks import MaskReading
from afire_monai.training.task_data import TaskData, advise_on_few_labels, classification_data, segmentation_data

LABELS = ["Normal", "Effusion", "Mass"]


def random_list(folder, seed: int = 0, patients: int = 60, **changes):
    """A list whose patients have one to three images; sections divide patients."""
    generator = np.random.default_rng(seed)
    content = {"name": "made", "labels": LABELS, "training": [], "validation": [], "test": []}
    for patient in range(patients):
        section = ("training", "training", "training", "validation", "test")[patient % 5]
        for picture in range(generator.integers(1, 4)):
            findings = [int(generator.random() < 0.3), int(generator.random() < 0.2)]
            label = [int(not any(findings)), *findings]
            content[section].append({"image": f"{patient}_{picture}.png", "group": f"p{patient}", "label": label})
    content.update(changes)
    path = folder / f"list_{seed}.json"
    path.write_text(json.dumps(content))
    return path


def patients_of(items) -> set[str]:
    return {item["group"] for item in items}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("fraction", "folds"), [(1.0, 0), (0.1, 0), (0.3, 5), (1.0, 3)])
def test_no_patient_is_ever_in_two_parts(tmp_path, seed, fraction, folds):
    path = random_list(tmp_path, seed)
    data = classification_data(path, fraction=fraction, folds=folds, fold=seed % max(folds, 1), seed=seed)
    parts = [patients_of(p) for p in (data.training, data.validation, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert all(parts)


@pytest.mark.parametrize("seed", range(5))
def test_each_image_validates_in_exactly_one_fold_and_test_images_in_none(tmp_path, seed):
    path = random_list(tmp_path, seed)
    content = json.loads(path.read_text())
    seen = [
        i["image"] for fold in range(5) for i in classification_data(path, folds=5, fold=fold, seed=seed).validation
    ]
    pool = [str(tmp_path / i["image"]) for s in ("training", "validation") for i in content[s]]
    assert sorted(seen) == sorted(pool)


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_share_lies_within_a_larger_one_and_validation_stays(tmp_path, seed):
    path = random_list(tmp_path, seed)
    shares = [classification_data(path, fraction=f, seed=seed) for f in (0.1, 0.5, 1.0)]
    images = [{i["image"] for i in share.training} for share in shares]
    assert images[0] < images[1] < images[2]
    assert shares[0].validation == shares[2].validation


def test_the_label_for_normal_is_not_learned_unless_asked_for(tmp_path):
    path = random_list(tmp_path)
    assert classification_data(path).labels == ["Effusion", "Mass"]
    assert classification_data(path, labels=["Normal"]).labels == ["Normal"]
    data = classification_data(path, labels=["Mass", "Effusion"])
    item = data.training[0]
    assert item["target"] == [item["label"][2], item["label"][1]]


@pytest.mark.parametrize(("policy", "expected"), [("ignore", math.nan), ("zeros", 0.0), ("ones", 1.0)])
def test_uncertain_labels_count_as_the_policy_says_and_missing_ones_never(tmp_path, policy, expected):
    training = [
        {"image": "a.png", "group": "a", "label": [0, -1, 1]},
        {"image": "b.png", "group": "b", "label": [0, 1, None]},
        {"image": "c.png", "group": "c", "label": [1, 0, 0]},
        {"image": "d.png", "group": "d", "label": [None, None, None]},
    ]
    path = random_list(tmp_path, training=training)
    data = classification_data(path, uncertain=policy)
    targets = np.array([i["target"] for i in data.training])
    np.testing.assert_equal(targets, [[expected, 1], [1, math.nan], [0, 0]])
    assert [i["place"] for i in data.training] == [0, 1, 2]


def test_weights_of_positives_are_negatives_over_positives(tmp_path):
    training = [{"image": f"{i}.png", "label": [0, int(i < 2), int(i < 5)]} for i in range(10)]
    data = classification_data(random_list(tmp_path, training=training))
    assert data.positive_weights() == pytest.approx([4.0, 1.0])


def test_fine_tuning_with_few_positives_is_told_what_did_better():
    def data(*positives: int) -> TaskData:
        targets = np.zeros((40, 2))
        for column, count in enumerate(positives):
            targets[:count, column] = 1
        return TaskData(["Effusion", "Mass"], [{"target": row} for row in targets], [], [])

    assert "Mass 14. With so few, `afire probe`" in advise_on_few_labels(data(15, 14))
    assert "Effusion" not in advise_on_few_labels(data(15, 14))
    assert advise_on_few_labels(data(15, 15)) == ""


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"labels": ["Efusion"]}, {}, "Effusion"),
        ({"folds": 5, "fold": 5}, {}, "0 to 4"),
        ({}, {"labels": []}, "has no labels"),
        ({}, {"validation": []}, "--folds 5"),
        ({}, {"training": [{"image": "x.png", "label": [1, 0, 0]}] * 3}, "no label can be learned"),
        ({"uncertain": "maybe"}, {}, "ignore"),
        ({}, {"validation": [{"image": "y.png", "group": "p0", "label": [0, 1, 0]}]}, "both training and validation"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(tmp_path, settings, changes, words):
    with pytest.raises(DataListError, match=words):
        classification_data(random_list(tmp_path, **changes), **settings)


# masks ----------------------------------------------------------------------------------------------------------------


def test_normal_images_without_mask_are_empty_only_where_masks_show_findings(tmp_path):
    finding = {"image": "a.png", "mask": "m.png", "label": [0, 1, 0]}
    normal = {"image": "b.png", "label": [1, 0, 0]}
    other = {"image": "c.png", "label": [0, 0, 1]}

    def each_section(*items):
        sections = ("training", "validation", "test")
        return {section: [{**item, "image": f"{section}/{item['image']}"} for item in items] for section in sections}

    path = random_list(tmp_path, **each_section(finding, normal, other))
    chosen = segmentation_data(path).training
    assert [i["image"].rsplit("/")[-1] for i in chosen] == ["a.png", "b.png"]
    assert chosen[1]["mask"] == ""
    assert len(segmentation_data(path, empty_masks="none").training) == 1
    with pytest.raises(DataListError, match="empty_masks is 'nomal'"):
        segmentation_data(path, empty_masks="nomal")
    lungs = each_section(finding, {**normal, "mask": "n.png"}, other)
    assert len(segmentation_data(random_list(tmp_path, 1, **lungs)).training) == 2


def test_a_list_without_masks_is_refused(tmp_path):
    with pytest.raises(DataListError, match="--mask-column"):
        segmentation_data(random_list(tmp_path))


def reading(**options) -> MaskReading:
    return MaskReading(lambda item: item, **{"size": (2, 2), "classes": {"lung": [255]}, **options})


def save(path, values) -> str:
    Image.fromarray(np.array(values, dtype=np.uint8)).save(path)
    return str(path)


def test_a_cell_belongs_to_a_class_if_most_of_it_does(tmp_path):
    values = np.zeros((4, 4))
    values[:2, :2] = [[255, 255], [255, 0]]
    values[:2, 2:] = [[255, 0], [0, 0]]
    mask = reading().read_mask(save(tmp_path / "m.png", values))
    assert mask.tolist() == [[[1, 0], [0, 0]]]


def test_ignored_pixels_are_unknown_and_other_values_are_classes(tmp_path):
    values = np.array([[127, 150], [200, 0]])
    path = save(tmp_path / "m.png", values)
    mask = reading(classes={"right": [150], "left": [200], "any": []}, ignore=127).read_mask(path)
    assert mask[:, 0, 0].isnan().all()
    assert mask.nan_to_num().tolist() == [[[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 1], [1, 0]]]


def test_an_item_without_mask_file_has_an_empty_mask():
    assert not reading()({"image": 0, "mask": ""})["mask"].any()


def test_masks_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RadiographError, match=r"broken\.png"):
        reading().read_mask(str(tmp_path / "broken.png"))
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "colour.png")
    with pytest.raises(RadiographError, match="colour mask: it is RGB"):
        reading().read_mask(str(tmp_path / "colour.png"))


@pytest.mark.parametrize("classes", [{}, {"lung": [65536]}, {"lung": ["255"]}])
def test_impossible_classes_are_refused(classes):
    with pytest.raises(DataListError, match="0…65535"):
        reading(classes=classes)
