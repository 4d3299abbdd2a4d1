"""The parts of the label app that do not need MONAI Label."""

from __future__ import annotations

import errno
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hospital_files import PATIENT, write
from label_phantoms import LABELS, SHAPE, SPOT, FolderStore, phantom, write_dicoms, write_models, write_pngs
from PIL import Image

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.hospital.identity import IdentityKey
from afire_monai.label import comparison
from afire_monai.label.images import open_image, patient_of
from afire_monai.label.inference_service import ModelShelf, answer, asked_for, class_values, write_reply
from afire_monai.label.label_files import read_findings, read_mask, saved_labels, score_labels
from afire_monai.label.messages import NoNames, NotFoundError, UnknownImageError, problem, without_names
from afire_monai.label.sampling_strategies import Chooser
from afire_monai.label.training import Trainable, Workshop
from afire_monai.models.folder import export_task
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier
from afire_monai.predictions.scoring import Scorer


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("label") / "models")


@pytest.fixture(scope="module")
def pngs(tmp_path_factory) -> Path:
    return write_pngs(tmp_path_factory.mktemp("pngs"), 8)


@pytest.fixture
def shelf(models, tmp_path) -> ModelShelf:
    return ModelShelf(tmp_path / "trained", [models], torch.device("cpu"))


# images ---------------------------------------------------------------------------------------------------------------


def test_png_and_dicom_of_both_polarities_are_the_same_picture(pngs, tmp_path):
    for name, file in write_dicoms(tmp_path, 3).items():
        image = open_image(file)
        assert image.grid.shape == SHAPE
        png = open_image(pngs / f"{name}.png").pixels
        # without a window the values of a DICOM file fill 0…1
        assert torch.allclose(image.pixels, (png - png.min()) / (png.max() - png.min()), atol=1e-5)


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": [0.2, 0.3]}, (1, 1)),
        ({"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.4, 0.5]}, (0.4, 0.5)),
        ({"ImagerPixelSpacing": [0.0, 0.5]}, (1, 1)),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "PixelSpacing": [0.2, 0.3]}, (0.2, 0.3)),
    ],
)
def test_spacing_is_the_one_that_itk_takes(elements, spacing, tmp_path):
    """As SimpleITK 2.5 reads these files: the detector's for CR and DX, PixelSpacing for secondary captures."""
    assert open_image(write(tmp_path / "x.dcm", **elements)).grid.spacing == spacing


def test_orientation_of_a_file_that_has_one_counts(tmp_path):
    elements = {"ImageOrientationPatient": [-1, 0, 0, 0, 0, -1], "ImagePositionPatient": [5, 6, 7]}
    grid = open_image(write(tmp_path / "x.dcm", **elements)).grid
    assert grid.directions.tolist() == [[-1, 0, 0], [0, 0, -1], [0, -1, 0]]
    assert grid.origin.tolist() == [5, 6, 7]


def test_a_file_that_is_no_radiograph_is_refused_without_its_name(tmp_path):
    (tmp_path / "Zyxwolski.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    with pytest.raises(AfireError, match="cannot be used") as caught:
        open_image(tmp_path / "Zyxwolski.png")
    assert "Zyxwolski" not in str(caught.value)


def test_images_of_a_patient_have_one_hash_and_png_each_its_own(tmp_path, pngs):
    key = IdentityKey(b"k" * 32)
    files = write_dicoms(tmp_path, 4)
    found = [patient_of(file, name, key) for name, file in files.items()]
    assert found[0] == found[1] != found[2] == found[3]
    assert not any(PATIENT in hashed for hashed in found)
    assert patient_of(pngs / "chest00.png", "a", key) != patient_of(pngs / "chest00.png", "b", key)


# models and answers ---------------------------------------------------------------------------------------------------


def test_heat_is_where_the_spot_is(shelf, pngs, tmp_path):
    reply = answer("anomaly_heatmap", shelf, pngs / "spot.png", {})
    assert reply.rows.shape == SHAPE
    row, column = np.unravel_index(reply.rows.argmax(), SHAPE)
    assert SPOT[0].start <= row < SPOT[0].stop
    assert SPOT[1].start <= column < SPOT[1].stop
    assert reply.params["anomaly"]["percentile"] == 100
    path = write_reply(reply, tmp_path, "heat", {"result_extension": ".png"})
    assert np.abs(np.asarray(Image.open(path)) / 65535 - reply.rows).max() < 1e-4


def test_regions_are_the_heatmap_from_the_threshold_on(shelf, pngs):
    heat = answer("anomaly_heatmap", shelf, pngs / "spot.png", {}).rows
    reply = answer("anomaly_regions", shelf, pngs / "spot.png", {"threshold": 0.75})
    assert (reply.rows == (heat >= 0.75)).all()
    assert reply.rows.any()
    with pytest.raises(AfireError, match="threshold"):
        answer("anomaly_regions", shelf, pngs / "spot.png", {"threshold": "much"})


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("True", True), (False, False), ("false", False), (None, False)]
)
def test_switches_are_read_as_they_are_written(value, expected):
    assert asked_for({"heatmap": value}, "heatmap") is expected


