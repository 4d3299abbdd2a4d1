from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request

import mlflow
import pytest

from afire_monai.core.errors import AfireError
from afire_monai.training.run_stores import CombinedStore, find_stores, make_store, show_runs


def log(folder, experiment, losses, note="first"):
    """Write a run with MLflow's own client, as a pre-training does; return its id."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "mlflow.db").exists():
        make_store(folder / "mlflow.db")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    known = client.get_experiment_by_name(experiment)
    place = known.experiment_id if known else client.create_experiment(experiment, (folder / "mlruns").as_uri())
    run = client.create_run(place, run_name=folder.name).info.run_id
    client.log_param(run, "lr", "0.1")
    client.set_tag(run, "note", note)
    for step, loss in enumerate(losses):
        client.log_metric(run, "loss", loss, step=step)
    client.log_text(run, note, "note.txt")
    return run


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Two experiments under one number, and one experiment in two stores."""
    folder = tmp_path_factory.mktemp("logged")
    first = log(folder / "runs/a", "pretraining", [3.0, 2.0, 1.0])
    second = log(folder / "runs/b", "finetuning", [0.5])
    third = log(folder / "runs/deep/c", "pretraining", [4.0])
    return folder, (first, second, third)


@pytest.fixture
def stores(logged, tmp_path):
    shutil.copytree(logged[0], tmp_path, dirs_exist_ok=True)
    return logged[1]


def test_runs_of_all_folders_are_in_one_store(tmp_path, stores):
    combined = CombinedStore(tmp_path / "all.db", find_stores([tmp_path / "runs"]))
    assert combined.refresh() == 3
    experiments = {e.name: e.experiment_id for e in combined.client.search_experiments()}
    for name, runs in {"pretraining": {stores[0], stores[2]}, "finetuning": {stores[1]}}.items():
        assert {run.info.run_id for run in combined.client.search_runs([experiments[name]])} == runs
    run = combined.client.get_run(stores[0])
    assert run.info.run_name == run.data.tags["mlflow.runName"] == "a/a"
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"loss": 1.0}
    assert run.data.tags["note"] == "first"
    assert [m.value for m in combined.client.get_metric_history(stores[0], "loss")] == [3.0, 2.0, 1.0]


def test_what_a_run_logs_later_is_seen_and_its_store_is_only_read(tmp_path, stores):
    store = tmp_path / "runs/b/mlflow.db"
    combined = CombinedStore(tmp_path / "all.db", find_stores([tmp_path / "runs"]))
    combined.refresh()
    before = store.read_bytes()
    combined.refresh()
    assert store.read_bytes() == before
    mlflow.MlflowClient(f"sqlite:///{store}").log_metric(stores[1], "loss", 0.25, step=1)
    assert combined.refresh() == 3
    assert combined.client.get_run(stores[1]).data.metrics == {"loss": 0.25}


def test_files_of_a_folder_that_was_moved_are_found(tmp_path, stores):
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    combined = CombinedStore(tmp_path / "all.db", find_stores([tmp_path / "elsewhere"]))
    combined.refresh()
    assert combined.client.list_artifacts(stores[2])[0].path == "note.txt"


@pytest.mark.parametrize("damage", ["text", "tables"])
def test_store_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, stores, damage, caplog):
    store = tmp_path / "runs/a/mlflow.db"
    if damage == "text":
        store.write_bytes(b"no data base" * 100)
    else:
        with sqlite3.connect(store) as base:
            base.execute("DROP TABLE runs")
    combined = CombinedStore(tmp_path / "all.db", find_stores([tmp_path / "runs"]))
    assert combined.refresh() == 2
    assert "runs/a/mlflow.db is left out" in caplog.text


def test_folders_without_a_logged_run_are_named(tmp_path):
    with pytest.raises(AfireError, match="use_mlflow=true"):
        find_stores([tmp_path])
    with pytest.raises(AfireError, match="no such folder"):
        find_stores([tmp_path / "missing"])


@pytest.mark.skipif(os.name != "posix", reason="the server's processes are ended as a group")
def test_pages_are_served_until_the_command_is_ended_and_nothing_is_left(tmp_path, stores):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", "from afire_monai.cli.main import main; main()"]
    server = subprocess.Popen(
        [*command, "ui", str(tmp_path / "runs"), "--port", str(port)],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline() == f"3 runs of 3 folders: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        ends = time.monotonic() + 120
        while True:
            try:
                assert b"MLflow" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
                break
            except OSError:
                assert time.monotonic() < ends
                assert server.poll() is None
                time.sleep(0.5)
        with pytest.raises(AfireError, match=f"port {port} .*--port"):
            show_runs([tmp_path / "runs"], port)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    assert list((tmp_path / "tmp").iterdir()) == []
