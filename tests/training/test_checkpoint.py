"""When checkpoints are written, which are kept, which is the best, and that all that was saved is taken up again."""

from __future__ import annotations

import logging
import math
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import smooth_images, tiny_afire, tiny_trainer

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.training.checkpoint import find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.stopping import SIGNALS, StopRequest, shield_workers


class Engine:
    """What a keeper asks of a trainer: 4 iterations an epoch, an update every second one."""

    def __init__(self, epochs: int = 4) -> None:
        self.state = SimpleNamespace(iteration=0, epoch=0, epoch_length=4, max_epochs=epochs, metrics={})
        self.best_value, self.stopped_early, self.signalled, self.interrupts = math.inf, False, False, 0

    @property
    def at_update(self) -> bool:
        return self.state.iteration % 2 == 0

    def checkpoint_state(self) -> dict[str, Any]:
        progress = {"iteration": self.state.iteration, "best_value": self.best_value}
        return {"method": {}, "optimizer": {}, "progress": progress, "random": {}}

    def check_finite(self) -> None:
        pass

    def asked_to_stop(self) -> bool:
        return self.signalled

    def interrupt(self) -> None:
        self.interrupts += 1

    def run(self, keeper: CheckpointKeeper, figures: list[float | None], stop_at: int = -1) -> list[list[int]]:
        """Go through epochs with one figure each; return what checkpoints there are after each iteration."""
        there = []
        for figure in figures:
            for _ in range(4):
                self.state.iteration += 1
                self.signalled = self.signalled or self.state.iteration == stop_at
                keeper._after_iteration(self)  # type: ignore[arg-type]
                there.append([int(path.stem[-8:]) for path in list_checkpoints(keeper.folder)])
                if self.interrupts:
                    return there
            self.state.epoch += 1
            self.state.metrics = {} if figure is None else {"validation_x": figure}
            keeper._after_epoch(self)  # type: ignore[arg-type]
            there[-1] = [int(path.stem[-8:]) for path in list_checkpoints(keeper.folder)]
        return there


def best(folder: Path) -> int:
    return load_checkpoint(folder / "best.pt")["progress"]["iteration"]


def test_best_is_written_where_the_figure_is_lower_than_ever_before_and_only_there(tmp_path):
    engine, keeper = Engine(), CheckpointKeeper(tmp_path, best_key="validation_x")
    seen = []
    for figure in (3.0, 1.0, 2.0, 1.0):
        engine.run(keeper, [figure])
        seen.append((best(tmp_path), engine.best_value))
    assert seen == [(4, 3.0), (8, 1.0), (8, 1.0), (8, 1.0)]
    assert load_checkpoint(tmp_path / "best.pt")["progress"]["best_value"] == 1.0


def test_without_a_figure_or_a_name_for_it_there_is_no_best(tmp_path):
    Engine().run(CheckpointKeeper(tmp_path / "a", best_key="validation_x"), [None])
    Engine().run(CheckpointKeeper(tmp_path / "b", best_key=None), [1.0])
    for name in "ab":
        assert [path.name for path in (tmp_path / name).iterdir()] == ["checkpoint_00000004.pt"]


def test_best_is_not_decided_by_the_figure_of_an_earlier_epoch(tmp_path):
    engine = Engine()
    engine.state.metrics = {"validation_x": 1.0}
    keeper = CheckpointKeeper(tmp_path, best_key="validation_x")
    keeper.save(engine)  # type: ignore[arg-type]
    assert not (tmp_path / "best.pt").exists()
    assert engine.best_value == math.inf


