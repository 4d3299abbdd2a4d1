"""Odd names, moved folders and narrow consoles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import smooth_images, tiny_afire, tiny_trainer

from afire_monai.core.errors import AfireError
from afire_monai.training.settings import refuse_changed_names
from afire_monai.training.tracking import mlflow_handler

ROOT = Path(__file__).resolve().parents[2]


def log_a_run(folder: Path) -> None:
    handler = mlflow_handler(folder, "mine", artifacts=[folder / "kept.txt"], seconds=0)
    tiny_trainer(tiny_afire(), smooth_images(4, (32, 32)), epochs=1, handlers=[handler]).run()


@pytest.mark.parametrize("name", ["a#b", "50 %,ü", "12"])
def test_run_that_was_moved_logs_inside_itself(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before, after = tmp_path / name, tmp_path / "elsewhere"
    before.mkdir()
    (before / "kept.txt").write_text("first")
    log_a_run(before)
    assert len(list(before.rglob("artifacts/kept.txt"))) == 1
    shutil.move(before, after)
    log_a_run(after)
    assert not before.exists()
    assert len(list(after.rglob("artifacts/kept.txt"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}


@pytest.mark.parametrize("name", ["a%20b", "what?"])
def test_folder_that_mlflow_would_take_for_another_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(AfireError, match="--use_mlflow False"):
        mlflow_handler(tmp_path / name, "mine")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_console_of_any_encoding_shows_every_message(encoding, tmp_path):
    script = "from afire_monai.cli.main import run; run(['--version']); print('\\u2192 \\udcff')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"\\udcff" in done.stdout


@pytest.mark.parametrize(
    ("text", "way"), [("12", "\"'12'\""), ("a,b", "\"'a,b'\""), ("a#b", "\"'a#b'\""), ("%a", "./%a")]
)
@pytest.mark.parametrize("key", ["output_dir", "datalist", "run_name"])
def test_name_that_the_runner_would_change_is_refused_with_the_way_to_write_it(text, way, key):
    with pytest.raises(AfireError) as refused:
        refuse_changed_names({key: text})
    assert str(refused.value).startswith(f"--{key} {text}:")
    assert str(refused.value).endswith(way if way.startswith("./") else f"--{key} {way}")
    if not text.startswith("%"):
        refuse_changed_names({key: f"'{text}'"})
    refuse_changed_names({key: "runs/mine-1.json"})


@pytest.mark.parametrize("name", ["12", "a,b", "a#b"])
def test_names_of_the_console_script_arrive_as_they_were_typed(name, tmp_path, monkeypatch):
    from afire_monai.cli import bundle
    from afire_monai.training import startup
    from afire_monai.training.settings import command_line

    seen = []
    monkeypatch.setattr(startup, "prepare_run", lambda folder, words: seen.append((folder, command_line(words)[1])))
    with pytest.raises(Exception):  # noqa: B017  # no such list: only the words before it are looked at
        bundle.run_configs({"output_dir": str(tmp_path / name), "run_name": name, "datalist": name})
    folder, overrides = seen[0]
    assert folder == str(tmp_path / name)
    refuse_changed_names(overrides)
