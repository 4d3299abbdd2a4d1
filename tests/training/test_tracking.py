from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import dataset_of, smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.training import CheckpointKeeper, PretrainTrainer, tracking
from afire_monai.training.handlers import HealthMonitor, PanelWriter, TensorBoardWriter
from afire_monai.training.tracking import mlflow_handler

IMAGES = smooth_images(16, (48, 48))
UNSEEN = dataset_of(smooth_images(10, (48, 48), seed=1))


def trainer_with(*handlers: object, epochs: int = 2, **options: object):
    return tiny_trainer(tiny_afire(shift=2), IMAGES, epochs, handlers=handlers, **options)


def test_mlflow_runs_have_their_own_names_and_a_resumed_one_goes_on_under_its_name(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tmp_path / "settings.yaml"
    long = "x" * 999
    settings.write_text(f"epochs: 2\nlr: 0.5\nlong: {long}\ndatalist: /home/me/list.json\noutput_dir: /home/me/runs\n")
    tags = {"data_sha256": "abc"}

    def handler(name: str):
        return mlflow_handler(tmp_path, name, every=3, seconds=0, tags=tags, artifacts=[settings])

    trainer_with(HealthMonitor(UNSEEN, 6), handler("first")).run()
    broken = trainer_with(handler("second"))

    @broken.on(Events.EPOCH_COMPLETED(once=1))
    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run()
    trainer_with(handler("second")).run()

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("afire-pretraining")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert runs.keys() == {"first", "second"}
    first = runs["first"]
    wanted = {"step/loss", "step/restoration", "restoration", "effective_rank", "position_gap"}
    assert wanted <= first.data.metrics.keys()
    assert first.data.params["lr"] == "0.5"
    assert len(first.data.params["long"]) == 250
    assert first.data.params["datalist"] == "list.json"
    assert "output_dir" not in first.data.params
    assert {"afire_monai": __version__, "method": "AFiRe", "data_sha256": "abc"}.items() <= first.data.tags.items()
    steps = [m.step for m in client.get_metric_history(first.info.run_id, "step/loss")]
    assert steps == [3, 6]  # of eight iterations
    assert [a.path for a in client.list_artifacts(first.info.run_id)] == ["settings.yaml"]
    assert "effective_rank" not in runs["second"].data.metrics


def test_tensorboard_gets_the_figures_of_each_epoch_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    panels = PanelWriter(UNSEEN, tmp_path / "panels", count=2, every_epochs=2)
    trainer = trainer_with(TensorBoardWriter(tmp_path / "tensorboard"), panels)
    trainer.run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("restoration")] == [1, 2]
    assert events.Scalars("restoration")[-1].value == pytest.approx(trainer.state.metrics["restoration"], rel=1e-6)
    assert [event.step for event in events.Images("panels")] == [2]


def test_settings_that_a_resumed_run_changes_are_no_error_and_results_join_the_ended_run(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "settings.yaml").write_text("epochs: 2\n")
    broken = trainer_with(mlflow_handler(tmp_path, "run"))

    @broken.on(Events.EPOCH_COMPLETED(once=1))
    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run()
    (tmp_path / "settings.yaml").write_text("epochs: 3\nseed: 1\n")
    trainer = trainer_with(mlflow_handler(tmp_path, "run"))
    trainer.run()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/encoder.json").write_text("{}")
    files = [tmp_path / "models/encoder.json", tmp_path / "absent.html"]
    tracking.log_results(trainer, {"worth/this_encoder": 0.75}, files)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("afire-pretraining")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.data.params["epochs"], run.data.params["seed"]) == ("2", "1")
    assert run.data.metrics["worth/this_encoder"] == 0.75
    assert [a.path for a in client.list_artifacts(run.info.run_id, "models")] == ["models/encoder.json"]


