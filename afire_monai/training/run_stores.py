"""The MLflow stores of several runs in one view: each run keeps its own, so that a run is one folder."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 10.0
STORE = "mlflow.db"
TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")


def make_store(path: Path) -> None:
    """Make an SQLite store that takes its name when it is whole: one that was killed in between never opens again.

    Until then MLflow does not wait for the disk at its many steps: this takes one second instead of five.
    """
    import mlflow
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def wait_for_nothing(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    with whole_file(path) as part:
        for left in (part, part.with_name(f"{part.name}-journal")):
            left.unlink(missing_ok=True)
        event.listen(Engine, "connect", wait_for_nothing)
        try:
            mlflow.MlflowClient(f"sqlite:///{part}").search_experiments(max_results=1)
        finally:
            event.remove(Engine, "connect", wait_for_nothing)


def find_stores(folders: Sequence[str | Path]) -> list[Path]:
    """Return the MLflow stores of run folders, or of the folders that hold them, sorted by path.

    Raises:
        AfireError: for a folder that does not exist, or if no run below the folders was logged.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise AfireError(f"{folder}: no such folder; give run folders, or one that holds them")
    found = sorted({store.resolve() for folder in folders for store in Path(folder).rglob(STORE) if store.is_file()})
    if not found:
        names = ", ".join(map(str, folders))
        raise AfireError(f"no run below {names} was logged to MLflow ({STORE}); pre-train with use_mlflow=true")
    return found


class CombinedStore:
    """One MLflow store with the runs of several.

    Args:
        path: the new store; a file that does not exist.
        stores: the runs' stores. They are only read.
    """

    def __init__(self, path: Path, stores: Sequence[Path]) -> None:
        import mlflow

        self.path, self.stores = path, tuple(stores)
        make_store(path)
        self.client = mlflow.MlflowClient(f"sqlite:///{path}")
        self._seen: dict[Path, float] = {}

    def refresh(self) -> int:
        """Take in new log entries, and return the number of runs.

        A store that cannot be read, or is of another version of MLflow, is left out with a warning, once.
        """
        for store in self.stores:
            changed = store.stat().st_mtime if store.is_file() else -1.0
            if self._seen.get(store) == changed:
                continue
            try:
                self._take(store)
            except sqlite3.OperationalError as error:
                if "locked" in str(error):  # its run is writing: try again next time
                    continue
                logger.warning("%s is left out: %s", store, error)
            except sqlite3.DatabaseError as error:
                logger.warning("%s is left out: %s", store, error)
            self._seen[store] = changed
        with contextlib.closing(sqlite3.connect(self.path)) as combined:
            return int(combined.execute("SELECT count(*) FROM runs").fetchone()[0])

    def _take(self, store: Path) -> None:
        with contextlib.closing(sqlite3.connect(self.path, uri=True)) as combined:
            combined.execute("ATTACH ? AS one", (f"{store.as_uri()}?mode=ro",))
            named = combined.execute(
                "SELECT DISTINCT e.experiment_id, e.name FROM one.experiments e JOIN one.runs r USING (experiment_id)"
            ).fetchall()
            places = {number: self._experiment(name) for number, name in named}
            with combined:
                for table in TABLES:
                    names = self._columns(combined, table)
                    combined.execute(f"INSERT OR REPLACE INTO main.{table} ({names}) SELECT {names} FROM one.{table}")
                runs = combined.execute("SELECT run_uuid, experiment_id, artifact_uri, name FROM one.runs").fetchall()
                here = (store.parent / "mlruns").as_uri()
                for run, number, artifacts, name in runs:
                    # the folder may have been moved since
                    _, found, rest = str(artifacts).rpartition("/mlruns")
                    moved = here + rest if found else artifacts
                    # runs have the same name unless somebody named them; their folders have different names
                    label = f"{store.parent.name}/{name}"
                    combined.execute(
                        "UPDATE main.runs SET experiment_id = ?, artifact_uri = ?, name = ? WHERE run_uuid = ?",
                        (places[number], moved, label, run),
                    )
                    change = "UPDATE main.tags SET value = ? WHERE key = 'mlflow.runName' AND run_uuid = ?"
                    combined.execute(change, (label, run))

    def _experiment(self, name: str) -> int:
        known = self.client.get_experiment_by_name(name)
        return int(known.experiment_id if known else self.client.create_experiment(name))

    @staticmethod
    def _columns(combined: sqlite3.Connection, table: str) -> str:
        both = [[row[1] for row in combined.execute(f"PRAGMA {base}.table_info({table})")] for base in ("main", "one")]
        return ", ".join(f'"{name}"' for name in both[0] if name in both[1])


def show_runs(folders: Sequence[str | Path], port: int = 5000) -> int:
    """Open MLflow's pages on this machine over all runs below some folders, until interrupted.

    The runs' own stores are only read, again every few seconds; the combined store is temporary.

    Args:
        folders: run folders, or folders that hold them.
        port: port at which the pages are served, on 127.0.0.1 only.

    Returns:
        The exit status of MLflow's server; 0 if it was interrupted.

    Raises:
        AfireError: if no run was logged, or the port is in use.
    """
    stores = find_stores(folders)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise AfireError(f"port {port} cannot be used ({error}); name another with --port") from None
    with tempfile.TemporaryDirectory(prefix="afire-ui-") as folder, _ended_by_term():
        combined = CombinedStore(Path(folder) / STORE, stores)
        count = combined.refresh()
        print(f"{count} runs of {len(stores)} folders: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
        command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{combined.path}"]
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, cwd=folder, env=quiet, start_new_session=True)
        return _until_it_ends(server, combined.refresh)


@contextlib.contextmanager
def _ended_by_term() -> Iterator[None]:
    """Let a request to end (SIGTERM) act like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _until_it_ends(server: subprocess.Popen[bytes], refresh: Callable[[], int]) -> int:
    try:
        while True:
            try:
                return server.wait(timeout=REFRESH_SECONDS)
            except subprocess.TimeoutExpired:
                refresh()
    except KeyboardInterrupt:
        return 0
    finally:
        if os.name == "posix":  # this also ends its workers
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
        else:
            server.terminate()
        server.wait()
