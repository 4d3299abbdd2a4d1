"""One run, one folder: a second start is refused before anything is touched, and a killed run's folder taken over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers import smooth_images, tiny_afire, tiny_trainer
from training_runs import PYTHONPATH

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.training import run_folder, startup
from afire_monai.training.checkpoint_keeper import CheckpointKeeper

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
FILES = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")]
OWNER = "import sys; from pathlib import Path; from afire_monai.training import run_folder\n"


@pytest.fixture(autouse=True)
def leave_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(run_folder, "_held", {})
    monkeypatch.setattr(run_folder, "_waiting", {})


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    """Start a process that claims a folder and then runs a script; return when it says that it has got so far."""
    code = f"{OWNER}run_folder.claim(Path({str(folder)!r}))\nprint('claimed', flush=True)\n{script}"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    owner = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "claimed\n"
    return owner


def prepare(folder: Path, *words: str) -> None:
    startup.prepare_run(folder, ["scripts.py", "run", "--config_file", str(FILES), *words])


def test_second_start_is_refused_before_anything_is_touched_and_the_first_ends(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    kept = [tmp_path / "settings.yaml", checkpoints / ".checkpoint_00000001.pt.9.part"]
    for path in kept:
        path.write_text("of the first")
    owner = start(tmp_path, "sys.stdin.read()")
    with pytest.raises(AfireError, match=rf"process {owner.pid}, since .*running.*another --output_dir"):
        prepare(tmp_path, "--epochs", "3")
    assert [path.read_text() for path in kept] == ["of the first"] * 2
    owner.communicate(timeout=60)
    assert owner.returncode == 0
    assert not (tmp_path / run_folder.LOCK).exists()
    prepare(tmp_path, "--epochs", "3")
    assert yaml.safe_load(kept[0].read_text())["epochs"] == 3


RACE = """
import multiprocessing, sys
from pathlib import Path
from afire_monai.core.errors import AfireError
from afire_monai.training import run_folder

def start(folder, barrier, results):
    for number in range(20):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        barrier.wait()
        try:
            run_folder.claim(place)
            results.put((number, "claimed"))
        except AfireError:
            results.put((number, "refused"))
        barrier.wait()

fork = multiprocessing.get_context("fork")
barrier, results = fork.Barrier(3), fork.SimpleQueue()
runs = [fork.Process(target=start, args=(Path(sys.argv[1]), barrier, results)) for _ in range(3)]
for run in runs:
    run.start()
print(sorted(results.get() for _ in range(60)))
for run in runs:
    run.join()
"""


@pytest.mark.parametrize("left", ["", '{"host": "HOST", "space": "SPACE", "pid": 1, "began": "of a killed one"}'])
def test_of_starts_at_once_one_gets_the_folder(left, tmp_path):
    here = run_folder._self()
    for number in range(20) if left else ():
        (tmp_path / str(number)).mkdir()
        words = left.replace("HOST", str(here["host"])).replace("SPACE", str(here["space"]))
        (tmp_path / str(number) / run_folder.LOCK).write_text(words)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    expected = [(number, word) for number in range(20) for word in ("claimed", "refused", "refused")]
    assert done.stdout == f"{expected}\n"


def test_folder_of_a_killed_owner_is_taken_over(tmp_path):
    owner = start(tmp_path, "sys.stdin.read()")
    owner.kill()  # and not waited for: it stays in the table of processes
    while run_folder._began(owner.pid) is not None:
        time.sleep(0.01)
    run_folder.claim(tmp_path)
    assert json.loads((tmp_path / run_folder.LOCK).read_text())["pid"] == os.getpid()
    owner.communicate()
    run_folder.claim(tmp_path)  # the same process again
    run_folder.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_process_of_the_same_number_that_began_later_is_not_the_owner(tmp_path):
    lock = tmp_path / run_folder.LOCK
    lock.write_text(json.dumps({**run_folder._self(), "began": "1"}))
    run_folder.claim(tmp_path)
    assert json.loads(lock.read_text()) == {**run_folder._self(), "file": lock.stat().st_ino}


def test_copy_of_a_folder_that_is_in_use_belongs_to_nobody(tmp_path):
    (tmp_path / "run").mkdir()
    run_folder.claim(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run_folder.claim(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / run_folder.LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("words", ['{"host": "elsewhere", "pid": 1}', "half a li"])
def test_owner_on_another_machine_lives_until_it_has_been_silent_for_long(words, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "BEAT", 0.02)
    lock = tmp_path / run_folder.LOCK
    lock.write_text(words)
    with pytest.raises(AfireError, match=r"heard of \d+ seconds ago \(it counts as gone after 300\)"):
        run_folder.claim(tmp_path)
    assert lock.read_text() == words
    os.utime(lock, (time.time() - 301,) * 2)
    run_folder.claim(tmp_path)


YEAR = 365 * 86400


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_owner_elsewhere_keeps_its_folder_when_the_clock_is_set_and_leaves_it_when_it_is_gone(
    jump, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_folder, "BEAT", 0.2)
    lock = tmp_path / run_folder.LOCK
    lock.write_text('{"host": "elsewhere", "pid": 1}')
    os.utime(lock, (time.time() - jump,) * 2)  # as if the clock had been set since the last sign of life
    ended = threading.Event()
    beat = threading.Thread(target=run_folder._beat, args=(lock, ended))
    beat.start()
    try:
        with pytest.raises(AfireError, match=r"elsewhere .*, which gives signs of life"):
            run_folder.claim(tmp_path)
    finally:
        ended.set()
        beat.join()
    os.utime(lock, (time.time() - jump,) * 2)
    run_folder.claim(tmp_path)


def test_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "BEAT", 0.01)
    run_folder.claim(tmp_path)
    lock = tmp_path / run_folder.LOCK
    os.utime(lock, (1, 1))
    while lock.stat().st_mtime == 1:
        time.sleep(0.01)


def test_process_that_torchrun_restarted_takes_the_folder_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    (tmp_path / run_folder.LOCK).write_text('{"host": "elsewhere", "pid": 1, "job": "job 7"}')
    with pytest.raises(AfireError, match="elsewhere"):
        run_folder.claim(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run_folder.claim(tmp_path)


def test_other_processes_of_a_torchrun_leave_the_folder_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_of_a_finished_run_stay_where_a_start_is_refused(tmp_path):
    def trainer(epochs: int):
        keeper = CheckpointKeeper(tmp_path / "checkpoints", best_key=None)
        return tiny_trainer(tiny_afire(shift=2), smooth_images(8, (48, 48)), epochs, handlers=[keeper])

    prepare(tmp_path, "--epochs", "1")
    first = trainer(1)
    first.resume(tmp_path / "checkpoints", False)
    first.run()
    prepare(tmp_path, "--epochs", "2")
    with pytest.raises(CheckpointError, match="an earlier run"):
        trainer(2).resume(tmp_path / "checkpoints", False)
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["epochs"] == 1
    trainer(2).resume(tmp_path / "checkpoints", True)
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["epochs"] == 2
