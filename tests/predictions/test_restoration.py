from __future__ import annotations

import contextlib
import csv
import json

import numpy as np
import pytest
import torch
from helpers import PATCH, smooth_images, tiny_afire
from ignite.engine import Engine
from PIL import Image

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.restorer import AnomalyInferer, AnomalyNetwork, load_restorer
from afire_monai.networks import ViTEncoder
from afire_monai.predictions.bundle_writer import ResultWriter
from afire_monai.predictions.format import load_predictions
from afire_monai.training.finish import export_restorer


class Answer(torch.nn.Module):
    """Stands in for the decoder: one grey where a cell is masked, another where it is not (normalised units)."""

    grid, patch_size = (4, 4), PATCH

    def __init__(self, masked: float, seen: float) -> None:
        super().__init__()
        self.masked, self.seen = masked, seen
        self.masks: list[torch.Tensor] = []

    def forward(self, tokens: torch.Tensor, abnormal: torch.Tensor) -> torch.Tensor:
        self.masks.append(abnormal)
        cells = torch.where(abnormal, self.masked, self.seen).view(len(tokens), 1, *self.grid)
        return cells.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def network_of(decoder: torch.nn.Module | None = None) -> AnomalyNetwork:
    student = tiny_afire().student
    return AnomalyNetwork(student.encoder, decoder or student.decoder).eval()


def test_answer_has_the_pictures_size_and_lies_in_the_grey_range():
    network = network_of()
    images = smooth_images(3, (32, 32))
    with torch.no_grad():
        output = network.analyse(images)
        assert torch.equal(network(images), torch.cat([output.restored, output.anomaly], 1))
    assert output.restored.shape == output.anomaly.shape == (3, 1, 32, 32)
    assert output.tokens.shape == (3, 1 + 16, 32)
    assert torch.equal(output.tokens, network.encoder(images))
    for picture in (output.restored, output.anomaly):
        assert 0 <= picture.min() <= picture.max() <= 1
    assert output.anomaly.max() > 0


def test_each_cell_comes_from_the_pass_in_which_it_was_masked():
    decoder = Answer(masked=0.8, seen=-0.8)  # 0.7 and 0.3 in grey, for mean 0.5 and deviation 0.25
    output = network_of(decoder).analyse(smooth_images(2, (32, 32)))
    torch.testing.assert_close(output.restored, torch.full_like(output.restored, 0.7))
    first, second = decoder.masks
    assert torch.equal(first, ~second)
    board = first[0].view(4, 4)
    assert (board[:, 1:] != board[:, :-1]).all()  # neighbours are never masked together
    assert (board[1:] != board[:-1]).all()


def test_map_is_the_difference_averaged_over_a_window_of_a_cell():
    image = torch.full((1, 1, 32, 32), 0.7)
    image[0, 0, 0, 0], image[0, 0, 20, 10] = 0.3, 1.0
    network = network_of(Answer(0.8, 0.8))
    anomaly = network.analyse(image).anomaly[0, 0]
    difference = (image[0, 0] - 0.7).abs()
    for row in (0, 1, 4, 5, 16, 20, 24, 31):
        for column in (0, 4, 5, 6, 10, 14, 31):
            # nine pixels a side, cut at the border
            window = difference[max(row - 4, 0) : row + 5, max(column - 4, 0) : column + 5]
            assert anomaly[row, column].item() == pytest.approx(window.mean().item(), abs=1e-6)


def test_restored_greys_are_clipped_to_the_range():
    output = network_of(Answer(99.0, 0.0)).analyse(smooth_images(1, (32, 32)))
    assert output.restored.unique().tolist() == [1.0]


def test_exported_restorer_answers_as_the_student(tmp_path):
    method = tiny_afire()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images = smooth_images(2, (32, 32))
    path = export_restorer(method, tmp_path, epochs=3)
    expected = AnomalyNetwork(method.student.encoder, method.student.decoder).eval()(images)
    for source in (path, tmp_path):
        loaded = load_restorer(source)
        assert not loaded.training
        assert torch.equal(loaded(images), expected)
    assert json.loads((tmp_path / "restorer.json").read_text(encoding="utf-8"))["epochs"] == 3
    with pytest.raises(AfireError, match=r"must be in 0…1, got .*255"):
        load_restorer(path)(images / images.max() * 255)