@pytest.mark.parametrize("value", ["no", 1, "", []])
def test_switches_that_are_neither_true_nor_false_are_refused(value):
    with pytest.raises(AfireError, match="heatmap: true or false is expected"):
        asked_for({"heatmap": value}, "heatmap")


def test_scores_and_outlines_are_those_of_the_scorer(shelf, models, pngs):
    scorer = Scorer([models], torch.device("cpu"), heatmap="none")
    radiograph = open_image(pngs / "chest01.png").seen_at(scorer.sizes)
    expected = scorer.score([radiograph])[0]
    said = answer("classification", shelf, pngs / "chest01.png", {})
    assert said.rows is None
    assert said.params["labels"] == expected.record["labels"]
    drawn = answer("segmentation", shelf, pngs / "chest01.png", {})
    assert set(np.unique(drawn.rows)) <= {0, 1}
    assert drawn.params["label_names"] == class_values(shelf) == {"right_lung": 1}
    assert answer("restoration", shelf, pngs / "chest01.png", {}).rows.shape == SHAPE
    assert "gradcam" in str(answer("classification", shelf, pngs / "chest01.png", {"heatmap": True}).params["heatmap"])


def test_a_new_model_is_used_and_a_broken_one_is_not(shelf, models):
    before = shelf.get("segmentation")
    assert shelf.get("segmentation") is before
    shelf.trained.mkdir()
    (shelf.trained / "segmenter.safetensors").write_bytes(b"half of it")
    assert shelf.get("segmentation") is before
    for suffix in ("safetensors", "json"):
        (shelf.trained / f"segmenter.{suffix}").write_bytes((models / f"segmenter.{suffix}").read_bytes())
    again = shelf.get("segmentation")
    assert again is not before
    assert again.version == before.version  # the same weights


def test_without_models_everything_says_so(tmp_path, pngs):
    empty = ModelShelf(tmp_path / "trained")
    assert not any(map(empty.offers, ("anomaly", "restoration", "classification", "segmentation")))
    with pytest.raises(NotFoundError, match="no model for segmentation"):
        answer("segmentation", empty, pngs / "spot.png", {})
    with pytest.raises(CheckpointError, match="no such model folder"):
        ModelShelf(tmp_path / "trained", [tmp_path / "nowhere"])


# labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "no findings"),
        ("{}", "no findings"),
        ('{"Mass": 1}', "unknown finding Mass"),
        ('{"Nodule": 2}', "'2'"),
        ('{"Nodule": true}', "'True'"),
        ('{"Nodule": "yes"}', "'yes'"),
    ],
)
def test_findings_that_are_none_are_refused_in_words(text, words, tmp_path):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(AfireError, match=words):
        read_findings(tmp_path / "f.json", LABELS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_findings_are_read_as_they_are(encoding, tmp_path):
    (tmp_path / "f.json").write_text('{"findings": {"Nodule": -1, "Effusion": null}, "by": "me"}', encoding=encoding)
    assert read_findings(tmp_path / "f.json", LABELS) == {"Nodule": -1, "Effusion": None}


def test_masks_with_values_of_no_class_are_refused(pngs, tmp_path):
    Image.fromarray(np.full(SHAPE, 7, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(AfireError, match=r"\[7\].*1 right_lung"):
        read_mask(open_image(pngs / "chest00.png").grid, tmp_path / "m.png", {"right_lung": 1})


# choice ---------------------------------------------------------------------------------------------------------------


def test_the_most_unusual_image_comes_first_and_not_twice(shelf, pngs):
    chooser, store = Chooser(shelf), FolderStore(pngs)
    radiographs = {i: answer("anomaly_heatmap", shelf, store.get_image_uri(i), {}).params for i in store.list_images()}
    order = sorted(radiographs, key=lambda i: radiographs[i]["anomaly"]["score"], reverse=True)
    assert [chooser.choose("most_anomalous", store)["id"] for _ in order] == order
    assert chooser.choose("most_anomalous", store)["id"] == order[0]  # all were offered


def test_a_clock_that_is_set_offers_no_image_again(shelf, pngs, monkeypatch):
    chooser, store, real, ahead = Chooser(shelf), FolderStore(pngs), time.time, iter((0, 365, -365, 3650))
    offered = []
    for days in ahead:
        monkeypatch.setattr(time, "time", lambda days=days: real() + 86400 * days)
        offered.append(chooser.choose("most_anomalous", store)["id"])
    assert len(set(offered)) == 4


def test_the_least_sure_image_comes_first(shelf, pngs):
    store = FolderStore(pngs)

    def entropy(image_id: str) -> float:
        labels = answer("classification", shelf, store.get_image_uri(image_id), {}).params["labels"].values()
        p = np.array([entry["probability"] for entry in labels])
        return float(-(p * np.log(p) + (1 - p) * np.log(1 - p)).mean())

    assert Chooser(shelf).choose("most_uncertain", store)["id"] == max(store.list_images(), key=entropy)


def test_the_image_least_like_those_labelled_comes_first(shelf, pngs, tmp_path):
    store = FolderStore(pngs)
    encoder, _ = shelf.encoder()

    def feature(image_id: str) -> np.ndarray:
        with torch.inference_mode():
            size = encoder.image_size
            tokens = encoder(open_image(store.get_image_uri(image_id)).seen_at([size]).images[size][None])
        vector = tokens[0, 1:].mean(0).numpy()
        return vector / np.linalg.norm(vector)

    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "m.png")
    for labelled in ("chest00", "spot"):
        store.labels[labelled, "final"] = tmp_path / "m.png"
    waiting = [i for i in store.list_images() if i not in ("chest00", "spot")]
    known = [feature("chest00"), feature("spot")]
    distance = {i: min(np.linalg.norm(feature(i) - k) for k in known) for i in waiting}
    found = Chooser(shelf).choose("most_different", store)
    assert found["id"] == max(distance, key=distance.__getitem__)
    assert found["score"] == pytest.approx(max(distance.values()), abs=1e-4)


def test_a_call_looks_at_no_more_images_than_it_may(shelf, pngs):
    chooser, store = Chooser(shelf, most=2), FolderStore(pngs)
    assert [chooser.choose("most_anomalous", store)["looked_at"] for _ in range(3)] == [2, 4, 6]


def test_broken_images_and_finished_stores_give_no_image(shelf, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    store = FolderStore(tmp_path)
    assert Chooser(shelf).choose("most_anomalous", store) is None
    with pytest.raises(NotFoundError, match="most_anomalous"):
        Chooser(shelf).choose("nonsense", store)


class PatchyStore(FolderStore):
    """A store that cannot give one image at the moment."""

    error: Exception | None = AfireError("the series could not be fetched")

    def get_image_uri(self, image_id: str) -> str:
        if image_id == "chest03" and self.error is not None:
            raise self.error
        return super().get_image_uri(image_id)


def test_an_image_that_cannot_be_fetched_is_passed_over_and_looked_at_once_it_can(shelf, pngs):
    store = PatchyStore(pngs)
    assert {Chooser(shelf).choose("random", store)["id"] for _ in range(9)}.isdisjoint({"chest03"})
    chooser, random = Chooser(shelf), Chooser(shelf)
    assert len({random.choose("random", store)["id"] for _ in range(8)}) == 8
    assert chooser.choose("most_anomalous", store)["looked_at"] == 8
    store.error = None
    assert chooser.choose("most_anomalous", store)["looked_at"] == 9
    assert random.choose("random", store)["id"] == "chest03"


@pytest.mark.parametrize("strategy", ["random", "most_anomalous"])
def test_an_archive_that_does_not_answer_is_told_and_not_asked_for_each_image(strategy, shelf, pngs):
    store = PatchyStore(pngs)
    store.error = DicomWebError("no answer")
    store.labels |= {(i, "final"): pngs for i in store.list_images() if i != "chest03"}
    with pytest.raises(DicomWebError):
        Chooser(shelf).choose(strategy, store)


def test_the_strategy_waits_for_a_heatmap_that_is_computed_by_the_same_network(shelf, pngs, monkeypatch):
    """Either would keep what the other's blocks give."""
    loaded = shelf.get("anomaly")
    features, held = loaded.scorer.detector.features, []

    def looking(*given: Any, **options: Any) -> Any:
        held.append(loaded.lock.locked())
        return features(*given, **options)

    monkeypatch.setattr(loaded.scorer.detector, "features", looking)
    Chooser(shelf).choose("most_anomalous", FolderStore(pngs))
    assert held
    assert all(held)


# reader options ------------------------------------------------------------------------------------------------------


@pytest.fixture
def twelve_bits(tmp_path) -> FolderStore:
    """The same pictures with 12 and with 16 bits in files of 16: equal only to who knows what white is."""
    (tmp_path / "deep").mkdir()
    for number in range(4):
        grey = phantom(number)[0].astype(np.uint16)
        grey[0, 0] = 255
        Image.fromarray(grey * 16).save(tmp_path / "deep" / f"chest{number:02d}.png")
        Image.fromarray(grey * 257).save(tmp_path / f"full{number:02d}.png")
    return FolderStore(tmp_path / "deep")


def reading_twelve_bits(folder: Path) -> Path:
    """A classifier whose training read 12 bits in files of 16."""
    torch.manual_seed(0)
    network = ViTClassifier(ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2), LABELS)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    export_task(network, folder, reader={"png16_max": 4080})
    return folder


def test_images_are_read_as_in_the_models_training(twelve_bits, tmp_path):
    shelf = ModelShelf(tmp_path / "trained", [reading_twelve_bits(tmp_path / "model")], torch.device("cpu"))

    def probability(path: str | Path, by: ModelShelf = shelf) -> float:
        return answer("classification", by, path, {}).params["labels"]["Nodule"]["probability"]

    deep = probability(twelve_bits.get_image_uri("chest00"))
    plain = ModelShelf(tmp_path / "trained", shelf.given, torch.device("cpu"), {"png16_max": 65535})
    assert probability(tmp_path / "full00.png", plain) == pytest.approx(deep, abs=1e-6)
    assert probability(twelve_bits.get_image_uri("chest00"), plain) != pytest.approx(deep, abs=1e-3)
    assert (shelf.reader(), plain.reader()) == ({"png16_max": 4080}, {"png16_max": 65535})


def test_the_next_image_is_chosen_from_images_read_as_in_training(twelve_bits, tmp_path):
    shelf = ModelShelf(tmp_path / "trained", [reading_twelve_bits(tmp_path / "model")], torch.device("cpu"))
    score = Chooser(shelf).choose("most_uncertain", twelve_bits)["score"]
    plain = ModelShelf(tmp_path / "trained", shelf.given, torch.device("cpu"), {"png16_max": 65535})
    (tmp_path / "full").mkdir()
    for path in tmp_path.glob("full*.png"):
        path.rename(tmp_path / "full" / path.name)
    assert Chooser(plain).choose("most_uncertain", FolderStore(tmp_path / "full"))["score"] == pytest.approx(score)


def test_training_reads_labelled_images_as_the_model_does(twelve_bits, tmp_path, monkeypatch):
    shelf = ModelShelf(tmp_path / "trained", [reading_twelve_bits(tmp_path / "model")], torch.device("cpu"))
    label_effusions(twelve_bits, tmp_path / "findings", 4)
    seen = {}

    def look(given: dict[str, Any], configs: object) -> None:
        seen.update(json.loads(Path(given["datalist"]).read_text(encoding="utf-8"))["meta"])
        raise AfireError("enough")

    monkeypatch.setattr("afire_monai.cli.bundle.run_configs", look)
    with pytest.raises(AfireError, match="enough"):
        workshop_in(tmp_path / "work", shelf).train(Trainable("classification", tuple(LABELS)), twelve_bits, {})
    assert seen["reader"] == {"png16_max": 4080}


# training -------------------------------------------------------------------------------------------------------------


def workshop_in(folder: Path, shelf: ModelShelf) -> Workshop:
    """A workshop whose key is always the same, so that the same patients are held back in each run of the tests."""
    folder.mkdir(exist_ok=True)
    (folder / "key").write_bytes(b"k" * 32)
    (folder / "key").chmod(0o600)
    return Workshop(folder, shelf)


def label_lungs(store: FolderStore, folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(phantom(number)[1]).save(folder / f"chest{number:02d}.png")
        store.labels[f"chest{number:02d}", "final"] = folder / f"chest{number:02d}.png"


def test_training_from_masks_gets_better_and_leaves_no_picture(shelf, tmp_path):
    pngs = write_pngs(tmp_path / "pngs", 10)
    store, what = FolderStore(pngs), Trainable("segmentation", ("right_lung",))
    workshop = workshop_in(tmp_path / "work", shelf)
    with pytest.raises(AfireError, match="0 saved labels with masks: at least 4"):
        workshop.train(what, store, {})
    label_lungs(store, tmp_path / "masks", 10)
    old, before = shelf.get("segmentation").version, score_labels(shelf, store, "segmentation")["dice"]
    told = workshop.train(what, store, {"max_epochs": 8, "lr": 0.05, "start": ["model", "encoder"]})
    assert told["model"] == "replaced"
    assert told["best_metric"] > told["validation_before"]
    assert told["model_version"] == shelf.get("segmentation").version != old
    assert score_labels(shelf, store, "segmentation")["dice"] > before
    assert workshop.stats("segmentation") == {**told, "epoch": 8}
    left = {p.name for p in (tmp_path / "work").rglob("*") if p.is_file()}
    assert left >= {"segmenter.safetensors", "segmenter.json", "log.csv", "settings.yaml", "key", "segmentation.json"}
    assert not [name for name in left if name.endswith((".png", ".pt"))]
    for path in (tmp_path / "work").rglob("*.json"):
        assert "chest0" not in path.read_text(encoding="utf-8")


def test_a_class_that_nobody_drew_is_not_trained(shelf, pngs, tmp_path):
    store, what = FolderStore(pngs), Trainable("segmentation", ("right_lung", "heart"))
    label_lungs(store, tmp_path / "masks", 5)
    with pytest.raises(AfireError, match="no saved mask has a pixel of heart; draw it"):
        workshop_in(tmp_path / "work", shelf).train(what, store, {})


def test_what_a_killed_training_left_is_cleared_by_the_next(shelf, pngs, tmp_path, monkeypatch):
    store, what = FolderStore(pngs), Trainable("segmentation", ("right_lung",))
    label_lungs(store, tmp_path / "masks", 5)
    workshop = workshop_in(tmp_path / "work", shelf)
    left = tmp_path / "work" / "runs" / "0001" / "data" / "00000.mask.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"a mask")

    def fail(*_: object) -> None:
        raise AfireError("on purpose")

    monkeypatch.setattr("afire_monai.cli.bundle.run_configs", fail)
    with pytest.raises(AfireError, match="on purpose"):
        workshop.train(what, store, {})
    assert not left.exists()
    assert not list((tmp_path / "work").rglob("*.png"))
    assert workshop.stats("segmentation")["failed"] == "on purpose"
    assert shelf.get("segmentation").version


def outcome_of(task, classes, model, datalist):
    """Ten patients with the class; the model that was trained is worse by 0.1 for each."""
    dice = np.full((10, 1), 0.7 if "work" in str(model) else 0.8)
    return comparison.Outcome(float(dice.mean()), dice, np.ones((10, 1)), np.arange(10))


def test_a_worse_model_is_not_used(shelf, pngs, tmp_path, monkeypatch):
    store, what = FolderStore(pngs), Trainable("segmentation", ("right_lung",))
    label_lungs(store, tmp_path / "masks", 5)
    version = shelf.get("segmentation").version
    monkeypatch.setattr(comparison, "outcome", outcome_of)
    told = workshop_in(tmp_path / "work", shelf).train(what, store, {"max_epochs": 1})
    assert told["model"] == "kept"
    assert told["judged"]["right_lung"]["verdict"] == "worse"
    assert shelf.get("segmentation").version == told["model_version"] == version


def label_effusions(store: FolderStore, folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number}.json"
        path.write_text(json.dumps({"Effusion": int(number % 3 == 0), "Nodule": 0}))
        store.labels[f"chest{number:02d}", "findings"] = path


def test_eight_labels_do_not_replace_a_classifier(shelf, pngs, tmp_path):
    store, version = FolderStore(pngs), shelf.get("classification").version
    label_effusions(store, tmp_path / "findings", 8)
    workshop = workshop_in(tmp_path / "work", shelf)
    told = workshop.train(Trainable("classification", tuple(LABELS)), store, {"max_epochs": 1})
    assert told["model"] == "kept"
    assert {entry["verdict"] for entry in told["judged"].values()} == {"too few"}
    assert told["warnings"][0].startswith("Effusion: not judged, 20 held-back patients, 5 with and 5 without it,")
    assert shelf.get("classification").version == version
    assert workshop.stats("classification")["warnings"] == told["warnings"]


def test_a_first_classifier_says_that_it_is_not_calibrated(models, pngs, tmp_path):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for suffix in ("safetensors", "json"):
        (encoder / f"encoder.{suffix}").write_bytes((models / f"encoder.{suffix}").read_bytes())
    shelf, store = ModelShelf(tmp_path / "work" / "models", [encoder], torch.device("cpu")), FolderStore(pngs)
    label_effusions(store, tmp_path / "findings", 8)
    told = workshop_in(tmp_path / "work", shelf).train(
        Trainable("classification", tuple(LABELS)), store, {"max_epochs": 1}
    )
    assert told["model"] == "first"
    assert "not calibrated: Effusion, Nodule" in told["warnings"]
    classifier = shelf.get("classification").scorer.classifier
    assert classifier.calibration_scale.tolist() == [1, 1]
    assert classifier.calibration_bias.tolist() == [0, 0]
    said = answer("classification", shelf, pngs / "chest00.png", {}).params
    assert said["not_calibrated"] == list(LABELS)
    assert said["warnings"] == told["warnings"]


@pytest.mark.parametrize(
    "elements",
    [
        {"ViewPosition": "LL"},
        {"PresentationIntentType": "FOR PROCESSING"},
        {"NumberOfFrames": 2},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    ],
)
def test_what_is_not_to_be_labelled_is_not_offered(elements, shelf, tmp_path):
    write(tmp_path / "good.dcm", 1)
    write(tmp_path / "bad.dcm", 2, **elements)
    (tmp_path / "empty.png").touch()
    for strategy in ("random", "most_anomalous", "most_different"):
        assert [Chooser(shelf).choose(strategy, FolderStore(tmp_path))["id"] for _ in range(3)] == ["good"] * 3


def test_training_from_findings_starts_at_the_encoder_when_asked(shelf, pngs, tmp_path):
    store = FolderStore(pngs)
    label_effusions(store, tmp_path / "findings", 8)
    told = workshop_in(tmp_path / "work", shelf).train(
        Trainable("classification", tuple(LABELS)), store, {"max_epochs": 2, "start": "encoder"}
    )
    assert told["training"] + told["validation"] == 8
    assert shelf.get("classification").scorer.labels == LABELS
    assert score_labels(shelf, store, "classification")["images"] == 8


def test_masks_reach_training_upright(shelf, pngs, tmp_path):
    """A segmenter that has learned the right lung's place scores high only if masks and pictures lie alike."""
    store, what = FolderStore(pngs), Trainable("segmentation", ("right_lung",))
    label_lungs(store, tmp_path / "masks", 4)
    run = tmp_path / "run"
    run.mkdir()
    datalist, counts = workshop_in(tmp_path / "work", shelf)._write_data(run, what, saved_labels(store, findings=False))
    assert sum(counts.values()) == 4
    content = json.loads(datalist.read_text(encoding="utf-8"))
    for item in content["training"] + content["validation"]:
        picture = np.asarray(Image.open(datalist.parent / item["image"]))
        mask = np.asarray(Image.open(datalist.parent / item["mask"]))
        seeds = [s for s in range(4) if (picture == np.asarray(Image.open(pngs / f"chest{s:02d}.png"))).all()]
        assert (mask == phantom(seeds[0])[1]).all()
        assert "chest" not in item["image"] + item["mask"]


@pytest.mark.parametrize(
    "request_",
    [
        {"max_epochs": 0},
        {"max_epochs": "many"},
        {"max_epochs": 2.7},
        {"max_epochs": float("inf")},
        {"batch_size": -1},
        {"lr": "nan"},
        {"start": "elsewhere"},
    ],
)
def test_wrong_settings_are_refused_before_anything_is_done(request_, shelf, pngs, tmp_path):
    store = FolderStore(pngs)
    with pytest.raises(AfireError, match=next(iter(request_))):
        Workshop(tmp_path / "work", shelf).train(Trainable("segmentation", ("right_lung",)), store, request_)
    assert not (tmp_path / "work").exists()


def test_a_model_of_other_classes_is_not_mixed_up(shelf, pngs, tmp_path):
    with pytest.raises(AfireError, match="the model has right_lung, the server was started for heart"):
        comparison.outcome("segmentation", {"heart": 1}, shelf.file("segmenter"), tmp_path / "list.json")


# what is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownImageError("no such image"), 404),
        (AfireError("of another size"), 400),
        (OSError(errno.ENOSPC, "No space left on device", "/home/x/Zyxwolski.png"), 507),
        (KeyError("Zyxwolski"), 500),
    ],
)
def test_errors_have_a_status_and_words_without_names(error, status):
    found, words = problem(error)
    assert found == status
    assert len(words) > 10
    assert "Zyxwolski" not in words


def test_a_full_disk_is_found_behind_what_was_raised_from_it():
    error = CheckpointError("cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert problem(error)[0] == 507


def test_logs_lose_paths_uids_addresses_and_tracebacks():
    text = "read /home/x/Zyxwolski/im.dcm of 1.2.840.113654.2.55.6842 from http://host:80/studies/1, 12.5 ms, a/b"
    assert without_names(text) == "read (path) of (uid) from (address) 12.5 ms, a/b"
    for named in (
        "no series 1.2.840.113654.2.55.6842. Again",
        "CR.1.2.840.113654.2.55.6842.dcm",
        "No such file: '/data/Zyxwolski Ada/1 2.840.113654.2.55.png'",
        'No such file: "/Zyxwolski Ada.840.113654.png"',
        "cannot read /data/of Zyxwolski, Ada/Zyxwolski 2.840.113654/1.png".replace(",", ""),
    ):
        assert not any(word in without_names(named) for word in ("Zyxwolski", "Ada", "840.113654"))
    assert without_names("/a/b.dcm differs from /c/d.dcm") == "(path) differs from (path)"
    record = logging.LogRecord("x", 40, "f", 1, "failed", (), (ValueError, ValueError("Zyxwolski"), None))
    assert NoNames().filter(record)
    assert "Zyxwolski" not in logging.Formatter().format(record)
    assert record.getMessage() == "failed (ValueError)"


def test_of_a_training_process_only_our_lines_and_the_progress_pass():
    def passes(line: str) -> bool:
        return NoNames().filter(logging.LogRecord("task_train", 20, "f", 1, line, (), None))

    assert passes("[INFO] (afire_monai.label.training:10) - trained segmentation")
    assert passes("fine-tuning:  50%|#####")
    assert not passes("[INFO] (monailabel.datastore.local:80) - Adding New Image: Zyxwolski => Zyxwolski.png")
