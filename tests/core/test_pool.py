from __future__ import annotations

import multiprocessing.spawn
import time

import pytest
from hospital_files import misbehave

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import MEMORY, STOPPED, TOO_SLOW, UNEXPECTED, Failure, Pool


def kinds(results: dict[str, str | Failure]) -> dict[str, str]:
    return {task: result.kind if isinstance(result, Failure) else result for task, result in results.items()}


def test_work_goes_on_whatever_a_task_does_to_its_process() -> None:
    tasks = ["a", "hang", "b", "crash", "c", "memory", "raise", "d", "e", "f"]
    with Pool(2, seconds=10.0, memory=2 << 30) as pool:
        results = dict(pool.run(misbehave, tasks))
        assert dict(pool.run(misbehave, ["g"])) == {"g": "G"}
    expected = {task: task.upper() for task in "abcdef"}
    expected |= {"hang": TOO_SLOW, "crash": STOPPED, "memory": MEMORY, "raise": UNEXPECTED}
    assert kinds(results) == expected
    raised = results["raise"]
    assert isinstance(raised, Failure)
    assert raised.detail == "KeyError"  # and not what it said, which could be a patient's


def test_a_result_that_arrives_while_the_caller_is_busy_is_not_too_slow() -> None:
    with Pool(2, seconds=2.0) as pool:
        list(pool.run(time.sleep, [0.0, 0.0]))  # both processes have started
        results = {}
        for task, result in pool.run(time.sleep, [0.0, 0.5]):
            time.sleep(0 if results else 2.2)
            results[task] = result
    assert results == {0.0: None, 0.5: None}


def test_without_processes_a_task_that_raises_gives_a_failure() -> None:
    with Pool(0) as pool:
        results = dict(pool.run(misbehave, ["a", "raise", "b"]))
    assert kinds(results) == {"a": "A", "raise": UNEXPECTED, "b": "B"}


def test_tasks_are_taken_only_as_they_are_needed() -> None:
    taken = []

    def tasks():  # type: ignore[no-untyped-def]
        for number in range(1000):
            taken.append(number)
            yield "a"

    with Pool(1) as pool:
        results = pool.run(misbehave, tasks())
        next(results)
        results.close()
        assert len(taken) < 20
        # what was left of the first tasks is not taken for a result of the second
        assert dict(pool.run(misbehave, ["b"])) == {"b": "B"}


def test_processes_that_cannot_start_are_a_user_error() -> None:
    python = multiprocessing.spawn.get_executable()
    multiprocessing.set_executable("/bin/false")
    try:
        with Pool(1) as pool, pytest.raises(AfireError, match="did not start"):
            list(pool.run(misbehave, ["a"]))
    finally:
        multiprocessing.set_executable(python)
