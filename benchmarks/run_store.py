"""Making MLflow's SQLite store of a run: as MLflow does it by itself, and as this package has it done.

python benchmarks/run_store.py --folder runs     # on the disk that is meant
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlflow

from afire_monai.training.run_stores import make_store


def by_itself(path: Path) -> None:
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=".", help="where temporary stores are made")
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    sides: dict[str, Callable[[Path], None]] = {"by itself": by_itself, "this package": make_store}
    seconds = {name: list[float]() for name in sides}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        by_itself(Path(folder) / "first.db")  # imports
        for number in range(arguments.times):
            for name, make in sides.items():
                begin = time.perf_counter()
                make(Path(folder) / f"{name}{number}.db".replace(" ", "_"))
                seconds[name].append(time.perf_counter() - begin)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name}: {value:.2f} s, median of {arguments.times}")
    print(f"ratio: {middle['by itself'] / middle['this package']:.1f}")


if __name__ == "__main__":
    main()
