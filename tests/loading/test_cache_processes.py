"""Several training processes open one cache: the first fills it, the others wait; an error reaches all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from training_runs import run_script

SCRIPT = """
import sys
from pathlib import Path
import torch.distributed as dist
from afire_monai.loading import cache_build
from afire_monai.datalists.paths import ImagePaths
from afire_monai.core.errors import DataListError
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, real = dist.get_rank(), cache_build.build_cache
def only_first(*a, **k):
    (folder / f"built_by_{rank}").touch()
    return real(*a, **k, workers=0)  # other processes would import this script
cache_build.build_cache = only_first
paths = ImagePaths(str(path) for path in sorted(folder.glob("*.png")))
cache = cache_build.open_cache(paths, folder / "c", (8, 8))
assert cache.gather([2, 0]).shape == (2, 8, 8)
try:
    cache_build.open_cache(paths, folder / "c", (4, 4))
except DataListError as error:
    (folder / f"told_{rank}").write_text(str(error))
dist.destroy_process_group()
"""


def test_first_process_fills_the_cache_and_all_of_them_learn_of_an_error(tmp_path: Path) -> None:
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    run_script(SCRIPT, tmp_path, str(tmp_path))
    assert [path.name for path in tmp_path.glob("built_by_*")] == ["built_by_0"]
    told = [(tmp_path / f"told_{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "built with size [8, 8], but [4, 4] is requested" in told[0]
