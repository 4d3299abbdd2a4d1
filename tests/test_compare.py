from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(monkeypatch, *words: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["compare.py", *words])
    importlib.import_module("compare").main()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain"], "--images None: no such file"),
        (["cost", "--images", "absent.json"], "--images absent.json: no such file"),
        (["pretrain", "--images", __file__, "--method", "simclr"], "unknown method 'simclr'; there are afire"),
        (["pretrain", "--images", __file__, "--method", "mae="], "NAME=EPOCHS is expected"),
        (["pretrain", "--images", __file__, "--seeds", "0"], "at least 1 of each"),
        (["evaluate"], "nothing to evaluate"),
        (["evaluate", "--task", f"a={__file__}"], "NAME=datalist.json:label is expected"),
        (["evaluate", "--segment", "a=absent.json"], "no such file absent.json"),
        (["evaluate", "--segment", f"a={__file__}"], "no finished encoder"),
        (["table"], "holds no results"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(words, said, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=said):
        run(monkeypatch, *words, "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_result_that_was_cut_off_is_left_out_and_one_in_the_middle_is_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    stored_rows = importlib.import_module("compare_parts").stored_rows
    log = tmp_path / "results.jsonl"
    log.write_text('{"key": "a"}\n{"key": "b", "sec')
    assert stored_rows(log) == [{"key": "a"}]
    assert stored_rows(log, mend=True) == [{"key": "a"}]
    assert log.read_text() == '{"key": "a"}\n'
    log.write_text('{"key": "a"}\n{"ke\n{"key": "c"}\n')
    with pytest.raises(SystemExit, match="line 2"):
        stored_rows(log)
