from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from helpers import smooth_images, tiny_afire
from hospital_files import PLANTED, write
from PIL import Image

from afire_monai.cli import main as cli
from afire_monai.core.errors import AfireError, CheckpointError, DataListError
from afire_monai.core.files import write_text
from afire_monai.datalists.check import check_files
from afire_monai.models.folder import export_task
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter
from afire_monai.predictions import results
from afire_monai.predictions.anomaly.build_reference import make_reference
from afire_monai.predictions.format import load_predictions
from afire_monai.predictions.predict import find_source
from afire_monai.predictions.predict import predict as predict_folder
from afire_monai.predictions.reading import LeftOut, ahead, display_size, read_radiograph
from afire_monai.predictions.scoring import Scorer
from afire_monai.radiographs.decode import list_images
from afire_monai.training.finish import export_detector, export_restorer


def save_png(path: Path, picture: torch.Tensor) -> None:
    Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def normals(tmp_path_factory) -> Path:
    """A data list of 30 normal pictures of 60 x 90 pixels for training, 3 for testing, and one abnormal for each."""
    folder = tmp_path_factory.mktemp("normals")
    pictures = 0.5 * smooth_images(35, (60, 90))[:, 0]
    items = []
    for number, picture in enumerate(pictures):
        save_png(folder / f"n{number:02d}.png", picture)
        items.append({"image": f"n{number:02d}.png", "label": [int(number >= 33)], "group": str(number)})
    content = {"labels": ["Nodule"], "training": [*items[:30], items[33]], "test": [*items[30:33], items[34]]}
    path = folder / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, normals) -> Path:
    """A model folder with detector and reference."""
    folder = tmp_path_factory.mktemp("model")
    method = tiny_afire(2)
    export_restorer(method, folder)
    export_detector(method, folder)
    made = make_reference(folder, normals)
    assert made.reference.count == 30
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A model folder with a classifier at 24 x 32 and a segmenter at 32 x 32."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    classifier = ViTClassifier(ViTEncoder((24, 32), 8, embed_dim=16, depth=2, num_heads=2), ["Normal", "A", "B"])
    torch.nn.init.normal_(classifier.head.weight)
    export_task(classifier, folder, thresholds={"A": 0.25, "B": 0.9999})
    encoder = ViTEncoder(32, 8, embed_dim=16, depth=3, num_heads=2)
    export_task(ViTSegmenter(encoder, ["lung", "heart"], width=4), folder, mask_values={"lung": 255, "heart": 255})
    return folder


@pytest.fixture
def scans(tmp_path) -> Path:
    """Five pictures and three files that cannot be used, named so that their order is known."""
    folder = tmp_path / "scans"
    (folder / "below").mkdir(parents=True)
    pictures = 0.5 * smooth_images(5, (60, 90), seed=8)[:, 0]
    save_png(folder / "a.png", pictures[0])
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    write(folder / "below" / f"{PLANTED[0]}.dcm", pixels=(pictures[1].numpy() * 4095).astype(np.uint16))
    Image.fromarray(np.zeros((20, 20, 3), np.uint8) + np.array([0, 90, 200], np.uint8)).save(folder / "c.png")
    save_png(folder / "d.png", torch.full((20, 30), 0.3))
    for number in (2, 3, 4):
        save_png(folder / f"e{number}.png", pictures[number])
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# what comes out -------------------------------------------------------------------------------------------------------


