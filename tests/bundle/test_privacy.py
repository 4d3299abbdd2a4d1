"""What a run leaves behind names no patient: headers and file names with planted names go in, none comes out."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import pytest
import warm
from hospital_files import PLANTED, write

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def contents(path: Path) -> list[bytes]:
    """A file's bytes, and those of its parts if it is an archive (checkpoints are)."""
    parts = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    return parts


@pytest.mark.slow
def test_names_in_headers_and_file_names_get_into_no_file_and_no_log(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    scans = tmp_path / "scans"
    scans.mkdir()
    for index in range(14):
        write(scans / f"{PLANTED[0]}_{PLANTED[2]}_{index:02d}.dcm", index)
    whole = (scans / f"{PLANTED[0]}_{PLANTED[2]}_00.dcm").read_bytes()
    (scans / f"{PLANTED[0]}_{PLANTED[2]}_98.dcm").write_bytes(whole[:-4000])
    (scans / f"{PLANTED[0]}_{PLANTED[2]}_99.dcm").write_bytes(b"")

    def call(*words: str) -> str:
        return warm.run(["-m", *words], tmp_path / f"{words[0]}_{next(count)}.txt", tmp_path).output()

    count = itertools.count()
    logs = [call("afire_monai", "datalist", "from-folder", "scans", "--out", "list.json", "--fractions", "0.8,0.2,0")]
    files = str([str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")])
    tiny = ("--epochs", "1", "--image_size", "48", "--batch_size", "4", "--health_images", "4")
    run = ("monai.bundle", "run", "--config_file")
    logs.append(call(*run, files, "--datalist", "list.json", "--output_dir", "out", *tiny))
    assert "cannot be used and are left out" in logs[-1]  # so that what is said of bad files is looked at as well
    words = ("--model_dir", "out/models", "--dataset_dir", "scans", "--output_dir", "results")
    logs.append(call(*run, str(CONFIGS / "inference.yaml"), *words))

    written = [path for folder in ("out", "results") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert {"log.csv", "settings.yaml", "mlflow.db", "encoder.json", "report.html", "summary.csv", "best.pt"} <= {
        path.name for path in written
    }
    assert PLANTED[0] in (tmp_path / "list.json").read_text(encoding="utf-8")  # the user's own paths
    for word in PLANTED:
        assert [path.name for path in written if word in path.name] == []
        assert [path.name for path in written if any(word.encode() in part for part in contents(path))] == []
        assert [log for log in logs if word in log] == []
