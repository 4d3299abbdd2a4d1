"""Damage thousands of files, and see that each ends in a result or a named error, in bounded time and memory.

Every file of `damaged_inputs` and `damaged_models` is changed in turn: bytes of it, or values of what it holds. What
reads it works in a process of its own, which is ended after 30 s and may ask for 2 GiB more than Python, PyTorch and
MONAI have mapped. File NUMBER of a kind depends on the seed, the kind and NUMBER alone: ``--only KIND --first NUMBER
--files 1`` does it again.

    nice -n 5 python benchmarks/damaged.py --files 400
    python benchmarks/damaged.py --files 20 --only "ingest state" "disk cache"
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from damage import damaged
from damaged_inputs import INPUTS, Kind
from damaged_models import MODELS

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import Failure, Pool

SECONDS = 30.0
"""Longest that one small file may take."""
BYTES = 2 << 30
"""Most that a process may have in use, and that it may ask for besides what its libraries have mapped."""
KINDS: dict[str, Kind] = {**INPUTS, **MODELS}


@dataclass(frozen=True)
class Outcome:
    """What came of one file: ``result``, ``refused`` or ``raw``; seconds, bytes in use at most, and the message."""

    what: str
    seconds: float
    peak: int
    detail: str = ""


@dataclass
class Count:
    """Outcomes of a kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    peak: int = 0


def peak_bytes() -> int:
    """Most memory that this process has had in use."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def place_of(error: Exception) -> str:
    """Where in the package an error came through last."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "afire_monai" in Path(frame.filename).parts
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"


def one_file(task: tuple[str, int], sound: Path, seed: int) -> Outcome:
    """Damage a file of a kind in a copy of its folder, and read that."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    name, number = task
    kind, draw = KINDS[name], random.Random(f"{seed} {name} {number}")
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy) / "damaged"
        shutil.copytree(sound / name, folder)
        path = folder / kind.changed[number % len(kind.changed)]
        path.write_bytes(damaged(path.read_bytes(), path.suffix, draw))
        begin = time.perf_counter()
        try:
            kind.read(folder)
            what, detail = "result", ""
        except AfireError as error:
            what, detail = "refused", str(error)
            if not any(word in detail for word in (path.name, path.stem, *kind.named)):
                what = "raw"  # nobody would know which file to look at
        except Exception as error:
            what, detail = "raw", f"{type(error).__name__} {place_of(error)}: {error}"
        return Outcome(what, time.perf_counter() - begin, peak_bytes(), f"{path.name}: {detail}")


def campaign(names: list[str], first: int, files: int, seed: int, sound: Path) -> Iterator[tuple[str, int, Outcome]]:
    """Damage so many files of each kind."""
    work = partial(one_file, sound=sound, seed=seed)
    tasks = [(name, number) for name in names for number in range(first, first + files)]
    with Pool(1, SECONDS, BYTES) as pool:
        for task, found in pool.run(work, tasks):
            yield (
                *task,
                Outcome("raw", SECONDS, 0, f"{found.kind} {found.detail}") if isinstance(found, Failure) else found,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first file of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    options = parser.parse_args()
    counts = {name: Count() for name in options.only}
    raw: list[str] = []
    with tempfile.TemporaryDirectory() as sound:
        for name in options.only:
            (Path(sound) / name).mkdir()
            KINDS[name].make(Path(sound) / name)
            KINDS[name].read(Path(sound) / name)
        for name, number, outcome in campaign(options.only, options.first, options.files, options.seed, Path(sound)):
            count = counts[name]
            count.outcomes[outcome.what] += 1
            count.slowest, count.peak = max(count.slowest, outcome.seconds), max(count.peak, outcome.peak)
            if outcome.what == "raw":
                raw.append(f"{name} {number}: {outcome.detail[:300]}")
                print(raw[-1], file=sys.stderr, flush=True)
    return report(counts, raw, options.seed)


def report(counts: dict[str, Count], raw: list[str], seed: int) -> int:
    print("| kind | files | a result | refused by name | raw error, hang or crash | slowest | memory |")
    print("|---|---|---|---|---|---|---|")
    for name, count in counts.items():
        numbers = [count.outcomes.total(), *(count.outcomes[what] for what in ("result", "refused", "raw"))]
        cells = [*map(str, numbers), f"{count.slowest:.2f} s", f"{count.peak >> 20} MiB"]
        print(f"| {name} | {' | '.join(cells)} |")
    slowest, peak = (max(getattr(count, name) for count in counts.values()) for name in ("slowest", "peak"))
    files = sum(count.outcomes.total() for count in counts.values())
    print(f"seed {seed}: {files} files, {len(raw)} raw; slowest {slowest:.2f} s; at most {peak >> 20} MiB")
    return int(bool(raw) or slowest > SECONDS or peak > BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
