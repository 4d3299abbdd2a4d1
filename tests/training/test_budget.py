"""A time budget: the number of epochs that it decides on, and that deciding leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from tiny_steps import METHODS, build, trainer_for
from torch.utils.data import DataLoader
from training_runs import assert_same_state, recorded_by_processes

from afire_monai.core.errors import AfireError
from afire_monai.training import CheckpointKeeper, CsvLogger, HealthMonitor, PanelWriter, PretrainTrainer, budget
from afire_monai.training import finish as export
from afire_monai.training.budget import Costs
from afire_monai.training.handlers import read_csv_log
from afire_monai.training.report.page import BUDGET_FILE

# 60 s less 3 % are 58.2 s; less 8.2 s and 2 s are 48 s; an epoch of 10 steps takes 3 s
COSTS = Costs(before=8.2, step=0.2, epoch_end=1.0, after=2.0)
IMAGES = smooth_images(12, (48, 48))


@pytest.mark.parametrize(("minutes", "epochs"), [(1.0, 16), (2.0, 35), (0.3, 2), (0.23, 1), (0.22, 0), (0.1, -2)])
def test_epochs_are_those_that_fit_between_start_and_end(minutes, epochs):
    assert COSTS.epochs(minutes, 10) == epochs


def test_least_minutes_are_those_of_one_epoch():
    assert COSTS.least_minutes(10) == pytest.approx((8.2 + 2 + 3) / 0.97 / 60)
    assert COSTS.epochs(COSTS.least_minutes(10) + 1e-9, 10) == 1


@pytest.mark.parametrize(("program", "counted"), [("/x/monai/bundle/__main__.py", True), ("/x/afire", False)])
def test_command_begins_with_its_process_if_that_runs_a_bundle_and_nothing_else(monkeypatch, program, counted):
    monkeypatch.setattr(sys, "argv", [program, "run"])
    monkeypatch.setattr(budget, "_process_age", lambda: 5000.0)
    budget.begin()
    assert (budget._since_start() >= 5000) == counted


@pytest.mark.skipif(not Path("/proc/self/stat").exists() or shutil.which("ps") is None, reason="compares with ps")
@pytest.mark.parametrize("launched", [True, False])
def test_age_is_that_of_the_process_or_of_the_launcher_that_started_it(monkeypatch, launched):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    process = os.getppid() if launched else os.getpid()
    told = subprocess.run(["ps", "-o", "etimes=", "-p", str(process)], check=True, capture_output=True, text=True)
    assert budget._process_age() == pytest.approx(float(told.stdout), abs=3)


def handlers_of(folder: Path) -> list[object]:
    dataset = trainer_for(tiny_afire(shift=2)).data_loader.dataset
    return [
        HealthMonitor(dataset, 4, every_epochs=2),
        CsvLogger(folder / "log.csv"),
        PanelWriter(dataset, folder / "panels", 2, every_epochs=2),
        CheckpointKeeper(folder / "checkpoints", every_iterations=2),
    ]


def trainer_of(folder: Path, epochs: int = 3, workers: int = 0) -> PretrainTrainer:
    trainer = tiny_trainer(tiny_afire(shift=2), IMAGES, epochs, handlers=handlers_of(folder), accumulation_steps=2)
    if workers:
        loader = trainer.data_loader
        trainer.data_loader = DataLoader(
            loader.dataset, 4, sampler=loader.sampler, num_workers=workers, persistent_workers=True
        )
    return trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_run_that_was_measured_first_is_the_run_that_was_not(tmp_path, workers):
    plain, measured = trainer_of(tmp_path / "plain"), trainer_of(tmp_path / "measured", workers=workers)
    random = torch.get_rng_state()
    costs = budget.measure(measured, 0.01)
    assert min(costs.step, costs.epoch_end, costs.after) > 0
    assert not (tmp_path / "measured").exists()
    assert torch.equal(torch.get_rng_state(), random)
    for trainer in (plain, measured):
        trainer.run()
    assert_same_state(plain.method.state_dict(), measured.method.state_dict())
    first, second = plain.optimizer.state_dict()["state"], measured.optimizer.state_dict()["state"]
    for key in first:
        assert_same_state(first[key], second[key])
    logs = [read_csv_log(tmp_path / name / "log.csv") for name in ("plain", "measured")]
    for row in (*logs[0], *logs[1]):
        del row["images_per_second"]
    assert logs[0] == logs[1]
    files = [{str(p.relative_to(tmp_path / n)) for p in (tmp_path / n).rglob("*")} for n in ("plain", "measured")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_measured_without_a_trace(name, monkeypatch):
    monkeypatch.setattr(export, "write_run_report", lambda *_: None)
    plain, measured = build(name), build(name)
    trainer_for(plain, 2).run()
    trainer = trainer_for(measured, 2)
    budget.measure(trainer, 0.01)
    trainer.run()
    assert_same_state(plain.state_dict(), measured.state_dict())


def decide(monkeypatch, costs: Costs | None) -> None:
    """Let measuring find these costs; None where nothing may be measured."""

    def measure(*_: object) -> Costs:
        assert costs is not None, "measured once more"
        return costs

    monkeypatch.setattr(budget, "measure", measure)


def test_decided_number_is_written_down_and_kept_by_a_resumed_run(tmp_path, monkeypatch):
    (tmp_path / "settings.yaml").write_text("epochs: 50\nminutes: 0.2\n")
    decide(monkeypatch, Costs(before=1.0, step=0.5, epoch_end=0.5, after=0.64))  # 11.64 s for epochs of 2 s
    trainer = trainer_of(tmp_path, epochs=budget.planned_epochs(50, 0.2, tmp_path))
    assert trainer.state.max_epochs == 50
    budget.fit(trainer, 0.2, tmp_path)
    assert trainer.state.max_epochs == 5
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == {"epochs": 5, "minutes": 0.2}
    kept = json.loads((tmp_path / BUDGET_FILE).read_text())
    assert (kept["minutes"], kept["epochs"], kept["steps_per_epoch"]) == (0.2, 5, 3)
    assert kept["seconds"] == {"before": 1.0, "step": 0.5, "epoch_end": 0.5, "after": 0.64}

    @trainer.on(Events.ITERATION_COMPLETED(once=4))
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    decide(monkeypatch, None)
    again = trainer_of(tmp_path, epochs=budget.planned_epochs(50, 0.2, tmp_path))
    again.resume(tmp_path / "checkpoints", True)
    budget.fit(again, 0.2, tmp_path)
    again.run()
    assert again.state.epoch == 5
    whole = trainer_of(tmp_path / "whole", epochs=5)
    whole.run()
    assert_same_state(whole.method.state_dict(), again.method.state_dict())


def test_without_minutes_the_settings_count_and_nothing_is_measured(tmp_path, monkeypatch):
    decide(monkeypatch, None)
    trainer = trainer_of(tmp_path, epochs=budget.planned_epochs(7, 0.0, tmp_path))
    budget.fit(trainer, 0.0, tmp_path)
    assert trainer.state.max_epochs == 7
    assert not tmp_path.joinpath(BUDGET_FILE).exists()


def test_minutes_that_cannot_be_kept_are_refused_with_the_way_out(tmp_path, monkeypatch):
    decide(monkeypatch, Costs(before=60.0, step=10.0, epoch_end=4.0, after=1.0))
    # 60 + 1 + 3 · 10 + 4 = 95 s, and 3 % more
    with pytest.raises(AfireError, match=r"--minutes 1 is less than one epoch of 3 steps .* at least --minutes 1\.6"):
        budget.fit(trainer_of(tmp_path), 1.0, tmp_path)
    decide(monkeypatch, COSTS)
    budget.fit(trainer_of(tmp_path), 1.01, tmp_path)  # 48.58 s for epochs of 1.6 s
    with pytest.raises(AfireError, match=r"planned for 1\.01 minutes, 30 epochs, not for 2: .* --minutes 0 --epochs N"):
        budget.planned_epochs(50, 2.0, tmp_path)
    begun = trainer_of(tmp_path / "begun", epochs=1)
    begun.run()
    with pytest.raises(AfireError, match="started with 1 epochs and no time budget"):
        budget.fit(begun, 1.0, tmp_path / "begun")


@pytest.mark.slow
def test_processes_take_the_first_ones_number_and_train_as_without_a_budget(tmp_path):
    made = """
from helpers import smooth_images, tiny_afire, tiny_trainer
from afire_monai.core.distributed import rank
from afire_monai.training import budget
from afire_monai.training.budget import Costs

trainer = tiny_trainer(tiny_afire(shift=2), smooth_images(24, (48, 48)), {epochs}, 3)
measure, budget.TIMED_SECONDS = budget.measure, 0.1
# process 0 has 58.2 s for epochs of 19 s, process 1 thinks that they are shorter
budget.measure = lambda *given: measure(*given) and Costs(0.0, 4.0 - rank(), 3.0, 0.0)
budget.fit(trainer, {minutes}, sys.argv[1] + ".run")
"""
    budgeted = recorded_by_processes(made.format(epochs=50, minutes=1.0), tmp_path)
    (tmp_path / "plain").mkdir()
    plain = recorded_by_processes(made.format(epochs=3, minutes=0.0), tmp_path / "plain")
    assert json.loads((tmp_path / "kept.pt.run" / BUDGET_FILE).read_text())["epochs"] == 3
    for one, other in zip(budgeted, plain, strict=True):
        assert one["losses"] == other["losses"]
        assert_same_state(one["state"], other["state"])
