"""Two starts at once into one folder: the second is refused, and the first ends as a run alone does, to the bit.

Tiny pre-trainings by the command line. Two processes are started together; which of them gets the folder is chance.

    nice -n 5 python benchmarks/double_start.py --times 20
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from safetensors.numpy import load_file

SETTINGS = ("epochs=1", "image_size=32", "batch_size=4", "health_images=2", "use_mlflow=False", "panel_every=9")


def start(datalist: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "afire_monai", "pretrain", str(datalist), *SETTINGS, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def make_list(folder: Path) -> Path:
    import numpy as np

    for number in range(12):
        coarse = np.random.default_rng(number).integers(0, 255, (4, 4), dtype=np.uint8)
        (folder / "in").mkdir(exist_ok=True)
        Image.fromarray(np.kron(coarse, np.ones((12, 12), np.uint8))).save(folder / "in" / f"{number:02}.png")
    words = ["datalist", "from-folder", str(folder / "in"), "--out", str(folder / "list.json")]
    subprocess.run([sys.executable, "-m", "afire_monai", *words], check=True, capture_output=True)
    return folder / "list.json"


def same_models(one: Path, other: Path) -> bool:
    """Whether all weights of two runs are equal to the bit."""
    files = sorted(path.name for path in one.glob("models/*.safetensors"))
    if not files or files != sorted(path.name for path in other.glob("models/*.safetensors")):
        return False
    for name in files:
        a, b = load_file(one / "models" / name), load_file(other / "models" / name)
        if a.keys() != b.keys() or any(a[key].tobytes() != b[key].tobytes() for key in a):
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    refused = equal = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datalist = make_list(folder)
        alone = start(datalist, folder / "alone")
        text = alone.communicate()[0]
        if alone.returncode:
            raise SystemExit(text)
        for number in range(options.times):
            out = folder / str(number)
            pair = [start(datalist, out) for _ in range(2)]
            texts = [process.communicate()[0] for process in pair]
            codes = [process.returncode for process in pair]
            one_refused = sorted(code == 0 for code in codes) == [False, True]
            one_refused = one_refused and "belongs to a run on" in texts[codes.index(max(codes))]
            refused += one_refused
            equal += same_models(folder / "alone", out)
            if not one_refused:
                print(f"{number}: exit statuses {codes}\n{texts[0][-500:]}\n{texts[1][-500:]}", file=sys.stderr)
    print(f"{options.times} times two starts at once: one of them refused {refused}, the other bit-equal {equal}")
    return int(refused < options.times or equal < options.times)


if __name__ == "__main__":
    raise SystemExit(main())
