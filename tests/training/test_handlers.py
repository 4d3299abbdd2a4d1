from __future__ import annotations

import csv
import logging

import numpy as np
import pytest
import torch
from helpers import dataset_of, smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from PIL import Image
from training_runs import run_or_stop

from afire_monai.core.errors import AfireError
from afire_monai.training.checkpoint import list_checkpoints
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.handlers import (
    CsvLogger,
    HealthMonitor,
    PanelWriter,
    ProgressBar,
    TensorBoardWriter,
    fixed_batch,
    read_csv_log,
    write_panel,
)

IMAGES = smooth_images(16, (48, 48))
UNSEEN = dataset_of(smooth_images(10, (48, 48), seed=1))


def trainer_with(*handlers: object, epochs: int = 2, **options: object):
    return tiny_trainer(tiny_afire(shift=2), IMAGES, epochs, handlers=handlers, **options)


# log ------------------------------------------------------------------------------------------------------------------


def test_log_has_a_line_an_epoch_with_losses_schedules_and_health(tmp_path):
    trainer_with(HealthMonitor(UNSEEN, 6), CsvLogger(tmp_path / "logs" / "log.csv"), epochs=3).run()
    rows = read_csv_log(tmp_path / "logs" / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    wanted = {"structure", "category", "restoration", "loss", "lr", "weight_decay", "momentum", "images_per_second"}
    assert wanted | {"feature_std_ratio", "position_gap", "validation_restoration"} <= rows[0].keys()
    assert not list(tmp_path.glob("**/*.part"))


def test_resumed_run_keeps_the_earlier_lines_and_replaces_the_later_ones(tmp_path):
    log = tmp_path / "log.csv"
    trainer_with(CsvLogger(log), CheckpointKeeper(tmp_path, keep=3), epochs=3).run()
    whole = read_csv_log(log)
    # as if the run had been killed after the line of the third epoch was written, but not its checkpoint
    max(list_checkpoints(tmp_path)).unlink()
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[2]["loss"] = "999"
    with log.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, {**rows[2], "epoch": "4"}])
    run_or_stop(trainer_with(CsvLogger(log), CheckpointKeeper(tmp_path, keep=3), epochs=3), tmp_path, resume=True)
    again = read_csv_log(log)
    for row in (*whole, *again):
        del row["images_per_second"]  # the clock's
    assert again == whole


def test_figures_that_appear_later_get_a_column_of_their_own(tmp_path):
    log = tmp_path / "log.csv"
    trainer_with(HealthMonitor(UNSEEN, 6, every_epochs=2), CsvLogger(log), epochs=2).run()
    first, second = read_csv_log(log)
    assert "effective_rank" not in first
    assert second["effective_rank"] > 1


@pytest.mark.parametrize("text", ["epoch;loss\n1;0,5\n", "epoch,loss\n1,2,3\n", "loss\n1\n"])
def test_log_that_another_program_has_saved_is_set_aside_and_ends_no_training(tmp_path, text, caplog):
    path = tmp_path / "log.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AfireError, match=r"log\.csv is not a log of this project"):
        read_csv_log(path)
    trainer_with(CsvLogger(path), epochs=1).run()
    assert [row["epoch"] for row in read_csv_log(path)] == [1]
    assert (tmp_path / "damaged_log.csv").read_text(encoding="utf-8") == text
    assert "damaged_log.csv" in caplog.text


def test_log_that_is_not_there_reads_as_empty_and_a_mark_of_its_encoding_does_not_count(tmp_path):
    assert read_csv_log(tmp_path / "log.csv") == []
    (tmp_path / "log.csv").write_text("epoch,loss\n1,2\n", encoding="utf-8-sig")
    assert read_csv_log(tmp_path / "log.csv") == [{"epoch": 1, "loss": 2}]


# health ---------------------------------------------------------------------------------------------------------------


def test_health_is_measured_at_intervals_and_always_at_the_end():
    measured = []
    trainer = trainer_with(HealthMonitor(UNSEEN, 6, every_epochs=2), epochs=3)
    original = trainer.method.health
    trainer.method.health = lambda *inputs: (measured.append(trainer.state.epoch), original(*inputs))[1]
    trainer.run()
    assert measured == [2, 3]


def test_an_old_figure_of_health_does_not_make_later_weights_the_best(tmp_path):
    keeper = CheckpointKeeper(tmp_path, every_epochs=3, best_key="validation_restoration")
    trainer = trainer_with(HealthMonitor(UNSEEN, 6, every_epochs=2), CsvLogger(tmp_path / "log.csv"), keeper, epochs=5)
    trainer.run()
    rows = read_csv_log(tmp_path / "log.csv")
    assert ["validation_restoration" in row for row in rows] == [False, True, False, True, True]
    # of the epochs with a checkpoint, 3 and 5, only the last was measured
    assert trainer.best_value == rows[4]["validation_restoration"]


def test_health_of_a_single_picture_is_not_measured_and_raises_no_alarm(caplog):
    trainer = trainer_with(HealthMonitor(UNSEEN, 1), epochs=1)
    trainer.run()
    assert "feature_std_ratio" not in trainer.state.metrics
    assert "takes 2 validation images, there is 1" in caplog.text
    assert "COLLAPSE" not in caplog.text


