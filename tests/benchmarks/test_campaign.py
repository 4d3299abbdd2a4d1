"""The GPU campaign, tried on the CPU from a small pack, as a user would start it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"nih": 130, "kermany": 130, "crd_normal": 60, "kermany224": 20}


def write_pack(path: Path) -> None:
    """A zip of small pictures with a manifest; every other picture of the first two sources has a bright blob."""
    rng = np.random.default_rng(0)
    rows = []
    with zipfile.ZipFile(path, "w") as pack:
        for source, count in COUNTS.items():
            for number in range(count):
                sick = source in ("nih", "kermany") and number % 2 == 1
                picture = ndimage.gaussian_filter(rng.random((64, 64)), 5)
                picture = (picture - picture.min()) / np.ptp(picture)
                if sick:
                    picture[20:35, 20:35] = 1
                buffer = io.BytesIO()
                Image.fromarray((picture * 255).astype(np.uint8)).save(buffer, "PNG")
                name = f"{source}/{number}.png"
                pack.writestr(name, buffer.getvalue())
                labels = "Pneumonia" if sick else "Normal"
                rows.append({"path": name, "source": source, "group": f"{source}:{number}", "labels": labels})
        for name, head, body in (
            ("manifest.csv", [*rows[0], "lung_mask"], [{**row, "lung_mask": ""} for row in rows]),
            ("boxes.csv", ["path", "label", "x", "y", "width", "height"], []),
        ):
            text = io.StringIO()
            writer = csv.DictWriter(text, head)
            writer.writeheader()
            writer.writerows(body)
            pack.writestr(name, text.getvalue())


@pytest.mark.slow
def test_all_phases_leave_their_results_where_mlflow_is_not_installed(tmp_path):
    write_pack(tmp_path / "pack.zip")
    (tmp_path / "mlflow.py").write_text("raise ModuleNotFoundError('no mlflow here', name='mlflow')\n")
    out = tmp_path / "out"
    options = ["--pack", tmp_path / "pack.zip", "--out", out, "--minutes", 20, "--device", "cpu"]
    options += [
        "--steps",
        "mae",
        "--no-runs",
        "--images",
        "pretrain",
        "--config",
        "method_afire.yaml",
        "--rescue",
        "30",
        "--set",
    ]
    options += ["image_size=32", "head_hidden=16", "decoder_dim=16", "encoder_preset=vit_ti6", "num_workers=0"]
    options += ["minutes=0", "epochs=2"]
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "gpu_campaign.sh", *map(str, options)],
        env={**os.environ, "AFIRE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["phases"]) == ["devices", "speed", "training", "figures"]
    assert summary["device"].startswith("CPU")
    devices = json.loads((out / "devices.json").read_text())
    assert {row["what"].split(",")[0] for row in devices} == {"mae", "detector"}
    assert all(row["passed"] for row in devices)
    assert json.loads((out / "speed.jsonl").read_text().splitlines()[0])["seconds"]["full"] > 0
    assert (out / "log.csv").read_text().startswith("epoch")
    assert sum(tensor.numel() for tensor in load_file(out / "encoder_0.safetensors").values()) > 2e6
    figures = json.loads((out / "judged.jsonl").read_text())["figures"]
    assert 0 <= figures["adults/validation/tokens"] <= 1
    assert all(path.stat().st_size < 16 * 2**20 for path in out.glob("*.*"))
