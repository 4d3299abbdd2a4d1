"""Whether `torchrun` starts a lost process again for sure: PyTorch's own start of the group against `join_group`.

Two processes on gloo sum numbers; one of them is killed in the middle, by its own hand, and `torchrun` starts both
again. Each try ends by itself or is stopped after `--seconds`; both sides take turns.

    python benchmarks/restarts.py
    python benchmarks/restarts.py --tries 30 --seconds 30
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

JOB = """
import os, signal, sys, time
import torch, torch.distributed as dist
from afire_monai.core.distributed import join_group

start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
print(f"start {start}", flush=True)
join_group("gloo") if sys.argv[1] == "join_group" else dist.init_process_group("gloo")
numbers = torch.ones(1000)
for step in range(100):
    dist.all_reduce(numbers)
    numbers /= 2
    if step == 50 and start == 0 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.002)
dist.destroy_process_group()
"""
SIDES = ("init_process_group", "join_group")


def one_try(script: Path, side: str, seconds: float) -> tuple[str, int]:
    """Return how a try ended, and how often the processes were started again."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(script), side],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        told, ended = process.communicate(timeout=seconds)[0], "ended" if process.returncode == 0 else "gave up"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        told, ended = process.communicate()[0], "waited without end"
    return ended, max(int(number) for number in re.findall(r"start (\d+)", told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60.0, help="until a try is stopped")
    options = parser.parse_args()
    found: dict[str, list[tuple[str, int]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "job.py"
        script.write_text(JOB)
        for _ in range(options.tries):
            for side in SIDES:
                found[side].append(one_try(script, side, options.seconds))
    print(f"| {options.tries} tries | ended after one restart | needed more | gave up | waited {options.seconds:g} s |")
    print("|---|---|---|---|---|")
    for side, tries in found.items():
        counts = [tries.count(("ended", 1)), sum(t[0] == "ended" and t[1] > 1 for t in tries)]
        counts += [sum(t[0] == end for t in tries) for end in ("gave up", "waited without end")]
        print(f"| {side} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