def test_usable_files_are_scored_and_the_others_are_listed_with_reasons(scans, model, tmp_path):
    out = tmp_path / "out"
    done = predict_folder([scans], [model], out, batch_size=2, restored=True, overlays=True)
    assert (done.total, done.scored, done.status) == (8, 5, 1)
    assert [row["index"] for row in table(out, "left_out.csv")] == ["1", "3", "4"]
    reasons = [row["reason"] for row in table(out, "left_out.csv")]
    assert "colour" in reasons[1] or "channel" in reasons[1]
    assert reasons[2].startswith("constant")
    names = [Path(row["file"]).name for row in table(out, "index.csv")]
    assert names == ["a.png", "b.png", f"{PLANTED[0]}.dcm", "c.png", "d.png", "e2.png", "e3.png", "e4.png"]
    assert stat.S_IMODE((out / "index.csv").stat().st_mode) == 0o600
    predictions = load_predictions(out)
    assert predictions.index.tolist() == [0, 2, 5, 6, 7]
    assert predictions.labels == ()
    record = json.loads((out / "json" / "00002.json").read_text(encoding="utf-8"))
    assert record["anomaly"]["percentile"] == predictions.anomaly_percentile[1]
    assert record["anomaly"]["normals"] == 30
    assert record["anomaly"]["meaning"].startswith("more unusual than")
    for kind in ("heatmaps", "overlays", "restored"):
        assert sorted(p.stem for p in (out / kind).iterdir()) == ["00000", "00002", "00005", "00006", "00007"]
        assert Image.open(out / kind / "00005.png").size == (90, 60)
    assert predictions.heatmap(0).shape == (60, 90)
    assert np.array(Image.open(out / "heatmaps" / "00000.png")).dtype == np.uint16
    assert not list(out.rglob("*.part"))
    assert not (out / "masks").exists()


def test_no_output_but_the_private_key_names_files_or_patients(scans, model, tmp_path, capfd):
    words = ["predict", str(scans), "--model", str(model), "--out", str(tmp_path / "out"), "--overlays", "--restored"]
    assert cli.run(words) == 1
    said = "".join(capfd.readouterr())
    written = contents(tmp_path / "out")
    for word in (*PLANTED, "e3.png"):
        assert word not in said
        assert [name for name, content in written.items() if word.encode() in content and name != "index.csv"] == []
    assert "scored:   5 of 8" in said


def test_a_bright_spot_is_hot_where_it_is_and_nowhere_else(model, tmp_path):
    """In a picture that is not square, off every diagonal, read from PNG and DICOM."""
    picture = 0.2 + 0.1 * smooth_images(1, (60, 90), seed=21)[0, 0]  # near the mean of the normals
    picture[10:20, 60:75] += 0.6  # cell (1, 4) of 6 x 6
    save_png(tmp_path / "spot.png", picture)
    write(tmp_path / "spot.dcm", pixels=(picture.numpy() * 4095).round().astype(np.uint16))
    predict_folder([tmp_path / "spot.png", tmp_path / "spot.dcm"], [model], tmp_path / "out")
    for index in (0, 1):
        heat = load_predictions(tmp_path / "out").heatmap(index)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert 10 <= row < 20
        assert 60 <= column < 75


@torch.no_grad()
def test_a_picture_scores_as_by_hand(model, normals, tmp_path):
    done = predict_folder([normals], [model], tmp_path / "out", batch_size=3, workers=0)
    assert (done.total, done.status) == (4, 0)
    predictions = load_predictions(tmp_path / "out")
    assert predictions.section == "test"
    assert len(predictions.datalist_sha256) == 64
    scorer = Scorer([model])
    pixels = torch.tensor(np.array(Image.open(normals.parent / "n31.png")) / 255, dtype=torch.float32)[None, None]
    image = torch.nn.functional.interpolate(pixels, (48, 48), mode="area")
    found = scorer.reference.judge(scorer.detector.features(image, scorer.reference.parts), (48, 48))
    assert predictions.anomaly_percentile[1] == pytest.approx(found.percentile.item())


def test_without_a_reference_there_is_a_map_but_no_percentile(scans, tmp_path):
    export_restorer(tiny_afire(2), tmp_path / "model")
    predict_folder([scans / "a.png"], [tmp_path / "model"], tmp_path / "out")
    predictions = load_predictions(tmp_path / "out")
    assert predictions.anomaly_percentile is None
    assert 0 < predictions.heatmap(0).max() <= 1
    record = json.loads((tmp_path / "out" / "json" / "00000.json").read_text(encoding="utf-8"))
    assert "percentile" not in record["anomaly"]


