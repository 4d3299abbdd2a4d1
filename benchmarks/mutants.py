"""Mutation testing: change one operator, constant, return value or statement of a module, and see whether a test fails.

One module at a time, in a copy of the repository. Each mutant is tested by the module's own test files (TESTS) in a
forked child of a process that has imported the heavy libraries. A mutant that no test kills is listed with its place,
unless mutants_accepted.txt explains it. What is changed: mutate.py.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/mutants.py losses/vicreg
    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/mutants.py --sample 60 --seed 0
"""

from __future__ import annotations

import argparse
import compileall
import gc
import importlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from mutate import mutants_of

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = Path(__file__).with_name("mutants_accepted.txt")
LIMIT = 60
"""Seconds that the tests of one mutant may take; one that takes longer is killed, as an endless loop."""
HEAVY = (
    *("torch.utils.data", "monai.data", "monai.transforms", "monai.networks.nets", "monai.bundle", "ignite.engine"),
    *("ignite.metrics", "pytest", "pytest_timeout", "hypothesis.strategies", "pydicom", "sklearn.metrics"),
    *("skimage.measure", "scipy.stats", "PIL.Image", "matplotlib.pyplot", "mlflow", "yaml"),
)
TESTS = {
    "losses/masked": "losses/test_settings.py losses/test_masked.py",
    "losses/masked_patches": "losses/test_settings.py methods/test_mae.py",
    "losses/peac": "losses/test_settings.py losses/test_peac.py",
    "losses/restoration": "losses/test_settings.py losses/test_restoration.py",
    "losses/self_distillation": "losses/test_settings.py methods/test_dino.py",
    "losses/token_contrastive": "losses/test_settings.py losses/test_token_contrastive.py",
    "losses/token_match": "losses/test_settings.py losses/test_token_match.py",
    "losses/vicreg": "losses/test_settings.py losses/test_vicreg.py",
    "networks/prototypes": "losses/test_settings.py networks/test_prototypes.py",
    "radiographs/reader": "radiographs/test_reader_options.py radiographs/test_reader.py",
    "radiographs/masks": "radiographs/test_masks.py radiographs/test_mask_properties.py datalists/test_masks.py",
    "radiographs/dicom_pixels": "radiographs/test_dicom_pixels.py",
    "datalists/cells": "datalists/test_cells.py datalists/test_tables.py",
    "datalists/csv_table": "datalists/test_cells.py datalists/test_tables.py",
    "datalists/from_csv": "datalists/test_cells.py datalists/test_tables.py datalists/test_datalist.py",
    "datalists/splits": "datalists/test_splits.py",
    "hospital/identity": "hospital/test_identity.py",
    "training/finetuning": "training/test_calibration.py",
    "evaluation/metrics": "evaluation/test_by_hand.py evaluation/test_metrics.py evaluation/test_subgroups.py",
    "evaluation/bootstrap": "evaluation/test_by_hand.py evaluation/test_bootstrap.py evaluation/test_metrics.py",
    "training/checkpoint": "training/test_checkpoint.py",
    "training/checkpoint_keeper": "training/test_checkpoint.py",
    "training/resume": "training/test_checkpoint.py",
}
"""The test files, below tests/, that are a module's own."""
ONLY = {"training/finetuning": ("fit_calibration", "_fit", "calibrate", "choose_thresholds", "_STEEPEST")}
"""Functions of a module that are changed, where it is not all of them."""


def copy_tree(to: Path) -> None:
    """Copy what tests need, and import from there, here and in processes that tests start."""
    for name in ("afire_monai", "tests", "benchmarks", "bundle", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, to)
    compileall.compile_dir(to, quiet=2)
    sys.path.insert(0, str(to))
    os.environ.update(PYTHONPATH=str(to), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def passes(tree: Path, tests: list[str]) -> bool | None:
    """Whether the tests pass in a forked child; None where they take longer than the limit."""
    child = os.fork()
    if not child:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        os.chdir(tree)
        import pytest

        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", f"--basetemp={tree}/tmp"]
        os._exit(pytest.main([*words, *tests]))
    until = time.monotonic() + LIMIT
    ended = 0
    while not ended and time.monotonic() < until:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    os.killpg(child, signal.SIGKILL) if not ended else None
    if not ended:
        os.waitpid(child, 0)
        return None
    return status == 0


def test_module(
    tree: Path, module: str, sample: int, seed: int, accepted: set[tuple[str, str, str]]
) -> tuple[int, int]:
    """Print and return how many mutants there were and how many survived without a reason."""
    path = tree / "afire_monai" / f"{module}.py"
    source = path.read_text()
    compiled = Path(importlib.util.cache_from_source(str(path)))
    tests = [f"tests/{name}" for name in TESTS[module].split()]
    started = time.monotonic()
    if not passes(tree, tests):
        raise SystemExit(f"{module}: its tests fail, or take more than {LIMIT} s, without any change")
    seconds = time.monotonic() - started
    chosen = every = mutants_of(source, ONLY.get(module, ()))
    if sample and sample < len(every):
        chosen = sorted(random.Random(seed).sample(every, sample))
    killed = late = explained = 0
    for mutant in chosen:
        changed = source.encode()
        path.write_bytes(changed[: mutant.start] + mutant.new.encode() + changed[mutant.end :])
        compiled.unlink(missing_ok=True)  # its time and size may be those of the mutant before
        line = source.splitlines()[mutant.line - 1].strip()
        if not (passed := passes(tree, tests)):
            killed += 1
            late += passed is None
        elif (module, line, f"{mutant.old} -> {mutant.new}") in accepted:
            explained += 1
        else:
            print(f"afire_monai/{module}.py:{mutant.line} | {line} | {mutant.old} -> {mutant.new}", flush=True)
    path.write_text(source)
    compiled.unlink(missing_ok=True)
    share = 100 * killed / len(chosen)
    print(
        f"{module}: {len(chosen)} of {len(every)} mutants, {killed} killed ({share:.0f} %; {late} by time), "
        f"{explained} explained, {len(chosen) - killed - explained} survive; tests alone {seconds:.1f} s",
        flush=True,
    )
    return len(chosen), len(chosen) - killed - explained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as losses/vicreg; all of TESTS if none")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module, by chance; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    accepted = set()
    for text in ACCEPTED.read_text().splitlines() if ACCEPTED.is_file() else ():
        if text and not text.startswith("#"):
            module, line, change, _ = text.split(" | ")
            accepted.add((module, line, change))
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # a child's collections, of which pytest makes some, need not go through the libraries
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        chosen = options.modules or list(TESTS)
        counts = [test_module(Path(folder), m, options.sample, options.seed, accepted) for m in chosen]
    survivors = sum(count[1] for count in counts)
    print(f"{sum(count[0] for count in counts)} mutants in {len(counts)} modules, {survivors} survive")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
