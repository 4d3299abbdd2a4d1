from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from afire_monai.core.errors import AfireError, DataListError
from afire_monai.datalists.validate import validate_datalist
from afire_monai.phantom import PHANTOM_LABELS, ChestPhantom, write_phantom_dataset

FINDINGS = ("nodule", "consolidation", "effusion", "pneumothorax")


@pytest.fixture(scope="module")
def phantom():
    return ChestPhantom(160)


def test_the_same_seed_gives_the_same_picture(phantom):
    first, second = phantom(7, "nodule"), ChestPhantom(160)(7, "nodule")
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert first.boxes == second.boxes
    assert np.abs(first.image - phantom(8, "nodule").image).mean() > 0.01


@pytest.mark.parametrize("size", [64, 160, 256])
def test_shapes_types_and_range(size):
    sample = ChestPhantom(size)(3, "effusion")
    assert sample.image.shape == sample.mask.shape == sample.lungs.shape == (1, size, size)
    assert sample.image.dtype == np.float32
    assert sample.mask.dtype == sample.lungs.dtype == np.uint8
    assert sample.image.min() >= 0
    assert sample.image.max() <= 1
    assert sample.image.max() - sample.image.min() > 0.7
    assert set(np.unique(sample.lungs)) == {0, 1, 2}


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("seed", range(12))
def test_a_finding_changes_the_pixels_of_its_mask_and_no_other(phantom, finding, seed):
    normal, abnormal = phantom(seed), phantom(seed, finding)
    np.testing.assert_array_equal(normal.lungs, abnormal.lungs)
    changed = normal.image != abnormal.image
    assert not changed[abnormal.mask == 0].any()
    assert changed[abnormal.mask == 1].mean() > 0.99
    assert abnormal.mask.mean() > 0.0005


@pytest.mark.parametrize(
    ("finding", "sign"), [("nodule", 1), ("consolidation", 1), ("effusion", 1), ("pneumothorax", -1)]
)
def test_opacities_are_brighter_and_free_air_is_darker(phantom, finding, sign):
    for seed in range(12):
        normal, abnormal = phantom(seed), phantom(seed, finding)
        change = (abnormal.image - normal.image)[abnormal.mask == 1].mean()
        assert sign * change > 0.01


@pytest.mark.parametrize("finding", FINDINGS)
def test_most_of_a_finding_lies_in_or_at_the_lungs(phantom, finding):
    for seed in range(12):
        sample = phantom(seed, finding)
        rows, columns = np.nonzero(sample.lungs[0])
        mask = sample.mask[0, rows.min() : rows.max() + 13, columns.min() - 6 : columns.max() + 7]
        assert mask.sum() > 0.9 * sample.mask.sum()


def test_a_normal_picture_has_no_label_no_mask_and_no_box(phantom):
    sample = phantom(0)
    assert sample.label == dict.fromkeys(PHANTOM_LABELS, 0)
    assert not sample.mask.any()
    assert sample.boxes == []


@pytest.mark.parametrize("finding", FINDINGS)
def test_the_label_names_the_finding_and_the_boxes_enclose_its_mask(phantom, finding):
    sample = phantom(5, finding)
    assert sample.label == {name: int(name.lower() == finding) for name in PHANTOM_LABELS}
    inside = np.zeros_like(sample.mask)
    for x, y, width, height, name in sample.boxes:
        assert name.lower() == finding
        inside[0, y : y + height, x : x + width] = 1
        edge = sample.mask[0, y : y + height, x : x + width]
        assert edge[0].any()
        assert edge[-1].any()
        assert edge[:, 0].any()
        assert edge[:, -1].any()
    assert not (sample.mask & ~inside).any()


def test_lungs_are_darker_than_the_mediastinum_and_brighter_than_air(phantom):
    for seed in range(12):
        sample = phantom(seed)
        image, lungs = sample.image[0], sample.lungs[0]
        rows = np.nonzero(lungs.any(1))[0]
        middle = (rows[0] + rows[-1]) // 2
        right_edge, left_edge = np.nonzero(lungs[middle] == 1)[0].max(), np.nonzero(lungs[middle] == 2)[0].min()
        mediastinum = image[middle, right_edge + 3 : left_edge - 2].mean()
        assert mediastinum - image[lungs > 0].mean() > 0.25
        assert image[lungs > 0].mean() > 0.1


