from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from afire_monai.cli.main import run
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.phantom import write_phantom_dataset
from afire_monai.training import startup


def test_command_fills_the_cache_that_a_training_looks_for(tmp_path, capsys, monkeypatch):
    path = write_phantom_dataset(tmp_path / "data", normal=12, abnormal=2, size=48)
    path = tmp_path / "data" / "datalist.json"
    assert run(["cache", str(path), "--size", "24", "--workers", "0"]) == 0
    items = startup.normal_items(path, "training")
    folder = startup.cache_folder(path, "", tmp_path)
    assert f"{len(items)} of {len(items)} images are in {folder / '24x24_uint8'}" in capsys.readouterr().out
    monkeypatch.setattr("afire_monai.loading.cache_build.Pool", lambda *a, **k: pytest.fail("it is there already"))
    assert len(RadiographDataset(items, startup.reading((24, 24)), cache="disk", cache_dir=folder)) == len(items)


def test_command_reads_the_modalities_that_the_list_names(tmp_path, capsys):
    for number in range(3):
        secondary_capture(tmp_path / f"{number}.dcm", number)
    items = [{"image": f"{number}.dcm"} for number in range(3)]
    (tmp_path / "list.json").write_text(json.dumps({"meta": {"reader": {"modalities": ["OT"]}}, "training": items}))
    assert run(["cache", str(tmp_path / "list.json"), "--size", "8", "--workers", "0"]) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    assert (
        run(["cache", str(tmp_path / "list.json"), "--size", "8", "--workers", "0", "--cache-dir", str(tmp_path / "c")])
        != 0
    )


def secondary_capture(path: Path, seed: int) -> None:
    """Write a DICOM picture of modality OT."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "OT", "MONOCHROME2", 1
    dataset.Rows = dataset.Columns = 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = np.random.default_rng(seed).integers(0, 256, 64, dtype=np.uint8).tobytes()
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)


def test_command_counts_what_it_leaves_out(tmp_path, capsys):
    write_phantom_dataset(tmp_path, normal=12, abnormal=2, size=48)
    first = startup.normal_items(tmp_path / "datalist.json", "training")[0]["image"]
    Path(first).write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["cache", str(tmp_path / "datalist.json"), "--size", "24", "--width", "16", "--workers", "0"]
    assert run([*words, "--cache-dir", str(tmp_path / "c")]) == 1
    said = capsys.readouterr().out
    assert "left out: broken or truncated 1" in said
    assert Path(first).name not in said
    assert (tmp_path / "c" / "24x16_uint8" / "index.npz").is_file()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--size", "0"], "expected"),
        (["--size", "24", "--dtype", "float"], "expected"),
        (["--size", "24", "--workers", "-1"], "--workers must be a whole number of at least 0"),
    ],
)
def test_command_refuses_what_cannot_be_meant(tmp_path, capsys, wrong, words):
    write_phantom_dataset(tmp_path, normal=12, abnormal=2, size=48)
    assert run(["cache", str(tmp_path / "datalist.json"), "--size", *wrong]) == 2
    assert words in capsys.readouterr().err