# classifier and segmenter ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_classifier_and_segmenter_say_what_they_say_by_themselves(scans, tuned, model, tmp_path):
    out = tmp_path / "out"
    predict_folder([scans], [tuned, model], out, heatmap="gradcam", label="B")
    predictions = load_predictions(out)
    assert predictions.labels == ("Normal", "A", "B")
    assert predictions.thresholds == {"A": 0.25, "B": 0.9999}
    assert np.isfinite(predictions.anomaly_percentile).all()
    scorer = Scorer([tuned])
    sizes = scorer.sizes
    assert sizes == ((24, 32), (32, 32))
    radiograph = read_radiograph(0, str(scans / "e3.png"), sizes)
    expected = scorer.classifier.probabilities(radiograph.images[24, 32][None])[0]
    record = json.loads((out / "json" / "00006.json").read_text(encoding="utf-8"))
    for name, probability in zip(("Normal", "A", "B"), expected.tolist(), strict=True):
        assert predictions.scores[name][3] == pytest.approx(probability, rel=1e-5)
        assert record["labels"][name]["probability"] == pytest.approx(probability, rel=1e-5)
    assert record["labels"]["Normal"]["above_threshold"] is None
    assert record["labels"]["A"]["above_threshold"] is (expected[1].item() >= 0.25)
    assert record["heatmap"] == {"kind": "gradcam", "label": "B"}
    mask = predictions.mask(6)
    assert mask.shape == (60, 90)
    assert predictions.facts["mask_values"] == {"lung": 1, "heart": 2}
    planes = scorer.segmenter.probabilities(radiograph.images[32, 32][None])
    large = torch.nn.functional.interpolate(planes, (60, 90), mode="bilinear", antialias=True)[0].numpy()
    expected_mask = np.where(large.max(0) >= 0.5, large.argmax(0) + 1, 0)
    assert (mask == expected_mask).mean() > 0.999


def test_gradcam_explains_the_most_probable_finding_and_never_normal(scans, tuned, tmp_path):
    predict_folder([scans], [tuned], tmp_path / "out", heatmap="gradcam")
    for path in (tmp_path / "out" / "json").iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        findings = {name: record["labels"][name]["probability"] for name in ("A", "B")}
        assert record["heatmap"]["label"] == max(findings, key=findings.get)


@torch.no_grad()
@pytest.mark.parametrize(("weight", "empty"), [(0.0, True), (1.0, False)])
def test_a_heatmap_where_nothing_speaks_for_the_label_is_said_to_be_empty(scans, tmp_path, weight, empty):
    torch.manual_seed(0)
    classifier = ViTClassifier(ViTEncoder(32, 8, embed_dim=16, depth=2, num_heads=2), ["A"])
    torch.nn.init.zeros_(classifier.head.weight)
    classifier.head.weight[0, 0] = weight  # some place lies above the layer norm's zero, and speaks for A
    export_task(classifier, tmp_path / "model")
    predict_folder([scans / "a.png"], [tmp_path / "model"], tmp_path / "out", heatmap="gradcam")
    record = json.loads((tmp_path / "out" / "json" / "00000.json").read_text(encoding="utf-8"))
    assert record["heatmap"] == {"kind": "gradcam", "label": "A", **({"empty": True} if empty else {})}
    assert load_predictions(tmp_path / "out").heatmap(0).any() != empty


@pytest.mark.parametrize("kind", ["rollout", "none"])
def test_other_heatmaps(scans, tuned, tmp_path, kind):
    predict_folder([scans / "a.png"], [tuned], tmp_path / "out", heatmap=kind)
    heat = load_predictions(tmp_path / "out").heatmap(0)
    assert heat is None if kind == "none" else heat.max() > 0.9