def test_epochs_that_are_written_by_default_and_by_every_and_how_many_are_kept(tmp_path):
    Engine(3).run(CheckpointKeeper(tmp_path / "a"), [None] * 3)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "checkpoint_00000008.pt",
        "checkpoint_00000012.pt",
    ]
    # the second, and the last one, which is the third
    assert Engine(3).run(CheckpointKeeper(tmp_path / "b", every_epochs=2, keep=9), [None] * 3)[-1] == [8, 12]
    assert Engine(3).run(CheckpointKeeper(tmp_path / "c", keep=3), [None] * 3)[-1] == [4, 8, 12]
    for keep in (1, 0):
        assert Engine(3).run(CheckpointKeeper(tmp_path / f"d{keep}", keep=keep), [None] * 3)[-1] == [12]


def test_iterations_that_are_due_wait_for_the_update_and_count_once(tmp_path):
    there = Engine().run(CheckpointKeeper(tmp_path, every_epochs=9, every_iterations=3, keep=9), [None] * 2)
    # due at 3, but the next update is the epoch's end, which writes nothing here: so the one after it; due again at 6
    assert there == [[], [], [], [], [], [6], [6], [6]]
    keeper = CheckpointKeeper(tmp_path / "b", every_epochs=9, every_iterations=6, keep=9)
    assert Engine().run(keeper, [None] * 3)[-1] == [6]  # not at the update of 10
    # due at an epoch's end, which writes one of its own
    assert Engine().run(CheckpointKeeper(tmp_path / "c", every_iterations=4), [None] * 2)[-3:] == [[4], [4], [4, 8]]


def test_without_every_iterations_only_epochs_are_written(tmp_path):
    assert Engine().run(CheckpointKeeper(tmp_path), [None]) == [[], [], [], [4]]


def test_signal_writes_at_the_next_update_and_ends_the_run(tmp_path):
    engine = Engine()
    there = engine.run(CheckpointKeeper(tmp_path), [None] * 2, stop_at=5)
    assert there[-2:] == [[4], [4, 6]]
    assert engine.interrupts == 1


@pytest.mark.parametrize(("epochs", "early", "interrupts"), [(4, False, 1), (1, False, 0), (4, True, 0)])
def test_signal_before_an_epochs_end_is_heeded_unless_training_ends_anyway(tmp_path, epochs, early, interrupts):
    engine = Engine(epochs)
    engine.stopped_early = early
    engine.run(CheckpointKeeper(tmp_path, every_epochs=3), [None], stop_at=3)
    assert engine.interrupts == interrupts
    assert len(list_checkpoints(tmp_path)) == 1  # that training was stopped early has to be known to a resumed run


def test_best_figure_that_is_not_there_is_named_only_where_others_are_measured(tmp_path):
    keeper = CheckpointKeeper(tmp_path, best_key="validation_y")
    Engine().run(keeper, [None])
    engine = Engine()
    with pytest.raises(AfireError, match=r"'validation_y' is not measured; there are validation_x .*validation_x$"):
        engine.run(keeper, [0.5])


def test_rehearsal_writes_both_files_elsewhere_and_counts_the_writes_of_an_epoch(tmp_path):
    for every_epochs, every_iterations, often in ((1, 0, 1.0), (2, 0, 0.5), (1, 2, 3.0), (2, 3, 1.5), (1, 1, 5.0)):
        keeper = CheckpointKeeper(tmp_path / "run" / "kept", every_epochs, every_iterations)
        assert keeper.rehearse(Engine(), tmp_path / "else") == often  # type: ignore[arg-type]
    assert keeper.folder == tmp_path / "run" / "kept"
    assert not keeper.folder.exists()
    assert {path.name for path in (tmp_path / "else" / "kept").iterdir()} == {"checkpoint_00000000.pt", "best.pt"}


def test_numbers_decide_the_order_and_other_names_do_not_count(tmp_path):
    for name in ("checkpoint_9.pt", "checkpoint_10.pt", "checkpoint_x.pt", "checkpoint_1.pt.part", "best.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint_9.pt", "checkpoint_10.pt"]