def test_the_heart_bulges_to_the_right_of_the_picture(phantom):
    for seed in range(12):
        lungs = phantom(seed).lungs[0]
        # pixels between the lungs at each height, in the lower half of the lungs
        rows = np.nonzero((lungs == 1).any(1) & (lungs == 2).any(1))[0]
        lower = rows[int(0.6 * len(rows)) : int(0.9 * len(rows))]
        upper = rows[int(0.15 * len(rows)) : int(0.3 * len(rows))]
        spine = np.mean([(np.nonzero(lungs[r] == 1)[0].max() + np.nonzero(lungs[r] == 2)[0].min()) / 2 for r in upper])
        to_left = np.mean([spine - np.nonzero(lungs[r] == 1)[0].max() for r in lower])
        to_right = np.mean([np.nonzero(lungs[r] == 2)[0].min() - spine for r in lower])
        assert to_right > 1.3 * to_left


def test_right_and_left_lung_are_told_apart_and_the_right_one_is_larger(phantom):
    areas = []
    for seed in range(12):
        lungs = phantom(seed).lungs[0]
        assert np.nonzero(lungs == 1)[1].mean() < np.nonzero(lungs == 2)[1].mean()
        areas.append(((lungs == 1).sum(), (lungs == 2).sum()))
    right, left = np.sum(areas, axis=0)
    assert right > 1.1 * left


def test_anatomy_varies_between_patients(phantom):
    areas = [int((phantom(seed).lungs > 0).sum()) for seed in range(20)]
    assert np.std(areas) > 0.03 * np.mean(areas)


def test_the_same_patient_is_seen_at_every_size():
    small, large = ChestPhantom(64)(4), ChestPhantom(256)(4)
    shrunk = large.image[0].reshape(64, 4, 64, 4).mean((1, 3))
    assert np.corrcoef(small.image[0].ravel(), shrunk.ravel())[0, 1] > 0.98


def test_unknown_findings_and_tiny_pictures_are_refused():
    with pytest.raises(AfireError, match="fracture"):
        ChestPhantom(64, findings=("fracture",))
    with pytest.raises(AfireError, match="nodule"):
        ChestPhantom(64, findings=("effusion",))(0, "nodule")
    with pytest.raises(AfireError, match="at least 32"):
        ChestPhantom(16)


def test_data_set_can_be_read_back(tmp_path):
    path = write_phantom_dataset(tmp_path / "set", normal=20, abnormal=8, size=64, seed=1)
    content = json.loads(path.read_text())
    assert content["name"] == "phantom"
    assert content["labels"] == list(PHANTOM_LABELS)
    assert all(item["label"] == [0, 0, 0, 0] for item in content["training"])
    assert [len(content[split]) for split in ("training", "validation", "test")] == [14, 7, 7]
    items = [item for split in ("training", "validation", "test") for item in content[split]]
    assert len({item["group"] for item in items}) == 28
    for split in ("validation", "test"):
        assert np.sum([item["label"] for item in content[split]], axis=0).tolist() == [1, 1, 1, 1]
    for number, item in enumerate(sorted(items, key=lambda item: item["group"])):
        abnormal = sum(item["label"])
        finding = FINDINGS[item["label"].index(1)] if abnormal else None
        sample = ChestPhantom(64)(1_000_000 + number, finding)
        with Image.open(path.parent / item["image"]) as picture:
            assert picture.mode == "L"
            assert np.abs(np.asarray(picture) / 255 - sample.image[0]).max() <= 0.5 / 255 + 1e-6
        assert ("mask" in item) == ("boxes" in item) == bool(abnormal)
        if abnormal:
            with Image.open(path.parent / item["mask"]) as mask:
                np.testing.assert_array_equal(np.asarray(mask), sample.mask[0] * 255)
            assert [tuple(box) for box in item["boxes"]] == sample.boxes
    assert not list(path.parent.rglob("*.part"))


def test_data_set_is_rewritten_in_place_but_never_over_another_one(tmp_path):
    write_phantom_dataset(tmp_path, normal=10, abnormal=0, size=32)
    first = (tmp_path / "datalist.json").read_bytes()
    write_phantom_dataset(tmp_path, normal=10, abnormal=0, size=32)
    assert (tmp_path / "datalist.json").read_bytes() == first
    (tmp_path / "datalist.json").write_text('{"name": "hospital"}')
    with pytest.raises(DataListError, match="hospital"):
        write_phantom_dataset(tmp_path, normal=10, abnormal=0, size=32)
    with pytest.raises(AfireError, match="normal=2"):
        write_phantom_dataset(tmp_path, normal=2)


def test_data_set_passes_the_check_of_data_lists(tmp_path):
    report = validate_datalist(write_phantom_dataset(tmp_path, normal=10, abnormal=4, size=32), decode=True)
    assert report.problems == []
    assert sum(report.counts.values()) == 14
