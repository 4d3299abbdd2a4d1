from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hospital_files import misbehave

from afire_monai.errors import AfireError
from afire_monai.hospital.pool import MEMORY, STOPPED, TOO_SLOW, UNEXPECTED, Failure, run_tasks


def kinds(results: dict[str, str | Failure]) -> dict[str, str]:
    return {task: result.kind if isinstance(result, Failure) else result for task, result in results.items()}


def test_work_goes_on_whatever_a_task_does_to_its_process() -> None:
    tasks = ["a", "hang", "b", "crash", "c", "memory", "raise", "d", "e", "f"]
    results = dict(run_tasks(misbehave, tasks, workers=2, seconds=2.0, memory=2 << 30))
    expected = {task: task.upper() for task in "abcdef"}
    expected |= {"hang": TOO_SLOW, "crash": STOPPED, "memory": MEMORY, "raise": UNEXPECTED}
    assert kinds(results) == expected
    raised = results["raise"]
    assert isinstance(raised, Failure)
    assert raised.detail == "KeyError"  # and not what it said, which could be a patient's


def test_without_processes_a_task_that_raises_gives_a_failure() -> None:
    results = dict(run_tasks(misbehave, ["a", "raise", "b"], workers=0))
    assert kinds(results) == {"a": "A", "raise": UNEXPECTED, "b": "B"}


def test_tasks_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def tasks():  # type: ignore[no-untyped-def]
        for number in range(1000):
            taken.append(number)
            yield "a"

    results = run_tasks(misbehave, tasks(), workers=1)
    next(results)
    results.close()
    assert len(taken) < 20


def test_processes_that_cannot_start_are_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_work.py").write_text("def work(task):\n    return task\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("gone_work").work
    (tmp_path / "gone_work.py").unlink()
    with pytest.raises(AfireError, match="did not start"):
        list(run_tasks(work, ["a"], workers=1))