# interrupted runs, several processes ----------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_output(scans, model, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    predict_folder([scans], [model], whole, batch_size=2, overlays=True)
    real, calls = Scorer.score, []

    def interrupted(self, batch):
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(Scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder([scans], [model], broken, batch_size=2, overlays=True)
    with pytest.raises(AfireError, match="an interrupted run leaves none"):
        load_predictions(broken)
    assert len(list((broken / "json").glob("*.json"))) == 2
    # what a process that was killed while it wrote can leave
    (broken / "json" / "00005.json").write_text('{"index": 5', encoding="utf-8")
    (broken / "heatmaps" / ".00005.png.7.part").write_bytes(b"")
    calls.clear()
    calls.append(0)
    calls.append(0)
    with pytest.raises(AfireError, match="--resume continues"):
        predict_folder([scans], [model], broken, batch_size=2, overlays=True)
    done = predict_folder([scans], [model], broken, batch_size=2, overlays=True, resume=True)
    assert (done.earlier, done.scored) == (2, 5)
    assert sum(calls) == 3  # the finished ones are not computed again
    # batches are cut elsewhere, which changes the last bits of a float
    ours, theirs = contents(broken), contents(whole)
    assert ours.keys() == theirs.keys()
    for name in ("left_out.csv", "index.csv", "run.json", "predictions.json"):
        assert ours[name] == theirs[name]
    a, b = load_predictions(broken), load_predictions(whole)
    np.testing.assert_allclose(a.anomaly_percentile, b.anomaly_percentile)
    for index in a.index:
        np.testing.assert_allclose(a.heatmap(index), b.heatmap(index), atol=1e-3)


def test_a_folder_with_other_results_or_files_is_refused(scans, model, tuned, tmp_path):
    out = tmp_path / "out"
    predict_folder([scans], [model], out)
    with pytest.raises(AfireError, match="the earlier run had other heatmap"):
        predict_folder([scans], [model], out, heatmap="none", resume=True)
    with pytest.raises(AfireError, match="had other files"):
        predict_folder([scans / "a.png"], [model], out, resume=True)
    with pytest.raises(AfireError, match="had other model"):
        predict_folder([scans], [model, tuned], out, resume=True)
    (out / "index.csv").unlink()
    with pytest.raises(AfireError, match="cannot be read"):
        predict_folder([scans], [model], out, resume=True)
    before = contents(scans)
    with pytest.raises(AfireError, match="not empty"):
        predict_folder([scans], [model], scans)
    assert contents(scans) == before


def test_a_finished_run_goes_on_with_nothing_and_tries_bad_files_again(scans, model, tmp_path):
    out = tmp_path / "out"
    predict_folder([scans], [model], out)
    shutil.copy(scans / "a.png", scans / "b.png")
    done = predict_folder([scans], [model], out, resume=True)
    assert (done.earlier, done.scored, sorted(done.left_out)) == (5, 6, [3, 4])
    np.testing.assert_allclose(*load_predictions(out).anomaly_percentile[:2])


@pytest.mark.slow
def test_two_processes_write_what_one_writes(scans, model, tmp_path):
    words = ["predict", str(scans), "--model", str(model), "--batch-size", "1", "--quiet", "--out"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "afire_monai", *words]
    done = warm.Program([*two, tmp_path / "two"], tmp_path / "log.txt")
    assert done.wait() == 1  # three files are left out
    assert "scored:   5 of 8" in done.output()
    assert done.output().count("scored:") == 1
    assert cli.run([*words, str(tmp_path / "one")]) == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_share_files_and_models_that_were_found_before(scans, model, tmp_path):
    (tmp_path / "share.py").write_text(
        "import sys\n"
        "from afire_monai.predictions.predict import find_source, predict\n"
        "from afire_monai.predictions.scoring import Scorer\n"
        "scans, model, out = sys.argv[1:]\n"
        "done = predict(find_source([scans]), Scorer([model]), out)\n"
        "print(f'process {done.rank}\\n', end='')\n"  # in one piece, beside the other process
    )
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "share.py")]
    done = warm.run([*two, scans, model, tmp_path / "two"], tmp_path / "log.txt")
    assert sorted(line for line in done.output().splitlines() if line.startswith("process")) == [
        "process 0",
        "process 1",
    ]
    assert len(load_predictions(tmp_path / "two").index) == 5