def test_newest_that_can_be_read_is_found_with_its_content(tmp_path, caplog):
    assert find_checkpoint(tmp_path) is None
    for number in (1, 2):
        save_checkpoint(Engine().checkpoint_state() | {"number": number}, tmp_path / f"checkpoint_{number}.pt")
    (tmp_path / "checkpoint_3.pt").write_bytes(b"damaged")
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert (found[0].name, found[1]["number"]) == ("checkpoint_2.pt", 2)
    assert "checkpoint_3.pt" in caplog.text
    assert "checkpoint_1.pt" not in caplog.text


@pytest.mark.parametrize(
    ("context", "expected", "words"),
    [
        (None, CheckpointError, r"a\.pt cannot be written \(writer failed\); earlier"),
        (OSError(28, "No space left"), CheckpointError, r"\(No space left\)"),
        (ValueError("else"), CheckpointError, r"\(writer failed\)"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_torchs_writer_raises_is_told_by_its_cause(tmp_path, monkeypatch, context, expected, words):
    def save(*_: object) -> None:
        try:
            if context is not None:
                raise context
        finally:
            raise RuntimeError("writer failed\nand more" + 200 * "x")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(expected, match=words):
        save_checkpoint({}, tmp_path / "new" / "a.pt")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("part", ["method", "optimizer", "progress", "random"])
def test_file_that_lacks_a_part_is_none_of_ours(tmp_path, part):
    for state in ({**Engine().checkpoint_state(), part: 1}, [1]):
        torch.save(state, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"not a checkpoint of this project: it lacks one of method"):
            load_checkpoint(tmp_path / "a.pt")


def test_one_wrong_bit_is_found_by_its_checksum(tmp_path):
    save_checkpoint({**Engine().checkpoint_state(), "tensor": torch.full((64,), 0.123)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(torch.full((9,), 0.123).numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"can be read \(wrong checksum of .*data/0\)"):
        load_checkpoint(tmp_path / "a.pt")


def test_signals_are_noted_by_name_the_first_one_counts_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as request:
        assert request.signal == ""
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert request._before == {}


def test_only_loaders_with_processes_and_nothing_else_to_start_are_shielded():
    own = print
    loaders = [SimpleNamespace(num_workers=n, worker_init_fn=f) for n, f in ((0, None), (2, None), (2, own))]
    for loader in loaders:
        shield_workers(loader)  # type: ignore[arg-type]
    assert loaders[0].worker_init_fn is None
    assert callable(loaders[1].worker_init_fn)
    assert loaders[2].worker_init_fn is own


def make(tmp_path: Path, seed: int = 0):
    torch.manual_seed(seed)
    images = smooth_images(8, (48, 48))
    return tiny_trainer(tiny_afire(shift=2), images, handlers=[CheckpointKeeper(tmp_path, best_key=None)])


def test_attaching_clears_what_is_half_written_and_nothing_else(tmp_path):
    for name in (".checkpoint_00000005.pt.123.part", "checkpoint_00000004.pt", ".note.part"):
        (tmp_path / name).write_bytes(b"half")
    trainer = make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".note.part", "checkpoint_00000004.pt"]
    assert isinstance(trainer.stop_request, StopRequest)


def test_all_three_random_states_go_on_where_they_were(tmp_path):
    trainer = make(tmp_path)

    def draw() -> tuple[float, float, float, float]:
        legacy = float(np.random.random())  # noqa: NPY002  # the state that MONAI's transforms fall back on
        return random.random(), random.gauss(0, 1), legacy, float(torch.rand(()))

    random.gauss(0, 1)  # leaves half a pair behind, which is part of the state
    state = trainer.checkpoint_state()
    expected = draw()
    for other in (np.random.seed, random.seed, torch.manual_seed):
        other(99)
    trainer.restore(state, "it")
    assert draw() == expected


def test_progress_is_taken_up_by_a_new_trainer(tmp_path, caplog):
    trainer = make(tmp_path)
    trainer.state.iteration, trainer.best_value, trainer.best_epoch, trainer.stopped_early = 3, 0.25, 1, True
    state = trainer.checkpoint_state()
    assert state["progress"] == {
        **{"epoch_length": 2, "global_batch": 4, "images": 8, "seed": trainer.seed, "data": trainer.data_identity},
        **{"iteration": 3, "max_epochs": 2, "best_value": 0.25, "best_epoch": 1, "stopped_early": True},
    }
    fresh = make(tmp_path)
    with caplog.at_level(logging.WARNING):
        fresh.restore(state, "it")
    assert (fresh.state.iteration, fresh.state.epoch) == (3, 1)
    assert (fresh.best_value, fresh.best_epoch, fresh.stopped_early) == (0.25, 1, True)
    assert "planned epochs" not in caplog.text


@pytest.mark.parametrize("key", ["epoch_length", "global_batch", "images", "seed"])
def test_another_number_in_what_must_be_the_same_is_refused(tmp_path, key):
    trainer = make(tmp_path)
    state = trainer.checkpoint_state()
    state["progress"][key] += 1
    with pytest.raises(CheckpointError, match=f"it was written with {key} "):
        trainer.restore(state, "it")


def moments(trainer: Any) -> dict[str, Any]:
    for parameter in trainer.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    return trainer.checkpoint_state()


def test_moments_that_the_optimizer_does_not_keep_are_refused(tmp_path):
    trainer = make(tmp_path)
    whole = moments(trainer)
    first = next(iter(whole["optimizer"]["state"]))
    changes = {
        "missing": lambda o: o["state"][first].pop("exp_avg"),
        "exp_avg of parameter": lambda o: o["state"][first].update(exp_avg=torch.zeros(1)),
        "step of parameter": lambda o: o["state"][first].update(step=torch.zeros(1)),
        "exp_avg_sq of parameter": lambda o: o["state"][first].update(exp_avg_sq=0.0),
        "moments of some": lambda o: o["state"].update({10_000: o["state"][first]}),
        "a parameter group holds": lambda o: o["param_groups"][0].update(extra=1),
        "lr of a parameter group": lambda o: o["param_groups"][0].update(lr="0.1"),
    }
    for words, change in changes.items():
        optimizer = {
            "state": {number: dict(kept) for number, kept in whole["optimizer"]["state"].items()},
            "param_groups": [dict(group) for group in whole["optimizer"]["param_groups"]],
        }
        change(optimizer)
        with pytest.raises(CheckpointError, match=words):
            trainer.restore({**whole, "optimizer": optimizer}, "it")
    trainer.restore(whole, "it")


def test_a_whole_number_as_learning_rate_which_becomes_a_float_is_no_other_setting(tmp_path):
    trainer = make(tmp_path)
    state = moments(trainer)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 2
    trainer.restore(state, "it")
    trainer.optimizer.param_groups[0]["amsgrad"] = 0
    with pytest.raises(CheckpointError, match="amsgrad of a parameter group is False"):
        trainer.restore(state, "it")


def test_rehearsed_steps_leave_nothing_behind(tmp_path):
    trainer = make(tmp_path)
    trainer.state.metrics = {"loss": 1.0}
    done = []
    trainer._wrap_student, trainer._unwrap_student = (lambda: done.append("wrap")), (lambda: done.append("unwrap"))
    before = trainer.checkpoint_state()
    weights = {name: tensor.clone() for name, tensor in before["method"].items()}
    with trainer.rehearsal() as step:
        step(next(iter(trainer.data_loader)))
        assert (trainer.state.iteration, trainer.state.epoch) == (1, 2)
        trainer.state.metrics["loss"] = 2.0
        trainer._recent = [1.0]
        for parameter in trainer.method.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        assert any(not torch.equal(weights[n], t) for n, t in trainer.method.state_dict().items())
    after = trainer.checkpoint_state()
    assert all(torch.equal(weights[name], tensor) for name, tensor in after["method"].items())
    assert after["progress"] == before["progress"]
    assert after["random"]["python"] == before["random"]["python"]
    assert trainer.state.metrics == {"loss": 1.0}
    assert all(p.grad is None for p in trainer.method.parameters())
    assert trainer._recent == []
    assert done == ["wrap", "unwrap"]


def test_where_a_run_goes_on_from(tmp_path, caplog):
    empty, full = tmp_path / "empty", tmp_path / "full"
    with caplog.at_level(logging.INFO):
        for value in (True, "true", False, "False"):
            make(empty).resume(empty, value)
    assert caplog.text.count("nothing to resume in empty: starting from the beginning") == 2
    caplog.clear()
    trainer = make(full)
    trainer.state.iteration = 2
    save_checkpoint(trainer.checkpoint_state(), full / "checkpoint_00000002.pt")
    caplog.set_level(logging.INFO)
    for value in (True, "TRUE", str(full / "checkpoint_00000002.pt")):
        fresh = make(full)
        fresh.resume(full, value)
        assert fresh.state.iteration == 2
    assert caplog.text.count("continuing from checkpoint_00000002.pt, epoch 1") == 2
    for value in (False, "false"):
        with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
            make(full).resume(full, value)


def test_taking_up_a_run_settles_its_settings(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("afire_monai.training.run_folder.settings_hold", lambda: calls.append(1))
    make(tmp_path).resume(tmp_path, False)
    assert calls == [1]


def test_a_run_that_was_asked_to_stop_ends_with_the_status_that_means_try_again(tmp_path, monkeypatch, caplog):
    left = []
    monkeypatch.setattr("afire_monai.training.resume.leave_group", lambda: left.append(1))
    trainer = make(tmp_path)
    assert not trainer.asked_to_stop()
    trainer.end_if_interrupted()
    trainer.stop_request.signal = "SIGTERM"
    assert trainer.asked_to_stop()
    trainer.stop_request = None
    assert not trainer.asked_to_stop()
    trainer.interrupt()
    assert trainer.should_terminate
    assert left == []
    with pytest.raises(SystemExit) as caught:
        trainer.end_if_interrupted()
    assert caught.value.code == 75
    assert left == [1]
    assert "at iteration 0 of 4, and nothing is lost" in caplog.text


def test_states_of_two_processes_and_two_gpus_are_saved_and_taken_up_by_rank(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    single = trainer.checkpoint_state()["random"]["torch"]
    assert len(single) == 1
    place = "afire_monai.training.resume."
    monkeypatch.setattr(place + "world_size", lambda: 2)

    def gather(into: list[torch.Tensor], own: torch.Tensor) -> None:
        for number, tensor in enumerate(into):
            tensor.copy_(own)
            tensor[0] += number

    monkeypatch.setattr(place + "dist.all_gather", gather)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["gpu 0", "gpu 1"])
    given: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    state = trainer.checkpoint_state()
    assert state["progress"]["global_batch"] == 8
    assert [int(s[0]) - int(single[0][0]) for s in state["random"]["torch"]] == [0, 1]
    assert state["random"]["cuda"] == ["gpu 0", "gpu 1"]
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_rng_state", lambda tensor: taken.append(int(tensor[0]) - int(single[0][0])))
    for rank in range(3):
        monkeypatch.setattr(place + "rank", lambda rank=rank: rank)
        trainer._restore_random(state["random"])
    assert taken == [0, 1, 0]
    assert given == [["gpu 0", "gpu 1"]] * 3
    trainer._restore_random({**state["random"], "cuda": ["gpu 0"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer._restore_random(state["random"])
    assert len(given) == 3


def test_fewer_parameter_groups_than_the_optimizer_has_are_refused(tmp_path):
    trainer = make(tmp_path)
    state = moments(trainer)
    groups = state["optimizer"]["param_groups"]
    assert len(groups) > 1
    with pytest.raises(CheckpointError, match="shorter"):
        trainer.restore({**state, "optimizer": {**state["optimizer"], "param_groups": groups[:-1]}}, "it")