def test_missing_or_foreign_restorer_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"restorer\.safetensors and restorer\.json"):
        load_restorer(tmp_path)
    path = export_restorer(tiny_afire(), tmp_path)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del description["decoder"]
    path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(CheckpointError, match="lacks 'encoder' or 'decoder'"):
        load_restorer(path)
    export_restorer(tiny_afire(), tmp_path)
    encoder = ViTEncoder(32, PATCH, embed_dim=16, depth=2, num_heads=2)
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    path.with_suffix(".json").write_text(json.dumps({**description, "encoder": encoder.config}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="do not fit their description"):
        load_restorer(path)


def test_inferer_gives_pictures_and_tokens_by_name():
    network = network_of()
    images = smooth_images(2, (32, 32))
    answer = AnomalyInferer()(images, network)
    assert list(answer) == ["restored", "anomaly", "tokens"]
    assert torch.equal(answer["tokens"], network.analyse(images).tokens)


ITEMS = [
    {"image": "/data/chest one.png"},
    {"image": "/data/DOE^JOHN_19480101.dcm"},
    {"image": "/data/1.2.840.113619"},
    {"image": "/data/scan.JPEG", "place": 5},  # two files before it could not be used
    {"image": "/data/DOE.nii.gz", "place": 6},
]
PLACES = [0, 1, 2, 5, 6]
KINDS = {"restored": ".png", "heatmaps": ".png", "tokens": ".npy"}


@pytest.fixture
def results(tmp_path):
    """What the writer leaves for five pictures in two batches: greys of 0.11 · index, maps of 0.06 · index."""

    def answer(_, batch):
        index = batch["index"].view(-1, 1, 1, 1).float()
        picture = torch.ones(len(index), 1, 6, 8)
        anomaly = 0.06 * index * picture
        anomaly[..., 0, 0] += 0.1
        tokens = index[..., 0] + torch.eye(3)
        return {"pred": {"restored": 0.11 * index * picture, "anomaly": anomaly, "tokens": tokens}}

    engine = Engine(answer)
    ResultWriter(tmp_path / "new" / "results", ITEMS).attach(engine)
    engine.run([{"index": torch.tensor([0, 1, 2])}, {"index": torch.tensor([3, 4])}], max_epochs=1)
    return tmp_path / "new" / "results"


def test_each_picture_has_a_heatmap_a_restored_picture_and_tokens_by_its_place(results):
    wanted = {f"{kind}/{n:05d}{suffix}" for n in PLACES for kind, suffix in KINDS.items()}
    tables = {"summary.csv", "predictions.csv", "predictions.json"}
    assert {p.relative_to(results).as_posix() for p in results.rglob("*.*")} == wanted | tables


def test_names_of_pictures_are_kept_and_those_of_dicom_files_are_not(results):
    with (results / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["index"]), row["name"]) for row in rows] == [
        (0, "chest one.png"), (1, ""), (2, ""), (5, "scan.JPEG"), (6, "")
    ]  # fmt: skip


def test_results_are_predictions_that_other_commands_read(results):
    found = load_predictions(results)
    assert (found.index.tolist(), found.labels, found.section) == (PLACES, (), "")
    heatmap = found.heatmap(6)
    assert heatmap is not None
    assert heatmap[1, 1] == pytest.approx(0.48, abs=1e-4)  # a difference of 0.24, where a half is 1


def test_pictures_tokens_and_summary_hold_the_answers(results):
    restored = np.asarray(Image.open(results / "restored/00005.png"))
    assert restored.shape == (6, 8)
    assert (restored == 84).all()  # 0.33 of 255, rounded
    np.testing.assert_array_equal(np.load(results / "tokens/00002.npy"), np.eye(3) + 2)
    with (results / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        assert float(row["anomaly_mean"]) == pytest.approx(0.06 * index + 0.1 / 48, abs=1e-6)
        assert float(row["anomaly_max"]) == pytest.approx(0.06 * index + 0.1, abs=1e-6)


def test_an_image_that_comes_twice_is_written_once_and_an_earlier_run_leaves_nothing(tmp_path):
    def answer(_, batch):
        picture = torch.zeros(len(batch["index"]), 1, 6, 8)
        return {"pred": {"restored": picture, "anomaly": picture, "tokens": torch.zeros(len(batch["index"]), 3, 3)}}

    for batches in ([[0, 1, 2]], [[1, 1], [1]]):
        engine = Engine(answer)
        ResultWriter(tmp_path, ITEMS).attach(engine)
        engine.run([{"index": torch.tensor(indices)} for indices in batches], max_epochs=1)
    assert load_predictions(tmp_path).index.tolist() == [1]
    assert {path.name for path in tmp_path.glob("*/*")} == {"00001.png", "00001.npy"}
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 2


def test_a_folder_of_afire_predict_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    engine = Engine(lambda *_: None)
    ResultWriter(tmp_path, ITEMS).attach(engine)
    with pytest.raises(AfireError, match="output_dir"):
        engine.run([{"index": torch.tensor([0])}], max_epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_an_inference_that_fails_leaves_nothing_that_counts_as_predictions(tmp_path):
    def answer(_, batch):
        if batch["index"][0] > 0:
            raise ValueError("out of memory")
        picture = torch.zeros(1, 1, 6, 8)
        return {"pred": {"restored": picture, "anomaly": picture, "tokens": torch.zeros(1, 3, 3)}}

    for indices, ending in (([0], contextlib.nullcontext()), ([0, 1], pytest.raises(ValueError, match="memory"))):
        engine = Engine(answer)
        ResultWriter(tmp_path, ITEMS).attach(engine)
        with ending:
            engine.run([{"index": torch.tensor([index])} for index in indices], max_epochs=1)
    with pytest.raises(AfireError, match="finished predictions"):
        load_predictions(tmp_path)
    assert not list(tmp_path.glob(".*"))
