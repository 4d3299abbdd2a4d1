"""A scheduler asks a run to stop: it ends at an update with a checkpoint, and goes on to the same weights."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import warm
from helpers import smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from training_runs import assert_same_state, run_or_stop

from afire_monai.training import CheckpointKeeper, PretrainTrainer, find_checkpoint
from afire_monai.training.checkpoint import list_checkpoints
from afire_monai.training.stopping import EXIT_STATUS, SIGNALS, StopRequest

IMAGES = smooth_images(20, (48, 48))
HANDLERS = [signal.getsignal(number) for number in SIGNALS]


def trainer_of(folder: Path, **options: object) -> PretrainTrainer:
    """5 iterations an epoch, with updates after the 2nd, 4th and 5th."""
    keeper = CheckpointKeeper(folder, **options)  # type: ignore[arg-type]
    return tiny_trainer(tiny_afire(shift=2), IMAGES, 3, handlers=[keeper], accumulation_steps=2)


def asked_at(iteration: int, folder: Path, number: int = signal.SIGTERM, **options: object) -> PretrainTrainer:
    """A run that gets a signal, twice, at the end of an iteration."""
    trainer = trainer_of(folder, **options)

    def ask() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), ask)
    trainer.resume(folder, False)
    with pytest.raises(SystemExit) as caught:
        trainer.run()
    assert caught.value.code == EXIT_STATUS == 75
    return trainer


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("iteration", "stopped", "options"),
    [
        (6, 7, {}),  # in the middle of an update
        (7, 7, {}),
        (9, 9, {"every_iterations": 2}),
        (10, 10, {}),  # at the end of an epoch
        (10, 10, {"every_epochs": 3}),
    ],
)
def test_run_stops_at_the_next_update_and_goes_on_to_the_same_weights(
    tmp_path, caplog, number, iteration, stopped, options
):
    whole = trainer_of(tmp_path / "whole", **options)
    whole.run()
    asked_at(iteration, tmp_path / "parts", number, **options)
    found = find_checkpoint(tmp_path / "parts")
    assert found is not None
    assert found[1]["progress"]["iteration"] == stopped
    assert f"written at iteration {stopped} of 15" in caplog.text
    assert "with --resume true continues from there" in caplog.text
    # whoever listened before listens again
    assert [signal.getsignal(number) for number in SIGNALS] == HANDLERS
    resumed = run_or_stop(trainer_of(tmp_path / "parts", **options), tmp_path / "parts", resume=True)
    assert resumed.state.iteration == 15
    assert_same_state(whole.method.state_dict(), resumed.method.state_dict())


def test_signal_in_the_last_iteration_lets_training_end_as_usual(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=15), lambda: os.kill(os.getpid(), signal.SIGTERM))
    ended = []
    trainer.add_event_handler(Events.COMPLETED, lambda: ended.append(trainer.state.epoch))
    trainer.run()
    assert ended == [3]
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint_00000015.pt"


def test_interrupted_run_is_not_reported_as_completed(tmp_path):
    seen = []
    trainer = trainer_of(tmp_path)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.add_event_handler(Events.COMPLETED, lambda: seen.append("completed"))
    with pytest.raises(SystemExit):
        trainer.run()
    assert seen == []


def test_without_a_place_for_checkpoints_signals_mean_what_they_meant():
    seen = []
    trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 1)
    trainer.add_event_handler(Events.STARTED, lambda: seen.extend(signal.getsignal(number) for number in SIGNALS))
    trainer.run()
    assert seen == HANDLERS


def test_thread_of_a_server_does_not_listen():
    from concurrent.futures import ThreadPoolExecutor

    def listen() -> list[object]:
        with StopRequest():
            return [signal.getsignal(number) for number in SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(listen).result() == HANDLERS


def test_process_with_loader_processes_ends_with_the_status_that_means_try_again(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from ignite.engine import Events\n"
        "from torch.utils.data import DataLoader\n"
        "from helpers import smooth_images, tiny_afire, tiny_trainer\n"
        "from afire_monai.training import CheckpointKeeper\n"
        "os.setsid()\n"
        "folder, pause = Path(sys.argv[1]), float(sys.argv[2])\n"
        "trainer = tiny_trainer(tiny_afire(shift=2), smooth_images(20, (48, 48)), 6)\n"
        "loader = trainer.data_loader\n"
        "trainer.data_loader = DataLoader(\n"
        "    loader.dataset, 4, sampler=loader.sampler, num_workers=1, persistent_workers=True)\n"
        "CheckpointKeeper(folder).attach(trainer)\n"
        "trainer.resume(folder, True)\n"
        "trainer.add_event_handler(Events.ITERATION_STARTED(once=8), lambda: print('eighth', flush=True))\n"
        "trainer.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(pause))\n"
        "trainer.run()\n"
        "torch.save(trainer.method.state_dict(), folder / 'final.pt')\n"
    )

    def start(name: str, pause: float) -> warm.Program:
        return warm.Program([script, tmp_path / name, str(pause)], tmp_path / f"{name}.txt")

    whole = start("whole", 0)
    assert whole.wait(120) == 0, whole.output()
    asked = start("asked", 0.1)
    while "eighth\n" not in asked.output():
        assert asked.poll() is None, asked.output()
        time.sleep(0.01)
    os.killpg(asked.pid, signal.SIGTERM)  # as launchers do: loader processes get it, too
    assert asked.wait(60) == EXIT_STATUS, asked.output()
    assert not (tmp_path / "asked" / "final.pt").exists()
    assert start("asked", 0).wait(120) == 0
    assert_same_state(*(torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "asked")))
