from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.dicom_results.folder import write_dicom_results
from afire_monai.dicom_results.source import source_files
from afire_monai.predictions.format import Predictions, save_predictions

FACTS = {"section": "", "datalist_sha256": "", "model": {"afire": "1"}, "thresholds": {"Edema": 0.5}}
HEAT = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)


def write_table(path: Path, rows: list[list[object]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def predictions(tmp_path, write_source) -> Path:
    """Three images: one with everything, one without a heatmap, one whose file is a text."""
    files = [write_source("a.dcm"), write_source("b.dcm", SOPInstanceUID="1.2.3.4.9"), tmp_path / "c.dcm"]
    files[2].write_text("this is no radiograph")
    table = Predictions(np.arange(3), {"Edema": np.array([0.25, 0.75, 0.5])}, None, FACTS)
    folder = save_predictions(table, tmp_path / "predictions", [HEAT, None, None])
    write_table(folder / "index.csv", [["index", "file"], *enumerate(files)])
    return folder


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_everything_there_is_something_for_is_written_and_the_rest_reported(predictions, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["dicom-results", str(predictions), "--out", str(out), "--quiet"]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 images (sr 2, seg 1, sc 2)" in said
    assert "image 2: not DICOM" in said
    assert "c.dcm" not in said
    assert "Secret" not in said
    table = read_table(out / "objects.csv")
    assert [row[:2] for row in table] == [
        ["index", "kind"],
        *[["0", "sr"], ["0", "seg"], ["0", "sc"]],
        *[["1", "sr"], ["1", "sc"]],
    ]
    assert {row[2] for row in table[1:]} == {path.name for path in out.glob("*.dcm")}
    modalities = [pydicom.dcmread(out / row[2]).Modality for row in table[1:]]
    assert modalities == ["SR", "SEG", "OT", "SR", "OT"]
    referenced = [
        pydicom.dcmread(out / row[2]).SourceImageSequence[0].ReferencedSOPInstanceUID for row in table if row[1] == "sc"
    ]
    assert referenced == ["1.2.3.4.1", "1.2.3.4.9"]
    assert [row[0] for row in read_table(out / "left_out.csv")] == ["index", "2"]
    assert str(tmp_path) not in (out / "left_out.csv").read_text()


def test_all_that_is_written_is_for_its_owner_only(predictions, tmp_path):
    (tmp_path / "out").mkdir(mode=0o755)
    write_dicom_results(predictions, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o600}


def test_kinds_asked_for_are_written_or_the_image_is_left_out(predictions, tmp_path):
    done = write_dicom_results(predictions, tmp_path / "out", kinds=("seg",))
    assert (done.objects, done.status) == ({"seg": 1}, 1)
    assert "no heatmap" in done.left_out[1]


def test_a_picture_is_written_for_each_finding_above_its_threshold(tmp_path, write_source, capsys):
    source, labels = write_source("a.dcm"), {"Edema": 0.75, "Mass": 0.9, "Normal": 0.9, "Hernia": 0.2, "Nodule": 0.9}
    facts = {**FACTS, "thresholds": {"Edema": 0.5, "Mass": 0.9, "Normal": 0.1, "Hernia": 0.3}}
    table = Predictions(np.arange(1), {name: np.array([value]) for name, value in labels.items()}, None, facts)
    folder = save_predictions(table, tmp_path / "predictions", [HEAT])
    write_table(folder / "index.csv", [["index", "file"], [0, source]])
    out = tmp_path / "out"
    assert run(["dicom-results", str(folder), "--out", str(out), "--kinds", "sc", "--per-finding", "--quiet"]) == 0
    assert "1 of 1 images (sc 1, finding 2)" in capsys.readouterr().out
    rows = read_table(out / "objects.csv")[1:]
    assert [row[1] for row in rows] == ["sc", "finding Mass", "finding Edema"]
    described = [pydicom.dcmread(out / row[2]).SeriesDescription for row in rows]
    assert described == [f"AFiRe {name} - RESEARCH USE ONLY" for name in ("overlay", "Mass", "Edema")]
    assert {row[2] for row in rows} == {path.name for path in out.glob("*.dcm")}


def test_exit_status_is_0_for_all_and_2_for_none(predictions, tmp_path):
    write_table(predictions / "index.csv", [["index", "file"], *[[i, tmp_path / "a.dcm"] for i in range(3)]])
    assert run(["dicom-results", str(predictions), "--out", str(tmp_path / "all"), "--quiet"]) == 0
    write_table(predictions / "index.csv", [["index", "file"], *[[i, tmp_path / "gone.dcm"] for i in range(3)]])
    assert run(["dicom-results", str(predictions), "--out", str(tmp_path / "none"), "--quiet"]) == 2
    assert not list((tmp_path / "none").glob("*.dcm"))


def test_folder_with_anything_in_it_is_refused(predictions, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    assert run(["dicom-results", str(predictions), "--out", str(tmp_path / "out")]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--kinds", "sr,pdf"], "pdf"),
        (["--index", "nowhere.csv"], "nowhere.csv"),
        (["--indexx", "a"], "unknown option"),
    ],
)
def test_wrong_options_end_before_anything_is_written(predictions, tmp_path, capsys, options, reason):
    assert run(["dicom-results", str(predictions), "--out", str(tmp_path / "out"), *options]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_of_an_ingest_are_found_by_their_hashes(predictions, tmp_path, write_source):
    images = [tmp_path / "in" / "images" / f"{name}.png" for name in ("aa11", "bb22", "cc33")]
    write_table(predictions / "index.csv", [["index", "file"], *enumerate(images)])
    private = write_table(
        tmp_path / "in" / "private" / "index.csv",
        [
            ["image", "group", "file", "study_uid", "series_uid", "sop_uid"],
            ["bb22", "g", str(tmp_path / "b.dcm"), "1.2.3.4.2", "1.2.3.4.3", "1.2.3.4.9"],
            ["aa11", "g", str(tmp_path / "a.dcm"), "1.2.3.4.2", "1.2.3.4.3", "1.2.3.4.77"],
        ],
    )
    done = write_dicom_results(predictions, tmp_path / "out", private, kinds=("sr",))
    assert done.done == 1
    assert "another image" in done.left_out[0]
    assert "index does not hold" in done.left_out[2]
    written = pydicom.dcmread(next((tmp_path / "out").glob("*.dcm")))
    assert "1.2.3.4.9" in str(written)


def test_own_table_of_indices_can_be_given(predictions, tmp_path):
    own = write_table(tmp_path / "mine.csv", [["index", "file"], [1, "a.dcm"]])
    assert {i: Path(s.file) for i, s in source_files(predictions, own).items()} == {1: tmp_path / "a.dcm"}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no column file"),
        ([["index", "file"]], "no row"),
        ([["name", "file"], ["a", "b"]], "index and file, or image and file, are expected"),
        ([["index", "file"], ["1", "b", "c"]], "equally long"),
        ([["index", "file"], ["-1", "b"]], "whole number"),
        ([["index", "file"], ["1", "b"], ["01", "c"]], "row 2 names another file"),
        ([["image", "file"], ["a", "b"], ["a", "c"]], "row 2 names another file"),
    ],
)
def test_table_that_is_none_is_refused(predictions, tmp_path, rows, reason):
    with pytest.raises(AfireError, match=reason):
        source_files(predictions, write_table(tmp_path / "mine.csv", rows))


def test_broken_heatmap_leaves_its_image_out_without_naming_a_path(predictions, tmp_path):
    (predictions / "heatmaps" / "00000.png").write_bytes(b"broken")
    done = write_dicom_results(predictions, tmp_path / "out")
    assert set(done.left_out) == {0, 2}
    assert str(tmp_path) not in json.dumps(done.left_out)


def test_error_that_nobody_thought_of_leaves_one_image_out_and_quotes_nothing(predictions, tmp_path, monkeypatch):
    from afire_monai.dicom_results import folder

    real = folder.open_source

    def strange(path: object) -> object:
        if str(path).endswith("a.dcm"):
            raise KeyError("Secret^Name")
        return real(path)

    monkeypatch.setattr(folder, "open_source", strange)
    done = write_dicom_results(predictions, tmp_path / "out")
    assert done.done == 1
    assert done.left_out[0] == "unexpected error: KeyError; please report this file"


def test_full_disk_ends_the_run_and_says_how_far_it_came(predictions, tmp_path, monkeypatch):
    from afire_monai.dicom_results import objects

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects.os, "link", full)
    with pytest.raises(AfireError, match="No space left"):
        write_dicom_results(predictions, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