def test_health_is_measured_on_the_same_pictures_and_draws_each_time():
    seen = []
    trainer = trainer_with(HealthMonitor(UNSEEN, 6), epochs=2)
    original = trainer.method.health
    trainer.method.health = lambda *inputs: (seen.append(inputs), original(*inputs))[1]
    trainer.run()
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first, second)
    assert seen[0][0].shape == (6, 1, 48, 48)


def test_measuring_health_does_not_change_training():
    plain, watched = trainer_with(), trainer_with(HealthMonitor(UNSEEN, 6))
    plain.run()
    watched.run()
    for name, tensor in plain.method.state_dict().items():
        assert torch.equal(tensor, watched.method.state_dict()[name]), name


def test_collapse_is_said_in_the_log_in_plain_words(caplog):
    trainer = trainer_with(HealthMonitor(UNSEEN, 6), epochs=1)

    @trainer.on(Events.ITERATION_COMPLETED)
    def collapse():
        with torch.no_grad():
            for parameter in trainer.method.teacher.encoder.parameters():
                parameter.zero_()

    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert "epoch 1: COLLAPSE: the encoder gives nearly the same features" in caplog.text


def test_shortcut_is_said_after_the_first_measurement_and_at_the_end(caplog):
    with caplog.at_level(logging.INFO):
        trainer_with(HealthMonitor(UNSEEN, 6), epochs=3).run()
    said = [r.getMessage()[:8] for r in caplog.records if "Position shortcut" in r.getMessage()]
    assert said == ["epoch 1:", "epoch 3:"]


def test_best_checkpoint_is_that_of_the_lowest_restoration_on_unseen_pictures(tmp_path):
    seen = []
    trainer = trainer_with(HealthMonitor(UNSEEN, 6), CheckpointKeeper(tmp_path), epochs=4)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: seen.append((trainer.state.metrics["validation_restoration"], trainer.state.iteration)),
    )
    trainer.run()
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["progress"]["iteration"] == min(seen)[1]
    assert best["progress"]["best_value"] == pytest.approx(min(seen)[0])


def test_best_figure_that_is_not_measured_ends_the_run_with_a_checkpoint_and_the_way_on(tmp_path):
    trainer = trainer_with(HealthMonitor(UNSEEN, 6), CheckpointKeeper(tmp_path, best_key="validation_restor"), epochs=4)
    with pytest.raises(AfireError, match=r"'validation_restor' is not measured.*--best_figure validation_restoration"):
        trainer.run()
    assert len(list(tmp_path.glob("checkpoint_*.pt"))) == 1


# pictures -------------------------------------------------------------------------------------------------------------


def test_panels_are_written_at_intervals_and_at_the_end(tmp_path):
    trainer_with(PanelWriter(UNSEEN, tmp_path / "panels", count=3, every_epochs=2), epochs=3).run()
    files = sorted((tmp_path / "panels").iterdir())
    assert [file.name for file in files] == ["epoch_0002.png", "epoch_0003.png"]
    picture = Image.open(files[0])
    assert picture.mode == "L"
    assert picture.size == (3 * 32, 5 * 32)  # three pictures; image, twin, mask, restoration, repaired twin
    assert np.asarray(picture).std() > 10


def test_panel_has_a_row_for_each_name_and_a_column_for_each_picture(tmp_path):
    grey = torch.arange(4).view(2, 2, 1, 1, 1).expand(2, 2, 1, 3, 5) / 10
    write_panel({"a": grey[0], "b": grey[1]}, tmp_path / "new" / "panel.png")
    pixels = np.asarray(Image.open(tmp_path / "new" / "panel.png"))
    assert pixels.shape == (6, 10)
    corners = [[pixels[0, 0], pixels[0, 9]], [pixels[5, 0], pixels[5, 9]]]
    assert corners == [[0, 26], [51, 76]]  # 0, 0.1, 0.2 and 0.3 of 255, rounded


def test_fixed_batch_is_evenly_spaced_and_never_larger_than_the_data_set():
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    assert fixed_batch(dataset_of(images), 5)[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8]
    assert len(fixed_batch(dataset_of(images), 64)) == 10


def test_progress_bar_shows_losses(capsys, monkeypatch):
    monkeypatch.setattr("afire_monai.training.handlers.hidden", lambda: False)  # as on a terminal
    trainer_with(ProgressBar(), epochs=1).run()
    shown = capsys.readouterr().err
    assert "pre-training" in shown
    assert "restoration" in shown


# MLflow ---------------------------------------------------------------------------------------------------------------


def test_an_error_closes_what_every_handler_has_open(tmp_path):
    bar, writer = ProgressBar(), TensorBoardWriter(tmp_path)
    trainer = trainer_with(writer, bar)

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail() -> None:
        raise RuntimeError("it")

    closed = []
    trainer.add_event_handler(Events.STARTED, lambda: setattr(bar.bar, "close", lambda: closed.append(True)))
    with pytest.raises(RuntimeError, match="it"):
        trainer.run()
    assert closed


def test_first_error_is_not_hidden_by_the_closing_of_what_had_not_been_opened():
    trainer = trainer_with()

    @trainer.on(Events.STARTED)
    def fail():
        raise AfireError("first")

    ProgressBar().attach(trainer)  # after the one that fails, as MLflow's is in the configs
    with pytest.raises(AfireError, match="first"):
        trainer.run()