def test_run_that_was_killed_after_its_last_epoch_is_ended_by_the_next_start_and_an_ended_one_is_left(
    tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tmp_path / "settings.yaml"
    settings.write_text("epochs: 2\n")

    def start() -> PretrainTrainer:
        keeper = CheckpointKeeper(tmp_path / "checkpoints", best_key=None)
        trainer = trainer_with(mlflow_handler(tmp_path, "run", artifacts=[settings]), keeper)
        trainer.resume(tmp_path / "checkpoints", True)
        return trainer

    killed = start()

    @killed.on(Events.EPOCH_COMPLETED(once=2))
    def kill() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    states = []
    for _ in range(2):
        trainer = start()
        trainer.run()
        (run,) = client.search_runs([client.get_experiment_by_name("afire-pretraining").experiment_id])
        states.append((run.info.status, run.info.end_time, [a.path for a in client.list_artifacts(run.info.run_id)]))
        tracking.log_results(trainer, {"worth/this_encoder": 0.75}, [])  # also of a run that ended before they came
        (run,) = client.search_runs([client.get_experiment_by_name("afire-pretraining").experiment_id])
        assert run.data.metrics["worth/this_encoder"] == 0.75
    assert states[0] == states[1]
    assert states[0][0] == "FINISHED"
    assert states[0][2] == ["settings.yaml"]


def test_store_whose_making_was_cut_off_is_made_anew(tmp_path, monkeypatch):
    import mlflow

    def killed(tracking_uri: str) -> None:
        Path(tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half a store")
        raise KeyboardInterrupt

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", killed)
        with pytest.raises(KeyboardInterrupt):
            mlflow_handler(tmp_path, "run")
    (tmp_path / ".mlflow.db.part").write_bytes(b"half a store")  # SIGKILL leaves it
    (tmp_path / ".mlflow.db.part-journal").write_bytes(b"half a journal")
    assert [e.name for e in mlflow_handler(tmp_path, "run").client.search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_mlflow_does_not_get_losses_more_often_than_it_can_take_them(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    seconds = iter(range(100))  # each look at the clock is a second later; there are two where losses are logged
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)), time=time.time)
    monkeypatch.setattr("afire_monai.training.tracking.time", clock)
    trainer_with(mlflow_handler(tmp_path, "run", every=1, seconds=3)).run()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("afire-pretraining")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "step/loss")] == [1, 4, 7]


@pytest.mark.parametrize("listens", [True, False], ids=["mute", "absent"])
def test_mlflow_server_that_does_not_answer_is_refused_at_the_start_with_the_way_out(listens, tmp_path, monkeypatch):
    real = tracking._refuse_silent_server
    monkeypatch.setattr(tracking, "_refuse_silent_server", lambda uri: real(uri, seconds=0.2))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:secret@127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(AfireError, match=r"127.0.0.1 does not answer.*MLFLOW_TRACKING_URI.*use_mlflow") as caught:
            mlflow_handler(tmp_path, "run")
    assert "secret" not in str(caught.value)


def breaking(handler, calls):
    """Return what lets the store of a handler refuse the calls of these numbers, counted from 1."""
    count = 0

    def through(name):
        real = getattr(handler.client, name)

        def call(*args, **options):
            nonlocal count
            count += 1
            if count in calls:
                raise ConnectionError("store is gone: /secret/place")
            return real(*args, **options)

        return call

    def started(_):  # what happens at the start is refused at the start
        for name in ("log_batch", "log_artifact", "set_terminated"):
            setattr(handler.client, name, through(name))

    return started


def history(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("afire-pretraining").experiment_id])
    steps = {name: [m.step for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
    return run, steps, client


def test_a_store_that_fails_for_a_while_costs_no_figure_no_picture_and_not_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    handler = mlflow_handler(tmp_path, "run", every=1, seconds=0)
    handler.retry_seconds = 0
    panels = PanelWriter(UNSEEN, tmp_path / "panels", 2, every_epochs=1)
    trainer = trainer_with(handler, panels)
    trainer.add_event_handler(Events.STARTED, breaking(handler, range(3, 9)))
    with caplog.at_level(logging.INFO):
        trainer.run()
    run, steps, client = history(tmp_path)
    assert run.info.status == "FINISHED"
    assert steps["step/loss"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert steps["loss"] == [1, 2]
    assert len(client.list_artifacts(run.info.run_id, "panels")) == 2
    said = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert ["ConnectionError" in said[0], "answers again" in said[-1], len(said)] == [True, True, 2]
    assert "secret" not in caplog.text


def test_a_store_that_stays_away_ends_in_a_warning_that_counts_what_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = tmp_path / "settings.yaml"
    settings.write_text("epochs: 2\n")
    handler = mlflow_handler(tmp_path, "run", every=1, seconds=0, artifacts=[settings])
    trainer = trainer_with(handler)
    trainer.add_event_handler(Events.STARTED, breaking(handler, range(3, 1000)))
    trainer.run()
    assert trainer.state.epoch == 2
    run, steps, _ = history(tmp_path)
    assert run.info.status == "RUNNING"
    assert steps["step/loss"] == [1]
    figures = len(handler.figures)
    assert figures >= 6 * 4
    assert f"lacks {figures} figures and 1 files" in caplog.text
    assert "log.csv" in caplog.text