def test_process_numbers_without_addresses_are_refused(scans, model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(AfireError, match="start several processes by torchrun"):
        predict_folder([scans], [model], tmp_path / "out")


# wrong commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heatmap": "cam"}, "must be one of auto, anomaly"),
        ({"heatmap": "gradcam"}, "needs a classifier"),
        ({"label": "Nodule"}, "there is no classifier"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"heatmap": "none", "overlays": True}, "--overlays shows heatmaps"),
    ],
)
def test_options_that_the_models_cannot_serve_are_refused_before_anything_is_written(
    scans, model, tmp_path, options, said
):
    with pytest.raises(AfireError, match=said):
        predict_folder([scans], [model], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_restored_pictures_need_a_restorer(scans, tuned, tmp_path):
    with pytest.raises(AfireError, match=r"no restorer\.safetensors"):
        predict_folder([scans], [tuned], tmp_path / "out", restored=True)
    with pytest.raises(AfireError, match="--heatmap anomaly needs restorer"):
        predict_folder([scans], [tuned], tmp_path / "out", heatmap="anomaly")


def test_model_folders_that_cannot_predict_are_refused(scans, tmp_path):
    with pytest.raises(CheckpointError, match="no such model folder"):
        predict_folder([scans], [tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="it holds no weights"):
        predict_folder([scans], [tmp_path / "empty"], tmp_path / "out")


def test_weights_that_are_not_finite_are_told(scans, tmp_path):
    method = tiny_afire(2)
    with torch.no_grad():
        method.student.decoder.norm.weight.fill_(float("nan"))
    export_restorer(method, tmp_path / "model")
    with pytest.raises(AfireError, match="not finite"):
        predict_folder([scans], [tmp_path / "model"], tmp_path / "out")


@pytest.mark.parametrize(("words", "said"), [(["absent"], "no such file or folder"), ([], "nothing to predict")])
def test_wrong_commands_end_with_status_two(words, said, model, tmp_path, capsys):
    assert cli.run(["predict", *words, "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_status_two_where_nothing_could_be_scored(scans, model, tmp_path, capsys):
    words = ["predict", str(scans / "b.png"), "--model", str(model), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.run(words) == 2
    assert "scored:   0 of 1" in capsys.readouterr().out
    assert len(load_predictions(tmp_path / "out")) == 0


def test_status_zero_where_all_are_scored(scans, model, tmp_path, capsys):
    words = ["predict", str(scans / "a.png"), str(scans / "e2.png"), "--model", str(model), "--out"]
    assert cli.run([*words, str(tmp_path / "out")]) == 0
    assert "scored:   2 of 2" in capsys.readouterr().out


# sources and reading --------------------------------------------------------------------------------------------------


def test_folders_and_files_keep_their_order_and_each_file_comes_once(scans):
    source = find_source([scans / "e3.png", scans])
    assert [Path(f).name for f in source.files][:3] == ["e3.png", "a.png", "b.png"]
    assert len(source.files) == 8
    assert (source.section, source.datalist_sha256) == ("", "")


def test_masks_beside_the_radiographs_are_left_out_with_a_warning(scans, tmp_path, caplog):
    images, masks = tmp_path / "both" / "images", tmp_path / "both" / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(scans / "a.png", images / name)
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(masks / name)
    assert [Path(f).parent for f in find_source([tmp_path / "both"]).files] == [images, images]
    assert f"{masks}: each of its pictures has only two values" in caplog.text


def test_sources_that_make_no_sense_are_refused(scans, normals, tmp_path):
    with pytest.raises(DataListError, match="give it alone"):
        find_source([normals, scans])
    with pytest.raises(DataListError, match="no section 'validation'"):
        find_source([normals], "validation")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataListError, match="no radiograph"):
        find_source([tmp_path / "none"])


def test_reading_is_that_of_training(scans):
    from afire_monai.training.startup import reading

    for name in ("a.png", f"below/{PLANTED[0]}.dcm"):
        expected = reading((40, 32))({"image": str(scans / name)})["image"]
        found = read_radiograph(3, str(scans / name), [(40, 32)], display=True)
        assert torch.equal(found.images[40, 32], expected)
        assert (found.index, found.shape, found.display.shape) == (3, (60, 90), (1, 60, 90))
    missing = read_radiograph(0, str(scans / "secret.png"), [(8, 8)])
    assert isinstance(missing, LeftOut)
    assert "secret" not in missing.reason


def test_large_radiographs_are_shown_smaller_in_their_aspect():
    assert display_size((3000, 1500)) == (512, 256)
    assert display_size((100, 300)) == (100, 300)
    assert display_size((1, 5000)) == (1, 512)
    assert display_size((3000, 1500), 256) == (256, 128)


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_keeps_the_order_and_never_runs_far_ahead(workers):
    started = []

    def work(task):
        started.append(task)
        return task * task

    results = ahead(work, range(50), workers, depth=4)
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(started) <= 10 + 4
    results.close()
    assert list(ahead(work, [], workers, 4)) == []


def test_whether_the_reference_fits_is_said_of_normals_and_of_radiographs_that_all_look_unusual(
    normals, model, tmp_path, capsys
):
    words = ["--model", str(model), "--heatmap", "none", "--quiet", "--out"]
    assert cli.run(["predict", str(normals), "--section", "training", *words, str(tmp_path / "normals")]) == 0
    shown = capsys.readouterr().out
    facts = json.loads((tmp_path / "normals" / "predictions.json").read_text())["reference_fit"]
    # the abnormal picture of that section does not count
    assert (facts["count"], facts["known_normal"]) == (30, True)
    assert "of 30 radiographs that the list calls normal, half lie above" in shown
    (tmp_path / "noise").mkdir()
    for number, picture in enumerate(np.random.default_rng(0).random((20, 60, 90))):
        save_png(tmp_path / "noise" / f"{number}.png", torch.from_numpy(picture))
    assert cli.run(["predict", str(tmp_path / "noise"), *words, str(tmp_path / "unlike")]) == 0
    assert "WARNING: of 20 radiographs, half lie above percentile 100" in capsys.readouterr().out
    (tmp_path / "noise" / "0.png").unlink()
    assert cli.run(["predict", str(tmp_path / "noise"), *words, str(tmp_path / "few")]) == 0
    assert "WARNING" not in capsys.readouterr().out


# the reference's command ----------------------------------------------------------------------------------------------


def test_reference_command_takes_the_normal_images_of_a_section_and_says_so(normals, tmp_path, capsys):
    export_restorer(tiny_afire(2), tmp_path)
    words = ["reference", "--model", str(tmp_path), "--datalist", str(normals), "--quiet"]
    assert cli.run([*words, "--parts", "tokens"]) == 0
    said = capsys.readouterr().out
    assert "30 normal radiographs of section 'training', judged by tokens" in said
    assert "steps of 3.3 %" in said
    description = json.loads((tmp_path / "reference.json").read_text(encoding="utf-8"))
    assert (description["section"], description["count"], description["patients"]) == ("training", 30, 30)
    assert str(normals.parent) not in (tmp_path / "reference.json").read_text(encoding="utf-8")
    assert cli.run([*words, "--most", "25"]) == 0
    assert "25 normal radiographs" in capsys.readouterr().out
    assert cli.run([*words, "--section", "test"]) == 2
    assert "3 normal radiographs are too few" in capsys.readouterr().err
    assert cli.run([*words, "--parts", "tokens,prototypes"]) == 2
    assert "has no prototypes" in capsys.readouterr().err
    assert cli.run([*words, "--parts", "tokens", "--layers", "0,9"]) == 2
    assert "block must be in" in capsys.readouterr().err


def test_parts_layers_and_window_are_settings_and_parts_of_whole_images_give_no_map(normals, scans, tmp_path, capsys):
    export_restorer(tiny_afire(2), tmp_path / "model")
    words = ["reference", "--model", str(tmp_path / "model"), "--datalist", str(normals), "--quiet"]
    predicting = ["predict", str(scans), "--model", str(tmp_path / "model"), "--quiet"]
    assert cli.run([*words, "--parts", "neighbours,density", "--layers", "0,-1", "--window", "1"]) == 0
    description = json.loads((tmp_path / "model" / "reference.json").read_text())
    assert (description["parts"], description["layers"]) == (["neighbours", "density"], [0, -1])
    assert description["neighbours"]["window"] == 1
    assert cli.run([*predicting, "--out", str(tmp_path / "mapped")]) == 1
    assert len(list((tmp_path / "mapped" / "heatmaps").iterdir())) == 5
    assert cli.run([*words, "--parts", "density"]) == 0
    assert cli.run([*predicting, "--out", str(tmp_path / "out")]) == 1
    assert len(load_predictions(tmp_path / "out").index) == 5
    assert not (tmp_path / "out" / "heatmaps").exists()
    assert cli.run([*predicting, "--out", str(tmp_path / "none"), "--heatmap", "anomaly"]) == 2
    assert "a reference with a part that judges cells" in capsys.readouterr().err


def test_reference_passes_over_broken_files(normals, tmp_path, capsys):
    copy = tmp_path / "data"
    shutil.copytree(normals.parent, copy)
    (copy / "n07.png").write_bytes(b"")
    export_restorer(tiny_afire(2), tmp_path / "model")
    made = make_reference(tmp_path / "model", copy / "list.json")
    assert (made.reference.count, made.left_out) == (29, 1)


def test_reference_of_other_weights_is_refused_when_predicting(scans, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    export_restorer(tiny_afire(2, seed=7), tmp_path / "model")
    with pytest.raises(CheckpointError, match="made with other restorer weights; make it again"):
        predict_folder([scans], [tmp_path / "model"], tmp_path / "out")


# real files -----------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_dicom_files_are_scored_or_listed_with_their_reason(real_data, model, tmp_path, capsys):
    folder = real_data / "dicom"
    files = list_images(folder)
    checked = check_files([str(f) for f in files])
    usable = {f.path for f in checked.readable} - set(checked.blank)
    out = tmp_path / "out"
    words = [
        "predict",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(out),
        "--any",
        "--quiet",
        "--overlays",
        "--restored",
    ]
    assert cli.run(words) == 1
    said = "".join(capsys.readouterr())
    key = {int(row["index"]): row["file"] for row in table(out, "index.csv")}
    assert list(key.values()) == [str(f) for f in files]
    assert {key[i] for i in load_predictions(out).index.tolist()} == usable
    left_out = {key[int(row["index"])]: row["reason"] for row in table(out, "left_out.csv")}
    assert left_out.keys() == set(key.values()) - usable
    for refused in checked.refused:
        assert left_out[refused.path].startswith(refused.kind)
    planted = identifiers(files)
    assert len(planted) > 5
    written = {name: content for name, content in contents(out).items() if name != "index.csv"}
    for word in planted:
        assert word not in said
        assert [name for name, content in written.items() if word.encode() in content] == []


def identifiers(files: list[Path]) -> set[str]:
    """Names, numbers and file names that could point to a person."""
    import pydicom

    found = {f.stem for f in files}
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            found |= {str(header.get(key, "")) for key in ("PatientName", "PatientID", "StudyInstanceUID")}
        except Exception:
            continue
    return {word for word in found if len(word) > 4}


def test_a_start_that_was_cut_off_is_begun_anew_and_other_files_are_left_alone(tmp_path):
    def start_until(number: int, folder: Path) -> None:
        """Stop where the file of this number would be written."""
        left = iter([None] * number)

        def write(path: Path, text: str, **options: bool) -> None:
            if next(left, "full") == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write_text(path, text, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results, "write_text", write)
            with pytest.raises(AfireError, match="No space left"):
                results.ResultFolder(folder).start({"model": "a"}, "index,file\n", False)

    for number in (0, 1):
        start_until(number, tmp_path / str(number))
        (tmp_path / str(number) / ".index.csv.part").write_text("half")  # of one that was killed
        results.ResultFolder(tmp_path / str(number)).start({"model": "a"}, "index,file\n", True)
        assert (tmp_path / str(number) / "index.csv").read_text() == "index,file\n"
        assert json.loads((tmp_path / str(number) / "run.json").read_text()) == {"model": "a"}
    start_until(0, tmp_path / "other")
    (tmp_path / "other" / "heatmaps" / "mine.png").write_bytes(b"picture")
    with pytest.raises(AfireError, match="not empty"):
        results.ResultFolder(tmp_path / "other").start({"model": "a"}, "index,file\n", False)
