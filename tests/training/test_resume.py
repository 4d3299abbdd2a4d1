"""Resuming: a run that was cut off ends with the weights of one that was not."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import warm
from helpers import full_afire, guided_afire, smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from training_runs import assert_same_state, run_or_stop

from afire_monai.core.errors import CheckpointError
from afire_monai.training import PretrainTrainer, checkpoint_keeper
from afire_monai.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from afire_monai.training.checkpoint_keeper import CheckpointKeeper

IMAGES = smooth_images(20, (48, 48))


def train(
    folder: Path, epochs: int, resume: bool = False, stop_after: int | None = None, every: int = 0, made=tiny_afire
):
    method = made(shift=2)
    keeper = CheckpointKeeper(folder, every_iterations=every, keep=2)
    trainer = tiny_trainer(method, IMAGES, epochs, handlers=[keeper], accumulation_steps=2)
    return run_or_stop(trainer, folder, resume, stop_after)


def test_four_epochs_equal_two_and_two(tmp_path):
    whole = train(tmp_path / "whole", 4)
    # the plan spans four epochs in both: the first process is stopped in between
    train(tmp_path / "parts", 4, stop_after=10)
    resumed = train(tmp_path / "parts", 4, resume=True)
    assert resumed.state.epoch == whole.state.epoch == 4
    assert_same_state(whole.method.state_dict(), resumed.method.state_dict())
    first, second = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key]["exp_avg_sq"], second[key]["exp_avg_sq"])


@pytest.mark.parametrize("made", [tiny_afire, full_afire, guided_afire], ids=["plain", "every optional term", "guided"])
def test_resume_in_the_middle_of_an_epoch_takes_up_the_order_of_images(tmp_path, made):
    whole = train(tmp_path / "whole", 3, made=made)
    # epochs of 5 iterations, updates after the 2nd, 4th and 5th of each: iteration 8 asks for a checkpoint in the
    # middle of an update, so iteration 9 gets it
    train(tmp_path / "parts", 3, stop_after=10, every=8, made=made)
    found = find_checkpoint(tmp_path / "parts")
    assert found is not None
    assert found[1]["progress"]["iteration"] == 9
    resumed = train(tmp_path / "parts", 3, resume=True, every=8, made=made)
    assert resumed.state.iteration == 15
    expected, got = whole.method.state_dict(), resumed.method.state_dict()
    assert_same_state(expected, got)


def test_kill_between_the_newest_and_the_best_checkpoint_changes_neither(tmp_path, monkeypatch):
    def trainer_of(folder: Path) -> PretrainTrainer:
        trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 2)

        def improve() -> None:
            trainer.state.metrics["validation_restoration"] = 1 / trainer.state.epoch

        trainer.add_event_handler(Events.EPOCH_COMPLETED, improve)
        CheckpointKeeper(folder, keep=2).attach(trainer)
        return trainer

    trainer_of(tmp_path / "whole").run()
    writes = 0

    def save_or_die(state: dict[str, object], path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes == 4:  # each epoch is the best so far and writes two
            raise KeyboardInterrupt
        save_checkpoint(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_keeper, "save_checkpoint", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            trainer_of(tmp_path / "parts").run()
    run_or_stop(trainer_of(tmp_path / "parts"), tmp_path / "parts", resume=True)
    for name in ("best.pt", "checkpoint_00000010.pt"):
        expected, got = (load_checkpoint(tmp_path / part / name) for part in ("whole", "parts"))
        assert_same_state(expected["method"], got["method"])
        assert got["progress"]["best_value"] == expected["progress"]["best_value"] == 0.5


def test_killed_process_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from ignite.engine import Events\n"
        "from helpers import smooth_images, tiny_afire, tiny_trainer\n"
        "from afire_monai.training import CheckpointKeeper\n"
        "folder, pause = Path(sys.argv[1]), float(sys.argv[2])\n"
        "trainer = tiny_trainer(tiny_afire(shift=2), smooth_images(20, (48, 48)), 6,\n"
        "                       handlers=[CheckpointKeeper(folder)])\n"
        "trainer.resume(folder, True)\n"
        "trainer.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(pause))\n"
        "trainer.run()\n"
        "torch.save(trainer.method.state_dict(), folder / 'final.pt')\n"
    )

    def start(folder: Path, pause: float) -> warm.Program:
        return warm.Program([script, folder, str(pause)], tmp_path / "log.txt")

    whole = start(tmp_path / "whole", 0)
    assert whole.wait(120) == 0
    killed = start(tmp_path / "killed", 0.05)
    while not list((tmp_path / "killed").glob("checkpoint_*.pt")):
        assert killed.poll() is None
        time.sleep(0.02)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.8))
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "final.pt").exists()
    assert start(tmp_path / "killed", 0).wait(120) == 0
    final = [torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed")]
    assert_same_state(*final)


def test_more_epochs_than_first_planned_may_be_asked_for(tmp_path, caplog):
    train(tmp_path, 2)
    longer = train(tmp_path, 3, resume=True)
    assert longer.state.epoch == 3
    assert "from 2 to 3" in caplog.text


def test_finished_run_is_left_as_it_is(tmp_path):
    before = train(tmp_path, 2).method.state_dict()
    again = train(tmp_path, 2, resume=True)
    assert again.state.epoch == 2
    assert_same_state(before, again.method.state_dict())


def test_a_run_that_went_back_does_not_take_up_what_it_left(tmp_path, caplog):
    train(tmp_path, 2)
    trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 2, handlers=[CheckpointKeeper(tmp_path, every_iterations=1)])
    run_or_stop(trainer, tmp_path, str(tmp_path / "checkpoint_00000005.pt"), stop_after=7)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["progress"]["iteration"] == 7
    assert (tmp_path / "abandoned_checkpoint_00000010.pt").is_file()
    assert "checkpoint_00000010.pt is later" in caplog.text


def test_a_run_that_went_back_does_not_end_with_the_best_of_what_it_left(tmp_path):
    def trainer():
        keeper = CheckpointKeeper(tmp_path, every_iterations=1, keep=20, best_key="error")
        trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 2)
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(error=-float(engine.state.epoch))
        )
        keeper.attach(trainer)
        return trainer

    run_or_stop(trainer(), tmp_path)
    assert load_checkpoint(tmp_path / "best.pt")["progress"]["iteration"] == 10
    again = trainer()
    again.resume(tmp_path, str(tmp_path / "checkpoint_00000007.pt"))
    assert (again.best_value, again.best_epoch) == (math.inf, 1)  # the first epoch's, -1.0, is lost
    assert not (tmp_path / "best.pt").exists()
    assert (tmp_path / "abandoned_best.pt").is_file()
    again.resume(tmp_path, str(tmp_path / "checkpoint_00000007.pt"))  # nothing is left to set aside
    assert again.best_value == -1.0


def test_damaged_newest_checkpoint_is_passed_over(tmp_path, caplog):
    train(tmp_path, 2)
    newest = max(tmp_path.glob("checkpoint_*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["progress"]["iteration"] == 5
    assert newest.name in caplog.text


def test_where_no_checkpoint_can_be_read_the_run_does_not_start_anew_in_silence(tmp_path):
    train(tmp_path, 1)
    for path in tmp_path.glob("checkpoint_*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no checkpoint .*can be read.*best\.pt"):
        train(tmp_path, 1, resume=True)
    assert [path.read_bytes() for path in tmp_path.glob("checkpoint_*.pt")] == [b"damaged"]


def test_checkpoint_just_written_is_kept_beside_a_damaged_one_of_a_higher_number(tmp_path):
    train(tmp_path, 1)
    (tmp_path / "checkpoint_00000099.pt").write_bytes(b"damaged")
    trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, 2, handlers=[CheckpointKeeper(tmp_path, keep=1)])
    trainer.resume(tmp_path, True)
    trainer.run()
    assert [path.name for path in tmp_path.glob("checkpoint_*.pt")] == ["checkpoint_00000010.pt"]


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".checkpoint_00000005.pt.123.part").write_bytes(b"half")
    train(tmp_path, 1)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_full_disk_is_told_with_the_way_out_and_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint_00000001.pt"
    path.write_bytes(b"earlier")
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: original(Path("/dev/full") if self.suffix == ".part" else self, *a, **k)
    )
    with pytest.raises(CheckpointError, match=r"cannot be written .*Make room in .*--resume true"):
        save_checkpoint({"tensor": torch.zeros(100_000)}, path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"earlier"]


def test_checkpoint_that_is_not_there_is_told_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*absent\.pt: --resume true"):
        load_checkpoint(tmp_path / "absent.pt")


def test_fresh_start_does_not_mix_with_an_earlier_run(tmp_path):
    train(tmp_path, 1)
    with pytest.raises(CheckpointError, match="--resume true"):
        train(tmp_path, 1)


def test_changed_data_or_network_is_refused_by_name(tmp_path):
    train(tmp_path, 1)
    state = load_checkpoint(max(tmp_path.glob("checkpoint_*.pt")))
    with pytest.raises(CheckpointError, match="images 20, this run has 24"):
        tiny_trainer(tiny_afire(shift=2), smooth_images(24, (48, 48)), batch_size=4, epochs=1).restore(
            {**state, "progress": {**state["progress"], "epoch_length": 6}}, "it"
        )
    with pytest.raises(CheckpointError, match="does not fit this network"):
        tiny_trainer(tiny_afire(shift=0), IMAGES, accumulation_steps=2).restore(state, "it")
    with pytest.raises(CheckpointError) as caught:
        tiny_trainer(tiny_afire(shift=3), smooth_images(20, (56, 56)), accumulation_steps=2).restore(state, "it")
    assert "settings.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_list_of_as_many_images_is_refused_and_a_moved_folder_is_not(tmp_path):
    def trainer(folder: str, first: str = "0.png", target: float = 1.0):
        made = tiny_trainer(tiny_afire(shift=2), IMAGES, accumulation_steps=2)
        names = [first, *(f"{number}.png" for number in range(1, 20))]
        items = [{"image": f"{folder}/{name}", "target": [target, float("nan")]} for name in names]
        made.data_loader.dataset.items = items
        return made

    state = trainer("/a").checkpoint_state()
    trainer("/b").restore(state, "it")
    for other in (trainer("/a", first="20.png"), trainer("/a", target=0.0)):
        with pytest.raises(CheckpointError, match="it was written with as many images of other names, masks or labels"):
            other.restore(state, "it")
    # a checkpoint of an older version says nothing of its data
    del state["progress"]["data"]
    trainer("/a", first="20.png").restore(state, "it")


def test_checkpoints_hold_tensors_and_plain_values_only_and_old_ones_go(tmp_path):
    train(tmp_path, 4)
    assert len(list(tmp_path.glob("checkpoint_*.pt"))) == 2
    assert not list(tmp_path.glob("*.part"))
    state = torch.load(max(tmp_path.glob("checkpoint_*.pt")), weights_only=True)
    assert {"student.encoder.cls_token", "teacher.encoder.cls_token", "prototypes.prototypes"} <= state["method"].keys()
